"""The response cache keeps what was used last, for as long as it may, and loses nothing but copies to a bad disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.support.polling import eventually

from llmvisor import limits
from llmvisor.cache.store import ResponseCache


class Now:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def make(folder: Path | None = None, *, entries_max: int = 3, now: Now | None = None) -> ResponseCache:
    return ResponseCache(entries_max=entries_max, ttl_seconds=60, now=now or Now(), folder=folder)


async def test_answer_is_there_until_it_is_too_old() -> None:
    now = Now()
    cache = make(now=now)
    cache.put("a", b"1")
    now.seconds += 59
    assert cache.get("a") == b"1"
    now.seconds += 1
    assert cache.get("a") is None
    assert cache.stats().entries == 0


async def test_answer_used_longest_ago_makes_room() -> None:
    cache = make()
    for key in "abc":
        cache.put(key, key.encode())
    cache.get("a")
    cache.put("d", b"d")
    assert [key for key in "abcd" if cache.get(key)] == ["a", "c", "d"]
    stats = cache.stats()
    assert (stats.entries, stats.evictions, stats.size_bytes) == (3, 1, 3)


async def test_stats_count_hits_misses_and_shared_runs() -> None:
    cache = make()
    cache.get("a")
    cache.put("a", b"1")
    cache.get("a")
    cache.get("a")
    cache.coalesced()
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.coalesced, stats.hit_rate) == (2, 1, 1, 0.75)


async def test_huge_answer_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "cache_answer_bytes_max", 4)
    cache = make()
    cache.put("at the bound", b"1234")
    cache.put("past it", b"12345")
    assert cache.get("at the bound") is not None
    assert cache.get("past it") is None


async def test_all_answers_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "cache_bytes_max", 5)
    cache = make()
    cache.put("a", b"123")
    cache.put("b", b"123")
    assert cache.get("a") is None
    assert cache.stats().size_bytes == 3


async def test_answers_on_disk_survive_a_restart(tmp_path: Path) -> None:
    """1. Answers are kept on disk. 2. Another run opens the folder. Result: they are there, in the order of use."""
    cache = make(tmp_path)
    for key in "abc":
        cache.put(key, key.encode())
        await cache.close()
    again = make(tmp_path)
    await again.open()
    assert again.stats().persisted_entries == 3
    again.put("d", b"d")
    await again.close()
    assert [key for key in "abcd" if again.get(key)] == ["b", "c", "d"]
    assert sorted(os.listdir(tmp_path)) == ["b.answer", "c.answer", "d.answer"]


async def test_damaged_and_old_files_are_removed(tmp_path: Path) -> None:
    now = Now()
    cache = make(tmp_path, now=now)
    cache.put("old", b"1")
    await cache.close()
    (tmp_path / "cut.answer").write_bytes(b"123")
    now.seconds += 100
    again = make(tmp_path, now=now)
    await again.open()
    assert again.stats().entries == 0
    assert os.listdir(tmp_path) == []


async def test_clear_empties_memory_and_disk(tmp_path: Path) -> None:
    cache = make(tmp_path)
    cache.put("a", b"1")
    cache.put("b", b"1")
    assert cache.clear() == 2
    await cache.close()
    assert cache.get("a") is None
    assert os.listdir(tmp_path) == []


async def test_disk_that_fails_costs_only_the_copy(tmp_path: Path) -> None:
    """The folder is a file: answers stay in memory, and nothing is raised."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    cache = make(blocked)
    await cache.open()
    cache.put("a", b"1")
    await eventually(lambda: cache.stats().persisted_entries == 0)
    await cache.close()
    assert cache.get("a") == b"1"


async def test_nothing_is_left_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up in the middle of a file leaves no part of it."""

    def full(source: object, target: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "replace", full)
    cache = make(tmp_path)
    cache.put("a", b"1")
    await cache.close()
    assert os.listdir(tmp_path) == []
