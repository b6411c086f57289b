"""What a signal to the daemon does."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self

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


class HeldSignals:
    """Signals that come while the `with` lasts wait until it is over, or for the program that is executed in it.

    To block them in this thread is not enough: another one takes them, and what it tells the loop is lost with it. So
    what is told is read here, and each of them is sent to this thread, where it stays blocked.
    """

    def __enter__(self) -> Self:
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        self._told, self._teller = os.pipe()
        os.set_blocking(self._told, False)
        os.set_blocking(self._teller, False)
        self._loops_fd = signal.set_wakeup_fd(self._teller, warn_on_full_buffer=False)
        return self

    def send_again(self) -> None:
        """Have what has come so far wait in this thread."""
        with suppress(BlockingIOError):
            for number in os.read(self._told, 4096):
                if number in HANDLED:
                    signal.pthread_kill(threading.get_ident(), number)

    def __exit__(self, *exc: object) -> None:
        signal.set_wakeup_fd(self._loops_fd)
        self.send_again()
        os.close(self._told)
        os.close(self._teller)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
