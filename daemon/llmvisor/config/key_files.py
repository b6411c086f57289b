"""Where the keys of `server.api_keys` are read from: variables, and files."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

from llmvisor import limits
from llmvisor.config.draft import KeyText, absolute


class KeyReader:
    """Reads entries from these variables, else from files."""

    def __init__(self, variables: Mapping[str, str], home: str) -> None:
        self._variables = variables
        self._home = home

    def __call__(self, entry: str, folder: str) -> KeyText:
        """Raises `ValueError`; never tells the entry, which may be a key that somebody put there."""
        if (value := self._variables.get(entry)) is not None:
            return KeyText(value)
        if "/" not in entry and "." not in entry:
            raise ValueError("names an environment variable that is not set, or a file without its folder")
        return _read(absolute(entry, folder, self._home))


def _read(path: str) -> KeyText:
    try:
        # Opened without blocking, because a pipe of that name would hang the start.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(limits.key_file_bytes_max + 1) if stat.S_ISREG(mode) else None
    except OSError as error:
        raise ValueError(f"names a file that cannot be read: {error.strerror or type(error).__name__}") from None
    if data is None:
        raise ValueError("names what is not a regular file")
    if len(data) > limits.key_file_bytes_max:
        raise ValueError(f"names a file of more than {limits.key_file_bytes_max} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise ValueError("names a file that is not text") from None
    return KeyText(text, "every person of this machine may read this file" if mode & stat.S_IROTH else None)
