"""How a worker ends with its daemon.

Two ways, since neither covers all: on Linux the kernel kills the worker when the daemon's thread that spawned it ends,
even while native code holds the GIL or the worker is stopped; everywhere the end of the command pipe tells it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import NoReturn

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask Linux's kernel to kill this process when its parent dies (prctl(2), PR_SET_PDEATHSIG); else nothing."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0) != 0:
            error = ctypes.get_errno()
            print(f"prctl(PR_SET_PDEATHSIG): {os.strerror(error)}", file=sys.stderr)


def parent_is(pid: int) -> bool:
    """Whether the parent is still the process that it was at the start: it may have died before `die_with_parent`."""
    return os.getppid() == pid


def end_group() -> NoReturn:
    """End this process at once, with all its process group where it leads one."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(os.EX_IOERR)
