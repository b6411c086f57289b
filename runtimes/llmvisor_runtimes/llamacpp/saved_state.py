"""The cache of a model that is unloaded, in a file until it is loaded again.

One file for each model: what it was computed with, then the sequences, the one used last first, each with a digest.
It is taken away before it is used, so that one that brings llama.cpp down does so once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import sys
import time
from collections.abc import Callable, Iterable
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from llmvisor_runtimes import limits
from llmvisor_runtimes.llamacpp.parked import AdapterSet, Parked

_MAGIC = b"llmvisor-kv-1\n"
_DIGEST_BYTES = 16
_RECORD = struct.Struct("<QQ")
"""Lengths of a sequence's description and of its state."""
_CHUNK_BYTES = 4 * 1024 * 1024


class _Damaged(Exception):
    """The file is not what was written."""


class _Sequence(msgspec.Struct, frozen=True, array_like=True):
    tokens: list[int]
    adapters: AdapterSet


class StateFile:
    """Where one model's sequences are kept. `identity` says all that has to be the same for them to be of use."""

    def __init__(self, path: Path, identity: bytes, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._head = _MAGIC + hashlib.blake2b(identity, digest_size=_DIGEST_BYTES).digest()
        self._clock = clock

    def write(self, sequences: Iterable[Parked]) -> int:
        """Keep as many as time and room allow; gives how many. Never raises: without them they are computed again."""
        deadline = self._clock() + limits.state_save_seconds_max
        draft = self._path.with_suffix(".tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Prompts stand in it: nobody else may read them.
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
            with os.fdopen(os.open(draft, flags, 0o600), "wb") as file:
                count = self._write_all(file, sequences, deadline)
            if count:
                draft.replace(self._path)
            else:
                draft.unlink()
        except OSError as error:
            _log(f"the cache could not be saved: {error}")
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            return 0
        return count

    def take(self) -> list[Parked]:
        """What was kept, the one used last first; the file is gone afterwards. Nothing where it is of no use."""
        try:
            with open(self._path, "rb") as file:
                self._path.unlink()
                return self._read_all(file)
        except FileNotFoundError:
            return []
        except (OSError, _Damaged) as error:
            _log(f"the saved cache {self._path.name} is of no use and removed: {error}")
            return []

    def _write_all(self, file: BinaryIO, sequences: Iterable[Parked], deadline: float) -> int:
        file.write(self._head)
        count = 0
        for sequence in sequences:
            start = file.tell()
            about = msgspec.msgpack.encode(_Sequence(sequence.tokens, sequence.adapters))
            room = limits.state_file_bytes_max - start - _RECORD.size - len(about) - _DIGEST_BYTES
            if len(sequence.state) > room or not self._write_one(file, about, sequence.state, deadline):
                file.seek(start)
                file.truncate()
                break
            count += 1
            if count == limits.state_sequences_max:
                break
        return count

    def _write_one(self, file: BinaryIO, about: bytes, state: bytearray, deadline: float) -> bool:
        """False where time is up."""
        digest = hashlib.blake2b(about, digest_size=_DIGEST_BYTES)
        file.write(_RECORD.pack(len(about), len(state)))
        file.write(about)
        with memoryview(state) as view:
            for place in range(0, len(view), _CHUNK_BYTES):
                if self._clock() >= deadline:
                    return False
                digest.update(view[place : place + _CHUNK_BYTES])
                file.write(view[place : place + _CHUNK_BYTES])
        file.write(digest.digest())
        return True

    def _read_all(self, file: BufferedReader) -> list[Parked]:
        size = os.fstat(file.fileno()).st_size
        if size > limits.state_file_bytes_max:
            raise _Damaged("it is too long")
        head = file.read(len(self._head))
        if not head.startswith(_MAGIC):
            raise _Damaged("it is of another kind")
        if head != self._head:
            raise _Damaged("it belongs to another model file, other options or another version")
        sequences: list[Parked] = []
        while file.tell() < size:
            sequences.append(_read_one(file, size))
        return sequences


def _read_one(file: BufferedReader, size: int) -> Parked:
    lengths = file.read(_RECORD.size)
    if len(lengths) < _RECORD.size:
        raise _Damaged("it is cut")
    about_bytes, state_bytes = _RECORD.unpack(lengths)
    if about_bytes + state_bytes + _DIGEST_BYTES > size - file.tell():
        raise _Damaged("it is cut")
    about, state = file.read(about_bytes), bytearray(state_bytes)
    file.readinto(state)
    digest = hashlib.blake2b(about, digest_size=_DIGEST_BYTES)
    digest.update(state)
    if digest.digest() != file.read(_DIGEST_BYTES):
        raise _Damaged("its digest is another")
    try:
        sequence = msgspec.msgpack.decode(about, type=_Sequence)
    except msgspec.MsgspecError as error:
        raise _Damaged(str(error)) from error
    return Parked(sequence.tokens, state, sequence.adapters)


class _FileFacts(NamedTuple):
    size: int
    mtime_ns: int
    beginning: bytes
    """Digest of the first MiB, where a GGUF's header stands."""


def file_facts(path: str) -> _FileFacts:
    """What tells a file from another at the same place."""
    with open(Path(path).expanduser(), "rb") as file:
        status = os.fstat(file.fileno())
        beginning = hashlib.blake2b(file.read(1024 * 1024), digest_size=_DIGEST_BYTES).digest()
    return _FileFacts(status.st_size, status.st_mtime_ns, beginning)


def state_path(folder: str, model: str, path: str) -> Path:
    """The one file of this model: another version of it replaces it."""
    name = hashlib.blake2b(f"{model}\0{os.path.abspath(path)}".encode(), digest_size=_DIGEST_BYTES).hexdigest()
    return Path(folder) / f"{name}.kv"


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
