"""Loads that wait for memory: what becomes of them, and what is asked of whom."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.fake_worker import FakeClock

from llmvisor import limits
from llmvisor.config.tree import Memory, ModelConfig
from llmvisor.errors import InsufficientMemory
from llmvisor.supervision.memory.admission import Admission
from llmvisor.supervision.memory.arrivals import Arrivals
from llmvisor.supervision.memory.budget import MemoryBudget
from llmvisor.supervision.scheduling.state import State

pytestmark = pytest.mark.usefixtures("leak_check")


class Fake:
    """A runtime as admission sees it; `gone` is its process's end."""

    def __init__(self, *, pinned: bool = False) -> None:
        self.config = ModelConfig(backend="mock", pinned=pinned)
        self.state = State.STOPPED
        self.in_flight = 0
        self.load_is_wanted = True
        self.returns = self.has_begun_requests = False
        self.ready_at = 0.0
        self.active_at = 0.0
        self.calls: list[str] = []
        self.shown = False

    def waits_for_memory(self) -> None:
        self.shown = True

    def unload(self) -> None:
        self.calls.append("unload")
        self.state = State.DRAINING if self.in_flight else State.STOPPING

    def make_way(self) -> None:
        self.unload()

    def stay(self) -> None:
        self.calls.append("stay")
        self.state = State.READY

    def abandon_load(self) -> None:
        self.calls.append("abandon")
        self.state = State.STOPPING


class World:
    """Ten bytes for everybody."""

    def __init__(self, **settings: float) -> None:
        self.clock = FakeClock()
        self.available = 100
        self.budget = MemoryBudget(10, available=lambda: self.available)
        self.models = {name: Fake() for name in "abcd"}
        self.admission = Admission(
            self.budget,
            occupants=lambda: self.models,
            reload_seconds=lambda _: 1.0,
            settings=lambda: Memory(**settings),  # pyright: ignore[reportArgumentType]
            arrivals=Arrivals(600),
            clock=self.clock,
        )

    async def load(self, name: str, size: int) -> None:
        self.models[name].state, self.models[name].in_flight = State.LOADING, 1
        await (await self.admission.admit(name, size))

    def loaded(self, name: str, size: int, *, busy: bool = False) -> Fake:
        """One that has been loaded for long."""
        self.budget.reserve(name, size)
        model = self.models[name]
        model.state, model.in_flight = State.READY, int(busy)
        return model

    def gone(self, name: str) -> None:
        self.models[name].state = State.STOPPED
        self.budget.release(name)
        self.admission.changed()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_load_waits_until_the_memory_is_really_back() -> None:
    """Not only until the other one has been told to go."""
    world = World()
    other = world.loaded("a", 8)
    load = asyncio.create_task(world.load("b", 5))
    await settle()
    assert (other.calls, load.done()) == (["unload"], False)
    assert world.models["b"].shown
    world.gone("a")
    await load
    assert world.budget.held_bytes("b") == 5


async def test_loads_end_in_their_order() -> None:
    """Each gets its memory before the next one is looked at."""
    world = World()
    world.loaded("a", 10)
    ended: list[str] = []

    async def load(name: str, size: int) -> None:
        await world.load(name, size)
        ended.append(name)

    tasks = [asyncio.create_task(load(name, size)) for name, size in (("b", 4), ("c", 6), ("d", 1))]
    await settle()
    assert world.admission.waiting == ["b", "c", "d"]
    world.gone("a")
    await settle()
    assert ended == ["b", "c"]
    tasks[2].cancel()
    await asyncio.wait(tasks)
    assert world.admission.waiting == []


async def test_load_that_nobody_wants_any_more_is_given_up_and_evicts_nobody() -> None:
    """Its clients have gone while it waited."""
    world = World()
    busy = world.loaded("a", 10, busy=True)
    load = asyncio.create_task(world.load("b", 5))
    await settle()
    world.models["b"].load_is_wanted = False
    busy.in_flight = 0
    world.admission.changed()
    await load
    assert (world.models["b"].calls, busy.calls) == (["abandon"], [])
    assert world.budget.held_bytes("b") == 0


async def test_load_that_is_told_to_stop_ends_at_once_without_memory() -> None:
    """By a person, or because the daemon ends."""
    world = World()
    world.loaded("a", 10, busy=True)
    load = asyncio.create_task(world.load("b", 5))
    await settle()
    world.models["b"].state = State.STOPPING
    world.admission.changed()
    await load
    assert world.budget.holders() == ["a"]


async def test_model_in_use_is_not_asked_to_unload_before_its_time() -> None:
    """And is then, once, however often something changes."""
    world = World(min_residency=10)
    busy = world.loaded("a", 10, busy=True)
    load = asyncio.create_task(world.load("b", 5))
    await settle()
    assert busy.calls == []
    world.clock.at += 10
    for _ in range(3):
        world.admission.changed()
        await settle()
    assert (busy.calls, busy.state) == (["unload"], State.DRAINING)
    world.gone("a")
    await load


async def test_model_that_yields_stays_when_nobody_waits_for_it_any_more() -> None:
    """What it runs takes longer than the other's clients wait; nobody else who unloads it is overruled."""
    world = World(wait_timeout=30, min_residency=10)
    yielding, by_hand = world.loaded("a", 5, busy=True), world.loaded("c", 5, busy=True)
    by_hand.state = State.DRAINING
    load = asyncio.create_task(world.load("b", 10))
    await settle()
    world.clock.at += 10
    world.admission.changed()
    await settle()
    assert (yielding.state, yielding.calls) == (State.DRAINING, ["unload"])
    world.clock.at += 20
    world.admission.changed()
    with pytest.raises(InsufficientMemory, match=r"within 30 s: a has 1 request in flight, c has 1 request in flight"):
        await load
    assert yielding.state is State.DRAINING, "they were told to come back"
    world.clock.at += limits.memory_come_back_seconds
    world.admission.changed()
    await settle()
    assert (yielding.state, yielding.calls) == (State.READY, ["unload", "stay"])
    assert (by_hand.state, by_hand.calls) == (State.DRAINING, [])


async def test_refusal_comes_at_the_deadline_and_says_who_holds_the_memory() -> None:
    """A load in vain leaves nothing behind, and the next one is looked at."""
    world = World(wait_timeout=30, min_residency=1000)
    world.loaded("a", 7, busy=True)
    load = asyncio.create_task(world.load("b", 5))
    await settle()
    world.clock.at += 10
    small = asyncio.create_task(world.load("c", 3))
    await settle()
    assert not small.done()
    world.clock.at += 20
    world.admission.changed()
    with pytest.raises(InsufficientMemory, match=r"held by a .* within 30 s"):
        await load
    await small
    assert world.admission.waiting == []


async def test_memory_of_other_programs_is_looked_for_though_nobody_tells() -> None:
    """The clock stands still here: the real one makes it look each second."""
    world = World()
    world.available = 3
    load = asyncio.create_task(world.load("b", 5))
    await settle()
    assert not load.done()
    world.available = 50
    async with asyncio.timeout(5):
        await load


async def test_streams_that_have_begun_outlast_what_other_programs_have() -> None:
    """A model nobody had yet is told soon that there is no memory; one whose worker was ended for it is not."""
    world = World(wait_timeout=120)
    world.available = 3
    world.models["a"].has_begun_requests = True
    going_on, new = asyncio.create_task(world.load("a", 5)), asyncio.create_task(world.load("b", 5))
    await settle()
    world.clock.at += 60
    world.admission.changed()
    with pytest.raises(InsufficientMemory):
        await new
    assert not going_on.done()
    world.available = 50
    world.admission.changed()
    await going_on


async def test_margin_of_what_was_measured_refuses_nobody() -> None:
    """A model that has run before runs again, though there is no more than it took."""
    world = World()
    await world.admission.admit("a", 11, 10)
    assert world.budget.held_bytes("a") == 10
    with pytest.raises(InsufficientMemory):
        await world.admission.admit("b", 12, 11)


async def test_runtime_that_takes_another_key_while_it_waits_gets_its_memory_under_that() -> None:
    """As when a model is taken out of the configuration and its runtime finishes beside the next one."""
    world = World()
    world.loaded("a", 10)
    load = asyncio.create_task(world.load("b", 5))
    await settle()
    world.models["b#2"] = world.models.pop("b")
    world.admission.exchange("b", "b#2")
    world.gone("a")
    await load
    assert world.budget.holders() == ["b#2"]


async def test_pinned_model_is_never_asked() -> None:
    """Whoever cannot have its memory is told at once."""
    world = World()
    world.models["a"] = Fake(pinned=True)
    pinned = world.loaded("a", 8)
    with pytest.raises(InsufficientMemory, match="held by a"):
        await world.load("b", 5)
    assert pinned.calls == []


async def test_load_is_told_that_its_memory_is_on_its_way_and_may_give_it_up() -> None:
    """A worker can be started meanwhile. Who gives up makes room in the queue, and gets nothing."""
    world = World()
    world.loaded("a", 10)
    world.models["b"].state, world.models["b"].in_flight = State.LOADING, 1
    memory = await asyncio.wait_for(world.admission.admit("b", 5), 5)
    assert world.models["a"].calls == ["unload"]
    assert not memory.done()
    memory.cancel()
    await settle()
    assert world.admission.waiting == []
    world.gone("a")
    await settle()
    assert world.budget.holders() == []


async def test_machine_that_has_less_a_moment_later_stops_nobody() -> None:
    """Other programs take memory between the decision and its being carried out."""
    world = World()
    readings = iter([10])
    world.budget = MemoryBudget(100, available=lambda: next(readings, 9))
    world.admission = Admission(
        world.budget,
        occupants=lambda: world.models,
        reload_seconds=lambda _: 1.0,
        settings=Memory,
        arrivals=Arrivals(600),
        clock=world.clock,
    )
    await asyncio.wait_for(world.load("a", 10), 5)
    assert world.budget.held_bytes("a") == 9


async def test_load_that_is_given_up_is_not_looked_at_again() -> None:
    """Its runtime has failed in the same moment: memory that is free by now would be set aside for nobody."""
    world = World()
    world.loaded("a", 10)
    world.models["b"].state, world.models["b"].in_flight = State.LOADING, 1
    memory = await asyncio.wait_for(world.admission.admit("b", 5), 5)
    world.models["b"].state = State.FAILED
    world.gone("a")
    memory.cancel()
    await settle()
    assert world.budget.holders() == []
