"""Tells a service manager how the daemon fares: systemd's sd_notify protocol, datagrams of `NAME=value` lines.

After sd_notify(3) and sd_watchdog_enabled(3). Where no manager listens, nothing is sent.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from types import MappingProxyType

from llmvisor import limits
from llmvisor.clock import Clock
from llmvisor.log import get_logger

NOTIFY_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_MICROSECONDS = 1_000_000
_NOTHING: Mapping[str, str] = MappingProxyType({})
_log = get_logger(__name__)


class Notifier:
    """The manager that started this process, as far as its environment names one.

    `variables` are what names it: whoever executes the daemon anew in this process hands them on.
    """

    def __init__(self, variables: Mapping[str, str] = _NOTHING, *, pid: int = 0, clock: Clock | None = None) -> None:
        self.variables = dict(variables)
        self.watchdog_seconds = _watchdog_seconds(variables, pid)
        """The manager ends a daemon that it does not hear of for so long; None = it does not watch."""
        self._address = _address(variables.get("NOTIFY_SOCKET", ""))
        self._clock = clock
        self._status = ""

    @property
    def listens(self) -> bool:
        """Whether there is a manager."""
        return self._address is not None

    def ready(self) -> None:
        """It accepts connections; also after `reloading`."""
        self._send("READY=1", wait=True)

    def reloading(self) -> None:
        """It reads its configuration again, or executes itself anew, until `ready`."""
        now = self._clock.monotonic() if self._clock is not None else 0.0
        # systemd tells by the time that this answers the signal it has just sent.
        self._send("RELOADING=1", f"MONOTONIC_USEC={int(now * _MICROSECONDS)}", wait=True)

    def stopping(self, *, seconds: float) -> None:
        """It ends, and may take so long."""
        self._send("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int(seconds * _MICROSECONDS)}", wait=True)

    def status(self, text: str) -> None:
        """One line for people; sent when it is another than before."""
        line = " ".join(text.split())[: limits.notify_status_chars_max]
        if line != self._status:
            self._status = line
            self._send(f"STATUS={line}")

    def alive(self) -> None:
        """All is well: feeds the manager's watchdog."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str, wait: bool = False) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                # A manager that is busy lets messages queue up; only those that it waits for are waited for.
                sock.settimeout(limits.notify_seconds_max if wait else 0)
                sock.connect(self._address)
                sock.sendall("\n".join(lines).encode())
        except OSError as error:
            _log.debug("the service manager cannot be told", what=lines[0], error=str(error))


def take_notifier(environ: MutableMapping[str, str], *, clock: Clock) -> Notifier:
    """The manager that the environment names. It is named there no longer: no child may speak for the daemon."""
    return Notifier(take(environ, NOTIFY_VARIABLES), pid=os.getpid(), clock=clock)


def take(environ: MutableMapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    """These variables, which are in the environment no longer."""
    return {name: environ.pop(name) for name in names if name in environ}


def _address(name: str) -> str | None:
    """A path, or a name in the abstract namespace, which systemd writes with `@`."""
    if name.startswith("@"):
        return "\0" + name[1:]
    return name if name.startswith("/") else None


def _watchdog_seconds(variables: Mapping[str, str], pid: int) -> float | None:
    watched = variables.get("WATCHDOG_PID")
    if watched is not None and watched != str(pid):
        return None
    with suppress(ValueError):
        microseconds = int(variables.get("WATCHDOG_USEC", ""))
        if microseconds > 0:
            return microseconds / _MICROSECONDS
    return None
