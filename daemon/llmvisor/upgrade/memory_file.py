"""A file that stands in memory alone, and reaches another program by its descriptor."""

from __future__ import annotations

import os
import tempfile

from llmvisor import limits


def write_memory_file(data: bytes) -> int:
    """A descriptor of a file with these bytes and no name, which whoever calls this closes. Raises OSError."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("llmvisor-upgrade")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    except OSError:
        os.close(fd)
        raise
    return fd


def read_memory_file(fd: int) -> bytes:
    """All of its bytes, wherever it stands. Raises OSError, also for what is longer than a state can be."""
    size = os.fstat(fd).st_size
    if size > limits.upgrade_state_bytes_max:
        raise OSError(f"a state of {size} bytes is over the bound of {limits.upgrade_state_bytes_max}")
    data = b""
    while chunk := os.pread(fd, size + 1, len(data)):
        data += chunk
    return data
