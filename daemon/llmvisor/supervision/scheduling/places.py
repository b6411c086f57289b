"""Who waits for one model, who runs in its worker, and who is next. Pure."""

from __future__ import annotations

from llmvisor import limits
from llmvisor.supervision.scheduling.earliest import Earliest
from llmvisor.supervision.scheduling.effects import Ticket
from llmvisor.supervision.scheduling.fair_queue import FairQueue
from llmvisor.supervision.scheduling.poison import PoisonRule
from llmvisor.supervision.scheduling.service_times import ServiceTimes


class Places:
    """The slots of one model's worker, and its queue. Suspects of `poison` run apart from the others."""

    def __init__(self, poison: PoisonRule) -> None:
        self.slots = 0
        """That the worker has; 0 while none serves."""
        self.busy = 0
        """Slots in use."""
        self.running: dict[int, Ticket] = {}
        self._waiting = FairQueue()
        self._deadlines = Earliest()
        """Of those that run."""
        self._times = ServiceTimes()
        self._poison = poison
        self._begun: set[int] = set()
        """Of those that wait: a worker had them already."""
        self._probation_until = 0.0
        """Of the suspect that runs: one that is slow, or whose reader is, does not hold up the others for ever."""

    # ------------------------------------------------------------------------------------------------ what is asked

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def on_probation(self) -> int | None:
        """The suspect that runs."""
        suspects = self._poison.suspects
        return next((ticket_id for ticket_id in self.running if ticket_id in suspects), None) if suspects else None

    def place(self, ticket_id: int) -> tuple[int, int] | None:
        """Where a request stands among those that wait for a place, and how many these are; None where it does not."""
        place = self._waiting.place(ticket_id)
        return None if place is None else (place, len(self._waiting))

    def oldest(self) -> Ticket | None:
        """Of those that wait."""
        return self._waiting.oldest()

    def next_deadline(self) -> float | None:
        """The first deadline that is over, of whoever waits or runs."""
        probation = None if self.on_probation is None else self._probation_until
        times = (self._waiting.next_deadline(), self._deadlines.first_time(), probation)
        return min((time for time in times if time is not None), default=None)

    def fits_at_once(self, ticket: Ticket) -> bool:
        """Whether a new request would run now, in a worker that serves."""
        free = ticket.weight == 0 or (not self._waiting and self._fits(ticket))
        return free and not self._poison.suspects

    def come_back_seconds(self, now: float, parallel: int, loading_since: float | None) -> float:
        """What a request that found the queue full is told; `parallel` slots are to come where there are none yet."""
        slots = self.slots or parallel
        return self._times.come_back_seconds(now, queued=len(self._waiting), slots=slots, loading_since=loading_since)

    # ------------------------------------------------------------------------------------------------ what happens

    def put(self, ticket: Ticket) -> None:
        """A request has come."""
        self._waiting.put(ticket)

    def run_at_once(self, ticket: Ticket) -> None:
        """A request has come that `fits_at_once`."""
        self._waiting.pass_through(ticket)
        self._run(ticket, ticket.arrived)

    def withdraw(self, ticket_id: int) -> Ticket | None:
        """A request waits no more, and got nothing; None where it did not wait."""
        ticket = self._waiting.take(ticket_id)
        self._forget(ticket_id)
        return ticket

    def withdraw_all(self) -> list[Ticket]:
        tickets = self._waiting.take_all()
        for ticket in tickets:
            self._forget(ticket.id)
        return tickets

    def overdue(self, now: float) -> tuple[list[Ticket], list[int]]:
        """Those whose deadline is over, each once: tickets that waited, and ids of those that run on."""
        if (suspect := self.on_probation) is not None and now >= self._probation_until:
            self._poison.clear(suspect)
        waiting = self._waiting.take_overdue(now)
        for ticket in waiting:
            self._forget(ticket.id)
        return waiting, self._deadlines.due(now)

    def opened(self, slots: int, load_seconds: float) -> None:
        """A worker serves."""
        self.slots = slots
        self._times.loaded(load_seconds)

    def grant(self, now: float) -> list[Ticket]:
        """Let run what fits, in order."""
        granted: list[Ticket] = []
        if not self._waiting:
            return granted
        if self._poison.suspects:
            self._grant_suspect(granted, now)
        if not self._poison.suspects:
            for ticket in self._waiting.weightless():
                self._grant(ticket, granted, now)
            while (ticket := self._waiting.first()) is not None and self._fits(ticket):
                self._grant(ticket, granted, now)
        return granted

    def end(self, ticket_id: int, now: float) -> bool:
        """A request that ran has ended. False for one that did not run."""
        if (ticket := self.running.pop(ticket_id, None)) is None:
            return False
        self.busy -= self._width(ticket)
        self._deadlines.drop(ticket_id)
        self._forget(ticket_id)
        if (taken := self._times.ended(ticket_id, now)) is not None:
            self._waiting.charge(*taken)
        return True

    def closed(self) -> dict[int, Ticket]:
        """The worker is gone: gives what was inside, in the order in which it was granted."""
        inside, self.running = self.running, {}
        self._deadlines.clear()
        self._times.forget_running()
        self.slots = self.busy = 0
        return inside

    def put_back(self, ticket: Ticket) -> None:
        """What was inside waits for the next worker."""
        self._waiting.put_back(ticket)
        self._begun.add(ticket.id)

    def withdraw_unbegun(self) -> list[Ticket]:
        """Those that no worker has had yet wait no more."""
        return [ticket for ticket in list(self._waiting) if ticket.id not in self._begun and self.withdraw(ticket.id)]

    # ------------------------------------------------------------------------------------------------ how

    def _grant(self, ticket: Ticket, granted: list[Ticket], now: float) -> None:
        self._waiting.grant(ticket.id)
        self._begun.discard(ticket.id)
        self._run(ticket, now)
        granted.append(ticket)

    def _run(self, ticket: Ticket, now: float) -> None:
        self.running[ticket.id] = ticket
        self.busy += self._width(ticket)
        self._times.began(ticket, now)
        if ticket.deadline is not None:
            self._deadlines.add(ticket.id, ticket.deadline)

    def _grant_suspect(self, granted: list[Ticket], now: float) -> None:
        """Suspects run one at a time, beside cleared ones alone; everybody else waits."""
        waiting = {ticket.id: ticket for ticket in self._waiting}
        suspect = self._poison.next_suspect(waiting, self.running)
        if suspect is not None and self._fits(waiting[suspect]):
            self._grant(waiting[suspect], granted, now)
            self._probation_until = now + limits.poison_probation_seconds

    def _fits(self, ticket: Ticket) -> bool:
        return self.busy == 0 or self.busy + self._width(ticket) <= self.slots

    def _width(self, ticket: Ticket) -> int:
        """Slots that it takes: of more choices than there are, some wait for the others in the worker."""
        return min(ticket.weight, self.slots)

    def _forget(self, ticket_id: int) -> None:
        self._poison.forget(ticket_id)
        self._begun.discard(ticket_id)
