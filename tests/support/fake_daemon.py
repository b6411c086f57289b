"""A daemon that only talks: canned answers over HTTP on a Unix socket, from threads. Standard library alone.

It answers what a test gave it with `answer`, `stream` or `raw`, and keeps what it was asked in `requests`.
"""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple, Self, cast
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

START = "2026-08-01T12:00:00.000Z"


class Request(NamedTuple):
    method: str
    path: str
    """Decoded, without the query."""
    raw_path: str
    query: dict[str, str]
    body: bytes
    content_type: str | None


Respond = Callable[["_Handler"], None]


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = False
    block_on_close = True
    request_queue_size = 64
    fake: FakeDaemon

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is what many tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 20

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None:
        return

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        request = Request(self.command, unquote(parts.path), parts.path, query, body, self.headers.get("Content-Type"))
        fake = cast("_Server", self.server).fake
        fake.requests.append(request)
        respond = fake.answers.get((request.method, request.path))
        if respond is None:
            message = f"no such path: {request.path}"
            error = {"message": message, "type": "invalid_request_error", "code": "not_found", "param": None}
            respond = _json_answer({"error": error}, status=404)
        self.close_connection = True
        respond(self)


class FakeDaemon(AbstractContextManager["FakeDaemon"]):
    """Listens on `socket_path` while the `with` lasts."""

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path
        self.answers: dict[tuple[str, str], Respond] = {}
        self.requests: list[Request] = []
        self.released = threading.Event()
        """Set at the end: streams that wait for it end then."""
        self.client_left = threading.Event()
        """Set once a client closed a stream before its end."""

    def __enter__(self) -> Self:
        self._server = _Server(str(self.socket_path), _Handler)
        self._server.fake = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening, and take the socket away, as the daemon does when it ends."""
        self.released.set()
        if self.socket_path.exists():
            self.socket_path.unlink()
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def answer(self, method: str, path: str, value: object, *, status: int = 200) -> None:
        """A JSON answer; msgspec Structs and plain values."""
        self.answers[method, path] = _json_answer(value, status=status)

    def job_list(self, jobs: Iterable[dict[str, Any]]) -> None:
        """`GET /jobs`, and `DELETE /jobs/ID`, after which a job is no longer there."""
        there = {str(job["id"]): job for job in jobs}

        def respond(handler: _Handler) -> None:
            _json_answer({"object": "list", "data": list(there.values())}, status=200)(handler)

        def forgetting(name: str) -> Respond:
            def respond(handler: _Handler) -> None:
                del there[name]
                handler.send_response(204)
                handler.end_headers()

            return respond

        self.answers["GET", "/jobs"] = respond
        for name in there:
            self.answers["DELETE", f"/jobs/{name}"] = forgetting(name)

    def error(self, method: str, path: str, message: str, *, status: int, code: str) -> None:
        error = {"message": message, "type": "invalid_request_error", "code": code, "param": None}
        self.answer(method, path, {"error": error}, status=status)

    def items(self, path: str, values: Iterable[object]) -> None:
        """A list answer to GET."""
        self.answer("GET", path, {"object": "list", "data": list(values)})

    def pages(self, path: str, pages: list[list[object]]) -> None:
        """A list answer to GET in several pages; `cursor` is the number of a page."""

        def respond(handler: _Handler) -> None:
            number = int(self.requests[-1].query.get("cursor", 0))
            more = str(number + 1) if number + 1 < len(pages) else None
            _json_answer({"object": "list", "data": pages[number], "next_cursor": more}, status=200)(handler)

        self.answers["GET", path] = respond

    def stream(
        self, method: str, path: str, events: Iterable[tuple[str | None, object]], *, hold_open: bool = False
    ) -> None:
        """Server-sent events of (event name, value); `str` values go out as they are. `hold_open` sends no end."""
        sent = list(events)

        def respond(handler: _Handler) -> None:
            handler.send_response(200)
            handler.send_header("Content-Type", "text/event-stream")
            handler.send_header("Transfer-Encoding", "chunked")
            handler.end_headers()
            handler.wfile.write(_chunk(b": hello\n\n"))
            for kind, value in sent:
                handler.wfile.write(_chunk(_event(kind, value)))
            while hold_open and not self.released.is_set():
                if self._has_left(handler):
                    self.client_left.set()
                    return
            if not hold_open:
                handler.wfile.write(b"0\r\n\r\n")

        self.answers[method, path] = respond

    def answer_in_turn(self, method: str, path: str, answers: Iterable[Respond]) -> None:
        """The first answer for the first request, and so on; each as `answers` has it."""
        left = iter(answers)

        def respond(handler: _Handler) -> None:
            next(left)(handler)

        self.answers[method, path] = respond

    def raw(self, method: str, path: str, answer: bytes) -> None:
        """These bytes in the place of an HTTP answer, then the end of the connection."""

        def respond(handler: _Handler) -> None:
            handler.wfile.write(answer)

        self.answers[method, path] = respond

    def silent(self, method: str, path: str) -> None:
        """No answer until the end."""

        def respond(handler: _Handler) -> None:
            del handler
            self.released.wait()

        self.answers[method, path] = respond

    def asked(self, method: str, path: str) -> list[Request]:
        """What came for one path."""
        return [request for request in self.requests if (request.method, request.path) == (method, path)]

    def _has_left(self, handler: _Handler) -> bool:
        handler.connection.settimeout(0.05)
        try:
            return handler.connection.recv(1) == b""
        except TimeoutError:
            return False
        except OSError:
            return True


def _json_answer(value: object, *, status: int) -> Respond:
    body = msgspec.json.encode(value)

    def respond(handler: _Handler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return respond


def _event(kind: str | None, value: object) -> bytes:
    data = value.encode() if isinstance(value, str) else msgspec.json.encode(value)
    head = f"event: {kind}\n".encode() if kind else b""
    return head + b"data: " + data + b"\n\n"


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


# ---------------------------------------------------------------------------------------------- canned objects


def runtime(model: str = "smollm2-135m-instruct", **changes: Any) -> dict[str, Any]:
    """A RuntimeStatus: loaded and idle unless told otherwise."""
    values: dict[str, Any] = {
        "id": model,
        "model": model,
        "tier": "light",
        "backend": "llamacpp",
        "state": "loaded",
        "since": START,
        "pid": 4242,
        "phase": "idle",
        "restarts": 0,
        "memory": 312 * 1024**2,
        "slots": 4,
        "slots_busy": 0,
        "queued": 0,
        "tokens_per_second": 0.0,
        "idle_left_seconds": 252.0,
        "backend_version": "0.3.36",
        "load_seconds": 0.62,
        "sandbox": ["no_new_privs", "landlock 7", "seccomp"],
    }
    return {**values, **changes}


def daemon_status(**changes: Any) -> dict[str, Any]:
    """A DaemonStatus with one loaded model."""
    values: dict[str, Any] = {
        "version": "0.1.0",
        "pid": 4200,
        "started_at": START,
        "uptime_seconds": 11_532.0,
        "address": "http://127.0.0.1:8000",
        "socket": "/run/llmvisor/control.sock",
        "config_file": "/home/ada/.config/llmvisor/config.yaml",
        "health": "healthy",
        "reasons": [],
        "memory_limit": 12 * 1024**3,
        "memory_used": 312 * 1024**2,
        "in_flight": 0,
        "log_dropped": 0,
        "runtimes": [runtime()],
        "jobs": [],
    }
    return {**values, **changes}


def model(name: str = "smollm2-135m-instruct", **changes: Any) -> dict[str, Any]:
    """A ModelStatus."""
    values: dict[str, Any] = {
        "id": f"light/{name}",
        "name": name,
        "tier": "light",
        "aliases": ["small"],
        "service": "local",
        "backend": "llamacpp",
        "state": "loaded",
        "path": "/home/ada/models/SmolLM2-135M-Instruct.Q4_1.gguf",
        "size": 98 * 1024**2,
        "architecture": "llama",
        "quantization": "Q4_1",
        "parameters": 134_515_008,
        "context_length": 8192,
        "n_ctx": 4096,
        "capabilities": ["chat", "completion"],
        "memory_estimated": 350 * 1024**2,
        "memory_measured": 312 * 1024**2,
        "loaded_at": START,
    }
    return {**values, **changes}


def job(**changes: Any) -> dict[str, Any]:
    """A Job: a load that runs, a quarter done."""
    values: dict[str, Any] = {
        "id": "job_01",
        "type": "load",
        "params": {"model": "light", "force": False, "restart": False},
        "state": "running",
        "progress": 0.25,
        "stage": "weights",
        "done": 25 * 1024**2,
        "total": 100 * 1024**2,
        "unit": "bytes",
        "created_at": START,
        "started_at": START,
    }
    return {**values, **changes}


def install_job(**changes: Any) -> dict[str, Any]:
    """A Job: an installation that runs, half of it fetched."""
    params = {"source": "hf:org/repo", "model": ""}
    values = {"type": "install", "params": params, "stage": "downloading", "done": 50 * 1024**2, "progress": 0.5}
    return job(**{**values, "bytes_per_second": 25.0 * 1024**2, **changes})


def registry_model(name: str = "org/repo", **changes: Any) -> dict[str, Any]:
    """A RegistryModel of Hugging Face."""
    values: dict[str, Any] = {
        "registry": "huggingface",
        "id": name,
        "source": f"hf:{name}",
        "likes": 120,
        "downloads": 51_200,
        "tags": ["gguf"],
        "size": 2 * 1024**3,
        "parameters": 4_020_000_000,
        "is_gguf": True,
        "fits": True,
        "fetched_at": START,
    }
    return {**values, **changes}


def postmortem(model: str = "smollm2-135m-instruct", **changes: Any) -> dict[str, Any]:
    """A crash of a worker with one request inside."""
    return {
        "model": model,
        "time": START,
        "backend": "llamacpp",
        "pid": 4711,
        "reason": "killed by SIGSEGV",
        "state": "loaded",
        "exit_code": None,
        "signal": 11,
        "possible_oom": False,
        "seconds": 62.5,
        "rss_peak_bytes": 300 * 2**20,
        "memory": [
            {"seconds_before": 1.0, "rss_bytes": 200 * 2**20},
            {"seconds_before": 0.1, "rss_bytes": 300 * 2**20},
        ],
        "frames": [
            {"seconds_before": 0.5, "direction": "sent", "kind": "Generate", "ids": [3], "size_bytes": 400},
            {"seconds_before": 0.01, "direction": "received", "kind": "Step", "ids": [3], "size_bytes": 40},
        ],
        "requests": [
            {
                "id": 3,
                "kind": "generate",
                "sha256": "0123456789abcdef" * 4,
                "seconds": 0.5,
                "tokens": 7,
                "tokens_new": 7,
                "fate": "resumed",
            }
        ],
        "last_lines": ["assertion \x1b[31mfailed"],
    } | changes


def usage_row(**changes: Any) -> dict[str, Any]:
    """A UsageRow by model."""
    values: dict[str, Any] = {
        "requests": 12,
        "errors": 1,
        "prompt_tokens": 3400,
        "cached_tokens": 800,
        "completion_tokens": 950,
        "first_token_ms": 84.2,
        "total_ms": 1712.0,
        "cost": 0.0,
        "model": "light/smollm2-135m-instruct",
    }
    return {**values, **changes}


def ended_job(state: str = "succeeded", **changes: Any) -> dict[str, Any]:
    ended: dict[str, Any] = {"state": state, "ended_at": "2026-08-01T12:00:02.500Z", "progress": 1.0}
    return job(**{**ended, "done": 100 * 1024**2, **changes})


def chat_chunks(*texts: str, finish_reason: str = "stop") -> list[tuple[str | None, object]]:
    """The events of one streamed chat answer, with usage and the end mark."""

    def chunk(choices: list[dict[str, Any]], **more: Any) -> tuple[str | None, object]:
        return None, {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "light/smollm2-135m-instruct",
            "choices": choices,
            **more,
        }

    role = chunk([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
    pieces = [chunk([{"index": 0, "delta": {"content": text}, "finish_reason": None}]) for text in texts]
    end = chunk([{"index": 0, "delta": {}, "finish_reason": finish_reason}])
    usage = {"prompt_tokens": 9, "completion_tokens": len(texts), "total_tokens": 9 + len(texts)}
    return [role, *pieces, end, chunk([], usage=usage), (None, "[DONE]")]


def as_object(request: Request) -> Any:
    """A request's JSON body."""
    return json.loads(request.body)
