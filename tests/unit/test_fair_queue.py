"""Who is next: priorities, clients in turn, those who ran already, and nobody waits for ever."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import count

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmvisor import limits
from llmvisor.supervision.scheduling.earliest import Earliest
from llmvisor.supervision.scheduling.effects import Priority, Ticket
from llmvisor.supervision.scheduling.fair_queue import PRIORITIES, FairQueue


def ticket(id: int, client: str = "", priority: Priority = "normal", *, weight: int = 1) -> Ticket:
    return Ticket(id, weight, float(id), client=client, priority=priority)


def queue(tickets: Iterable[Ticket]) -> FairQueue:
    found = FairQueue()
    for one in tickets:
        found.put(one)
    return found


def grant_all(waiting: FairQueue) -> list[int]:
    """The ids in the order in which they get their places."""
    granted: list[int] = []
    while (first := waiting.first()) is not None:
        waiting.grant(first.id)
        granted.append(first.id)
    return granted


def test_one_client_is_served_in_order() -> None:
    """What came first goes first."""
    assert grant_all(queue(ticket(id) for id in range(1, 9))) == list(range(1, 9))


def test_who_passes_through_pays_as_who_waited_would() -> None:
    """Requests that found the queue empty count for their clients' turns, whatever they weigh."""
    waited, passed = FairQueue(), FairQueue()
    for one in (*(ticket(id, "busy", weight=1 + id % 3) for id in range(6)), ticket(6, "other"), ticket(7, weight=0)):
        waited.put(one)
        waited.grant(one.id)
        passed.pass_through(one)
    for id, client in enumerate(("busy", "busy", "other", "busy", "other", "new", "new"), start=10):
        for each in (waited, passed):
            each.put(ticket(id, client))
    assert grant_all(passed) == grant_all(waited)
    assert len(passed) == 0


def test_greedy_client_leaves_every_second_place_to_another() -> None:
    """1. One client asks for a hundred at once. 2. Another asks for three. Result: these are among the first six."""
    waiting = queue([*(ticket(id, "greedy") for id in range(100)), *(ticket(id, "polite") for id in range(100, 103))])
    assert {100, 101, 102} <= set(grant_all(waiting)[:6])


def test_late_client_is_next_although_others_have_waited_longer() -> None:
    """Twenty of one client's have run; a new client is next, and gets no more than its turns."""
    waiting = queue(ticket(id, "early") for id in range(40))
    for id in range(20):
        waiting.grant(id)
    for id in range(100, 110):
        waiting.put(ticket(id, "late"))
    order = grant_all(waiting)
    assert 100 in order[:2]
    assert Counter(id >= 100 for id in order[:20]) == {True: 10, False: 10}


def test_client_that_pauses_saves_up_no_turns() -> None:
    """One that asked for nothing while another had a thousand is not owed a thousand."""
    waiting = FairQueue()
    ids = count()
    for _ in range(1000):
        waiting.put(one := ticket(next(ids), "busy"))
        waiting.grant(one.id)
    begin = next(ids)
    for _ in range(20):
        waiting.put(ticket(next(ids), "idle"))
        waiting.put(ticket(next(ids), "busy"))
    firsts = grant_all(waiting)[:20]
    assert 8 <= sum((id - begin) % 2 for id in firsts) <= 12


def test_request_of_many_choices_counts_as_many_turns() -> None:
    """A client of n=4 gets one request for each four of a client of n=1."""
    waiting = queue(
        [*(ticket(id, "wide", weight=4) for id in range(10)), *(ticket(id, "narrow") for id in range(10, 50))]
    )
    wide = sum(id < 10 for id in grant_all(waiting)[:25])
    assert wide == 5


def test_what_a_request_took_beyond_its_turn_is_charged() -> None:
    """A client whose requests take three turns each gets a third of the places of the others."""
    waiting = queue([*(ticket(id, "long") for id in range(100)), *(ticket(id, "short") for id in range(100, 200))])
    granted: list[int] = []
    while len(granted) < 80 and (first := waiting.first()) is not None:
        waiting.grant(first.id)
        granted.append(first.id)
        if first.client == "long":
            waiting.charge(first, 2.0)
    assert 18 <= sum(id < 100 for id in granted) <= 22


def test_higher_priority_goes_first() -> None:
    """High before normal before low, whatever the order in which they came."""
    waiting = queue([ticket(1, priority="low"), ticket(2), ticket(3, priority="high"), ticket(4), ticket(5)])
    assert grant_all(waiting) == [3, 2, 4, 5, 1]


def test_low_priority_is_passed_over_a_bounded_number_of_times() -> None:
    """However many of high priority come, one of low gets its turn."""
    waiting = queue([ticket(0, priority="low"), *(ticket(id, priority="high") for id in range(1, 100))])
    assert grant_all(waiting).index(0) == limits.priority_passes_max


def test_withdrawn_requests_cost_their_client_nothing() -> None:
    """1. A client asks for fifty and leaves them all. 2. It asks again. Result: it is next in its turn."""
    waiting = queue([*(ticket(id, "a") for id in range(50)), *(ticket(id, "b") for id in range(50, 60))])
    for id in range(50):
        assert waiting.take(id) is not None
    waiting.put(ticket(60, "a"))
    assert 60 in grant_all(waiting)[:2]


def test_put_back_goes_ahead_in_the_first_order_whichever_way_it_is_put() -> None:
    """Those that ran are next, by the order in which they came; their clients do not pay again."""
    tickets = [ticket(id, "a", "low") for id in range(4)]
    waiting = queue([*tickets, ticket(9, "b", "high")])
    for id in range(3):
        waiting.grant(id)
    for id in (1, 2, 0):
        waiting.put_back(tickets[id])
    assert [one.id for one in waiting] == grant_all(waiting) == [0, 1, 2, 9, 3]


def test_requests_without_weight_need_no_turn() -> None:
    """They are told apart, and are nobody's next."""
    waiting = queue([ticket(1, weight=0), ticket(2)])
    assert ([one.id for one in waiting.weightless()], waiting.first()) == ([1], ticket(2))
    assert waiting.place(1) is None
    assert waiting.place(2) == 1


def test_place_tells_where_a_request_stands() -> None:
    """It is the place in the order of grants, not of coming, and changes with it."""
    waiting = queue([*(ticket(id, "greedy") for id in range(5)), ticket(5, "polite")])
    assert [waiting.place(id) for id in (0, 5, 4, 7)] == [1, 2, 6, None]
    waiting.grant(0)
    assert waiting.place(5) == 1


def test_overdue_requests_are_taken_out() -> None:
    """Those whose deadline is over, and only those."""
    waiting = FairQueue()
    for id, deadline in ((1, 5.0), (2, None), (3, 3.0), (4, 8.0)):
        waiting.put(Ticket(id, 1, 0.0, deadline=deadline))
    assert waiting.next_deadline() == 3.0
    assert [one.id for one in waiting.take_overdue(5.0)] == [3, 1]
    assert (waiting.next_deadline(), grant_all(waiting)) == (8.0, [2, 4])


def test_oldest_is_who_came_first_whoever_is_next() -> None:
    waiting = queue([ticket(1, priority="low"), ticket(2, priority="high")])
    assert (waiting.oldest(), waiting.first()) == (ticket(1, priority="low"), ticket(2, priority="high"))
    waiting.take(1)
    assert waiting.oldest() == ticket(2, priority="high")


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)), min_size=1, max_size=60), st.integers(1, 40))
def test_newcomers_pass_each_waiting_request_a_bounded_number_of_times(
    waiting_now: list[tuple[int, int]], newcomers: int
) -> None:
    """At every grant new clients come and fill the queue, without end; whoever waits still gets its place, after at
    most as many of them for each of its turns as fit into the queue."""
    ids = count()
    waiting = queue(ticket(next(ids), f"old {client}", weight=weight) for client, weight in waiting_now)
    old, grants, room = len(waiting_now), 0, len(waiting_now) + newcomers
    turns = sum(weight for _, weight in waiting_now)
    while old:
        while len(waiting) < room:
            waiting.put(ticket(next(ids), f"new {len(waiting)} {grants}"))
        first = waiting.first()
        assert first is not None
        waiting.grant(first.id)
        old -= first.client.startswith("old")
        grants += 1
        assert grants <= room * (turns + 1), "somebody starves"


class QueueMachine(RuleBasedStateMachine):
    """The queue under any order of events: nobody is lost, and iterating tells the order of the grants."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = FairQueue()
        self.ids = count(1)
        self.waiting: dict[int, Ticket] = {}
        self.running: dict[int, Ticket] = {}

    @rule(
        client=st.sampled_from("abc"),
        priority=st.sampled_from(PRIORITIES),
        weight=st.sampled_from([0, 1, 1, 1, 2, 4]),
        deadline=st.one_of(st.none(), st.floats(0, 100)),
    )
    def put(self, client: str, priority: Priority, weight: int, deadline: float | None) -> None:
        id = next(self.ids)
        one = Ticket(id, weight, float(id), client=client, priority=priority, deadline=deadline)
        self.queue.put(one)
        self.waiting[id] = one

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.waiting)))
        assert self.queue.take(id) == self.waiting.pop(id)
        assert self.queue.take(id) is None

    @rule()
    def grant(self) -> None:
        first = self.queue.first()
        if first is None:
            assert all(one.weight == 0 for one in self.waiting.values())
            return
        assert self.queue.grant(first.id) == first
        self.running[first.id] = self.waiting.pop(first.id)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), back=st.booleans(), turns=st.floats(-4, 8))
    def end(self, data: st.DataObject, back: bool, turns: float) -> None:
        one = self.running.pop(data.draw(st.sampled_from(sorted(self.running))))
        if back:
            self.queue.put_back(one)
            self.waiting[one.id] = one
        else:
            self.queue.charge(one, turns)

    @rule(now=st.floats(0, 100))
    def overdue(self, now: float) -> None:
        taken = {one.id for one in self.queue.take_overdue(now)}
        expected = {id for id, one in self.waiting.items() if one.deadline is not None and one.deadline <= now}
        assert taken == expected
        for id in taken:
            del self.waiting[id]

    @invariant()
    def everybody_is_there_once(self) -> None:
        order = [one.id for one in self.queue]
        assert sorted(order) == sorted(self.waiting)
        assert len(self.queue) == len(self.waiting)
        oldest = self.queue.oldest()
        assert (oldest.id if oldest else None) == min(self.waiting, default=None)

    def teardown(self) -> None:
        order = [one.id for one in self.queue if one.weight]
        assert [self.queue.place(id) for id in order] == list(range(1, len(order) + 1))
        assert grant_all(self.queue) == order


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_earliest_keeps_no_more_than_twice_what_is_there() -> None:
    """A million that come and go leave nothing behind."""
    times = Earliest()
    for id in range(10_000):
        times.add(id, float(-id))
        times.drop(id)
    assert (len(times), times.first(), times.due(1e9)) == (0, None, [])
    assert len(times._heap) < 200  # pyright: ignore[reportPrivateUsage]


def test_places_in_a_long_queue_are_about_right_and_cost_little() -> None:
    """Each of ten thousand asks for its place while the queue moves on: off by less than a fiftieth."""
    waiting = queue(ticket(id) for id in range(10_000))
    for id in range(5_000):
        waiting.grant(id)
        place = waiting.place(9_999)
        assert place is not None
        assert abs(place - (9_999 - id)) <= 200
    waiting.put(ticket(10_000))
    assert waiting.place(10_000) == 5_001


@pytest.mark.parametrize("clients", [1, 100])
def test_thousands_of_requests_are_ordered_soon(clients: int) -> None:
    """Every step costs the logarithm of what waits: ten thousand take no noticeable time."""
    waiting = queue(ticket(id, f"client {id % clients}") for id in range(10_000))
    assert len(grant_all(waiting)) == 10_000
