"""What is piped in."""

from __future__ import annotations

import os
import stat
import sys

from llmctl import limits
from llmctl.errors import UsageError


def is_piped() -> bool:
    """Whether standard input is a pipe or a file; what a terminal or /dev/null holds is not asked for."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def read_text() -> str:
    """All of it, nothing from a terminal. Raises `UsageError` where it is too long."""
    if not sys.stdin or sys.stdin.isatty():
        return ""
    data = sys.stdin.buffer.read(limits.prompt_bytes_max + 1)
    if len(data) > limits.prompt_bytes_max:
        raise UsageError(f"standard input is longer than {limits.prompt_bytes_max} bytes")
    return data.decode(errors="replace")


def texts(given: list[str], *, what: str, example: str) -> list[str]:
    """What the command line names, else the lines that are piped in. Raises `UsageError` where there is neither."""
    found = given or [line for line in (read_text() if is_piped() else "").splitlines() if line.strip()]
    if not found:
        raise UsageError(f"there is no {what}", hint=f"{example}, or pipe one in on each line")
    return found
