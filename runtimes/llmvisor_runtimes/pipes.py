"""The two pipes of a worker: commands come in on one, reports go out on the other."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from typing import Protocol, cast, runtime_checkable

import msgspec

from llmvisor_runtimes import limits, parent_death
from llmvisor_runtimes.framing import COMMAND_DECODER, FrameReader, encode
from llmvisor_runtimes.protocol import Command, Report, Step
from llmvisor_runtimes.split import split_step


class Pipes:
    """Frames over two file descriptors that this process inherited; any thread may send."""

    def __init__(self, *, read_fd: int, write_fd: int) -> None:
        self.read_fd = read_fd
        self.write_fd = write_fd
        self._lock = threading.Lock()
        for fd in (read_fd, write_fd):
            # What a worker starts must not hold the pipes open after its end.
            os.set_inheritable(fd, False)
            os.set_blocking(fd, True)

    def commands(self) -> Iterator[Command]:
        """Every command, until the pipe ends. Raises `ProtocolViolation` for what is no command."""
        reader = FrameReader(COMMAND_DECODER)
        while data := os.read(self.read_fd, limits.pipe_read_bytes):
            yield from reader.feed(data)
        reader.close()

    def send(self, reports: Sequence[Report]) -> None:
        """Write reports as one run of bytes.

        A `Step` over `frame_bytes_max` goes out in several frames. Raises ValueError where any other report is; then
        none of them is written.
        """
        if len(reports) == 1:
            self.write(_encode(reports[0]))
        elif reports:
            self.write(b"".join([_encode(report) for report in reports]))

    def write(self, data: bytes) -> None:
        """Write bytes as they are; ends the process where nobody reads any more."""
        with self._lock:
            try:
                written = os.write(self.write_fd, data)
                while written < len(data):
                    written += os.write(self.write_fd, memoryview(data)[written:])
            except BrokenPipeError:
                parent_death.end_group()


def _encode(report: Report) -> bytes:
    try:
        return encode(report)
    except UnicodeEncodeError:
        return _encode(_encodable(report))
    except ValueError:
        if not isinstance(report, Step):
            raise
        return b"".join([encode(step) for step in split_step(report)])


def _encodable(report: Report) -> Report:
    """The same with U+FFFD for what UTF-8 has no bytes for: one text's surrogates must not cost the others' reports."""
    return msgspec.convert(_replaced(msgspec.to_builtins(report, builtin_types=(bytes,))), type(report))


def _replaced(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, list | tuple):
        return [_replaced(item) for item in cast("Sequence[object]", value)]
    if isinstance(value, dict):
        return {_replaced(key): _replaced(item) for key, item in cast("dict[object, object]", value).items()}
    return value


@runtime_checkable
class UsesPipes(Protocol):
    """A backend that writes to the pipes itself: the mock, which breaks frames on purpose. The host sets `pipes`."""

    pipes: Pipes | None
