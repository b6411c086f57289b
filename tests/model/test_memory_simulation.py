"""Models that do not fit together, on a virtual clock: who waits for memory, who goes, and that nobody starves.

Real schedulers decide about requests and the real decider about memory; the simulation plays the workers, the memory
and the clients. Every run is told by its numbers alone, so that a failing one can be had again.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from random import Random

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings
from tests.support.schedulers import scheduler

from llmvisor.supervision.memory.arrivals import Arrivals
from llmvisor.supervision.memory.budget import MemoryBudget
from llmvisor.supervision.memory.evict import Load, Resident, Room, decide
from llmvisor.supervision.scheduling.effects import Effect, Grant, Refuse, StartWorker, StopWorker, Ticket
from llmvisor.supervision.scheduling.state import HAS_WORKER, State

NEVER = 10.0**9


class Kind(msgspec.Struct, frozen=True):
    """A model as configured, and how it behaves."""

    bytes: int
    load_seconds: float
    unload_seconds: float
    service_seconds: float
    requests_per_second: float
    pinned: bool = False
    clients: int = 0
    """That ask again as soon as they have an answer, a moment later."""
    crash_share: float = 0.0
    """Of loads that end with a crash instead."""


class Model:
    def __init__(self, name: str, kind: Kind) -> None:
        self.name = name
        self.kind = kind
        self.scheduler = scheduler(queue_limit=10**6, load_timeout_seconds=NEVER, idle_timeout_seconds=0)
        self.ready_at = self.used_at = 0.0
        self.loads = 0
        self.worker = 0
        """Counts them: what was planned for an earlier one is void."""

    @property
    def in_flight(self) -> int:
        return self.scheduler.queued + self.scheduler.running


class World:
    """Everything, and what happens next."""

    def __init__(
        self, kinds: list[Kind], *, limit: int, min_residency: float, seed: int, wait_timeout: float = NEVER
    ) -> None:
        self.random = Random(seed)
        self.now = 0.0
        self.min_residency = min_residency
        self.wait_timeout = wait_timeout
        self.budget = MemoryBudget(limit, available=lambda: limit - sum(map(self.rss, self.models.values())))
        self.models = {f"m{number}": Model(f"m{number}", kind) for number, kind in enumerate(kinds)}
        self.arrivals = Arrivals(600)
        self.loads: list[Load] = []
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.ids = itertools.count(1)
        self.arrived: dict[int, float] = {}
        self.waits: list[float] = []
        """Of requests, until a worker got them."""
        self.load_waits: list[float] = []
        self.refused: list[str] = []
        self.swaps = 0
        self.wakes: set[float] = set()
        self.ends_at = 0.0

    def rss(self, model: Model) -> int:
        return model.kind.bytes if model.worker and model.scheduler.state in HAS_WORKER - {State.LOADING} else 0

    def at(self, delay: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + delay, next(self.order), what))

    def run(self, seconds: float) -> None:
        """So long with clients, and then until all that was asked has ended."""
        self.ends_at = seconds
        for model in self.models.values():
            if model.kind.requests_per_second:
                self.at(self.random.expovariate(model.kind.requests_per_second), lambda m=model: self.open_client(m))
            for _ in range(model.kind.clients):
                self.at(self.random.random(), lambda m=model: self.request(m))
        while self.events:
            self.now, _, what = heapq.heappop(self.events)
            assert self.now < seconds + 100_000, "it does not come to an end"
            what()
            self.look()
            self.check()

    # ---------------------------------------------------------------------------------------------------- clients

    def open_client(self, model: Model) -> None:
        if self.now < self.ends_at:
            self.request(model)
            self.at(self.random.expovariate(model.kind.requests_per_second), lambda: self.open_client(model))

    def request(self, model: Model) -> None:
        ticket = Ticket(next(self.ids), 1, self.now)
        self.arrived[ticket.id] = self.now
        self.arrivals.note(model.name, self.now)
        model.used_at = self.now
        self.apply(model, model.scheduler.submit(ticket))

    def answered(self, model: Model, ticket_id: int, worker: int) -> None:
        if worker == model.worker:
            del self.arrived[ticket_id]
            model.used_at = self.now
            self.apply(model, model.scheduler.ended(ticket_id, self.now))
            if model.kind.clients and self.now < self.ends_at:
                self.at(0.01, lambda: self.request(model))

    # ---------------------------------------------------------------------------------------------------- workers

    def apply(self, model: Model, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case StartWorker():
                    assert model.name not in [load.key for load in self.loads], "it loads twice at once"
                    self.loads.append(Load(model.name, model.kind.bytes, self.now, self.now + self.wait_timeout))
                case StopWorker(rung, _):
                    self.at(model.kind.unload_seconds, lambda worker=model.worker: self.gone(model, worker))
                    assert rung == "close", "nobody is killed for memory"
                    assert not model.scheduler.running
                case Grant(ticket_id):
                    self.waits.append(self.now - self.arrived[ticket_id])
                    seconds = self.random.uniform(0.1, 1) * model.kind.service_seconds
                    self.at(seconds, lambda one=ticket_id, worker=model.worker: self.answered(model, one, worker))
                case Refuse(ticket_id, kind):
                    del self.arrived[ticket_id]
                    self.refused.append(kind)
                case _:
                    pass

    def loaded(self, model: Model, worker: int) -> None:
        if worker != model.worker:
            return
        if self.random.random() < model.kind.crash_share:
            self.gone(model, worker)
            return
        model.ready_at = self.now
        self.apply(model, model.scheduler.loaded(2, self.now))

    def gone(self, model: Model, worker: int) -> None:
        assert worker == model.worker
        model.worker = 0
        self.budget.release(model.name)
        self.apply(model, model.scheduler.exited("gone", self.now))
        if (wake := model.scheduler.next_wake()) is not None and model.scheduler.state is State.BACKOFF:
            self.at(wake - self.now, lambda: self.apply(model, model.scheduler.wake(self.now)))

    # ---------------------------------------------------------------------------------------------------- memory

    def resident(self, key: str) -> Resident:
        model, held = self.models[key], self.budget.held_bytes(key)
        if model.scheduler.state is State.LOADING:
            return Resident(key, held, "loading", model.kind.pinned)
        if model.scheduler.state is not State.READY:
            return Resident(key, held, "draining" if model.scheduler.state is State.DRAINING else "leaving")
        phase = "busy" if model.in_flight else "idle"
        rate = self.arrivals.per_second(key, self.now)
        return Resident(
            key, held, phase, model.kind.pinned, model.ready_at, model.kind.load_seconds, rate, model.used_at
        )

    def look(self) -> None:
        for key in self.budget.holders():
            self.budget.told(key, self.rss(self.models[key]))
        residents = {key: self.resident(key) for key in self.budget.holders()}
        room = Room(self.budget.free_bytes(), self.budget.limit_bytes, self.budget.attainable_bytes())
        decision = decide(
            self.loads, list(residents.values()), room, now=self.now, min_residency_seconds=self.min_residency
        )
        for key in decision.admit:
            self.admit(self.models[key])
        for refusal in decision.refuse:
            self.loads = [load for load in self.loads if load.key != refusal.key]
            model = self.models[refusal.key]
            self.apply(model, model.scheduler.denied("no room", self.now))
        for key in decision.evict:
            self.make_leave(residents[key], idle=True)
        for key in decision.yield_:
            self.make_leave(residents[key], idle=False)
        for key in decision.stay:
            self.apply(self.models[key], self.models[key].scheduler.stay_wanted(self.now))
        if decision.wake_at is not None and decision.wake_at < NEVER:
            assert decision.wake_at > self.now, "it would look again for ever"
            if decision.wake_at not in self.wakes:
                self.wakes.add(decision.wake_at)
                self.at(decision.wake_at - self.now, lambda: None)

    def admit(self, model: Model) -> None:
        self.load_waits += [self.now - load.since for load in self.loads if load.key == model.name]
        self.loads = [load for load in self.loads if load.key != model.name]
        self.budget.reserve(model.name, model.kind.bytes)
        model.loads += 1
        model.worker = next(self.order)
        self.at(model.kind.load_seconds, lambda worker=model.worker: self.loaded(model, worker))

    def make_leave(self, resident: Resident, *, idle: bool) -> None:
        assert not resident.pinned
        assert resident.phase == ("idle" if idle else "busy")
        least = min(self.min_residency, resident.reload_seconds) if idle else self.min_residency
        assert self.now - resident.ready_at >= least - 1e-6
        assert self.loads, "it goes for nobody"
        self.swaps += 1
        model = self.models[resident.key]
        self.apply(model, model.scheduler.unload_wanted(self.now, yields=not idle))

    def check(self) -> None:
        held = sum(self.budget.held_bytes(key) for key in self.budget.holders())
        assert held <= self.budget.limit_bytes
        for model in self.models.values():
            if model.in_flight:
                alive = model.worker or model.scheduler.next_wake() is not None
                assert alive or model.name in [load.key for load in self.loads], f"{model.name} waits for nothing"


def kind(bytes: int = 6, **fields: float) -> Kind:
    defaults = {"load_seconds": 2.0, "unload_seconds": 0.2, "service_seconds": 1.0, "requests_per_second": 0.0}
    return msgspec.convert({"bytes": bytes, **defaults, **fields}, Kind)


def bound(world: World) -> float:
    """What a load waits at most: each other model that waits already has its turn first, with all that this takes, and
    the last of them yields."""
    return sum(
        world.min_residency + model.kind.load_seconds + model.kind.unload_seconds + model.kind.service_seconds
        for model in world.models.values()
    )


def finished(world: World) -> None:
    assert not world.arrived, "requests are left"
    assert not world.loads
    assert not world.refused


def test_two_models_that_do_not_fit_together_both_serve_eight_busy_clients() -> None:
    """Four clients of each ask without a pause: neither model is ever idle, so each has its time and yields."""
    world = World([kind(clients=4), kind(clients=4)], limit=10, min_residency=10, seed=1)
    world.run(120)
    finished(world)
    print(f"worst wait {max(world.waits):.1f} s, {world.swaps} swaps, {len(world.waits)} requests")
    assert max(world.load_waits) <= bound(world)
    assert max(world.waits) <= 2 * bound(world)
    assert 8 <= world.swaps <= 12


def test_idle_model_goes_as_soon_as_it_has_earned_its_load() -> None:
    """Requests that are rare and in turns are not kept waiting for a residency that helps nobody."""
    world = World(
        [kind(requests_per_second=0.02, service_seconds=0.5), kind(requests_per_second=0.02, service_seconds=0.5)],
        limit=10,
        min_residency=60,
        seed=2,
    )
    world.run(3000)
    finished(world)
    assert max(world.waits) < 60
    assert sorted(world.waits)[len(world.waits) // 2] < 5


def test_quick_turns_do_not_thrash() -> None:
    """A request a second for each of two models that take 5 s to load: at most half of the time goes into loading."""
    busy = kind(requests_per_second=1.0, load_seconds=5.0, service_seconds=0.2)
    world = World([busy, busy], limit=10, min_residency=10, seed=3)
    world.run(600)
    finished(world)
    assert world.swaps * 5.0 <= 600 / 2 + 10
    assert max(world.load_waits) <= bound(world)


def test_pinned_model_is_never_touched() -> None:
    """Three models share what it leaves."""
    kinds = [kind(4, pinned=True, requests_per_second=1.0), *[kind(5, requests_per_second=0.5) for _ in range(3)]]
    world = World(kinds, limit=10, min_residency=5, seed=4)
    world.run(600)
    finished(world)
    assert world.models["m0"].loads == 1


@pytest.mark.parametrize("seed", range(30))
def test_nobody_starves_whatever_the_load(seed: int) -> None:
    """Models of all sizes, slow and fast, rare and busy ones: each load has its turn in
    bounded time, each request is answered, the limit holds at every moment, and who goes was allowed to."""
    random = Random(seed)
    kinds = [
        kind(
            random.randint(1, 10),
            load_seconds=random.choice([0.1, 1.0, 8.0]),
            unload_seconds=random.choice([0.0, 0.3]),
            service_seconds=random.choice([0.05, 1.0, 5.0]),
            requests_per_second=random.choice([0.0, 0.01, 0.2, 1.0]),
            clients=random.choice([0, 0, 1, 6]),
        )
        for _ in range(random.randint(2, 6))
    ]
    world = World(kinds, limit=10, min_residency=random.choice([1.0, 4.0, 10.0]), seed=seed)
    world.run(250)
    finished(world)
    assert max(world.load_waits, default=0) <= bound(world)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    rates=st.lists(st.sampled_from([0.01, 0.3, 2.0]), min_size=5, max_size=5),
    timeout=st.sampled_from([0.5, 5.0, 30.0]),
    residency=st.sampled_from([0.0, 10.0]),
    seed=st.integers(0, 2**16),
)
def test_every_request_ends_where_waiting_is_bounded(
    sizes: list[int], rates: list[float], timeout: float, residency: float, seed: int
) -> None:
    """Some models can never fit, some wait too long, loads crash: each request is answered or refused, none is left."""
    kinds = [kind(size, requests_per_second=rate, crash_share=0.1) for size, rate in zip(sizes, rates, strict=False)]
    world = World(kinds, limit=10, min_residency=residency, seed=seed, wait_timeout=timeout)
    world.run(120)
    assert not world.arrived
    assert not world.loads
    assert set(world.refused) <= {"insufficient_memory", "model_load_failed", "model_unavailable"}
    for model in world.models.values():
        assert model.loads == 0 or model.kind.bytes <= 10


def test_budget_refuses_what_the_decider_would_not_admit() -> None:
    """The two count alike: the simulation would not notice if they did not."""
    budget = MemoryBudget(10, available=lambda: 100)
    budget.reserve("a", 6)
    assert budget.free_bytes() == 4
    assert not budget.fits("b", 5)
