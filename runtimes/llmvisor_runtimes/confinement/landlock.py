"""Landlock (landlock(7)): which files this process and its children may use, and nothing of TCP, signals, sockets."""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from contextlib import suppress

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
"""The same numbers on every architecture."""
_VERSION_FLAG = 1
_PATH_BENEATH = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_BLOCK = 1 << 6, 1 << 11
_REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_ALL_OF_FIRST_ABI = (1 << 13) - 1
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV

PROGRAMS = EXECUTE | READ_FILE | READ_DIR
READ = READ_FILE | READ_DIR
OWN = ((1 << 15) - 1) & ~EXECUTE & ~_MAKE_CHAR & ~_MAKE_BLOCK
"""A folder of this worker alone: everything but programs and devices."""
DEVICE = READ_FILE | READ_DIR | WRITE_FILE | IOCTL_DEV
WRITE_ONLY = WRITE_FILE

HOLDS_SIGNALS = 6
"""Since this version."""

_TCP = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11


def abi_version() -> int:
    """The kernel's version of Landlock; 0 where it has none, or this process may not use it."""
    version: int = _libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG))
    return max(0, version)


def restrict(rules: Iterable[tuple[str, int]], *, abi: int) -> None:
    """Allow these paths (and what is below them) these rights, and nothing else from now on.

    A path that is not there is left out. Needs no_new_privs. Raises OSError, with nothing restricted.
    """
    files = _handled_files(abi)
    scopes = _ABSTRACT_SOCKETS_AND_SIGNALS if abi >= HOLDS_SIGNALS else 0
    attributes = struct.pack("=QQQ", files, _TCP if abi >= 4 else 0, scopes)
    ruleset = _call(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    try:
        for path, rights in rules:
            with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                _allow(ruleset, path, rights & files)
        _call(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)


def _handled_files(abi: int) -> int:
    files = _ALL_OF_FIRST_ABI
    for since, right in ((2, _REFER), (3, TRUNCATE), (5, IOCTL_DEV)):
        files |= right if abi >= since else 0
    return files


def _allow(ruleset: int, path: str, rights: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _OF_FILES
        rule = struct.pack("=Qi", rights, fd)
        _call(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint32(0))
    finally:
        os.close(fd)


def _call(number: int, *arguments: object) -> int:
    result: int = _libc().syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
