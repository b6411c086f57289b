"""Server-sent events, read line by line (WHATWG HTML, section 9.2.6). Pure."""

from __future__ import annotations

from typing import NamedTuple


class ServerSentEvent(NamedTuple):
    kind: str
    data: bytes


class EventParser:
    """Takes lines as they come and gives an event at each blank line. Comments (heartbeats) give nothing."""

    def __init__(self) -> None:
        self._kind = "message"
        self._data: list[bytes] = []
        self.bytes_held = 0
        """Of the event that is not whole yet."""

    def feed(self, line: bytes) -> ServerSentEvent | None:
        line = line.rstrip(b"\r\n")
        if not line:
            return self._dispatch()
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self.bytes_held += len(value)
        elif field == b"event":
            self._kind = value.decode(errors="replace")
        return None

    def _dispatch(self) -> ServerSentEvent | None:
        event = ServerSentEvent(self._kind, b"\n".join(self._data)) if self._data else None
        self._kind, self._data, self.bytes_held = "message", [], 0
        return event
