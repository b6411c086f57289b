"""The daemon's edges over real sockets: silence, crowds, readers that do not read, descriptors that run out."""

from __future__ import annotations

import http.client
import json
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import psutil
import pytest
from tests.support.daemon import Daemon, EventsClient, Json, mock_model, stream, text_of
from tests.support.leaks import no_leaks
from tests.support.polling import eventually_sync

HEARTBEAT_SECONDS = 0.3
STALL_SECONDS = 2.0
_WITH_SHORT_LIMITS = f"""
from llmvisor import limits
limits.heartbeat_seconds = {HEARTBEAT_SECONDS}
limits.write_stall_seconds_max = {STALL_SECONDS}
from llmvisor.__main__ import main
main()
"""


class ImpatientDaemon(Daemon):
    """One whose heartbeats and patience with readers are shorter than anybody may configure."""

    def spawn(self, *arguments: str) -> None:
        command = [sys.executable, "-P", "-c", _WITH_SHORT_LIMITS, "--config", str(self.config_file), *arguments]
        with self.console_file.open("ab") as console:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=self._env, stdout=console, stderr=console, start_new_session=True
            )


@pytest.fixture(scope="module")
def daemon() -> Generator[Daemon]:
    models = {
        "mock": mock_model(token_delay_ms=10, parallel=8),
        "fast": mock_model(parallel=4),
        "loading": mock_model(load_seconds=1.5),
        "broken": mock_model(load_seconds=1.5, failpoints="load=9*token->exit(78)"),
        "narrow": mock_model(token_delay_ms=20, parallel=1, queue_limit=1),
    }
    with no_leaks(), ImpatientDaemon({"models": models}) as one:
        yield one


@contextmanager
def asked(daemon: Daemon, path: str, body: Json, *, receive_bytes: int | None = None) -> Generator[socket.socket]:
    """A connection that has sent a request and has read nothing."""
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{daemon.port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    with socket.socket() as client:
        if receive_bytes is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        client.settimeout(30)
        client.connect(("127.0.0.1", daemon.port))
        client.sendall(head.encode() + data)
        yield client


def headers_of(daemon: Daemon, method: str, path: str, body: object = None, **headers: str) -> Any:
    """An answer's status and headers."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.headers
    finally:
        connection.close()


# ------------------------------------------------------------------------------------------------------ silence, ids


def test_heartbeats_come_while_a_model_loads(daemon: Daemon) -> None:
    """A stream that waits for a load says so now and then, and is then what it would have been."""
    with asked(daemon, "/v1/completions", {"model": "loading", "prompt": "hi", "max_tokens": 3, "stream": True}) as one:
        file = one.makefile("rb")
        assert b"200" in file.readline()
        lines = iter(file.readline, b"")
        comments = 0
        events: list[str] = []
        for line in lines:
            comments += line.startswith(b": ")
            if line.startswith(b"data: "):
                events.append(line[6:].decode().strip())
            if line == b"data: [DONE]\n":
                break
        file.close()
    assert comments >= 2
    assert text_of(events) == daemon.complete("loading", "hi", max_tokens=3)[1]["choices"][0]["text"]


def test_load_that_fails_after_a_heartbeat_is_an_error_event(daemon: Daemon) -> None:
    """Its status is spent; the reason comes all the same, and no [DONE]."""
    client = EventsClient(daemon, "/v1/completions", {"model": "broken", "prompt": "hi"})
    try:
        events = list(client.events())
    finally:
        client.close()
    assert client.status == 200
    assert [json.loads(event)["error"]["code"] for event in events] in (["model_load_failed"], ["model_unavailable"])


def test_request_id_is_echoed_or_made_and_logged(daemon: Daemon) -> None:
    """One that could do harm in a log is replaced by ours."""
    body = {"model": "mock", "prompt": "hi", "max_tokens": 1}
    status, headers = headers_of(daemon, "POST", "/v1/completions", body, **{"X-Request-Id": "trace-77"})
    assert (status, headers["X-Request-Id"]) == (200, "trace-77")
    eventually_sync(lambda: "request_id=trace-77" in daemon.log_file.read_text(), 5)
    status, headers = headers_of(daemon, "GET", "/v1/models", **{"X-Request-Id": "bad id; \x7f"})
    assert status in {200, 400}
    status, headers = headers_of(daemon, "GET", "/v1/models", **{"X-Request-Id": "no spaces"})
    assert headers["X-Request-Id"].startswith("req_")
    status, headers = headers_of(daemon, "GET", "/nothing")
    assert (status, headers["X-Request-Id"][:4]) == (404, "req_")


def test_answers_tell_what_served_them(daemon: Daemon) -> None:
    """The model, and how long the queue and a load took."""
    body = {"model": "mock", "prompt": "hi", "max_tokens": 1}
    _, headers = headers_of(daemon, "POST", "/v1/completions", body)
    assert headers["X-LLMVISOR-Model"] == "mock"
    assert float(headers["X-LLMVISOR-Queue-Ms"]) >= 0
    assert float(headers["X-LLMVISOR-Load-Ms"]) >= 0


# ------------------------------------------------------------------------------------------------------------ crowds


def test_queue_that_is_full_says_when_to_come_again(daemon: Daemon) -> None:
    """One runs, one waits, the third is told 503 with Retry-After; the first two are served."""
    answers: list[int] = []

    def ask() -> None:
        answers.append(daemon.complete("narrow", max_tokens=60)[0])

    assert daemon.complete("narrow", max_tokens=1)[0] == 200
    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    eventually_sync(lambda: daemon.runtime("narrow")["queued"] == 1, 10)
    status, headers = headers_of(daemon, "POST", "/v1/completions", {"model": "narrow", "prompt": "hi"})
    assert status == 503
    assert int(headers["Retry-After"]) >= 1
    status, answer = daemon.complete("narrow")
    assert (status, answer["error"]["type"], answer["error"]["code"]) == (503, "server_error", "queue_full")
    for thread in threads:
        thread.join(30)
    assert answers == [200, 200]


def test_idle_connections_disturb_nobody(daemon: Daemon) -> None:
    """Two hundred of them, some with half a request, and everyone else is served."""
    with ExitStack() as stack:
        for number in range(200):
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port), 10))
            if number % 2:
                idle.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Le")
        for _ in range(20):
            begun = time.monotonic()
            assert daemon.request("GET", "/health")[0] == 200
            assert time.monotonic() - begun < 2
        assert daemon.complete("mock", max_tokens=5)[0] == 200


def test_reader_that_never_reads_slows_nobody_and_is_ended(daemon: Daemon) -> None:
    """1. A client asks for an endless stream and reads nothing of it. 2. Others stream from the same worker. Result:
    theirs are whole, its own is paused and, when its patience is over, ended; its place is free."""
    endless = {"model": "fast", "prompt": "hi", "max_tokens": 8000, "ignore_eos": True, "stream": True, "logprobs": 5}
    with asked(daemon, "/v1/completions", endless, receive_bytes=4096):
        eventually_sync(lambda: daemon.runtime("fast")["slots_busy"] == 1, 10)
        for _ in range(3):
            with stream(daemon, "fast", max_tokens=200) as client:
                assert list(client.events())[-1] == "[DONE]"
        assert daemon.runtime("fast")["slots_busy"] == 1
        eventually_sync(lambda: daemon.runtime("fast")["slots_busy"] == 0, STALL_SECONDS * 5)
        eventually_sync(lambda: "takes nothing" in daemon.console(), 5)
    assert daemon.complete("fast", max_tokens=1)[0] == 200


# ------------------------------------------------------------------------------------------------- the machine's bounds


@pytest.mark.skipif(sys.platform != "linux", reason="another process's limits are set on Linux alone")
def test_descriptors_that_run_out_are_no_end() -> None:
    """1. The daemon may open a dozen descriptors more. 2. A hundred clients come, and a model is to be loaded. Result:
    it does not spin, it refuses what it cannot do, and serves as before once they are gone."""
    with Daemon({"models": {"first": mock_model(), "second": mock_model()}}) as daemon:
        assert daemon.complete("first", max_tokens=1)[0] == 200
        process = psutil.Process(daemon.pid)
        allowed = process.num_fds() + 12
        process.rlimit(resource.RLIMIT_NOFILE, (allowed, process.rlimit(resource.RLIMIT_NOFILE)[1]))
        with ExitStack() as stack:
            for _ in range(100):
                stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port), 10))
            eventually_sync(lambda: process.num_fds() >= allowed - 1, 10)
            before = sum(process.cpu_times()[:2])
            begun = time.monotonic()
            while time.monotonic() - begun < 1.0:
                # It may be refused, or wait for a descriptor: both are well.
                with suppress(OSError), socket.create_connection(("127.0.0.1", daemon.port), 0.2) as late:
                    late.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    late.settimeout(0.2)
                    late.recv(100)
            assert sum(process.cpu_times()[:2]) - before < 0.7
            assert daemon.running
        eventually_sync(lambda: process.num_fds() < allowed - 8, 30)
        assert daemon.complete("first", max_tokens=1)[0] == 200
        status, answer = daemon.complete("second", max_tokens=1)
        if status != 200:  # what a worker needs may still be more than the dozen
            assert (status, answer["error"]["code"]) == (503, "model_load_failed")
        process.rlimit(resource.RLIMIT_NOFILE, (1024, process.rlimit(resource.RLIMIT_NOFILE)[1]))

        def serves() -> bool:
            return daemon.complete("second", max_tokens=1)[0] == 200

        eventually_sync(serves, 30)
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0


class UnreadDaemon(Daemon):
    """One whose console is a pipe that nobody reads."""

    def spawn(self, *arguments: str) -> None:
        command = [sys.executable, "-P", "-m", "llmvisor", "--config", str(self.config_file), *arguments]
        self.process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def close_console(self) -> None:
        assert self.process is not None
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


def test_console_that_nobody_reads_stalls_nothing() -> None:
    """1. The pipe behind standard error is full. 2. More is logged than it holds, and requests come. Result: they are
    answered as ever, the file has every line, and SIGTERM ends the daemon in bounded time."""
    with UnreadDaemon({"models": {"mock": mock_model(token_delay_ms=5)}}) as daemon:
        connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=10)
        slowest = 0.0
        for number in range(1500):
            begun = time.monotonic()
            connection.request("GET", "/livez", headers={"X-Request-Id": f"filler-{number}-" + "x" * 100})
            answer = connection.getresponse()
            answer.read()
            slowest = max(slowest, time.monotonic() - begun)
        connection.close()
        # A loop that writes to the console itself would never have come to the end.
        assert slowest < 2
        with stream(daemon, "mock", max_tokens=50) as client:
            assert list(client.events())[-1] == "[DONE]"
        eventually_sync(lambda: "filler-1499-" in daemon.log_file.read_text(), 10)
        daemon.signal(signal.SIGTERM)
        assert daemon.wait(20) == 0
        daemon.close_console()
