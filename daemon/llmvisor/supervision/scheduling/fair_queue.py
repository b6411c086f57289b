"""Requests that wait for a place in one model, in the order in which they get one. Pure.

Three rules, in this order:

1. Who ran already and was put back (its worker ended) goes first, in the order in which they came.
2. A higher priority goes before a lower one; but after `priority_passes_max` grants that passed it over, the lower one
   has a turn.
3. Within a priority clients take turns by what they have been given (start-time fair queueing: Goyal, Vin and Cheng
   1996): each client's next request has a tag on a virtual clock, the lowest tag is next, and what a request takes is
   added to its client's tag. A client that comes back starts at the clock, so nobody saves up turns. Requests of one
   client keep their order.

The clock moves on with every grant, so however many new clients come, for each of its turns a waiting request is passed
over by at most as many of them as the queue holds. Every operation but the whole order costs the logarithm of the
clients that wait.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush

from llmvisor import limits
from llmvisor.supervision.scheduling.earliest import Earliest
from llmvisor.supervision.scheduling.effects import Priority, Ticket

PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")


class FairQueue:
    """Tickets that wait. Iterating gives them in the order in which they would be granted."""

    def __init__(self) -> None:
        self._tickets: dict[int, Ticket] = {}
        self._weightless: dict[int, Ticket] = {}
        self._ahead: list[int] = []
        self._levels: dict[Priority, _Level] = {priority: _Level() for priority in PRIORITIES}
        self._passed: dict[Priority, int] = dict.fromkeys(PRIORITIES, 0)
        self._arrivals = Earliest()
        self._deadlines = Earliest()
        self._places: dict[int, int] = {}
        self._changes = 0
        """Since the places were found."""

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[Ticket]:
        yield from list(self._weightless.values())
        for ticket_id in list(self._ahead):
            yield self._tickets[ticket_id]
        yield from self._in_turn()

    def put(self, ticket: Ticket) -> None:
        """A request has come."""
        self._add(ticket)
        if ticket.weight == 0:
            self._weightless[ticket.id] = ticket
        else:
            self._levels[ticket.priority].put(ticket)

    def pass_through(self, ticket: Ticket) -> None:
        """A request has come that gets its place at once, because nobody waits; its client pays for it."""
        if ticket.weight:
            self._levels[ticket.priority].pass_through(ticket)

    def put_back(self, ticket: Ticket) -> None:
        """A request that ran already waits again, ahead of those that have not; its client has paid for it."""
        self._add(ticket)
        if ticket.weight == 0:
            self._weightless[ticket.id] = ticket
        else:
            insort(self._ahead, ticket.id)

    def first(self) -> Ticket | None:
        """Who is granted the next place. Those of weight 0 need none."""
        if self._ahead:
            return self._tickets[self._ahead[0]]
        if len(self._tickets) == len(self._weightless):
            return None
        waiting: list[Priority] = [each for each in PRIORITIES if self._levels[each].waits]
        priority = _chosen(waiting, self._passed)
        return None if priority is None else self._levels[priority].first()

    def weightless(self) -> list[Ticket]:
        """Those that need the model and no place in it."""
        return list(self._weightless.values())

    def take(self, ticket_id: int) -> Ticket | None:
        """A request waits no more, and got nothing; None where it did not wait."""
        ticket = self._remove(ticket_id)
        if ticket is not None and not self._was_aside(ticket_id):
            level = self._levels[ticket.priority]
            level.take(ticket)
            if not level.waits:
                self._passed[ticket.priority] = 0
        return ticket

    def grant(self, ticket_id: int) -> Ticket | None:
        """A request has got its place, and its client pays for it."""
        ticket = self._remove(ticket_id)
        if ticket is not None and not self._was_aside(ticket_id):
            self._levels[ticket.priority].grant(ticket)
            self._pass_over(ticket.priority)
        return ticket

    def charge(self, ticket: Ticket, turns: float) -> None:
        """A request has taken so many more turns (or less) than its weight said."""
        if not turns:
            return
        self._levels[ticket.priority].charge(ticket.client, turns)
        self._changes += 1

    def take_all(self) -> list[Ticket]:
        """Nobody waits any more."""
        tickets = list(self)
        for ticket in tickets:
            self.take(ticket.id)
        return tickets

    def place(self, ticket_id: int) -> int | None:
        """Where a request stands in the queue, from 1 on; None where it does not wait for a place.

        In a long queue it is that of a moment ago: thousands who ask again and again must not cost more than they wait
        for.
        """
        ticket = self._tickets.get(ticket_id)
        if ticket is None or ticket.weight == 0:
            return None
        if self._changes > len(self._tickets) // limits.places_changes_share:
            waiting = (ticket for ticket in self if ticket.weight)
            self._places = {ticket.id: place for place, ticket in enumerate(waiting, start=1)}
            self._changes = 0
        return min(self._places.get(ticket_id, len(self._tickets)), len(self._tickets))

    def oldest(self) -> Ticket | None:
        """Who came first."""
        return None if (first := self._arrivals.first()) is None else self._tickets[first[1]]

    def next_deadline(self) -> float | None:
        """When the first of them is wanted no more."""
        return self._deadlines.first_time()

    def take_overdue(self, now: float) -> list[Ticket]:
        """Those that are wanted no more; they do not wait after this."""
        taken = [self.take(ticket_id) for ticket_id in self._deadlines.due(now)]
        return [ticket for ticket in taken if ticket is not None]

    # ------------------------------------------------------------------------------------------------ how

    def _add(self, ticket: Ticket) -> None:
        self._tickets[ticket.id] = ticket
        self._arrivals.add(ticket.id, ticket.arrived)
        if ticket.deadline is not None:
            self._deadlines.add(ticket.id, ticket.deadline)
        self._changes += 1

    def _remove(self, ticket_id: int) -> Ticket | None:
        ticket = self._tickets.pop(ticket_id, None)
        if ticket is not None:
            self._arrivals.drop(ticket_id)
            self._deadlines.drop(ticket_id)
            self._changes += 1
        return ticket

    def _was_aside(self, ticket_id: int) -> bool:
        """Take it from those that wait for no turn; False where it is none of them."""
        if self._weightless.pop(ticket_id, None) is not None:
            return True
        if ticket_id in self._ahead:
            self._ahead.remove(ticket_id)
            return True
        return False

    def _pass_over(self, granted: Priority) -> None:
        waiting: set[Priority] = {each for each in PRIORITIES if self._levels[each].waits}
        if waiting - {granted} or any(self._passed.values()):
            _count_passes(self._passed, granted, waiting)

    def _in_turn(self) -> Iterator[Ticket]:
        """Everybody but those ahead, as they would be granted if nobody else came."""
        lines = {priority: self._levels[priority].order() for priority in PRIORITIES}
        passed = dict(self._passed)
        places = dict.fromkeys(PRIORITIES, 0)

        def waiting() -> list[Priority]:
            return [priority for priority in PRIORITIES if places[priority] < len(lines[priority])]

        while (priority := _chosen(waiting(), passed)) is not None:
            yield lines[priority][places[priority]]
            places[priority] += 1
            _count_passes(passed, priority, set(waiting()))


def _chosen(waiting: Sequence[Priority], passed: dict[Priority, int]) -> Priority | None:
    """The highest priority of those that wait, or the lowest that was passed over too often."""
    for priority in reversed(waiting):
        if passed[priority] >= limits.priority_passes_max:
            return priority
    return waiting[0] if waiting else None


def _count_passes(passed: dict[Priority, int], granted: Priority, waiting: set[Priority]) -> None:
    """One of this priority was granted; those of lower priority that wait were passed over."""
    for priority in PRIORITIES:
        below = PRIORITIES.index(priority) > PRIORITIES.index(granted)
        passed[priority] = passed[priority] + 1 if below and priority in waiting else passed[priority]
        if priority == granted or priority not in waiting:
            passed[priority] = 0


class _Client:
    """What one client waits for."""

    __slots__ = ("tag", "tickets")

    def __init__(self, tag: float) -> None:
        self.tag = tag
        """Of its next request, on the virtual clock."""
        self.tickets: dict[int, Ticket] = {}

    def head(self) -> Ticket:
        return next(iter(self.tickets.values()))


class _Level:
    """The clients of one priority."""

    def __init__(self) -> None:
        self._clock = 0.0
        self._clients: dict[str, _Client] = {}
        self._left: dict[str, float] = {}
        """Tags of clients that wait for nothing, where they are ahead of the clock."""
        self._heap: list[tuple[float, int, str]] = []
        """Tag, id and client of each client's next request, and entries that hold no more."""

    @property
    def waits(self) -> bool:
        """Whether anybody does."""
        return bool(self._clients)

    def put(self, ticket: Ticket) -> None:
        client = self._clients.get(ticket.client)
        if client is not None:
            client.tickets[ticket.id] = ticket
            return
        client = _Client(max(self._clock, self._left.pop(ticket.client, 0.0)))
        client.tickets[ticket.id] = ticket
        self._clients[ticket.client] = client
        self._push(ticket.client, client)

    def first(self) -> Ticket | None:
        while self._heap:
            tag, ticket_id, name = self._heap[0]
            client = self._clients.get(name)
            if client is not None and client.tag == tag and (head := client.head()).id == ticket_id:
                return head
            heappop(self._heap)
        return None

    def take(self, ticket: Ticket) -> None:
        client = self._clients[ticket.client]
        was_head = client.head().id == ticket.id
        del client.tickets[ticket.id]
        if was_head:
            self._next_of(ticket.client, client)

    def grant(self, ticket: Ticket) -> None:
        client = self._clients[ticket.client]
        # The clock is nowhere behind what is served, and goes on whatever the tags are.
        self._clock = max(self._clock + ticket.weight / len(self._clients), client.tag)
        client.tag += ticket.weight
        del client.tickets[ticket.id]
        self._next_of(ticket.client, client)

    def pass_through(self, ticket: Ticket) -> None:
        """As `put` and `grant` where nobody waits."""
        tag = max(self._clock, self._left.pop(ticket.client, 0.0))
        self._clock = max(self._clock + ticket.weight, tag)
        self._leave(ticket.client, tag + ticket.weight)

    def charge(self, name: str, turns: float) -> None:
        client = self._clients.get(name)
        if client is not None:
            client.tag = max(0.0, client.tag + turns)
            self._push(name, client)
        else:
            self._leave(name, self._left.get(name, self._clock) + turns)

    def order(self) -> list[Ticket]:
        """Everybody, as they would be granted if nobody else came."""
        tagged: list[tuple[float, int, Ticket]] = []
        for client in self._clients.values():
            tag = client.tag
            for ticket in client.tickets.values():
                tagged.append((tag, ticket.id, ticket))
                tag += ticket.weight
        tagged.sort(key=lambda entry: entry[:2])
        return [ticket for _, _, ticket in tagged]

    def _next_of(self, name: str, client: _Client) -> None:
        """The client's next request has its turn now, where it has one."""
        if client.tickets:
            self._push(name, client)
        else:
            del self._clients[name]
            self._leave(name, client.tag)

    def _push(self, name: str, client: _Client) -> None:
        heappush(self._heap, (client.tag, client.head().id, name))

    def _leave(self, name: str, tag: float) -> None:
        self._left.pop(name, None)
        if tag > self._clock:
            self._left[name] = tag
        if len(self._left) > limits.clients_remembered_max:
            ahead = {each: left for each, left in self._left.items() if left > self._clock}
            self._left = dict(list(ahead.items())[-limits.clients_remembered_max // 2 :])
