"""What the scheduler is told of a request, and what a request that waits can be told. Pure."""

from __future__ import annotations

from llmvisor.services.service import EmbeddingRequest, Generation, ScoringRequest
from llmvisor.supervision.scheduling.effects import Ticket
from llmvisor.supervision.scheduling.scheduler import Scheduler
from llmvisor.supervision.scheduling.state import State
from llmvisor.supervision.status import WAITS_FOR_MEMORY
from llmvisor_runtimes.protocol import LoadProgress

_HAS_NO_MODEL = frozenset({State.STOPPED, State.STOPPING, State.BACKOFF, State.DRAINING})


def ticket_of(id: int, now: float, request: Generation | EmbeddingRequest | ScoringRequest) -> Ticket:
    """A generation takes a place for each of its choices, anything else takes one."""
    terms = request.terms
    return Ticket(
        id,
        weight=request.n if isinstance(request, Generation) else 1,
        arrived=now,
        keep_alive_seconds=request.keep_alive_seconds,
        client=terms.client,
        priority=terms.priority,
        deadline=terms.deadline,
        resume=terms.resume,
    )


def waits_for(scheduler: Scheduler, ticket_id: int, progress: LoadProgress | None) -> str:
    """What a request waits for at the moment: `position 3 of 7`, `loading 40 %`; empty once it runs."""
    place = scheduler.place(ticket_id)
    if place is None:
        return ""
    position = f"position {place[0]} of {place[1]}"
    if scheduler.state is State.LOADING:
        if progress is not None and progress.stage == WAITS_FOR_MEMORY:
            return f"waits for memory, {position}"
        share = f" {100 * progress.done / progress.total:.0f} %" if progress is not None and progress.total else ""
        return f"loading{share}, {position}"
    return f"the model is started, {position}" if scheduler.state in _HAS_NO_MODEL else position
