"""A hook for tests: an upgrade that goes wrong where the file that `FAULT_VARIABLE` names says so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

FAULT_VARIABLE = "LLMVISOR_FAULT_UPGRADE_FILE"

Fault = Literal["preflight", "exec", "state", "protocol", "start"]
"""`preflight`: the trial of the new daemon fails; `exec`: the execution fails; `state`: the new daemon cannot read what
the old one left; `protocol`: it speaks another protocol to workers; `start`: it fails with what it was left."""


def is_wanted(environ: Mapping[str, str], fault: Fault) -> bool:
    """Whether this is to go wrong."""
    path = environ.get(FAULT_VARIABLE)
    try:
        return path is not None and Path(path).read_text(encoding="ascii").strip() == fault
    except (OSError, UnicodeError):
        return False


def fail_on_purpose(environ: Mapping[str, str], fault: Fault, error: Exception) -> None:
    """Raises `error` where this is to go wrong."""
    if is_wanted(environ, fault):
        raise error
