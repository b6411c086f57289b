"""llama.cpp, MLX and FlagEmbedding serve on one machine at the same time, for minutes, under steady load.

`LLMVISOR_SOAK_SECONDS` says for how long (300 by default).
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tests.support.daemon import Daemon, Json, alive, starter_model
from tests.support.flag_models import bge_m3_folder
from tests.support.leaks import no_leaks
from tests.support.mlx_models import tiny_folder
from tests.support.polling import eventually_sync

SECONDS = float(os.environ.get("LLMVISOR_SOAK_SECONDS", "300"))
pytestmark = [
    pytest.mark.soak,
    pytest.mark.model,
    pytest.mark.timeout(SECONDS + 240),
    pytest.mark.skipif(sys.platform != "linux", reason="memory maps and environments are read from /proc"),
]

MODELS: Json = {
    "llama": starter_model(n_ctx=2048, parallel=4),
    "mlx": {"path": str(tiny_folder()), "n_ctx": 2048, "parallel": 4},
    "m3": {"path": str(bge_m3_folder()), "tier": "embedding"},
}
BACKENDS = {"llama": "llamacpp", "mlx": "mlx", "m3": "flag"}
CLIENTS_PER_MODEL = 2
MAX_TOKENS = 16
TEXTS = ["the rocket flies to the moon", "bread and butter in the kitchen", "a song on the piano", "rain on the river"]
OPENMP = re.compile(r"lib(gomp|omp|iomp)[\w.-]*\.so")
MEMORY_GROWTH_BYTES_MAX = 40 * 1024 * 1024
"""Of the daemon, whatever lasts minutes or an hour: a leak of a kilobyte for each request is more."""
DESCRIPTORS_MORE_MAX = 12


def generate(daemon: Daemon, model: str, number: int) -> None:
    """A chat or a completion, whole: its shape, its length and its count of tokens."""
    if number % 2:
        path, prompt = "/v1/completions", {"prompt": f"Story {number}: once upon a time"}
    else:
        path, prompt = "/v1/chat/completions", {"messages": [{"role": "user", "content": f"Tell story {number}."}]}
    body: Json = {"model": model, "max_tokens": MAX_TOKENS, "ignore_eos": True, **prompt}
    status, answer = daemon.request("POST", path, body)
    assert status == 200, answer
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "length"
    assert isinstance(choice["text"] if number % 2 else choice["message"]["content"], str)
    usage = answer["usage"]
    assert usage["completion_tokens"] == MAX_TOKENS
    assert usage["total_tokens"] == usage["prompt_tokens"] + MAX_TOKENS


def embed(daemon: Daemon, texts: list[str]) -> list[list[float]]:
    body: Json = {"model": "m3", "input": texts, "return_sparse": True}
    status, answer = daemon.request("POST", "/v1/embeddings", body)
    assert status == 200, answer
    assert [one["index"] for one in answer["data"]] == list(range(len(texts)))
    assert all(one["sparse_embedding"] for one in answer["data"])
    return [one["embedding"] for one in answer["data"]]


class Load:
    """Clients that ask again and again until the time is over; the first that is not answered well ends all."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._known = {text: embed(daemon, [text])[0] for text in TEXTS}
        self._over = threading.Event()
        self.failures: list[BaseException] = []
        self.answered: Counter[str] = Counter()

    def run(self, seconds: float) -> None:
        asks: dict[str, Callable[[int], None]] = {
            "llama": lambda number: generate(self._daemon, "llama", number),
            "mlx": lambda number: generate(self._daemon, "mlx", number),
            "m3": self._embed,
        }
        clients = [
            threading.Thread(target=self._client, args=(model, ask, first))
            for model, ask in asks.items()
            for first in range(CLIENTS_PER_MODEL)
        ]
        for client in clients:
            client.start()
        self._over.wait(seconds)
        self._over.set()
        for client in clients:
            client.join(60)
        assert not any(client.is_alive() for client in clients)
        if self.failures:
            raise self.failures[0]

    def _client(self, model: str, ask: Callable[[int], None], number: int) -> None:
        try:
            while not self._over.is_set():
                ask(number)
                self.answered[model] += 1
                number += CLIENTS_PER_MODEL
        except BaseException as error:  # noqa: BLE001 - it is raised again in the test's own thread
            self.failures.append(error)
            self._over.set()

    def _embed(self, number: int) -> None:
        """Different texts together each time, and always the same vectors."""
        texts = [*TEXTS[number % len(TEXTS) :], f"story {number}"]
        for text, vector in zip(texts[:-1], embed(self._daemon, texts), strict=False):
            assert vector == pytest.approx(self._known[text], abs=1e-4)


def openmp_runtimes(pid: int) -> set[str]:
    """The files of OpenMP runtimes that are mapped into a process."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    paths = {line.split(maxsplit=5)[5] for line in lines if "/" in line}
    return {path for path in paths if OPENMP.search(Path(path).name)}


def test_three_backends_serve_together_under_load() -> None:
    """1. All three are loaded. 2. Clients ask each of them without pause, and every answer is checked. Result: the
    same workers served to the end, with one OpenMP runtime each and no word about a second; the daemon holds no more
    than before, and at the end nothing runs."""
    with no_leaks(), Daemon({"models": MODELS}) as daemon:
        load = Load(daemon)
        for model in ("llama", "mlx"):
            generate(daemon, model, 0)
        workers = {model: daemon.worker_pid(model) for model in MODELS}
        assert {model: daemon.runtime(model)["backend"] for model in MODELS} == BACKENDS
        load.run(min(SECONDS / 5, 30))  # what is taken the first time only
        process = psutil.Process(daemon.pid)
        memory, descriptors = process.memory_info().rss, process.num_fds()
        begun = time.monotonic()
        load = Load(daemon)
        load.run(SECONDS)
        assert time.monotonic() - begun >= SECONDS
        print(f"answered in {SECONDS:.0f} s: {dict(load.answered)}")
        assert all(load.answered[model] for model in MODELS)

        assert {model: daemon.worker_pid(model) for model in MODELS} == workers
        assert [daemon.runtime(model)["restarts"] for model in MODELS] == [0, 0, 0]
        for model, pid in workers.items():
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            assert b"KMP_DUPLICATE_LIB_OK" not in environment, model
            assert len(openmp_runtimes(pid)) <= 1, (model, openmp_runtimes(pid))
        assert openmp_runtimes(workers["m3"]), "torch has one: the search would not find any"
        for text in (daemon.console(), daemon.log_file.read_text()):
            assert not re.search(r"\bOMP\b|OpenMP", text)

        eventually_sync(lambda: process.num_fds() <= descriptors + DESCRIPTORS_MORE_MAX, 20)
        assert process.memory_info().rss - memory < MEMORY_GROWTH_BYTES_MAX
        daemon.signal(15)
        assert daemon.wait(60) == 0
        eventually_sync(lambda: not any(alive(pid) for pid in workers.values()), 10)
