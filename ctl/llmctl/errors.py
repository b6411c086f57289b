"""How llmctl fails, and the exit code of each way.

CtlError           1    the daemon refused, or answered nonsense
├── UsageError     2
├── NotRunning     3
├── NotFound       4
└── TimedOut       5
(130: interrupted by Ctrl-C)
"""

from __future__ import annotations

from typing import ClassVar

DONE = 0
FAILED = 1
INTERRUPTED = 130


class CtlError(Exception):
    """Ends the command: the message goes to stderr, `exit_code` to the shell."""

    exit_code: ClassVar[int] = FAILED

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(CtlError):
    exit_code = 2


class NotRunning(CtlError):
    """Nobody listens on the socket."""

    exit_code = 3


class NotFound(CtlError):
    """The daemon knows no such model or job."""

    exit_code = 4


class TimedOut(CtlError):
    exit_code = 5
