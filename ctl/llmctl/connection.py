"""Ways to a daemon: its Unix socket, or (`--url`) its TCP port with an API key."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

from llmctl import limits
from llmctl.errors import CtlError, UsageError

KEY_VARIABLE = "LLMVISOR_API_KEY"


class Connection(Protocol):
    """One connection, as far as a `Client` uses it."""

    def request(self, method: str, url: str, body: bytes | None = None, headers: Mapping[str, str] = ...) -> None: ...
    def getresponse(self) -> http.client.HTTPResponse: ...
    def limit(self, seconds: float) -> None:
        """How long the next read may take. Raises `TimeoutError` where nothing is left."""
        ...

    def close(self) -> None: ...


class Remote(NamedTuple):
    """A daemon's TCP port, or a proxy before it."""

    secure: bool
    host: str
    port: int | None
    path: str
    """Before every path of the daemon's, where a proxy has it below one."""
    key: str

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port is None else f":{self.port}"
        return f"{'https' if self.secure else 'http'}://{host}{port}{self.path}"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


def remote_of(url: str | None, key_file: Path | None, environ: Mapping[str, str]) -> Remote | None:
    """Where `--url` leads, with the key of `--key-file` or of $LLMVISOR_API_KEY; None without `--url`.

    A key on the command line could be read by everybody of the machine. Raises `UsageError`, `CtlError`.
    """
    if url is None:
        if key_file is not None:
            raise UsageError("--key-file goes with --url: the socket asks for no key")
        return None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UsageError(f"{url!r:.200} is no URL such as http://127.0.0.1:8000") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise UsageError(f"{url!r:.200} is no URL such as http://127.0.0.1:8000")
    key = environ.get(KEY_VARIABLE, "") if key_file is None else _read(key_file)
    if not key.strip():
        hint = f"llmctl keys add NAME --scope management   then --key-file, or ${KEY_VARIABLE}"
        raise UsageError("--url needs an API key", hint=hint)
    if not (key.strip().isascii() and key.strip().isprintable()):
        raise UsageError("the API key holds what no header can")
    return Remote(parts.scheme == "https", parts.hostname, port, parts.path.rstrip("/"), key.strip())


def connect(socket_path: Path, remote: Remote | None, timeout_seconds: float | None) -> Connection:
    """A connection that is opened by its first request."""
    if remote is None:
        return _UnixConnection(socket_path, timeout_seconds)
    kind = _TlsConnection if remote.secure else _TcpConnection
    return kind(remote.host, remote.port, timeout=timeout_seconds)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(limits.key_file_bytes_max).decode()
    except OSError as error:
        raise CtlError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise CtlError(f"{path} holds no key") from None


class _Limited:
    """Keeps the socket: http.client drops it once an answer that ends the connection begins, which still reads from
    it."""

    kept: socket.socket | None = None

    def limit(self, seconds: float) -> None:
        if seconds <= 0:
            raise TimeoutError
        if self.kept is not None:
            self.kept.settimeout(seconds)


class _UnixConnection(_Limited, http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_seconds: float | None) -> None:
        super().__init__("localhost", timeout=timeout_seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = self.kept = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.kept.settimeout(self.timeout)
        self.kept.connect(str(self._path))


class _TcpConnection(_Limited, http.client.HTTPConnection):
    def connect(self) -> None:
        super().connect()
        self.kept = self.sock


class _TlsConnection(_Limited, http.client.HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        self.kept = self.sock
