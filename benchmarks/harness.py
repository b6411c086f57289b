"""Starts and ends what is measured: the daemon, a mock worker spoken to directly, llama-server, bare servers."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import yaml

from benchmarks.figures import BenchmarkError
from benchmarks.peers import infinity_path, infinity_versions, llama_server_path
from llmvisor.config.paths import starter_model_path

T = TypeVar("T")
HOST = "127.0.0.1"
START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 20.0
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "VIRTUAL_ENV", "LLMVISOR_DATA_DIR", "XDG_DATA_HOME", "LD_LIBRARY_PATH")
"""Nothing else reaches what is measured: a PORT or LOG_LEVEL of the person's shell would change it."""


class Server(msgspec.Struct, frozen=True):
    """A server that accepts requests."""

    name: str
    pid: int
    port: int
    start_seconds: float
    """From the start of the process until it accepted a connection (and, with a model, was ready)."""
    socket: str = ""
    """Our daemon's control socket."""


class Load(msgspec.Struct, frozen=True):
    """How a model is loaded, the same for ours and the peer."""

    n_ctx: int
    """For all sequences together."""
    parallel: int
    threads: int = os.cpu_count() or 1


@contextlib.contextmanager
def daemon(
    models: Mapping[str, Mapping[str, object]],
    *,
    wait_ready: bool = True,
    cache: bool = False,
    prepare: Callable[[Path], None] | None = None,
    memory: Mapping[str, object] | None = None,
) -> Generator[Server]:
    """Our daemon in a folder of its own, with these models. Preloaded ones are ready where `wait_ready`; `prepare` is
    given the folder of its store and of installed models before it starts; `memory` is that section of the
    configuration."""
    with _folder() as folder:
        storage = folder / "data"
        storage.mkdir()
        if prepare is not None:
            prepare(storage)
        config = {
            "server": {"port": "auto", "port_file": str(folder / ".port"), "shutdown_timeout": 0, "drain_timeout": 1},
            "control": {"socket": str(folder / "run" / "control.sock")},
            "logging": {"main": {"console_level": "warning", "file": str(folder / "main.log"), "file_level": "info"}},
            "cache": {"enabled": cache, "state_dir": None},
            "storage": {"dir": str(storage)},
            "memory": {**(memory or {})},
            "models": {name: dict(model) for name, model in models.items()},
        }
        file = folder / "config.yaml"
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        argv = [sys.executable, "-m", "llmvisor", "--config", str(file)]
        with _process("llmvisor", argv, folder) as (process, began):
            port = _await_port_file(process, folder)
            _await_http(process, port, "/readyz" if wait_ready else "/livez", folder)
            socket_path = str(folder / "run" / "control.sock")
            yield Server("llmvisor", process.pid, port, time.perf_counter() - began, socket_path)


def starter_model(load: Load) -> dict[str, dict[str, object]]:
    """The starter model as `light`, greedy, loaded at once and never unloaded."""
    path = starter_model_path(os.environ)
    if not path.is_file():
        raise BenchmarkError(f"the starter model is not at {path}: run `make model`")
    return {
        "light": {
            "path": str(path),
            "backend": "llamacpp",
            "n_ctx": load.n_ctx,
            "parallel": load.parallel,
            "n_threads": load.threads,
            "idle_timeout": 0,
            "preload": True,
        }
    }


def mock_model(**options: object) -> dict[str, dict[str, object]]:
    """A model without weights as `light`, with room for 64 streams."""
    model: dict[str, object] = {
        "backend": "mock",
        "n_ctx": 1_000_000,
        "parallel": 64,
        "queue_limit": 1000,
        "idle_timeout": 0,
        "preload": True,
        "options": options,
    }
    return {"light": model}


@contextlib.contextmanager
def llama_server(load: Load, *options: str) -> Generator[Server]:
    """The peer, with the same file, context, sequences and threads; the rest is its own default but for `options`."""
    binary = llama_server_path()
    if not binary.is_file():
        raise BenchmarkError(f"llama-server is not at {binary}: run `make bench-peers`")
    port = free_port()
    argv = [
        str(binary),
        *("--model", str(starter_model_path(os.environ))),
        *("--host", HOST, "--port", str(port)),
        *("--ctx-size", str(load.n_ctx), "--parallel", str(load.parallel), "--threads", str(load.threads)),
        *options,
    ]
    with _folder() as folder, _process("llama-server", argv, folder) as (process, began):
        _await_http(process, port, "/health", folder)
        yield Server("llama-server", process.pid, port, time.perf_counter() - began)


@contextlib.contextmanager
def infinity(model: Path) -> Generator[Server]:
    """infinity-emb with this model folder and as many threads as there are cores; the rest is its own default."""
    if not infinity_versions():
        raise BenchmarkError("infinity-emb is not installed: run `make bench-peers`")
    port = free_port()
    argv = [
        *(str(infinity_path()), "v2", "--model-id", str(model), "--device", "cpu"),
        *("--host", HOST, "--port", str(port), "--url-prefix", "/v1", "--log-level", "warning"),
    ]
    own = {"OMP_NUM_THREADS": str(os.cpu_count() or 1), "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    with _folder() as folder, _process("infinity-emb", argv, folder, own) as (process, began):
        _await_http(process, port, "/health", folder)
        yield Server("infinity-emb", process.pid, port, time.perf_counter() - began)


@contextlib.contextmanager
def bare_server(kind: str, *arguments: str) -> Generator[Server]:
    """One of `benchmarks.bare`'s servers: `handler`, or `proxy` before a port."""
    port = free_port()
    argv = [sys.executable, "-m", "benchmarks.bare", kind, str(port), *arguments]
    with _folder() as folder, _process(kind, argv, folder) as (process, began):
        _await_http(process, port, "/health", folder)
        yield Server(f"aiohttp {kind}", process.pid, port, time.perf_counter() - began)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


@contextlib.contextmanager
def _folder() -> Generator[Path]:
    # Short, because a socket's path has to fit into 103 bytes.
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _process(
    name: str, argv: Sequence[str], folder: Path, variables: Mapping[str, str] | None = None
) -> Generator[tuple[subprocess.Popen[bytes], float]]:
    environ = {key: value for key, value in os.environ.items() if key in _INHERITED} | {**(variables or {})}
    environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    with (folder / "output").open("wb") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            argv, cwd=folder, env=environ, stdout=output, stderr=output, stdin=subprocess.DEVNULL
        )
    try:
        yield process, began
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            print(f"{name} had to be killed", file=sys.stderr)
            process.kill()
            process.wait()


def _await_port_file(process: subprocess.Popen[bytes], folder: Path) -> int:
    def port() -> int | None:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int((folder / ".port").read_text())
        return None

    return _poll(process, folder, port)


def _await_http(process: subprocess.Popen[bytes], port: int, path: str, folder: Path) -> None:
    def well() -> bool | None:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=5) as answer:
                return True if answer.status == 200 else None
        except (urllib.error.URLError, OSError):
            return None

    _poll(process, folder, well)


def _poll(process: subprocess.Popen[bytes], folder: Path, look: Callable[[], T | None]) -> T:
    deadline = time.perf_counter() + START_SECONDS_MAX
    while (found := look()) is None:
        if process.poll() is not None or time.perf_counter() > deadline:
            tail = (folder / "output").read_text(errors="replace")[-2000:]
            raise BenchmarkError(f"it did not start: {process.args!r}\n{tail}")
        time.sleep(0.002)
    return found
