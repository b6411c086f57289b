"""What lists and starts cost with 10,000 installed models: `llmctl models` on a terminal, and a page over HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import os
import pty
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import psutil

from benchmarks.figures import Bound, Figure, Options, alone, command, percentile
from benchmarks.harness import HOST, Server, daemon
from llmvisor.clock import SystemClock
from llmvisor.control.api import InstalledModel
from llmvisor.fetch.protocol import Fetched, FetchedFile
from llmvisor.models.installed import Installed
from llmvisor.models.manifest import MANIFEST_NAME, Manifest, encode
from llmvisor.store.models import ModelRows
from llmvisor.store.store import Store

MODELS = 10_000
QUICK_MODELS = 200
PAGE = "/llm/models?limit=50"
TIME = "2026-01-01T00:00:00+00:00"
WEIGHTS = b"no weights: nothing loads these"


async def measure(options: Options) -> list[Figure]:
    count = options.scaled(MODELS, QUICK_MODELS)
    models = {"light": {"backend": "mock"}}
    with daemon(models, prepare=lambda folder: _install(folder, count)) as server:
        known_ms = _first_list_ms(server, count)
        pages = [_get_ms(server, PAGE) for _ in range(options.scaled(200, 20))]
        searches = [_get_ms(server, f"{PAGE}&q=07777&type=llm") for _ in range(20)]
        whole = [_get_ms(server, "/v1/models") for _ in range(5)]
        unknown = [_complete_ms(server, f"model-{number:05}-typo") for number in range(20)]
        commands = [_llmctl_ms(server) for _ in range(options.rounds + 1)][1:]
        piped = [_llmctl_ms(server, terminal=False) for _ in range(2)][1:]
        rss_mb = psutil.Process(server.pid).memory_info().rss / 1e6
    notes = {
        "start until all are known, ms": known_ms,
        "p99, ms": percentile(pages, 0.99),
        "a page of a search, p50, ms": percentile(searches, 0.5),
        "GET /v1/models, all of them, p50, ms": percentile(whole, 0.5),
        "a name that is none, p50, ms": percentile(unknown, 0.5),
        "memory of the daemon, MB": rss_mb,
    }
    of = f"of {count:,} installed"
    return [
        alone(
            f"llmctl models, {of}",
            "ms",
            commands,
            target=Bound("ours", "≤", 300),
            notes={"all of them, piped, ms": piped[0]},
        ),
        alone(f"GET {PAGE}, {of}", "ms", pages, target=Bound("ours", "≤", 20), notes=notes),
    ]


def _install(folder: Path, count: int) -> None:
    """Folders and rows as installations leave them, in the daemon's data folder."""
    source = folder / "weights.gguf"
    source.write_bytes(WEIGHTS)
    rows = [_installed(folder / "models", source, number) for number in range(count)]

    async def write() -> None:
        store = Store(folder / "llmvisor.db", SystemClock())
        await store.open()
        await ModelRows(store).put(rows)
        await store.close()

    # The caller's loop runs in this thread.
    writing = threading.Thread(target=lambda: asyncio.run(write()))
    writing.start()
    writing.join()


def _installed(models: Path, source: Path, number: int) -> Installed:
    name = f"model-{number:05}-{('7b', '13b', '0.5b')[number % 3]}-instruct"
    folder = models / name / "0123456789ab"
    folder.mkdir(parents=True)
    path = folder / "model.gguf"
    os.link(source, path)
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    files = [FetchedFile(path.name, len(WEIGHTS), sha256)]
    fetched = Fetched(f"hf:somebody/{name}", folder.name, files, path.name, name)
    (folder / MANIFEST_NAME).write_bytes(encode(Manifest(fetched, name, None, TIME, TIME)))
    model = InstalledModel(
        name=name,
        source=fetched.source,
        revision=fetched.revision,
        path=str(path),
        folder=str(folder),
        size=len(WEIGHTS),
        sha256=sha256,
        backend="llamacpp",
        type="llm",
        installed_at=TIME,
        architecture="llama",
        quantization="Q4_K_M",
        parameters=7_000_000_000,
        context_length=8192,
        capabilities=["chat", "completions", "tokenize", "structured_output"],
    )
    return Installed(model)


def _first_list_ms(server: Server, count: int) -> float:
    """From the start of the process until a list had all of them."""
    began = time.perf_counter()
    listed = msgspec.json.decode(_get(server, "/llm/models?limit=1"))
    assert listed["next_cursor"], f"{count} models are installed, and the list has one"
    return (server.start_seconds + time.perf_counter() - began) * 1000


def _get(server: Server, path: str) -> bytes:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.connect(server.socket)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        return answer.read()
    finally:
        connection.close()


def _get_ms(server: Server, path: str) -> float:
    began = time.perf_counter()
    _get(server, path)
    return (time.perf_counter() - began) * 1000


def _complete_ms(server: Server, model: str) -> float:
    connection = http.client.HTTPConnection(HOST, server.port)
    body = msgspec.json.encode({"model": model, "prompt": "x"})
    began = time.perf_counter()
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 404, answer.read()
    answer.read()
    milliseconds = (time.perf_counter() - began) * 1000
    connection.close()
    return milliseconds


def _llmctl_ms(server: Server, *, terminal: bool = True) -> float:
    """`llmctl models`, from its start to its end, seen on a terminal or through a pipe."""
    argv = [sys.executable, "-m", "llmctl", "--socket", server.socket, "models"]
    began = time.perf_counter()
    if not terminal:
        subprocess.run(argv, stdout=subprocess.PIPE, check=True)
        return (time.perf_counter() - began) * 1000
    ours, its = pty.openpty()
    try:
        with subprocess.Popen(argv, stdout=its, stderr=its) as process:
            os.close(its)
            while _read(ours):
                pass
        assert process.returncode == 0
        return (time.perf_counter() - began) * 1000
    finally:
        os.close(ours)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux's word for the end of a terminal
        return b""


if __name__ == "__main__":
    command(measure, __doc__)
