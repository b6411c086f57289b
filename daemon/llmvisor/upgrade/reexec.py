"""Executing a program in place of this one, with some descriptors left open."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress

from llmvisor.signals import HeldSignals
from llmvisor.supervision.workers.spawn import seal_descriptors

STATE_VARIABLE = "LLMVISOR_UPGRADE_FD"
"""Names the descriptor of the state, from one run to the next."""


COLD_VARIABLE = "LLMVISOR_UPGRADE_FAILED"
"""Says why the next run begins with nothing."""


def command() -> list[str]:
    """What this daemon was started with: interpreter, its options, program, arguments."""
    return [sys.executable, *sys.orig_argv[1:]]


def execute(arguments: list[str], environment: Mapping[str, str], fds: Iterable[int], held: HeldSignals) -> None:
    """Become another program; only with the loop's own thread. Raises OSError where that fails, all as before.

    Signals that are held wait until the other program handles them. No thread but this one lives on.
    """
    seal_descriptors()
    kept = list(fds)
    try:
        for fd in kept:
            os.set_inheritable(fd, True)
        held.send_again()
        os.execve(arguments[0], arguments, dict(environment))  # noqa: S606 - that is what this is for
    finally:
        # Only where it failed.
        for fd in kept:
            with suppress(OSError):
                os.set_inheritable(fd, False)
