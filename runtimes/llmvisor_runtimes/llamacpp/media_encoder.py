"""Encoding images and sounds beside the engine, in a thread of its own.

Encoding takes seconds on a CPU, as long as a hundred steps of those that stream. Two computations at once on the same
cores would each wait for the other at every barrier of their threads. So they take turns: what is encoded is computed
in pieces of a few nodes of the graph (ggml's own callback between them), and whenever the engine has a batch to compute
it gets the cores after the piece under way, once encoding has had its share: as long as the engine's last batch took,
within bounds. Who streams sees half the speed and no gap; where nobody streams encoding has all cores. A request that
ends takes what is being encoded for it along, after the piece under way. On a GPU there are no pieces and no turns.

Units that are wanted are encoded in the order in which they were asked for, and the engine asks for one of each request
at a time: a request with many images holds up nobody who has one.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Literal

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.llamacpp.projector import Embeddings, MediaChunk, Projector


class Unit:
    """A chunk at its place in a prompt. What is encoded of it all choices of the request share.

    The engine reads `embeddings` and `error`, which the encoder's thread sets, once each time it is asked.
    """

    __slots__ = ("chunk", "embeddings", "error", "start", "state")

    def __init__(self, chunk: MediaChunk, start: int) -> None:
        self.chunk = chunk
        self.start = start
        """The place of its first token in the prompt."""
        self.embeddings: Embeddings | None = None
        self.error: RequestError | None = None
        self.state = "idle"
        """`idle`, `wanted` from when it is asked for until it is encoded, `dropped` for good."""

    @property
    def end(self) -> int:
        """The place of the first token behind it."""
        return self.start + self.chunk.length

    def release(self) -> None:
        """Forget the embeddings: they are computed into the context."""
        self.embeddings = None


class CoreTurns:
    """Who computes now: the engine, which enters this as a context manager, or the encoder."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._owner: Literal["engine", "encoder"] | None = None
        self._engine_waits = self._encoder_waits = False
        self._encoder_next = False
        """The engine has just had its turn, and comes back before the encoder has noticed."""
        self._since = 0.0
        self._share_seconds = limits.media_turn_seconds_min

    def __enter__(self) -> None:
        with self._changed:
            self._engine_waits = True
            while self._owner is not None or self._encoder_next:
                self._changed.wait()
            self._engine_waits = False
            self._owner, self._since = "engine", self._clock()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            took = self._clock() - self._since
            self._share_seconds = min(max(took, limits.media_turn_seconds_min), limits.media_turn_seconds_max)
            self._encoder_next = self._encoder_waits
            self._release()

    def begin(self) -> None:
        """The encoder has something to compute."""
        with self._changed:
            self._take()

    def between(self) -> None:
        """The encoder has computed a piece: the engine comes first where it waits and it is its turn."""
        with self._changed:
            if self._engine_waits and self._clock() - self._since >= self._share_seconds:
                self._release()
                self._take()

    def end(self) -> None:
        """The encoder has computed all it had."""
        with self._changed:
            self._release()

    def _take(self) -> None:
        self._encoder_waits = True
        while self._owner is not None or (self._engine_waits and not self._encoder_next):
            self._changed.wait()
        self._encoder_waits = self._encoder_next = False
        self._owner, self._since = "encoder", self._clock()

    def _release(self) -> None:
        self._owner = None
        self._changed.notify_all()


class MediaEncoder:
    """Encodes units one after the other. `want` and `drop` are for the engine's thread."""

    def __init__(self, make: Callable[[Callable[[], bool] | None], Projector], *, in_pieces: bool = True) -> None:
        """`make` loads the projector, given what it is to call between pieces, where it is to compute in pieces.

        Raises what that raises.
        """
        self.turns = CoreTurns() if in_pieces else None
        """Those of the engine and this; None where both may compute at once."""
        self.pieces = 0
        """Counts what has been computed, to tell progress from a hang."""
        self._queue: queue.SimpleQueue[Unit | None] = queue.SimpleQueue()
        self._current: Unit | None = None
        self._closing = False
        self.projector = make(self._between if in_pieces else None)
        self._thread = threading.Thread(target=self._run, name="media", daemon=True)
        self._thread.start()

    def want(self, unit: Unit) -> None:
        """Encode this one, unless that has been asked for."""
        if unit.state == "idle" and unit.embeddings is None:
            unit.state = "wanted"
            self._queue.put(unit)

    def drop(self, unit: Unit) -> None:
        """Its request has ended."""
        unit.state = "dropped"
        unit.release()

    def close(self) -> None:
        """End the thread after the piece under way, and free the projector."""
        self._closing = True
        self._queue.put(None)
        self._thread.join()
        self.projector.close()

    def _between(self) -> bool:
        self.pieces += 1
        unit = self._current
        if unit is None:
            return True  # while it is loaded
        if self._closing or unit.state == "dropped":
            return False
        if self.turns:
            self.turns.between()
        return True

    def _run(self) -> None:
        while (unit := self._queue.get()) is not None and not self._closing:
            if unit.state == "wanted":
                self._encode(unit)

    def _encode(self, unit: Unit) -> None:
        self._current = unit
        if self.turns:
            self.turns.begin()
        embeddings: Embeddings | None = None
        try:
            embeddings = self.projector.encode(unit.chunk)
        except Exception as error:  # noqa: BLE001 - of one request alone
            sys.stderr.write(f"an image or sound cannot be encoded:\n{''.join(traceback.format_exception(error))}")
        finally:
            if self.turns:
                self.turns.end()
            self._current = None
        self.pieces += 1
        if unit.state == "wanted":
            unit.embeddings = embeddings
            if embeddings is None:
                unit.error = RequestError("internal_error", "an image or sound of the conversation cannot be encoded")
            unit.state = "idle"
