"""Linux's own word that something happens in a folder (inotify(7)), without a thread and without looking all the time.

Other systems, and file systems that other machines write to, say nothing here: whoever waits has to look as well.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

_MODIFY, _ATTRIB, _CLOSE_WRITE = 0x2, 0x4, 0x8
_MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x40, 0x80, 0x100, 0x200
_MASK = _MODIFY | _ATTRIB | _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE
_EVENT = struct.Struct("iIII")
_READ_BYTES = 65_536


class FolderEvents:
    """Told of changes of files by name. Belongs to the running loop until `close`."""

    def __init__(self) -> None:
        self.happened = asyncio.Event()
        self.writing = False
        """Whether somebody has written to one of the files and has not closed it yet."""
        self._names: frozenset[str] = frozenset()
        self._fd = _open()
        if self._fd is not None:
            asyncio.get_running_loop().add_reader(self._fd, self._read)

    def watch(self, files: Iterable[Path]) -> None:
        """Be told of these files, which need not be there. Again and again: a folder may be another one now."""
        files = list(files)
        self._names = frozenset(os.fsencode(file.name).decode("utf-8", "surrogateescape") for file in files)
        if self._fd is not None:
            for folder in {file.parent for file in files}:
                _LIBC.inotify_add_watch(self._fd, os.fsencode(folder), _MASK)  # a folder that is not there is looked at

    def close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)

    def _read(self) -> None:
        assert self._fd is not None
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        place = 0
        while place + _EVENT.size <= len(data):
            _, mask, _, length = _EVENT.unpack_from(data, place)
            name = data[place + _EVENT.size : place + _EVENT.size + length].rstrip(b"\0")
            place += _EVENT.size + length
            self._take(mask, name.decode("utf-8", "surrogateescape"))

    def _take(self, mask: int, name: str) -> None:
        # `..data` is the link that Kubernetes turns to the new files of a volume.
        if name and name not in self._names and not name.startswith(".."):
            return
        if mask & _MODIFY:
            self.writing = True
        elif mask & (_CLOSE_WRITE | _MOVED_TO | _DELETE):
            self.writing = False
        self.happened.set()


def _open() -> int | None:
    if not sys.platform.startswith("linux"):
        return None
    fd = _LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    return fd if fd >= 0 else None  # none is left to this user


_LIBC = ctypes.CDLL(None, use_errno=True)
