"""The prompt thread: whoever waits for a few texts waits for nobody's thousands."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import Backend, JoinsPieces, RequestError
from llmvisor_runtimes.pipes import Pipes
from llmvisor_runtimes.prompts import Prepared, PromptCommand, Prompted, PromptThread
from llmvisor_runtimes.protocol import Detokenize, Embed, Failed, Lane, Report, Score, Text
from llmvisor_runtimes.waiting import WaitingRequests


class TextsBackend:
    """Makes texts ready and notes in which order; `during` runs in the midst of each call."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.during = lambda: None

    def prepare(self, request: Embed | Score) -> list[str]:
        texts = [str(text) for text in (request.pairs if isinstance(request, Score) else request.inputs)]
        if "bad" in texts:
            raise RequestError("invalid_value", f"input {texts.index('bad')} is bad")
        self.log.append(f"{request.request_id}:{len(texts)}")
        self.during()
        return texts

    def encode(self, request: Embed | Score, prepared: object) -> None: ...

    def join(self, pieces: Sequence[object]) -> list[str]:
        return [text for piece in pieces for text in cast("list[str]", piece)]

    def detokenize(self, tokens: Sequence[int]) -> tuple[str, list[bytes]]:
        self.log.append("detokenize")
        return "", [b"" for _ in tokens]


class Bench:
    """A prompt thread that runs until it has answered so often."""

    def __init__(self) -> None:
        self.backend = TextsBackend()
        self.reports: list[Report] = []
        self.ready: list[Prompted | Prepared] = []
        self.waiting = WaitingRequests()
        self._answered = threading.Semaphore(0)
        pipes = SimpleNamespace(send=self._send)
        self.thread = PromptThread(
            cast("Backend", self.backend),
            cast("Pipes", pipes),
            self.waiting,
            self._take,
        )
        self.thread.loaded = True

    def _send(self, reports: Sequence[Report]) -> None:
        self.reports += reports
        self._answered.release()

    def _take(self, ready: Prompted | Prepared) -> None:
        self.ready.append(ready)
        self._answered.release()

    def put(self, *commands: PromptCommand) -> None:
        for command in commands:
            if isinstance(command, Embed | Score):
                self.waiting.add(command)
            self.thread.put(command)

    def run(self, answers: int) -> None:
        threading.Thread(target=self.thread.run, daemon=True).start()
        for _ in range(answers):
            assert self._answered.acquire(timeout=20)


def embed(id: int, count: int, lane: Lane = "bulk") -> Embed:
    return Embed(id, f"r{id}", [f"text {place}" for place in range(count)], ["dense"], lane=lane)


def test_interactive_work_goes_before_bulk_that_waits() -> None:
    """Three bulk jobs wait, then others come: those go first, and each kind keeps its order."""
    bench = Bench()
    bench.put(embed(1, 2), embed(2, 2), Score(3, "r3", [("a", "b")], lane="bulk"))
    bench.put(Detokenize(4, [1]), embed(5, 1, "interactive"))
    bench.run(5)
    assert bench.backend.log == ["detokenize", "r5:1", "r1:2", "r2:2", "r3:1"]
    assert bench.reports == [Text(4, "")]


def test_interactive_work_comes_between_the_pieces_of_a_bulk_job() -> None:
    """A call that comes while 2,000 texts are made ready waits for a few of them; they come whole and in order."""
    bench = Bench()
    job = embed(1, 2000)
    late = [Detokenize(2, [1])]
    bench.backend.during = lambda: bench.put(late.pop()) if late else None
    bench.put(job)
    bench.run(2)
    assert bench.backend.log[:3] == [f"r1:{limits.prepared_piece_texts_max}", "detokenize", bench.backend.log[0]]
    (prepared,) = bench.ready
    assert isinstance(prepared, Prepared)
    assert (prepared.request, prepared.prepared) == (job, job.inputs)


def test_long_texts_make_small_pieces() -> None:
    """A piece is bounded by its length, too, and a text that is over it goes alone; no texts are a piece as well."""
    bench = Bench()
    long = "x" * (limits.prepared_piece_chars_max // 2)
    bench.put(Embed(1, "r1", [long * 3, long, long, long], ["dense"], lane="bulk"), embed(2, 0))
    bench.run(2)
    assert bench.backend.log == ["r1:1", "r1:2", "r1:1", "r2:0"]


def test_error_in_a_later_piece_names_the_text_of_the_whole_request() -> None:
    """The number in the message counts from the first text, whichever piece it is in."""
    bench = Bench()
    inputs: list[str | list[int]] = ["good"] * 500
    inputs[300] = "bad"
    bench.put(Embed(1, "r1", inputs, ["dense"], lane="bulk"))
    bench.run(1)
    assert bench.reports == [Failed(1, "invalid_value", "input 300 is bad")]
    assert 1 not in bench.waiting


def test_cancelled_bulk_job_is_not_made_ready_further() -> None:
    """Whoever has gone costs one piece at most."""
    bench = Bench()
    bench.backend.during = lambda: bench.waiting.cancel(1) and None
    bench.put(embed(1, 2000), embed(2, 1))
    bench.run(1)
    assert bench.backend.log == [f"r1:{limits.prepared_piece_texts_max}", "r2:1"]


@pytest.mark.parametrize("name", ["flag", "llamacpp"])
def test_encoders_take_large_requests_in_pieces(name: str) -> None:
    """Both real encoders can put together what was made ready bit by bit."""
    from llmvisor_runtimes.flag import FlagBackend  # noqa: PLC0415 - neither is needed elsewhere
    from llmvisor_runtimes.llamacpp import LlamaCppBackend  # noqa: PLC0415 - as above

    backend = FlagBackend() if name == "flag" else LlamaCppBackend()
    assert isinstance(backend, JoinsPieces)
    assert backend.join([[1, 2], [], [3]]) == [1, 2, 3]
