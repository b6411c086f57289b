"""Requests that wait for a place in one model, in the order in which they get one. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from llmvisor.supervision.effects import Ticket


class FairQueue:
    """Tickets that wait. Iterating gives them in the order in which they would be granted."""

    def __init__(self) -> None:
        self._tickets: deque[Ticket] = deque()

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self._tickets)

    def put(self, ticket: Ticket) -> None:
        """A request has come."""
        self._tickets.append(ticket)

    def put_back(self, ticket: Ticket) -> None:
        """A request that ran already waits again, ahead of those that have not."""
        self._tickets.appendleft(ticket)

    def first(self) -> Ticket | None:
        """Who is granted next."""
        return next(iter(self), None)

    def take(self, ticket_id: int) -> Ticket | None:
        """A request waits no more; None where it did not."""
        found = next((ticket for ticket in self._tickets if ticket.id == ticket_id), None)
        if found is not None:
            self._tickets.remove(found)
        return found

    def take_all(self) -> list[Ticket]:
        """Nobody waits any more."""
        tickets = list(self)
        self._tickets.clear()
        return tickets
