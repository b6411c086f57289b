"""Which request is to blame for crashes, and for how long its like is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmvisor.supervision.scheduling.poison import Crash, PoisonRule, Quarantine

FAULT = Crash("fault")
KILLED = Crash("killed")
OUTSIDE = Crash("outside")


def rule() -> PoisonRule:
    return PoisonRule(cleared_tokens=32)


def got_on(*request_ids: int) -> Crash:
    return Crash("killed", frozenset(request_ids))


CASES: list[tuple[str, list[tuple[list[int], Crash]], list[int], list[int]]] = [
    ("one crash is nobody's fault", [([1], FAULT)], [], []),
    ("alone at the second", [([1], FAULT), ([1], FAULT)], [1], []),
    ("alone at the second, beside another at the first", [([1, 2], FAULT), ([1], FAULT)], [1], []),
    ("two at both: suspects", [([1, 2], FAULT), ([1, 2], FAULT)], [], [1, 2]),
    ("one of them at both", [([1, 2], FAULT), ([1, 3], FAULT)], [], [1]),
    ("a suspect that crashes alone", [([1, 2], FAULT), ([1, 2], FAULT), ([2], FAULT)], [2], [1]),
    ("killed for memory while it gets on, however often", [([1], got_on(1))] * 9, [], []),
    ("killed twice before it brought anything: perhaps for memory", [([1], KILLED)] * 2, [1], []),
    ("getting on in between clears", [([1], KILLED), ([1], got_on(1)), ([1], KILLED)], [], []),
    ("but not of a fault", [([1], FAULT), ([1], got_on(1)), ([1], FAULT)], [1], []),
    ("a fault and a kill", [([1], FAULT), ([1], KILLED)], [1], []),
    ("ended by somebody, however often, while it gets on", [([1], Crash("outside", frozenset({1})))] * 9, [], []),
    ("ended by somebody three times before it brought anything", [([1], OUTSIDE)] * 3, [], []),
    ("four times in a row: perhaps by what it does", [([1], OUTSIDE)] * 4, [1], []),
    ("which clears nobody", [([1], FAULT), ([1], OUTSIDE), ([1], FAULT)], [1], []),
    ("nobody inside", [([], FAULT)] * 5, [], []),
]


@pytest.mark.parametrize(
    ("crashes", "poison", "suspects"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_who_is_to_blame(crashes: list[tuple[list[int], Crash]], poison: list[int], suspects: list[int]) -> None:
    """Counts against whoever was inside; poison alone, suspect among several."""
    one = rule()
    found = [sorted(one.crashed(inside, crash)) for inside, crash in crashes]
    assert found == [[]] * (len(crashes) - 1) + [poison]
    assert sorted(one.suspects) == suspects


def test_suspects_run_one_at_a_time_the_most_suspicious_first() -> None:
    """Else the newest first. A second one comes in when the first is cleared, beside that one."""
    one = rule()
    one.crashed([1, 2, 3], FAULT)
    one.crashed([1, 2, 3], FAULT)
    one.crashed([3, 4], FAULT)
    assert one.next_suspect([1, 2, 3, 4], []) == 3
    assert one.next_suspect([1, 2, 4], [3]) is None
    assert not one.progressed(3, 31)
    assert one.progressed(3, 32)
    assert one.next_suspect([1, 2, 4], [3]) == 2
    one.forget(2)
    assert one.next_suspect([1, 4], [3]) == 1
    one.forget(1)
    assert one.next_suspect([4], [3]) is None


def test_cleared_request_begins_anew() -> None:
    """It has shown that it does no harm."""
    one = rule()
    for _ in range(2):
        one.crashed([1, 2], FAULT)
    assert one.progressed(1, 32)
    assert one.count(1) == 0
    assert one.crashed([1, 2], FAULT) == frozenset()


def test_request_that_is_suspected_again_has_to_bring_more() -> None:
    """So one that ends its workers late is found as well."""
    one = rule()
    needed: list[int] = []
    for _ in range(3):
        one.crashed([1, 2], FAULT)
        one.crashed([1, 2], FAULT)
        needed.append(next(tokens for tokens in range(1000) if one.progressed(1, tokens)))
    assert needed == [32, 128, 512]


class Server:
    """A worker of `slots` in which poison requests crash, and others end; `crashes` counts what it took."""

    def __init__(self, requests: list[bool], slots: int) -> None:
        self.poison = dict(enumerate(requests))
        self.slots = slots
        self.rule = rule()
        self.ended: dict[int, str] = {}
        self.crashes = 0

    def inside(self) -> list[int]:
        """Whom the rule lets in together, at most."""
        left = [one for one in self.poison if one not in self.ended]
        running: list[int] = []
        while len(running) < self.slots:
            waiting = [one for one in left if one not in running]
            if self.rule.suspects:
                suspect = self.rule.next_suspect(waiting, running)
                if suspect is None:
                    break
                running.append(suspect)
                if self.poison[suspect]:
                    break
                self.rule.progressed(suspect, 32)
            elif waiting:
                running.append(waiting[0])
            else:
                break
        return running

    def run(self) -> None:
        while len(self.ended) < len(self.poison):
            inside = self.inside()
            assert inside, "somebody waits for ever"
            if any(self.poison[one] for one in inside):
                self.crashes += 1
                for one in self.rule.crashed(inside, FAULT):
                    self.ended[one] = "poison"
            else:
                self.rule.forget(*inside)
                self.ended |= dict.fromkeys(inside, "done")


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(1, 6))
def test_every_poison_request_is_found_and_nobody_else(requests: list[bool], slots: int) -> None:
    """Whoever crashes is refused, everybody else is served, and what that costs is bounded."""
    server = Server(requests, slots)
    server.run()
    assert server.ended == {one: "poison" if bad else "done" for one, bad in enumerate(requests)}
    assert server.crashes <= 4 * sum(requests)
    assert not server.rule.suspects


def test_quarantine_ends() -> None:
    """For so long, from the last time on."""
    quarantine = Quarantine(seconds=600, entries_max=2)
    quarantine.add("a", 0)
    assert quarantine.seconds_left("a", 599) == 1
    assert quarantine.seconds_left("b", 0) is None
    quarantine.add("a", 599)
    assert quarantine.seconds_left("a", 1198) == 1
    assert quarantine.seconds_left("a", 1199) is None
    assert len(quarantine) == 0


def test_quarantine_is_bounded() -> None:
    """The oldest is let go."""
    quarantine = Quarantine(seconds=600, entries_max=2)
    for at, digest in enumerate("abc"):
        quarantine.add(digest, at)
    assert [quarantine.seconds_left(digest, 5) is None for digest in "abc"] == [True, False, False]
