"""What a signal to the daemon does."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

HANDLED = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2})


def handle_signals(*, stop: Callable[[], None], reload: Callable[[], None], upgrade: Callable[[], None]) -> None:
    """SIGTERM and SIGINT drain and end, asked again end now; SIGHUP reads the configuration again; SIGUSR2 upgrades."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, reload)
    loop.add_signal_handler(signal.SIGUSR2, upgrade)
    # An upgrade holds them back until somebody handles them again.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
