"""Requests between the pipe and the engine: nothing that comes for them is lost."""

from __future__ import annotations

import pytest

from llmvisor_runtimes.protocol import Delta, Done, Generate, Sampling, Step, TextPrompt
from llmvisor_runtimes.waiting import WaitingRequests, cancelled_report

REQUEST = Generate(7, "req", TextPrompt("a"), Sampling(), n=2)


class Engine:
    """Records what reaches the engine, in order."""

    def __init__(self, waiting: WaitingRequests) -> None:
        self.waiting = waiting
        self.calls: list[str] = []

    def enter(self, *meanwhile: str) -> bool:
        """Hand the request over; `meanwhile` comes while the engine takes it."""

        def take() -> None:
            self.calls.append("take")
            for what in meanwhile:
                if what == "cancel":
                    assert self.waiting.cancel(REQUEST.id) == (True, None)
                elif what == "raise":
                    raise RuntimeError("no room")
                else:
                    assert self.waiting.pause(REQUEST.id, paused=what == "pause")

        return self.waiting.enter(REQUEST.id, take, self.cancel, self.pause)

    def cancel(self, id: int) -> None:
        self.calls.append(f"cancel {id}")

    def pause(self, id: int) -> None:
        self.calls.append(f"pause {id}")


@pytest.fixture
def waiting() -> WaitingRequests:
    requests = WaitingRequests()
    assert requests.add(REQUEST)
    return requests


def test_request_enters_the_engine_once(waiting: WaitingRequests) -> None:
    """It is handed over, and waits no more."""
    engine = Engine(waiting)
    assert engine.enter()
    assert engine.calls == ["take"]
    assert REQUEST.id not in waiting
    assert not engine.enter()


def test_cancelled_request_never_enters(waiting: WaitingRequests) -> None:
    """Who cancels gets the request, to answer it; the engine does not see it."""
    engine = Engine(waiting)
    assert waiting.cancel(REQUEST.id) == (True, REQUEST)
    assert not engine.enter()
    assert engine.calls == []


def test_cancel_while_the_engine_takes_a_request_reaches_the_engine(waiting: WaitingRequests) -> None:
    """It comes right after the request, so that a backend knows the id."""
    engine = Engine(waiting)
    assert engine.enter("cancel")
    assert engine.calls == ["take", "cancel 7"]


def test_pause_of_a_waiting_request_reaches_the_engine(waiting: WaitingRequests) -> None:
    """Before or while the engine takes it; a resume takes it back."""
    assert waiting.pause(REQUEST.id, paused=True)
    engine = Engine(waiting)
    assert engine.enter()
    assert engine.calls == ["take", "pause 7"]
    assert waiting.add(REQUEST)
    engine = Engine(waiting)
    assert engine.enter("pause", "resume")
    assert engine.calls == ["take"]


def test_request_that_the_engine_refuses_waits_no_more(waiting: WaitingRequests) -> None:
    """The error goes through, and the id is forgotten."""
    with pytest.raises(RuntimeError, match="no room"):
        Engine(waiting).enter("raise")
    assert REQUEST.id not in waiting


def test_id_that_waits_already_is_refused(waiting: WaitingRequests) -> None:
    """An id is never used twice."""
    assert not waiting.add(REQUEST)


def test_unknown_id_is_the_engines(waiting: WaitingRequests) -> None:
    """What does not wait here is for the backend to know."""
    assert waiting.cancel(8) == (False, None)
    assert not waiting.pause(8, paused=True)
    assert not waiting.remove(8)


def test_cancelled_step_ends_every_choice() -> None:
    """The answer to a request that never ran: each choice cancelled, all counts zero."""
    step = cancelled_report(REQUEST)
    assert isinstance(step, Step)
    assert step.deltas == [Delta(7, 0, "", [], "cancelled"), Delta(7, 1, "", [], "cancelled")]
    assert step.done == [Done(7, 0, 0, 0, 0.0, 0.0)]
