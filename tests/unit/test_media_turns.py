"""The engine and the encoder of images take turns on the cores."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import cast

import numpy as np
from tests.support.polling import eventually_sync

from llmvisor_runtimes.llamacpp.media_encoder import CoreTurns, MediaEncoder, Unit
from llmvisor_runtimes.llamacpp.projector import Embeddings, MediaChunk, Projector

WAIT_SECONDS = 20


class _Projector:
    """Computes pieces until it is told to stop, or has done as many as a chunk asks for."""

    def __init__(self, between: Callable[[], bool] | None) -> None:
        self._between = between or (lambda: not self.stopped)
        self.stopped = False
        self.seen: list[object] = []
        self.pieces = 0
        self.computing = False
        self.closed = False

    def encode(self, chunk: int) -> Embeddings | None:
        self.seen.append(chunk)
        for _ in range(chunk):
            self.computing = True
            time.sleep(0.0005)
            self.computing = False
            self.pieces += 1
            if not self._between():
                return None
        return np.zeros((1, 1), np.float32)

    def close(self) -> None:
        self.closed = True


@contextmanager
def encoder(*, in_pieces: bool = True) -> Generator[tuple[MediaEncoder, _Projector]]:
    made: list[_Projector] = []

    def make(between: Callable[[], bool] | None) -> Projector:
        made.append(_Projector(between))
        return cast("Projector", made[0])

    media = MediaEncoder(make, in_pieces=in_pieces)
    try:
        yield media, made[0]
    finally:
        media.close()
        assert made[0].closed


def unit(pieces: int) -> Unit:
    return Unit(cast("MediaChunk", pieces), 0)


def wait_for(condition: Callable[[], object]) -> None:
    eventually_sync(condition, WAIT_SECONDS, "the encoder gets there")


def test_unit_is_encoded_once_however_often_it_is_wanted() -> None:
    """Asked for in each step, as the engine does."""
    one = unit(5)
    with encoder() as (media, projector):
        for _ in range(50):
            media.want(one)
        wait_for(lambda: one.embeddings is not None)
        media.want(one)
        assert projector.seen == [5]
        one.release()
        media.want(one)
        wait_for(lambda: one.embeddings is not None)
        assert projector.seen == [5, 5]


def test_unit_whose_request_has_ended_is_dropped_at_once() -> None:
    """The one under way stops after a piece, one that waits is not begun, and the next is served."""
    endless, never, last = unit(1_000_000), unit(3), unit(2)
    with encoder() as (media, projector):
        for each in (endless, never, last):
            media.want(each)
        wait_for(lambda: projector.pieces)
        media.drop(never)
        media.drop(endless)
        wait_for(lambda: last.embeddings is not None)
        assert projector.seen == [1_000_000, 2]
        assert endless.embeddings is None
        assert endless.error is None


def test_closing_ends_what_is_being_encoded() -> None:
    """Nobody waits for an image that nobody sees."""
    with encoder() as (media, projector):
        media.want(unit(1_000_000))
        wait_for(lambda: projector.pieces)
    assert projector.pieces < 1_000_000


def test_engine_and_encoder_never_compute_at_once_and_both_get_on() -> None:
    """A hundred steps while an endless image is encoded: each alone, and the encoder has had its share between."""
    with encoder() as (media, projector):
        media.want(unit(1_000_000))
        wait_for(lambda: projector.pieces)
        shares: list[int] = []
        assert media.turns is not None
        for _ in range(100):
            with media.turns:
                assert not projector.computing
                shares.append(projector.pieces)
                time.sleep(0.001)
                assert not projector.computing
                assert projector.pieces == shares[-1]
        given = [after - before for before, after in itertools.pairwise(shares)]
        assert min(given) >= 1, "the encoder starves"
        assert max(given) < 1_000, "the engine waits for the whole image"


def test_on_a_gpu_nobody_takes_turns() -> None:
    """What cannot be cut into pieces would hold the engine up as long as it takes."""
    one = unit(1_000_000)
    with encoder(in_pieces=False) as (media, projector):
        assert media.turns is None
        media.want(one)
        wait_for(lambda: projector.pieces)
        media.drop(one)
        projector.stopped = True


def test_encoder_computes_on_where_the_engine_wants_nothing() -> None:
    """And an engine that comes later gets its turn."""
    turns = CoreTurns()
    turns.begin()
    for _ in range(1000):
        turns.between()
    entered = threading.Event()

    def engine() -> None:
        with turns:
            entered.set()

    thread = threading.Thread(target=engine)
    thread.start()
    until = time.monotonic() + WAIT_SECONDS
    while not entered.is_set():
        assert time.monotonic() < until
        turns.between()
    thread.join()
    turns.end()
