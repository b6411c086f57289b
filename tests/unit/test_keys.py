"""API keys: made, kept as hashes, limited, and closed where nobody can tell."""

from __future__ import annotations

import asyncio
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from llmvisor import limits
from llmvisor.control.api import KeyRequest
from llmvisor.errors import Conflict, InvalidApiKey, NotFound, RateLimited, StoreUnavailable
from llmvisor.keys.bucket import Bucket
from llmvisor.keys.file import KeyFile, KeyList, has_keys
from llmvisor.keys.gate import Gate
from llmvisor.keys.key import PREFIX, ApiKey, KeyRing, configured_key, hint_of, new_key, sha256_of


class SetClock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)


async def gate_in(folder: Path, *configured: ApiKey, clock: SetClock | None = None) -> Gate:
    gate = Gate(folder, configured, clock=clock or SetClock())
    await gate.open()
    return gate


# -------------------------------------------------------------------------------------------------- keys


def test_new_key_holds_256_random_bits() -> None:
    """Every byte of the source is in it."""
    assert new_key(bytes) != new_key(lambda count: bytes(count - 1) + b"\1")
    assert len(new_key(os.urandom)) == len(PREFIX) + 43


def test_key_is_found_by_its_hash_alone() -> None:
    ring = KeyRing([configured_key("mine", "a-key-of-mine-0123456789")])
    found = ring.find("a-key-of-mine-0123456789")
    assert found is not None
    assert "a-key" not in msgspec.json.encode(found).decode()
    assert [ring.find(text) for text in ("", "a-key-of-mine-012345678", found.sha256, "\udcff")] == [None] * 4


def test_hint_shows_a_long_keys_end_and_nothing_of_a_short_one() -> None:
    assert (hint_of("x" * 40 + "tail"), hint_of("x" * 20)) == ("…tail", "")


def test_priority_is_capped_by_the_key() -> None:
    key = ApiKey("batch", "", ["inference"], priority="normal")
    assert [key.capped(asked) for asked in ("low", "normal", "high")] == ["low", "normal", "normal"]


# -------------------------------------------------------------------------------------------------- rates


def test_bucket_lets_a_minutes_worth_through_at_once_and_then_one_at_a_time() -> None:
    bucket = Bucket(60)
    assert [bucket.take(0.0) for _ in range(60)] == [0.0] * 60
    assert bucket.take(0.0) == pytest.approx(1.0)
    assert bucket.take(1.0) == 0.0
    assert bucket.take(1.5) == pytest.approx(0.5)
    left = bucket.left(1.0)
    assert (left.limit, left.remaining, left.reset_seconds) == (60, 0, pytest.approx(60))


@given(
    st.floats(0.1, 10_000),
    st.lists(st.floats(0, 100), min_size=1, max_size=200),
)
def test_bucket_never_lets_more_through_than_its_rate(per_minute: float, gaps: list[float]) -> None:
    """In any span of time: a minute's worth and what the span adds; and who waits as told gets through."""
    bucket, now, taken = Bucket(per_minute), 0.0, list[float]()
    for gap in gaps:
        now += gap
        wait = bucket.take(now)
        if wait == 0:
            taken.append(now)
        else:
            now += wait
            assert bucket.take(now) == 0
            taken.append(now)
    for first in range(len(taken)):
        span = taken[-1] - taken[first]
        assert len(taken) - first <= max(1, per_minute) + span * per_minute / 60 + 1.001


def test_rate_of_less_than_one_in_a_minute_lets_the_first_through() -> None:
    bucket = Bucket(0.5)
    assert (bucket.take(0.0), bucket.take(0.0)) == (0.0, pytest.approx(120))


# -------------------------------------------------------------------------------------------------- the gate


async def test_no_key_is_asked_for_until_there_is_one(tmp_path: Path) -> None:
    gate = await gate_in(tmp_path / "store")
    assert not gate.asked
    made = await gate.add(KeyRequest(name="webapp"))
    assert gate.asked
    assert (await gate.check(made.key)).name == "webapp"


async def test_keys_outlast_the_daemon_and_are_kept_hashed(tmp_path: Path) -> None:
    """The file is its owner's alone, and holds no key."""
    made = await (await gate_in(tmp_path)).add(KeyRequest(name="a", models=["light"], rate_per_minute=5))
    text = (tmp_path / "keys.json").read_text()
    assert made.key not in text
    assert sha256_of(made.key) in text
    assert stat.S_IMODE((tmp_path / "keys.json").stat().st_mode) == 0o600
    again = await gate_in(tmp_path)
    key = await again.check(made.key)
    assert (key.name, key.models, key.rate_per_minute, key.scopes) == ("a", ["light"], 5.0, ["inference"])


async def test_revoked_key_is_good_for_nothing_and_the_port_stays_closed(tmp_path: Path) -> None:
    """1. The one key is revoked. Result: it is refused, and so is whoever has none; also after a restart."""
    gate = await gate_in(tmp_path)
    made = await gate.add(KeyRequest(name="a"))
    await gate.revoke("a")
    for one in (gate, await gate_in(tmp_path)):
        assert one.asked
        with pytest.raises(InvalidApiKey):
            await one.check(made.key)


async def test_port_opens_again_only_where_that_is_said(tmp_path: Path) -> None:
    gate = await gate_in(tmp_path)
    await gate.add(KeyRequest(name="a"))
    await gate.add(KeyRequest(name="b"))
    await gate.revoke("a", ask_no_more=True)
    assert gate.asked
    await gate.revoke("b", ask_no_more=True)
    assert not gate.asked


async def test_names_are_unique_and_unknown_ones_are_told(tmp_path: Path) -> None:
    gate = await gate_in(tmp_path, configured_key("CI_KEY", "0123456789abcdef"))
    await gate.add(KeyRequest(name="a"))
    for name in ("a", "CI_KEY"):
        with pytest.raises(Conflict):
            await gate.add(KeyRequest(name=name))
    with pytest.raises(NotFound):
        await gate.revoke("b")
    with pytest.raises(Conflict, match="in the configuration"):
        await gate.revoke("CI_KEY")


async def test_key_expires(tmp_path: Path) -> None:
    clock = SetClock()
    gate = await gate_in(tmp_path, clock=clock)
    made = await gate.add(KeyRequest(name="a", expires_seconds=60))
    clock.seconds += 59
    assert (await gate.check(made.key)).name == "a"
    clock.seconds += 1
    with pytest.raises(InvalidApiKey, match="expired"):
        await gate.check(made.key)
    assert gate.asked
    assert gate.status().data[0].expired


async def test_requests_at_the_same_time_are_bounded(tmp_path: Path) -> None:
    """The one that is refused takes nothing; a place that is left is free, also where the key was revoked meanwhile."""
    gate = await gate_in(tmp_path)
    key = await gate.check((await gate.add(KeyRequest(name="a", concurrent=2))).key)
    first, second = gate.enter(key), gate.enter(key)
    with pytest.raises(RateLimited, match="allowed: 2"):
        gate.enter(key)
    first.running -= 1
    gate.enter(key)
    await gate.revoke("a")
    second.running -= 1
    again = await gate.check((await gate.add(KeyRequest(name="a", concurrent=1))).key)
    gate.enter(again)
    with pytest.raises(RateLimited):
        gate.enter(again)


async def test_rate_is_told_with_the_time_to_wait(tmp_path: Path) -> None:
    clock = SetClock()
    gate = await gate_in(tmp_path, clock=clock)
    key = await gate.check((await gate.add(KeyRequest(name="a", rate_per_minute=2))).key)
    for _ in range(2):
        gate.enter(key).running -= 1
    with pytest.raises(RateLimited) as refused:
        gate.enter(key)
    assert refused.value.retry_after_seconds == pytest.approx(30)
    clock.seconds += 30
    assert gate.enter(key).running == 1


async def test_damaged_file_closes_the_port_to_all_but_configured_keys(tmp_path: Path) -> None:
    """1. The file is damaged. Result: who has a key of the configuration goes on, others are told why, nothing is
    overwritten; once it is mended the keys are taken again without a restart."""
    clock = SetClock()
    made = await (await gate_in(tmp_path)).add(KeyRequest(name="a"))
    good = (tmp_path / "keys.json").read_bytes()
    (tmp_path / "keys.json").write_bytes(good[:40])
    gate = await gate_in(tmp_path, configured_key("CI", "0123456789abcdef"), clock=clock)
    assert gate.asked
    assert has_keys(str(tmp_path))
    assert (await gate.check("0123456789abcdef")).name == "CI"
    for action in (gate.check(made.key), gate.add(KeyRequest(name="b")), gate.revoke("a")):
        with pytest.raises(StoreUnavailable, match="make no sense"):
            await action
    assert (tmp_path / "keys.json").read_bytes() == good[:40]
    (tmp_path / "keys.json").write_bytes(good)
    clock.seconds += limits.keys_retry_seconds
    assert (await gate.check(made.key)).name == "a"
    assert gate.problem is None


async def test_unreadable_file_leaves_the_port_closed(tmp_path: Path) -> None:
    """A folder of that name, as a stand-in for every error of the disk."""
    (tmp_path / "keys.json").mkdir()
    gate = await gate_in(tmp_path)
    assert gate.asked
    with pytest.raises(StoreUnavailable):
        await gate.check("anything")


async def test_key_that_cannot_be_written_is_not_good_and_a_revoked_one_is_gone_anyway(tmp_path: Path) -> None:
    """The disk takes nothing: no key is told; revoking works until the daemon ends, and says so."""
    folder = tmp_path / "store"
    gate = await gate_in(folder)
    made = await gate.add(KeyRequest(name="a"))
    (folder / "keys.json").unlink()
    folder.rmdir()
    folder.write_text("no folder")
    with pytest.raises(StoreUnavailable, match="cannot be written"):
        await gate.add(KeyRequest(name="b"))
    with pytest.raises(StoreUnavailable, match="cannot be written"):
        await gate.revoke("a")
    with pytest.raises(InvalidApiKey):
        await gate.check(made.key)
    assert gate.status().data == []


async def test_keys_added_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    gate = await gate_in(tmp_path)
    await asyncio.gather(*(gate.add(KeyRequest(name=f"k{number}")) for number in range(20)))
    assert {key.name for key in KeyFile(tmp_path).read().keys} == {f"k{number}" for number in range(20)}
    assert os.listdir(tmp_path) == ["keys.json"]


def test_file_of_another_version_is_not_understood(tmp_path: Path) -> None:
    KeyFile(tmp_path).write(KeyList(version=2, asked=True))
    with pytest.raises(StoreUnavailable, match="another version"):
        KeyFile(tmp_path).read()


async def test_configuration_takes_its_keys_back(tmp_path: Path) -> None:
    gate = await gate_in(tmp_path, configured_key("OLD", "0123456789abcdef"))
    gate.configure([configured_key("NEW", "fedcba9876543210")])
    assert (await gate.check("fedcba9876543210")).name == "NEW"
    with pytest.raises(InvalidApiKey):
        await gate.check("0123456789abcdef")
    gate.configure([])
    assert not gate.asked
