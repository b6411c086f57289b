"""A file that is not whole yet: its bytes in `NAME.partial`, and beside it a note of which of them are there.

A process that is killed loses nothing that was noted, since the kernel still has it. After a start of the machine only
what was synced counts: the disk may have the note and not the bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import msgspec

from llmvisor.fetch import limits
from llmvisor.fetch.ranges import Range, clipped, count, merged
from llmvisor.fetch.staging import PARTIAL_SUFFIX, STATE_SUFFIX, is_file, sync_folder

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class PartialState(msgspec.Struct):
    """The note."""

    identity: str
    """What the source says of the content; another one makes the bytes worthless."""
    boot_id: str
    size: int | None = None
    validator: str | None = None
    """The server's own ETag, or when it says that the file was changed."""
    written: list[Range] = []
    synced: list[Range] = []
    sha256: str | None = None
    """Of the whole file; it may have its own name already."""


class PartialFile:
    """Bytes that arrive in any order. All methods but `create` and the properties raise OSError."""

    def __init__(self, path: Path, state: PartialState, monotonic: Callable[[], float]) -> None:
        self.path = path
        self.state = state
        self._partial = path.with_name(path.name + PARTIAL_SUFFIX)
        self._note = path.with_name(path.name + STATE_SUFFIX)
        self._monotonic = monotonic
        self._fd: int | None = None
        self._saved_at = self._synced_at = monotonic()
        self.resumed = bool(state.written) or state.sha256 is not None
        """Whether there are bytes of an earlier try."""

    @classmethod
    def open(cls, path: Path, identity: str, monotonic: Callable[[], float]) -> Self:
        """What an earlier try left of this file, or nothing. Makes the folder that it goes into."""
        path.parent.mkdir(parents=True, exist_ok=True)
        state = _read(path.with_name(path.name + STATE_SUFFIX))
        if state is None or state.identity != identity or not _is_kept(state, path):
            state = PartialState(identity, boot_id())
            path.with_name(path.name + PARTIAL_SUFFIX).unlink(missing_ok=True)  # its end might outlast what comes now
        elif state.sha256 is None:
            trusted = state.written if state.boot_id == boot_id() else state.synced
            state.written = state.synced = clipped(trusted, _size(path.with_name(path.name + PARTIAL_SUFFIX)))
            state.boot_id = boot_id()
        return cls(path, state, monotonic)

    @property
    def bytes_there(self) -> int:
        return count(self.state.written)

    @property
    def is_whole(self) -> bool:
        return self.state.size is not None and self.state.written == ([(0, self.state.size)] if self.state.size else [])

    def finished(self) -> str | None:
        """The checksum, where an earlier try has brought the whole file and only its name may be missing."""
        if self.state.sha256 is None or self.state.size is None:
            return None
        if is_file(self._partial) and _size(self._partial) == self.state.size:
            self._publish()
        if is_file(self.path) and _size(self.path) == self.state.size:
            return self.state.sha256
        return None

    def clear(self) -> None:
        """Forget everything: the file is begun again."""
        self.state = PartialState(self.state.identity, boot_id())
        self._note.unlink(missing_ok=True)
        self.resumed = False
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
        else:
            self._partial.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)

    def write(self, offset: int, data: bytes) -> None:
        fd = self._descriptor()
        view = memoryview(data)
        while view:
            written = os.pwrite(fd, view, offset)
            self.state.written = merged([*self.state.written, (offset, offset + written)])
            offset += written
            view = view[written:]
        if self._monotonic() - self._saved_at >= limits.fetch_save_seconds:
            self.save()

    def save(self) -> None:
        """Note how far it is."""
        note = self._note.with_name(f"{self._note.name}.new")
        note.write_bytes(msgspec.json.encode(self.state))
        note.replace(self._note)
        self._saved_at = self._monotonic()

    @property
    def sync_due(self) -> bool:
        return self._monotonic() - self._synced_at >= limits.fetch_sync_seconds

    def sync(self) -> list[Range]:
        """Bring to the disk what is written, and give it back for `noted`. Takes a while; for a thread."""
        self._synced_at = self._monotonic()
        written = list(self.state.written)
        os.fsync(self._descriptor())
        return written

    def noted(self, synced: list[Range]) -> None:
        """Note what `sync` has brought to the disk."""
        self.state.synced = synced
        self.save()

    def finish(self, sha256: str) -> None:
        """Sync the whole file and give it its name. Takes a while; for a thread."""
        fd = self._descriptor()
        os.ftruncate(fd, self.state.size or 0)
        os.fsync(fd)
        self.close()
        self.state.sha256 = sha256
        self.save()
        self._publish()

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    @property
    def content(self) -> Path:
        """Where the bytes lie, for their checksum."""
        self._descriptor()  # an empty file was never written to
        return self._partial

    def _publish(self) -> None:
        self._partial.replace(self.path)
        sync_folder(self.path.parent)

    def _descriptor(self) -> int:
        if self._fd is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(self._partial, flags, 0o644)
        return self._fd


def boot_id() -> str:
    """What is another after each start of the machine; empty where the system does not say, which trusts no note."""
    with suppress(OSError):
        return _BOOT_ID.read_text(encoding="ascii").strip()
    return f"process {os.getpid()}"


def _read(note: Path) -> PartialState | None:
    try:
        with note.open("rb") as file:
            data = file.read(limits.fetch_state_bytes_max + 1)
        state = msgspec.json.decode(data, type=PartialState)
    except (OSError, msgspec.MsgspecError, UnicodeError):
        return None
    state.written, state.synced = merged(state.written), merged(state.synced)
    return state


def _is_kept(state: PartialState, path: Path) -> bool:
    """Whether a file that is noted as whole is there, under one name or the other."""
    places = (path, path.with_name(path.name + PARTIAL_SUFFIX))
    return state.sha256 is None or any(is_file(place) and _size(place) == state.size for place in places)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0
