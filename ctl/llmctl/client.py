"""HTTP with the daemon, with every way in which an answer can be wrong turned into a `CtlError`."""

from __future__ import annotations

import http.client
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from llmctl import limits
from llmctl.connection import Connection, Remote, connect
from llmctl.errors import CtlError, NotFound, NotRunning, TimedOut
from llmctl.sse import EventParser, ServerSentEvent
from llmvisor.control.api import ErrorAnswer, ErrorBody, ListAnswer

T = TypeVar("T")
Query = Mapping[str, str | None]


class AnswerError(CtlError):
    """The daemon answered with an error; `status` and `code` are its own."""

    def __init__(self, error: ErrorBody, *, status: int) -> None:
        super().__init__(error.message)
        self.code = error.code
        self.status = status


class MissingError(NotFound, AnswerError):
    """404."""


class TimeoutAnswer(TimedOut, AnswerError):
    """504."""


class CutOff(CtlError):
    """The connection ended before the answer did."""


class Client:
    """Calls the daemon; each call opens a connection of its own."""

    def __init__(
        self, socket_path: Path, *, timeout_seconds: float | None = None, remote: Remote | None = None
    ) -> None:
        self.socket_path = socket_path
        self.remote = remote
        """Where `--url` leads; None = the socket."""
        self._where = str(remote or socket_path)
        self.timeout_seconds = timeout_seconds
        """What the person gave with `--timeout`; None = the default of each call."""

    def get(
        self,
        path: str,
        query: Query | None = None,
        *,
        accept: tuple[int, ...] = (),
        timeout_seconds: float = limits.answer_seconds_max,
    ) -> bytes:
        """The answer's JSON. Statuses in `accept` are no error. Raises `CtlError` and its kinds."""
        return self._call("GET", path, query=query, body=None, accept=accept, timeout_seconds=timeout_seconds)

    def pages(self, path: str, query: Query, type: type[T]) -> Iterator[Page[T]]:
        """The pages of a list answer, one after the other. Raises `CtlError`."""
        while True:
            page = decode(self.get(path, query), Page[type])
            yield page
            if not page.next_cursor or not page.data:
                return
            query = {**query, "cursor": page.next_cursor}

    def get_list(self, path: str, query: Query) -> bytes:
        """A list answer with the objects of every page. Raises `CtlError`."""
        return msgspec.json.encode(
            ListAnswer([item for page in self.pages(path, query, msgspec.Raw) for item in page.data])
        )

    def post(
        self,
        path: str,
        body: msgspec.Struct | None = None,
        *,
        timeout_seconds: float = limits.answer_seconds_max,
    ) -> bytes:
        """As `get`; `timeout_seconds` is for what takes long, and `--timeout` overrides it."""
        data = msgspec.json.encode(body) if body else b"{}"
        return self._call("POST", path, query=None, body=data, timeout_seconds=timeout_seconds)

    def delete(self, path: str) -> None:
        """As `get`, for what answers nothing."""
        self._call("DELETE", path, query=None, body=None)

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: bytes | None = None,
        silence_seconds_max: float | None = None,
        seconds_max: float | None = None,
    ) -> Generator[Iterator[ServerSentEvent]]:
        """Events as they come, for `seconds_max` in all; a silence of `silence_seconds_max` ends them as well.

        Leaving the block closes the connection, which cancels what the daemon does for it. Raises `TimedOut`.
        """
        ends_at = None if seconds_max is None else time.monotonic() + seconds_max
        seconds = silence_seconds_max if seconds_max is None else seconds_max
        connection = connect(self.socket_path, self.remote, seconds)
        with self._request(connection, method, path, query=query, body=body) as response:
            yield self._events(response, connection, ends_at=ends_at)

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: Query | None,
        body: bytes | None,
        accept: tuple[int, ...] = (),
        timeout_seconds: float = limits.answer_seconds_max,
    ) -> bytes:
        connection = connect(self.socket_path, self.remote, self.timeout_seconds or timeout_seconds)
        with (
            self._request(connection, method, path, query=query, body=body, accept=accept) as response,
            self._faults_told(),
        ):
            return _body(response)

    @contextmanager
    def _request(
        self,
        connection: Connection,
        method: str,
        path: str,
        *,
        query: Query | None,
        body: bytes | None,
        accept: tuple[int, ...] = (),
    ) -> Generator[http.client.HTTPResponse]:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if self.remote is not None:
            headers |= self.remote.headers
            path = self.remote.path + path
        try:
            with self._faults_told():
                connection.request(method, path_of(path, query), body=body, headers=headers)
                response = connection.getresponse()
                if response.status >= 300 and response.status not in accept:
                    raise _refusal(response.status, response.reason, _body(response))
            with response:
                yield response
        finally:
            connection.close()

    def _events(
        self, response: http.client.HTTPResponse, connection: Connection, *, ends_at: float | None
    ) -> Iterator[ServerSentEvent]:
        if not (response.getheader("Content-Type") or "").startswith("text/event-stream"):
            raise CtlError(f"{self._where} answered with no event stream: is it llmvisor's?")
        parser = EventParser()
        while True:
            with self._faults_told():
                if ends_at is not None:
                    connection.limit(ends_at - time.monotonic())
                line = response.readline(limits.event_bytes_max)
            if not line:
                return
            if event := parser.feed(line):
                yield event
            if len(line) == limits.event_bytes_max or parser.bytes_held > limits.event_bytes_max:
                raise CtlError("the daemon sent an event that is too long")

    @contextmanager
    def _faults_told(self) -> Generator[None]:
        """Turns what sockets and http.client raise into what a person can act on."""
        where = self._where
        start_hint = "start it with: llmctl start   (in the foreground: llmvisor)"
        try:
            yield
        except TimeoutError:
            raise TimedOut(f"no answer from {where} in time") from None
        except FileNotFoundError:
            raise NotRunning(f"the daemon is not running (no socket at {where})", hint=start_hint) from None
        except ConnectionRefusedError:
            raise NotRunning(f"the daemon is not running (nobody listens on {where})", hint=start_hint) from None
        except PermissionError:
            hint = "run llmctl as the user that runs llmvisor"
            raise CtlError(f"not allowed to use {where}", hint=hint) from None
        except (http.client.RemoteDisconnected, ConnectionError):
            raise CutOff(f"the connection to {where} was closed before the answer was whole") from None
        except http.client.IncompleteRead:
            raise CutOff(f"the answer on {where} was cut short") from None
        except (http.client.HTTPException, ValueError) as fault:
            raise CtlError(f"{where} does not speak HTTP: is it llmvisor's? ({type(fault).__name__})") from None
        except OSError as fault:
            raise CtlError(f"cannot reach {where}: {fault.strerror or fault}") from None


def decode(body: bytes, type: type[T]) -> T:
    """An answer's object. Raises `CtlError` for what is no such thing."""
    try:
        return msgspec.json.decode(body, type=type)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise CtlError(f"the daemon's answer makes no sense: {fault}", hint=_VERSION_HINT) from None


class Page(msgspec.Struct, Generic[T]):
    """A `ListAnswer` whose objects are known."""

    data: list[T]
    next_cursor: str | None = None


def decode_list(body: bytes, type: type[T]) -> list[T]:
    """The objects of a list answer. Raises `CtlError`."""
    return decode(body, Page[type]).data


def path_of(path: str, query: Query | None) -> str:
    """A path with the parts of the query that are set."""
    pairs = {name: value for name, value in (query or {}).items() if value}
    return f"{path}?{urlencode(pairs)}" if pairs else path


def segment(name: str) -> str:
    """A name as one segment of a path: `light/smollm2` must not become two."""
    return quote(name, safe="")


_VERSION_HINT = "llmctl and the daemon may be of different versions: see `llmctl --version` and `llmvisor --version`"


def _body(response: http.client.HTTPResponse) -> bytes:
    body = response.read(limits.answer_bytes_max + 1)
    if len(body) > limits.answer_bytes_max:
        raise CtlError("the daemon's answer is too long")
    if response.length:
        raise http.client.IncompleteRead(body, response.length)
    return body


def _refusal(status: int, reason: str, body: bytes) -> CtlError:
    try:
        error = msgspec.json.decode(body, type=ErrorAnswer).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return CtlError(f"the daemon answered {status} {reason} and nothing more")
    if status == 404:
        return MissingError(error, status=status)
    if status == 504:
        return TimeoutAnswer(error, status=status)
    return AnswerError(error, status=status)
