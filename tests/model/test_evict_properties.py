"""One look of the decider about memory, at every state that it could be shown."""

from __future__ import annotations

import hypothesis.strategies as st
import msgspec
from hypothesis import given, settings

from llmvisor.supervision.memory.evict import Decision, Load, Resident, Room, decide

NOW, RESIDENCY = 1000.0, 10.0
PHASES = ["loading", "idle", "busy", "leaving"]

residents = st.builds(
    Resident,
    key=st.just(""),
    held_bytes=st.integers(0, 12),
    phase=st.sampled_from(PHASES),
    pinned=st.booleans(),
    ready_at=st.floats(NOW - 30, NOW),
    reload_seconds=st.floats(0, 30),
    uses_per_second=st.floats(0, 5),
    used_at=st.floats(NOW - 30, NOW),
)
loads = st.builds(
    Load,
    key=st.just(""),
    needed_bytes=st.integers(0, 15),
    since=st.floats(NOW - 30, NOW),
    deadline=st.floats(NOW - 1, NOW + 30),
    machine_deadline=st.none() | st.floats(NOW - 1, NOW + 10),
    asked_for=st.booleans(),
)


def named(found: list[Resident], wanted: list[Load]) -> tuple[list[Resident], list[Load]]:
    there = [msgspec.structs.replace(each, key=f"r{number}") for number, each in enumerate(found)]
    in_order = sorted(wanted, key=lambda each: each.since)
    return there, [msgspec.structs.replace(each, key=f"l{number}") for number, each in enumerate(in_order)]


def look(wanted: list[Load], there: list[Resident], room: Room) -> Decision:
    return decide(wanted, there, room, now=NOW, min_residency_seconds=RESIDENCY)


@settings(max_examples=400, deadline=None)
@given(st.lists(residents, max_size=5), st.lists(loads, max_size=5), st.integers(0, 10), st.integers(0, 10))
def test_every_decision_keeps_the_rules(found: list[Resident], wanted: list[Load], spare: int, others: int) -> None:
    """Nobody gets what is not there, nobody goes who may not, each load gets one answer or a time to be looked at
    again, and a second look after the first makes nobody else go."""
    there, wanted = named(found, wanted)
    by_key = {each.key: each for each in there}
    held = sum(each.held_bytes for each in there)
    room = Room(max(0, spare - others), held + spare, max(0, held + spare - others))
    decision = look(wanted, there, room)

    needed = {each.key: each.needed_bytes for each in wanted}
    assert sum(needed[key] for key in decision.admit) <= room.free_bytes
    for key in [*decision.evict, *decision.yield_]:
        each = by_key[key]
        assert not each.pinned
        assert each.phase == ("idle" if key in decision.evict else "busy")
        least = min(RESIDENCY, each.reload_seconds) if each.phase == "idle" else RESIDENCY
        assert each.ready_at + least <= NOW
    assert len({*decision.evict, *decision.yield_}) == len(decision.evict) + len(decision.yield_)

    answered = {*decision.admit, *(refusal.key for refusal in decision.refuse)}
    left = [each for each in wanted if each.key not in answered]
    assert len(answered) == len(decision.admit) + len(decision.refuse)
    assert all(each.deadline > NOW for each in left)
    leaving = sum(each.held_bytes for each in there if each.phase == "leaving" or each.key in decision.evict)
    assert set(decision.coming) <= {each.key for each in left}
    assert sum(needed[key] for key in [*decision.admit, *decision.coming]) <= room.free_bytes + leaving
    assert not left or (decision.wake_at is not None and decision.wake_at > NOW)
    if not any(each.asked_for for each in left):
        assert not decision.evict
        assert not decision.yield_

    first = next((each for each in wanted if each.key not in {refusal.key for refusal in decision.refuse}), None)
    if first is not None and first.needed_bytes <= room.free_bytes:
        assert decision.admit[:1] == [first.key], "who comes first is not passed where it fits"
    assert_stable(left, there, room, decision, needed)


def assert_stable(
    left: list[Load], there: list[Resident], room: Room, decision: Decision, needed: dict[str, int]
) -> None:
    """Once it has been carried out nobody else has to go or is refused, before something changes."""
    going = {*decision.evict, *decision.yield_}
    after = [msgspec.structs.replace(each, phase="leaving") if each.key in going else each for each in there]
    after += [Resident(key, needed[key], "loading") for key in decision.admit]
    again = look(
        left,
        after,
        msgspec.structs.replace(room, free_bytes=room.free_bytes - sum(map(needed.__getitem__, decision.admit))),
    )
    assert (again.evict, again.yield_, again.refuse) == ([], [], [])
