"""A real daemon in a process of its own, and light clients for it."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import psutil
import yaml
from tests.support.models import starter_model_path
from tests.support.polling import eventually_sync

START_SECONDS_MAX = 30.0
REQUEST_SECONDS_MAX = 60.0
SECRET_NAMES = ("OPENAI_API_KEY", "CLAUDE_API_KEY", "ANTHROPIC_API_KEY")

Json = dict[str, Any]


def mock_model(**options: object) -> Json:
    """Configuration of a mock model; keys of `ModelConfig` go beside its options."""
    outer = {key: options.pop(key) for key in list(options) if key not in MOCK_OPTIONS}
    return {"backend": "mock", "options": options, **outer}


MOCK_OPTIONS = frozenset(
    {
        "token_delay_ms",
        "prefill_ms_per_token",
        "load_seconds",
        "tokens_per_step",
        "reply_tokens",
        "n_ctx",
        "failpoints",
    }
)


def starter_model(**settings: object) -> Json:
    """Configuration of the real starter model."""
    return {"backend": "llamacpp", "path": str(starter_model_path()), "tier": "light", **settings}


class Daemon:
    """`llmvisor` with this configuration, in a folder of its own that goes with it."""

    def __init__(self, config: Mapping[str, Any], *, env: Mapping[str, str] | None = None) -> None:
        # A short path: those of Unix sockets are bounded.
        self.folder = Path(tempfile.mkdtemp(prefix="lv-"))
        self.socket_path = self.folder / "run" / "control.sock"
        self.port_file = self.folder / ".port"
        self.log_file = self.folder / "main.log"
        self.console_file = self.folder / "console.txt"
        self.config_file = self.folder / "config.yaml"
        self.config_file.write_text(yaml.safe_dump(self._config(config)))
        self._env = {name: value for name, value in os.environ.items() if not name.startswith(("LLMVISOR", "LIGHT_"))}
        self._env |= env or {}
        self.process: subprocess.Popen[bytes] | None = None

    def _config(self, config: Mapping[str, Any]) -> Json:
        tree: Json = json.loads(json.dumps(config))
        server = {"port": "auto", "port_file": str(self.port_file), **tree.pop("server", {})}
        control = {"socket": str(self.socket_path), **tree.pop("control", {})}
        logging = tree.pop("logging", {"main": {"file": str(self.log_file), "console_level": "debug"}})
        # Tests ask the same again and again, and want it computed.
        cache = {"enabled": False, "state_dir": None, **tree.pop("cache", {})}
        storage = {"dir": str(self.folder / "data"), **tree.pop("storage", {})}
        sections = {"server": server, "control": control, "logging": logging, "cache": cache, "storage": storage}
        return {**sections, **tree}

    @property
    def models_folder(self) -> Path:
        """Of installed models."""
        return self.folder / "data" / "models"

    def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Write another configuration, for the next start."""
        self.config_file.write_text(yaml.safe_dump(self._config(config)))

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
        if exc[:1] != (None,) and exc:
            print(self.console()[-20_000:])
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, *arguments: str) -> None:
        """Start it and wait until it accepts connections."""
        self.spawn(*arguments)
        eventually_sync(lambda: self.port_file.exists() or not self.running, START_SECONDS_MAX, "the daemon starts")
        assert self.running, self.console()

    def spawn(self, *arguments: str) -> None:
        command = [sys.executable, "-P", "-m", "llmvisor", "--config", str(self.config_file), *arguments]
        with self.console_file.open("ab") as console:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=self._env, stdout=console, stderr=console, start_new_session=True
            )

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def port(self) -> int:
        return int(self.port_file.read_text())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def console(self) -> str:
        return self.console_file.read_text(errors="replace") if self.console_file.exists() else ""

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, seconds: float = 30) -> int:
        """Wait for its end, and give its exit code."""
        assert self.process is not None
        return self.process.wait(seconds)

    def kill(self) -> None:
        """End it without ceremony, its workers as well."""
        if self.process is None:
            return
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            for child in children:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
        self.process.wait(10)

    # ------------------------------------------------------------------------------------------------ what it serves

    def request(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        """A request over TCP: its status and decoded JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=REQUEST_SECONDS_MAX)
        return self._exchange(connection, method, path, body, headers)

    def control(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """A request over the control socket."""
        return self._exchange(self.control_connection(), method, path, body, {})

    def control_connection(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("localhost", timeout=REQUEST_SECONDS_MAX)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(REQUEST_SECONDS_MAX)
        try:
            connection.sock.connect(str(self.socket_path))
        except OSError:
            connection.close()
            raise
        return connection

    def _exchange(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: object, headers: Mapping[str, str]
    ) -> tuple[int, Any]:
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json", **headers})
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text else None
        finally:
            connection.close()

    def complete(self, model: str, prompt: str = "hello", **fields: object) -> tuple[int, Any]:
        return self.request("POST", "/v1/completions", {"model": model, "prompt": prompt, **fields})

    def runtime(self, model: str) -> Json:
        status, body = self.control("GET", f"/llm/runtimes/{model}")
        assert status == 200, body
        return body

    def wait_for_state(self, model: str, *states: str, seconds: float = 30) -> Json:
        """The runtime's status, once it is in one of these states."""
        found: list[Json] = []

        def there() -> bool:
            found[:] = [self.runtime(model)]
            return found[0]["state"] in states

        eventually_sync(there, seconds, f"{model} is {' or '.join(states)}")
        return found[0]

    def worker_pid(self, model: str, *, other_than: int | None = None, seconds: float = 30) -> int:
        """The pid of a model's worker, once it serves (and is another one than before)."""
        pids: list[int] = []

        def there() -> bool:
            status = self.runtime(model)
            pids[:] = [status["pid"]] if status["state"] in {"loaded", "busy"} else []
            return pids not in ([], [other_than])

        eventually_sync(there, seconds, f"{model} is served by a worker")
        return pids[0]

    def descendants(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []


class EventsClient:
    """A streaming request, read event by event."""

    def __init__(self, daemon: Daemon, path: str, body: Json, headers: Mapping[str, str] | None = None) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=REQUEST_SECONDS_MAX)
        data = json.dumps({**body, "stream": True})
        self._connection.request("POST", path, data, {"Content-Type": "application/json", **(headers or {})})
        self.answer = self._connection.getresponse()
        self.status = self.answer.status

    def events(self) -> Iterator[str]:
        """The data of each event, until the answer ends."""
        while line := self.answer.readline():
            if line.startswith(b"data: "):
                yield line[6:].decode().rstrip("\n")

    def next_event(self) -> str:
        return next(self.events())

    def close(self) -> None:
        # Shut down, not only closed: the answer's file still holds the descriptor.
        if self._connection.sock is not None:
            with suppress(OSError):
                self._connection.sock.shutdown(socket.SHUT_RDWR)
        self.answer.close()
        self._connection.close()


@contextmanager
def stream(
    daemon: Daemon, model: str, prompt: str = "hello", *, headers: Mapping[str, str] | None = None, **fields: object
) -> Generator[EventsClient]:
    """A streamed completion."""
    client = EventsClient(daemon, "/v1/completions", {"model": model, "prompt": prompt, **fields}, headers)
    try:
        yield client
    finally:
        client.close()


def text_of(events: list[str]) -> str:
    """The text of a stream's events."""
    choices = [json.loads(event)["choices"] for event in events if event != "[DONE]" and "error" not in event[:10]]
    return "".join(choice[0]["text"] for choice in choices if choice)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def seconds_of(action: Any) -> float:
    begun = time.monotonic()
    action()
    return time.monotonic() - begun


def stop_worker(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
