"""What a process may become: no_new_privs, capabilities, how many processes there may be. Linux."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct

from llmvisor_runtimes import limits

_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION = 0x20080522
_CAPSET = {"x86_64": 126, "aarch64": 91}
_KEPT = (1, 2, 14, 23)
"""DAC_OVERRIDE and DAC_READ_SEARCH (a model that belongs to somebody else), IPC_LOCK (mlock), SYS_NICE (NUMA)."""


def forbid_new_privileges() -> None:
    """No program that this process starts gains any (prctl(2), PR_SET_NO_NEW_PRIVS). Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, *(ctypes.c_ulong(value) for value in (1, 0, 0, 0))) != 0:
        raise _last_error()


def drop_capabilities() -> None:
    """Of root's powers keep those that reading and locking a model may take. Raises OSError."""
    number = _CAPSET.get(platform.machine())
    held = _held_capabilities()
    kept = sum(1 << bit for bit in _KEPT) & held
    if number is None or held == kept:
        return
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    low, high = kept & 0xFFFFFFFF, kept >> 32
    data = struct.pack("=IIIIII", low, low, 0, high, high, 0)
    if ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), header, data) != 0:
        raise _last_error()


def bound_processes() -> None:
    """A fork bomb ends at so many more threads than the machine has now. Root has no such bound."""
    with open("/proc/loadavg", "rb") as file:
        threads = int(file.read().split()[3].partition(b"/")[2])
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    bound = threads + limits.processes_spare_max
    known = [value for value in (soft, hard, bound) if value != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_NPROC, (min(known), min(known)))


def _held_capabilities() -> int:
    with open("/proc/self/status", "rb") as file:
        return next(int(line.split()[1], 16) for line in file if line.startswith(b"CapPrm:"))


def _last_error() -> OSError:
    return OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
