"""Which load gets memory, and who makes room for it: one look at a time."""

from __future__ import annotations

import msgspec

from llmvisor.supervision.memory.arrivals import Arrivals
from llmvisor.supervision.memory.evict import Decision, Load, Refusal, Resident, Room, cheapest, decide

NOW = 1000.0
RESIDENCY = 10.0


def load(key: str, needed: int, *, since: float = NOW, deadline: float = NOW + 60) -> Load:
    return Load(key, needed, since, deadline)


def idle(
    key: str, held: int, *, rate: float = 0.1, reload: float = 1.0, ready_at: float = 0, used_at: float = 0
) -> Resident:
    return Resident(key, held, "idle", False, ready_at, reload, rate, used_at)


def busy(key: str, held: int, *, ready_at: float = 0) -> Resident:
    return Resident(key, held, "busy", False, ready_at, 1.0, 1.0, NOW)


def leaving(key: str, held: int) -> Resident:
    return Resident(key, held, "leaving")


def decided(loads: list[Load], residents: list[Resident], *, limit: int = 10, now: float = NOW) -> Decision:
    room = Room(limit - sum(each.held_bytes for each in residents), limit, limit)
    return decide(loads, residents, room, now=now, min_residency_seconds=RESIDENCY)


def test_load_that_fits_is_admitted_at_once_and_nobody_goes() -> None:
    """To the byte."""
    decision = decided([load("b", 4)], [idle("a", 6)])
    assert (decision.admit, decision.evict) == (["b"], [])
    assert decided([load("b", 5)], [idle("a", 6)]).evict == ["a"]


def test_busy_model_is_not_evicted_by_a_queue() -> None:
    """Whatever waits: what runs finishes. The idle one goes, though it is dearer."""
    decision = decided([load("c", 3)], [busy("a", 5), idle("b", 5, rate=9.0)])
    assert (decision.evict, decision.yield_) == (["b"], [])
    decision = decided([load("c", 3)], [busy("a", 10)])
    assert (decision.evict, decision.yield_, decision.admit) == ([], [], [])


def test_pinned_model_makes_no_room() -> None:
    """Not when it is idle, and not when somebody has waited for ever; what it holds counts as lost at once."""
    pinned = Resident("a", 8, "idle", pinned=True)
    assert decided([load("b", 3)], [pinned]).refuse == [Refusal("b", never=True)]
    assert decided([load("b", 2)], [pinned]).admit == ["b"]


def test_idle_model_whose_reload_costs_least_goes() -> None:
    """Seconds of a reload × how often it is asked for: a slow one that nobody wants goes before a fast one in use."""
    slow_and_unused = idle("slow", 4, reload=60.0, rate=0.001)
    fast_and_used = idle("fast", 4, reload=1.0, rate=0.5)
    assert decided([load("c", 5)], [fast_and_used, slow_and_unused]).evict == ["slow"]
    slow_and_used = idle("slow", 4, reload=60.0, rate=0.5)
    assert decided([load("c", 5)], [fast_and_used, slow_and_used]).evict == ["fast"]


def test_longest_unused_of_equal_models_goes() -> None:
    """Where nobody has been asked for of late, the order of their last use decides."""
    models = [idle("a", 5, rate=0.0, used_at=50), idle("b", 5, rate=0.0, used_at=20)]
    assert decided([load("c", 2)], models).evict == ["b"]


def test_several_small_models_go_only_where_they_cost_less_than_one_large() -> None:
    """The whole of what goes is weighed."""
    small = [idle("s1", 3, rate=0.1), idle("s2", 3, rate=0.1)]
    assert decided([load("c", 6)], [*small, idle("big", 6, rate=0.3)], limit=12).evict == ["s1", "s2"]
    assert decided([load("c", 6)], [*small, idle("big", 6, rate=0.15)], limit=12).evict == ["big"]


def test_nobody_goes_where_it_would_not_help() -> None:
    """An idle model stays loaded while the rest that is needed is busy."""
    decision = decided([load("c", 8)], [idle("a", 5), busy("b", 5)])
    assert (decision.evict, decision.yield_) == ([], [])


def test_model_that_returns_after_a_reload_has_room_made_by_idle_ones_alone() -> None:
    """No request waits for it, but it was loaded; busy ones do not yield for it, and nobody waits behind it."""
    returning = msgspec.structs.replace(load("r", 6, since=0), asked_for=False, returns=True)
    assert decided([returning], [idle("a", 6)]).evict == ["a"]
    assert decided([returning, load("c", 4)], [leaving("a", 6)]).admit == ["c"]
    assert decided([returning, load("c", 5)], [leaving("a", 6)]).admit == []
    decision = decided([returning, load("c", 4)], [busy("a", 6)])
    assert (decision.yield_, decision.evict, decision.admit) == ([], [], ["c"])
    preloaded = msgspec.structs.replace(returning, returns=False)
    assert decided([preloaded], [idle("a", 6)]).evict == []


def draining(key: str, held: int) -> Resident:
    return Resident(key, held, "draining")


def test_draining_model_is_waited_for_at_first_then_an_idle_one_goes() -> None:
    """What runs may take any time to finish: once the load has waited its bound, nobody counts on that alone."""
    soon, late = load("c", 5, since=NOW), load("c", 5, since=NOW - RESIDENCY)
    decision = decided([soon], [draining("a", 5), idle("b", 5)])
    assert (decision.evict, decision.stay, decision.wake_at) == ([], [], NOW + RESIDENCY)
    decision = decided([late], [draining("a", 5), idle("b", 5)])
    assert (decision.evict, decision.stay) == (["b"], ["a"])
    decision = decided([late], [draining("a", 5), busy("b", 5, ready_at=NOW)])
    assert (decision.evict, decision.yield_, decision.stay) == ([], [], [])


def test_draining_model_that_nobody_needs_may_stay() -> None:
    """Whoever waited is refused, has gone, or has got its memory elsewhere."""
    assert decided([], [draining("a", 8)]).stay == ["a"]
    assert decided([load("c", 5, deadline=NOW)], [draining("a", 8)]).stay == ["a"]
    assert decided([load("c", 2)], [draining("a", 8)]).stay == ["a"]


def test_memory_is_on_its_way_once_those_who_leave_are_enough_and_nobodys_requests_are_waited_for() -> None:
    """A worker may be started for it then. What drains may take for ever."""
    assert decided([load("b", 5), load("c", 5)], [idle("a", 10)]).coming == ["b", "c"]
    assert decided([load("b", 5), load("c", 6)], [leaving("a", 10)]).coming == ["b"]
    assert decided([load("b", 5)], [Resident("a", 10, "draining")]).coming == []
    waited = load("b", 5, since=NOW - RESIDENCY)
    decision = decided([waited], [busy("a", 10)])
    assert (decision.yield_, decision.coming) == (["a"], [])
    assert decided([load("b", 5)], [idle("a", 5)]).coming == [], "it is there already"


def test_nobody_takes_memory_that_has_been_told_to_be_on_its_way() -> None:
    """Enough for both, once a busy model has finished what runs; until then the first would wait for its requests."""
    since = NOW - RESIDENCY
    loads = [load("b", 10, since=since), load("d", 6, since=since), load("c", 5)]
    decision = decide(
        loads, [leaving("l", 5), busy("a", 12)], Room(5, 22, 22), now=NOW, min_residency_seconds=RESIDENCY
    )
    assert (decision.coming, decision.yield_, decision.admit) == (["b"], ["a"], [])


def test_two_loads_share_one_eviction() -> None:
    """What comes back from one model is enough for both, so no second one goes."""
    decision = decided([load("b", 3), load("c", 4)], [idle("a", 9), idle("x", 9, rate=0.2)], limit=18)
    assert decision.evict == ["a"]
    decision = decided([load("b", 3), load("c", 4)], [leaving("a", 9), idle("x", 1)])
    assert (decision.evict, decision.admit) == ([], [])


def test_loads_are_admitted_in_their_order() -> None:
    """A small one behind a large one waits, unless the large one loses nothing by it."""
    decision = decided([load("big", 8), load("small", 2)], [busy("a", 5)])
    assert decision.admit == []
    decision = decided([load("big", 8), load("small", 2)], [leaving("a", 5)])
    assert decision.admit == ["small"]
    decision = decided([load("big", 9), load("small", 2)], [leaving("a", 5)])
    assert decision.admit == []


def test_model_that_has_just_been_loaded_stays_as_long_as_its_reload_takes() -> None:
    """Else two models in turns would do nothing but load; the wait is known to the moment."""
    just = idle("a", 10, ready_at=NOW - 1, reload=4.0)
    decision = decided([load("b", 5)], [just])
    assert (decision.evict, decision.wake_at) == ([], NOW + 3)
    assert decided([load("b", 5)], [just], now=NOW + 3).evict == ["a"]


def test_slow_model_stays_no_longer_than_the_configured_residency() -> None:
    """`memory.min_residency` bounds what others wait for it."""
    slow = idle("a", 10, ready_at=NOW - 1, reload=300.0)
    assert decided([load("b", 5)], [slow]).wake_at == NOW - 1 + RESIDENCY


def test_busy_model_that_was_loaded_first_yields_after_the_bound() -> None:
    """Both it has had its time, and the load has waited as long: then nobody starves behind endless requests."""
    old, young = busy("old", 5, ready_at=100), busy("young", 5, ready_at=NOW - 5)
    waits = load("b", 5, since=NOW)
    assert decided([waits], [young, old]).wake_at == NOW + RESIDENCY
    decision = decided([waits], [young, old], now=NOW + RESIDENCY)
    assert (decision.yield_, decision.evict) == (["old"], [])


def test_busy_models_yield_only_where_that_is_enough() -> None:
    """One that has not had its time yet holds up the others' yielding, for it would be for nothing."""
    old, young = busy("old", 5, ready_at=100), busy("young", 5, ready_at=NOW + 5)
    waits = load("b", 8, since=NOW)
    decision = decided([waits], [young, old], now=NOW + RESIDENCY)
    assert (decision.yield_, decision.wake_at) == ([], NOW + 15)
    assert decided([waits], [young, old], now=NOW + 15).yield_ == ["old", "young"]


def test_idle_model_goes_with_a_busy_one_only_as_far_as_it_is_needed() -> None:
    """What yields counts first, once it comes to that."""
    models = [busy("a", 6, ready_at=100), idle("i", 2), idle("j", 2, rate=0.5)]
    decision = decided([load("b", 8, since=NOW - RESIDENCY)], models)
    assert (decision.yield_, decision.evict) == (["a"], ["i"])


def test_load_that_has_waited_long_enough_is_refused() -> None:
    """At its deadline; one that fits at that moment is admitted all the same."""
    late = load("b", 5, since=NOW - 60, deadline=NOW)
    assert decided([late], [busy("a", 10, ready_at=NOW - 1)]).refuse == [Refusal("b", never=False)]
    assert decided([late], [idle("a", 5)]).admit == ["b"]


def test_load_that_can_never_fit_is_refused_at_once() -> None:
    """And is in nobody's way."""
    decision = decided([load("giant", 11), load("b", 4)], [busy("a", 6)])
    assert (decision.refuse, decision.admit) == ([Refusal("giant", never=True)], ["b"])


def test_load_that_other_programs_leave_no_room_for_evicts_nobody_and_holds_nobody_up() -> None:
    """It waits for them a while, and is refused then; smaller ones pass."""
    big = Load("big", 8, NOW, NOW + 60, NOW + 10)
    residents = [idle("a", 2)]
    room = Room(free_bytes=3, limit_bytes=10, attainable_bytes=5)
    decision = decide([big, load("small", 3)], residents, room, now=NOW, min_residency_seconds=RESIDENCY)
    assert (decision.admit, decision.evict, decision.wake_at) == (["small"], [], NOW + 10)
    decision = decide([big], residents, room, now=NOW + 10, min_residency_seconds=RESIDENCY)
    assert decision.refuse == [Refusal("big", never=False)]
    enough = Room(free_bytes=7, limit_bytes=10, attainable_bytes=9)
    assert decide([big], residents, enough, now=NOW + 10, min_residency_seconds=RESIDENCY).evict == ["a"]


def test_load_that_no_request_waits_for_takes_what_is_free_and_evicts_nobody() -> None:
    """Of two models to be preloaded that do not fit together one stays; requests pass the other."""
    preload = Load("p", 5, NOW - 1000, NOW + 60, asked_for=False)
    decision = decided([preload, load("b", 4)], [idle("a", 6)])
    assert (decision.evict, decision.admit, decision.refuse) == ([], ["b"], [])
    assert decided([preload], [busy("a", 6)]).yield_ == []
    assert decided([preload], []).admit == ["p"]


def test_many_idle_models_are_chosen_from_quickly_and_nearly_as_well() -> None:
    """Hundreds of small models: cheapest first, and none more than it takes."""
    models = [idle(f"m{number:03}", 2 + number % 3, rate=number / 100) for number in range(300)]
    chosen = cheapest(models, 50)
    assert chosen is not None
    size = sum(each.held_bytes for each in chosen)
    assert size >= 50
    assert all(size - each.held_bytes < 50 for each in chosen)
    assert max(each.uses_per_second for each in chosen) < 0.5
    assert cheapest(models, 10_000) is None


def test_requests_of_late_count_most() -> None:
    """A model that was busy an hour ago is wanted less than one with a few requests now."""
    arrivals = Arrivals(600)
    for _ in range(50):
        arrivals.note("then", 0)
    for _ in range(3):
        arrivals.note("now", 3600)
    assert arrivals.per_second("now", 3600) > arrivals.per_second("then", 3600) > 0
    assert arrivals.per_second("never", 3600) == 0
    steady = Arrivals(600)
    for second in range(6000):
        steady.note("m", second)
    assert 0.95 < steady.per_second("m", 6000) < 1.05
