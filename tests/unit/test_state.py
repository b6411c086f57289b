"""The state table: whole, and without dead ends."""

from __future__ import annotations

import itertools

import pytest

from llmvisor.supervision.scheduling.state import (
    HAS_WORKER,
    TRANSITIONS,
    Event,
    IllegalTransitionError,
    State,
    next_state,
)


def test_table_lists_every_state_and_event() -> None:
    """No pair is missing, so no pair is decided by accident."""
    listed = {(state, event) for state, row in TRANSITIONS.items() for event in row}
    assert listed == set(itertools.product(State, Event))


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_next_state_is_the_table(state: State, event: Event) -> None:
    """A listed pair leads where the table says, and an illegal one is said loudly."""
    target = TRANSITIONS[state][event]
    if target is None:
        with pytest.raises(IllegalTransitionError, match=event.value):
            next_state(state, event)
    else:
        assert next_state(state, event) is target


def test_people_can_always_ask() -> None:
    """What people (and requests) want is legal in every state."""
    for state in State:
        for event in (Event.LOAD_WANTED, Event.UNLOAD_WANTED, Event.KILL_WANTED, Event.RESET, Event.SHUTDOWN):
            assert TRANSITIONS[state][event] is not None


def test_shutdown_is_reached_from_everywhere_and_final() -> None:
    """From every state a path of shutdown and exits ends in CLOSED, which nothing leaves."""
    for start in State:
        state = next_state(start, Event.SHUTDOWN)
        for event in (Event.DRAINED, Event.EXITED, Event.SHUTDOWN):
            if state is not State.CLOSED and TRANSITIONS[state][event] is not None:
                state = next_state(state, event)
        assert state is State.CLOSED, start
    assert {target for target in TRANSITIONS[State.CLOSED].values() if target is not None} == {State.CLOSED}


def test_only_a_reset_leads_out_of_unavailable() -> None:
    """An unavailable model stays so whatever requests come, until a person (or a changed file) resets it."""
    leads_out = {e for e, target in TRANSITIONS[State.FAILED].items() if target not in {None, State.FAILED}}
    assert leads_out == {Event.RESET, Event.SHUTDOWN}


def test_no_worker_is_forgotten() -> None:
    """A state with a worker is left for one without only when the worker is gone or was never started."""
    gone = {Event.EXITED, Event.CRASHED, Event.GAVE_UP, Event.DENIED}
    for state, row in TRANSITIONS.items():
        for event, target in row.items():
            if state in HAS_WORKER and target is not None and target not in HAS_WORKER:
                assert event in gone, (state, event)
