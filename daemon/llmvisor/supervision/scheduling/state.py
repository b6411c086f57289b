"""The states of a runtime and every way from one to another, as one table. Pure.

A test walks the whole product of states and events, so a pair that is missing here cannot go unnoticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class State(Enum):
    """Where a runtime is."""

    STOPPED = "not_loaded"
    """No worker; the next request starts one."""
    LOADING = "loading"
    """A worker is starting or loads the model."""
    READY = "loaded"
    """The worker serves."""
    DRAINING = "draining"
    """Requests in flight finish; new ones wait for the next worker."""
    STOPPING = "unloading"
    """The worker has been told to go."""
    BACKOFF = "error"
    """It crashed; the next start waits a moment."""
    FAILED = "unavailable"
    """It crashed too often, or can never load. Only a reset (or a changed file) leads out."""
    CLOSED = "closed"
    """The daemon is ending; nothing starts any more."""


class Event(Enum):
    """What happens to a runtime."""

    LOAD_WANTED = "load wanted"
    LOADED = "loaded"
    DENIED = "denied"
    """There is no room for the model at the moment; no worker was started."""
    UNLOAD_WANTED = "unload wanted"
    STAY_WANTED = "stay wanted"
    """The memory that it was to give back is not needed any more."""
    DRAINED = "drained"
    KILL_WANTED = "kill wanted"
    """Unload at once, requests in flight or not."""
    EXITED = "exited"
    """The worker is gone as it was told to."""
    CRASHED = "crashed"
    """The worker is gone unasked (or hung and was killed); it may be started again."""
    GAVE_UP = "gave up"
    """As crashed, but the restart budget is spent or the failure is permanent."""
    BACKOFF_ELAPSED = "backoff elapsed"
    RESET = "reset"
    """A person (or a changed file) wants earlier crashes forgotten."""
    SHUTDOWN = "shutdown"


class IllegalTransitionError(Exception):
    """An event that cannot happen in this state: a bug of ours."""


_S, _E = State, Event
ILLEGAL = None

TRANSITIONS: Mapping[State, Mapping[Event, State | None]] = {
    _S.STOPPED: {
        _E.LOAD_WANTED: _S.LOADING,
        _E.LOADED: ILLEGAL,
        _E.DENIED: ILLEGAL,
        _E.UNLOAD_WANTED: _S.STOPPED,
        _E.STAY_WANTED: _S.STOPPED,
        _E.DRAINED: ILLEGAL,
        _E.KILL_WANTED: _S.STOPPED,
        _E.EXITED: ILLEGAL,
        _E.CRASHED: ILLEGAL,
        _E.GAVE_UP: ILLEGAL,
        _E.BACKOFF_ELAPSED: ILLEGAL,
        _E.RESET: _S.STOPPED,
        _E.SHUTDOWN: _S.CLOSED,
    },
    _S.LOADING: {
        _E.LOAD_WANTED: _S.LOADING,
        _E.LOADED: _S.READY,
        _E.DENIED: _S.STOPPED,
        _E.UNLOAD_WANTED: _S.STOPPING,
        _E.STAY_WANTED: _S.LOADING,
        _E.DRAINED: ILLEGAL,
        _E.KILL_WANTED: _S.STOPPING,
        _E.EXITED: ILLEGAL,
        _E.CRASHED: _S.BACKOFF,
        _E.GAVE_UP: _S.FAILED,
        _E.BACKOFF_ELAPSED: ILLEGAL,
        _E.RESET: _S.LOADING,
        _E.SHUTDOWN: _S.STOPPING,
    },
    _S.READY: {
        _E.LOAD_WANTED: _S.READY,
        _E.LOADED: ILLEGAL,
        _E.DENIED: ILLEGAL,
        _E.UNLOAD_WANTED: _S.DRAINING,
        _E.STAY_WANTED: _S.READY,
        _E.DRAINED: ILLEGAL,
        _E.KILL_WANTED: _S.STOPPING,
        _E.EXITED: ILLEGAL,
        _E.CRASHED: _S.BACKOFF,
        _E.GAVE_UP: _S.FAILED,
        _E.BACKOFF_ELAPSED: ILLEGAL,
        _E.RESET: _S.READY,
        _E.SHUTDOWN: _S.DRAINING,
    },
    _S.DRAINING: {
        _E.LOAD_WANTED: _S.DRAINING,
        _E.LOADED: ILLEGAL,
        _E.DENIED: ILLEGAL,
        _E.UNLOAD_WANTED: _S.DRAINING,
        _E.STAY_WANTED: _S.READY,
        _E.DRAINED: _S.STOPPING,
        _E.KILL_WANTED: _S.STOPPING,
        _E.EXITED: ILLEGAL,
        _E.CRASHED: _S.STOPPED,
        _E.GAVE_UP: _S.FAILED,
        _E.BACKOFF_ELAPSED: ILLEGAL,
        _E.RESET: _S.DRAINING,
        _E.SHUTDOWN: _S.DRAINING,
    },
    _S.STOPPING: {
        _E.LOAD_WANTED: _S.STOPPING,
        _E.LOADED: _S.STOPPING,
        _E.DENIED: _S.STOPPED,
        _E.UNLOAD_WANTED: _S.STOPPING,
        _E.STAY_WANTED: _S.STOPPING,
        _E.DRAINED: ILLEGAL,
        _E.KILL_WANTED: _S.STOPPING,
        _E.EXITED: _S.STOPPED,
        _E.CRASHED: ILLEGAL,
        _E.GAVE_UP: ILLEGAL,
        _E.BACKOFF_ELAPSED: ILLEGAL,
        _E.RESET: _S.STOPPING,
        _E.SHUTDOWN: _S.STOPPING,
    },
    _S.BACKOFF: {
        _E.LOAD_WANTED: _S.BACKOFF,
        _E.LOADED: ILLEGAL,
        _E.DENIED: ILLEGAL,
        _E.UNLOAD_WANTED: _S.STOPPED,
        _E.STAY_WANTED: _S.BACKOFF,
        _E.DRAINED: ILLEGAL,
        _E.KILL_WANTED: _S.STOPPED,
        _E.EXITED: ILLEGAL,
        _E.CRASHED: ILLEGAL,
        _E.GAVE_UP: ILLEGAL,
        _E.BACKOFF_ELAPSED: _S.STOPPED,
        _E.RESET: _S.STOPPED,
        _E.SHUTDOWN: _S.CLOSED,
    },
    _S.FAILED: {
        _E.LOAD_WANTED: _S.FAILED,
        _E.LOADED: ILLEGAL,
        _E.DENIED: ILLEGAL,
        _E.UNLOAD_WANTED: _S.FAILED,
        _E.STAY_WANTED: _S.FAILED,
        _E.DRAINED: ILLEGAL,
        _E.KILL_WANTED: _S.FAILED,
        _E.EXITED: ILLEGAL,
        _E.CRASHED: ILLEGAL,
        _E.GAVE_UP: ILLEGAL,
        _E.BACKOFF_ELAPSED: ILLEGAL,
        _E.RESET: _S.STOPPED,
        _E.SHUTDOWN: _S.CLOSED,
    },
    _S.CLOSED: {
        _E.LOAD_WANTED: _S.CLOSED,
        _E.LOADED: ILLEGAL,
        _E.DENIED: ILLEGAL,
        _E.UNLOAD_WANTED: _S.CLOSED,
        _E.STAY_WANTED: _S.CLOSED,
        _E.DRAINED: ILLEGAL,
        _E.KILL_WANTED: _S.CLOSED,
        _E.EXITED: ILLEGAL,
        _E.CRASHED: ILLEGAL,
        _E.GAVE_UP: ILLEGAL,
        _E.BACKOFF_ELAPSED: ILLEGAL,
        _E.RESET: _S.CLOSED,
        _E.SHUTDOWN: _S.CLOSED,
    },
}

HAS_WORKER = frozenset({State.LOADING, State.READY, State.DRAINING, State.STOPPING})
"""States in which a worker process lives, or is about to."""


def next_state(state: State, event: Event) -> State:
    """Where `event` leads from `state`. Raises `IllegalTransitionError`."""
    target = TRANSITIONS[state][event]
    if target is None:
        raise IllegalTransitionError(f"{event.value} cannot happen while {state.value}")
    return target
