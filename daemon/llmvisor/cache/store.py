"""Answers by key: the last ones in memory, and on disk where that is wanted."""

from __future__ import annotations

import asyncio
import os
import struct
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from llmvisor import limits
from llmvisor.clock import Clock
from llmvisor.config.tree import Cache
from llmvisor.control.api import CacheStats
from llmvisor.log import get_logger

_log = get_logger(__name__)
_EXPIRY = struct.Struct("<d")
_SUFFIX = ".answer"


class Entry(NamedTuple):
    value: bytes
    expires_at: float
    """Unix time, seconds."""


class ResponseCache:
    """At most `entries_max` answers, each for `ttl_seconds`; the one used longest ago goes first.

    With a `folder` each is a file as well, and those of an earlier run are there again after `open`. A disk that fails
    costs the copies on disk and nothing else. `now` gives Unix time.
    """

    def __init__(
        self, *, entries_max: int, ttl_seconds: float, now: Callable[[], float], folder: Path | None = None
    ) -> None:
        self._entries_max = entries_max
        self._ttl_seconds = ttl_seconds
        self._now = now
        self._folder = folder
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._bytes = 0
        self._last_write: asyncio.Task[None] | None = None
        self._persisted: set[str] = set()
        self._hits = self._misses = self._coalesced = self._evictions = 0

    async def open(self) -> None:
        """Take in what an earlier run left on disk; what is damaged or too old is removed."""
        if self._folder is None:
            return
        found = await asyncio.to_thread(_read_all, self._folder, self._now())
        for key, entry in found:
            self._keep(key, entry)
            self._persisted.add(key)

    async def configure(self, config: Cache) -> None:
        """Other bounds and another folder hold from now on. Raises OSError where the folder cannot be used."""
        folder = _folder(config)
        if folder is not None and folder != self._folder:
            await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True, mode=0o700)
        is_another = folder != self._folder
        if is_another:
            # What has been written stays where it is: it is there again when that folder is.
            self._persisted.clear()
            self._folder = folder
        self._entries_max = config.max_size if config.enabled else 0
        self._ttl_seconds = config.ttl_seconds
        self._trim()
        if is_another:
            await self.open()

    async def close(self) -> None:
        """Wait for what is still being written."""
        while self._last_write is not None:
            await self._last_write

    def get(self, key: str) -> bytes | None:
        """An answer, and count whether there is one."""
        entry = self._entries.get(key)
        if entry is not None and entry.expires_at > self._now():
            self._entries.move_to_end(key)
            self._hits += 1
            return entry.value
        if entry is not None:
            self._drop(key)
        self._misses += 1
        return None

    def put(self, key: str, value: bytes) -> None:
        """Keep an answer; belongs on the loop."""
        if not self._entries_max or len(value) > limits.cache_answer_bytes_max:
            return
        entry = Entry(value, self._now() + self._ttl_seconds)
        self._keep(key, entry)
        if self._folder is not None and key in self._entries:
            self._persisted.add(key)
            self._write(_write, self._folder, key, entry)

    def coalesced(self) -> None:
        """Count a request that shares another one's run."""
        self._coalesced += 1

    def clear(self) -> int:
        """Forget everything, on disk too; gives how many there were."""
        keys = list(self._entries)
        for key in keys:
            self._drop(key)
        return len(keys)

    def stats(self) -> CacheStats:
        asked = self._hits + self._coalesced + self._misses
        return CacheStats(
            entries=len(self._entries),
            size_bytes=self._bytes,
            hits=self._hits,
            misses=self._misses,
            coalesced=self._coalesced,
            evictions=self._evictions,
            hit_rate=(self._hits + self._coalesced) / asked if asked else 0.0,
            persisted_entries=len(self._persisted),
        )

    def _keep(self, key: str, entry: Entry) -> None:
        self._forget(key)
        self._entries[key] = entry
        self._bytes += len(entry.value)
        self._trim()

    def _trim(self) -> None:
        while len(self._entries) > self._entries_max or self._bytes > limits.cache_bytes_max:
            self._evictions += 1
            self._drop(next(iter(self._entries)))

    def _forget(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= len(entry.value)

    def _drop(self, key: str) -> None:
        self._forget(key)
        if self._folder is not None and key in self._persisted:
            self._persisted.discard(key)
            self._write(_remove, self._folder, key)

    def _write(self, change: Callable[..., None], folder: Path, key: str, *rest: Entry) -> None:
        # One after another, so that a removal never overtakes the writing of the same file.
        before = self._last_write

        async def in_turn() -> None:
            if before is not None:
                await asyncio.wait([before])
            try:
                await asyncio.to_thread(change, folder, key, *rest)
            except OSError as error:
                self._persisted.discard(key)
                _log.warning("the response cache cannot use its folder", folder=str(folder), reason=error.strerror)

        self._last_write = asyncio.get_running_loop().create_task(in_turn(), name="cache write")
        self._last_write.add_done_callback(self._written)

    def _written(self, task: asyncio.Task[None]) -> None:
        if self._last_write is task:
            self._last_write = None


def make_cache(config: Cache, clock: Clock) -> ResponseCache:
    """The cache as configured."""
    return ResponseCache(
        entries_max=config.max_size if config.enabled else 0,
        ttl_seconds=config.ttl_seconds,
        now=lambda: clock.now().timestamp(),
        folder=_folder(config),
    )


def _folder(config: Cache) -> Path | None:
    return Path(config.dir) if config.enabled and config.persist_to_disk else None


def _write(folder: Path, key: str, entry: Entry) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd, temporary = tempfile.mkstemp(dir=folder)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(_EXPIRY.pack(entry.expires_at) + entry.value)
        os.replace(temporary, folder / f"{key}{_SUFFIX}")
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _remove(folder: Path, key: str) -> None:
    (folder / f"{key}{_SUFFIX}").unlink(missing_ok=True)


def _read_all(folder: Path, now: float) -> list[tuple[str, Entry]]:
    """The answers in a folder, the oldest first; what cannot be one is removed."""
    found: list[tuple[float, str, Entry]] = []
    total = 0
    for path in sorted(folder.glob(f"*{_SUFFIX}"), key=_modified, reverse=True):
        entry = _read(path)
        total += 0 if entry is None else len(entry.value)
        if entry is None or entry.expires_at <= now or total > limits.cache_bytes_max:
            with suppress(OSError):
                path.unlink()
            continue
        found.append((_modified(path), path.name.removesuffix(_SUFFIX), entry))
    return [(key, entry) for _, key, entry in sorted(found, key=lambda item: item[0])]


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _read(path: Path) -> Entry | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if len(data) <= _EXPIRY.size or len(data) > limits.cache_answer_bytes_max + _EXPIRY.size:
        return None
    return Entry(data[_EXPIRY.size :], _EXPIRY.unpack_from(data)[0])
