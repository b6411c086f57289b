"""macOS: a profile for sandbox(7), as `sandbox-exec` takes it, applied to this very process.

Everything is allowed that Metal and the frameworks ask for; denied are the network, writing, and reading of what people
and programs keep their secrets in.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

_HEAD = """(version 1)
(allow default)
(deny network*)
(deny process-info* (target others))
(deny signal (target others))
(deny file-write*)
(allow file-write* (literal "/dev/null") (literal "/dev/zero") (literal "/dev/dtracehelper") (literal "/dev/tty"))
"""


def profile(*, home: str, read: Iterable[str], write: Iterable[str]) -> str:
    """The profile's text: later rules win over earlier ones. Raises ValueError for a path that cannot be quoted."""
    lines = [_HEAD.rstrip("\n")]
    if home not in {"", "/"}:
        lines.append(f"(deny file-read-data (subpath {_quoted(home)}))")
    lines += [f"(allow file-read* (subpath {_quoted(path)}))" for path in read]
    lines += [f"(allow file-read* file-write* (subpath {_quoted(path)}))" for path in write]
    return "\n".join(lines) + "\n"


def apply(text: str) -> None:
    """Hold this process and its children to a profile (sandbox_init(3)). Raises OSError."""
    library = ctypes.CDLL("/usr/lib/libsandbox.1.dylib", use_errno=True)
    error = ctypes.c_char_p()
    if library.sandbox_init(text.encode(), ctypes.c_uint64(0), ctypes.byref(error)) != 0:
        raise OSError((error.value or b"sandbox_init failed").decode(errors="replace"))


def _quoted(path: str) -> str:
    if any(character in path for character in "\0\n\r"):
        raise ValueError(f"a path with a line break or a null byte: {path!r}")
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'
