"""Runs llmctl as a person or a script does: in a pipe, or in a terminal of 80 columns."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Self

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b[=>]")
_IN_TERMINAL = """
import fcntl, os, runpy, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
if sys.argv[1] != "llmctl":
    os.execvp(sys.argv[1], sys.argv[1:])
del sys.argv[0]
runpy.run_module("llmctl", run_name="__main__", alter_sys=True)
"""
"""Takes the terminal as its own first: that is what makes Ctrl-C a signal. (`preexec_fn` and threads do not mix.)"""
DEADLINE_SECONDS = 30.0
_PRESS_SECONDS = 1.0


class Ended(NamedTuple):
    code: int
    stdout: str
    stderr: str


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "llmctl", *arguments]


def environment(socket_path: Path, changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's, with everything that steers llmctl set for the test."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLMVISOR", "XDG_"))}
    for name in ("NO_COLOR", "COLUMNS", "PORT"):
        kept.pop(name, None)
    return {**kept, "LLMVISOR_SOCKET": str(socket_path), "TERM": "xterm-256color", "TZ": "UTC", **(changes or {})}


def llmctl(
    socket_path: Path,
    *arguments: str,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Ended:
    """Run llmctl with pipes, to its end. Without `stdin` there is nothing to read."""
    with subprocess.Popen(
        command(*arguments),
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(socket_path, env),
        cwd=cwd,
    ) as process:
        try:
            stdout, stderr = process.communicate(stdin, timeout=DEADLINE_SECONDS)
        finally:
            process.kill()
    return Ended(process.returncode, stdout.decode(), stderr.decode())


class TerminalRun:
    """llmctl (or another program) in a pseudo-terminal: `expect` waits for a text, `send` types."""

    def __init__(
        self,
        socket_path: Path,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        columns: int = 80,
        program: str = "llmctl",
    ) -> None:
        self._controller, terminal = pty.openpty()
        termios.tcsetwinsize(terminal, (40, columns))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _IN_TERMINAL, program, *arguments],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=environment(socket_path, env),
            start_new_session=True,
        )
        os.close(terminal)
        self.raw = ""
        self._seen = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._controller)

    @property
    def text(self) -> str:
        """What has appeared, without escape sequences."""
        return plain(self.raw)

    def expect(self, text: str) -> str:
        """Wait until `text` appears after what was expected before; gives all that appeared up to it."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while (found := self.text.find(text, self._seen)) < 0:
            if not self._read(deadline):
                raise AssertionError(f"{text!r} did not appear; there is: {self.text[self._seen :]!r}")
        before = self.text[self._seen : found]
        self._seen = found + len(text)
        return before

    def send(self, text: str) -> None:
        os.write(self._controller, text.encode())

    def interrupt(self, *, until: str | None = None) -> None:
        """Press Ctrl-C until a text appears, or until the end.

        Python misses a signal that comes just before it blocks in a system call, and a person presses again.
        """
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            self.send("\x03")
            pressed = time.monotonic()
            while time.monotonic() < pressed + _PRESS_SECONDS:
                if until is not None and self.text.find(until, self._seen) >= 0:
                    return
                if not self._read(pressed + _PRESS_SECONDS) and self._is_over():
                    return
        raise AssertionError(f"Ctrl-C has no effect; there is: {self.text[self._seen :]!r}")

    def wait(self) -> int:
        """The exit code, once it has ended and everything is read."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self._read(deadline):
            pass
        return self.process.wait(timeout=DEADLINE_SECONDS)

    def _is_over(self) -> bool:
        try:
            self.process.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._controller], [], [], max(deadline - time.monotonic(), 0))
        data = b""
        if ready:
            with contextlib.suppress(OSError):  # the other end is closed: EIO on Linux
                data = os.read(self._controller, 65536)
        self.raw += data.decode(errors="replace")
        return bool(data)


def plain(text: str) -> str:
    """Text as it looks: no escape sequences, plain line ends."""
    return _ESCAPES.sub("", text).replace("\r\n", "\n")
