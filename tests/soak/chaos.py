"""Chaos: a daemon with three backends under load, while things go wrong at random, from a seed.

    python -m tests.soak.chaos --minutes 30 [--seed 7]

Every request ends exactly once and completely, no stream has a gap or a repeat, nobody waits for ever, and the daemon
holds no more afterwards than before. What fails prints the seed; the same seed gives the same schedule of faults.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import secrets
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import psutil
from tests.support.chaos_clients import Clients
from tests.support.chaos_faults import Faults, is_worker
from tests.support.daemon import Daemon, alive, mock_model, starter_model
from tests.support.mlx_models import tiny_folder
from tests.support.polling import eventually_sync
from tests.support.small_disk import SmallDisk, has_own_mounts

from llmvisor.supervision.memory.machine_memory import FAULT_FILE_VARIABLE

Json = dict[str, Any]

CLIENTS = {"stream": 4, "whole": 2, "slow": 1, "vanishing": 2, "llama": 2, "mlx": 1, "embed": 1, "poison": 1}
SAMPLE_SECONDS = 1.0
FAULT_SECONDS = (0.5, 4.0)
"""Between two faults."""
DESCRIPTORS_MORE_MAX = 16
MEMORY_GROWTH_BYTES_MAX = 60 * 1024 * 1024
THREADS_MORE_MAX = 4


class Sample(msgspec.Struct, frozen=True):
    """What the daemon holds at a moment."""

    at: float
    rss_bytes: int
    descriptors: int
    threads: int


class Report(msgspec.Struct):
    """What came of a run."""

    seed: int
    seconds: float
    requests: dict[str, int]
    faults: dict[str, int]
    longest_seconds: dict[str, float]
    broken: list[str]
    rss_first_bytes: int
    rss_last_bytes: int
    rss_bytes_per_hour: float
    descriptors: tuple[int, int]

    def text(self) -> str:
        slope = self.rss_bytes_per_hour / 2**20
        lines = [
            f"seed {self.seed}, {self.seconds:.0f} s",
            f"requests: {sum(self.requests.values())} {self.requests}",
            f"faults: {sum(self.faults.values())} {self.faults}",
            f"longest wait in seconds: { {kind: round(value, 1) for kind, value in self.longest_seconds.items()} }",
            f"daemon: {self.rss_first_bytes >> 20} to {self.rss_last_bytes >> 20} MB, {slope:+.1f} MB an hour",
            f"descriptors: {self.descriptors[0]} to {self.descriptors[1]}",
            *(f"BROKEN: {text}" for text in self.broken),
        ]
        return "\n".join(lines)


def configuration() -> Json:
    often = {"max": 1000, "window": 60, "backoff": [0.01, 0.2]}
    common: Json = {"stall_timeout": 3, "restart": often, "queue_limit": 500}
    return {
        "models": {
            "mock": {**mock_model(token_delay_ms=4, n_ctx=4096), **common, "parallel": 4},
            "victim": {**mock_model(), **common},
            "llama": {**starter_model(n_ctx=2048, parallel=4), **common, "stall_timeout": 10},
            "mlx": {"path": str(tiny_folder()), "n_ctx": 2048, "parallel": 2, **common, "stall_timeout": 10},
        }
    }


class Chaos:
    """One run."""

    def __init__(self, seed: int, seconds: float) -> None:
        self._seed = seed
        self._seconds = seconds
        self._random = random.Random(seed)
        self._samples: list[Sample] = []
        self._broken: list[str] = []

    def run(self) -> Report:
        config = configuration()
        make = SmallDisk if has_own_mounts() else Daemon
        with TemporaryDirectory(prefix="lv-chaos-") as folder:
            memory_file = Path(folder) / "memory"
            config["cache"] = {"state_dir": str(Path(folder) / "state")}
            with make(config, env={FAULT_FILE_VARIABLE: str(memory_file)}) as daemon:
                return self._run_on(daemon, config, memory_file)

    def _run_on(self, daemon: Daemon, config: Json, memory_file: Path) -> Report:
        faults = Faults(daemon, config, self._seed, memory_file=memory_file)
        clients = Clients(lambda: daemon.url, self._seed)
        for model in config["models"]:
            assert daemon.complete(model, max_tokens=2)[0] == 200
        begun = time.monotonic()
        asyncio.run(self._hurt(daemon, clients, faults))
        seconds = time.monotonic() - begun
        if not clients.broken:
            self._settle(daemon)
        else:
            print(daemon.console()[-30_000:])
        return self._report(seconds, clients, faults)

    async def _hurt(self, daemon: Daemon, clients: Clients, faults: Faults) -> None:
        load = asyncio.create_task(clients.run(CLIENTS))
        sampling = asyncio.create_task(self._sample(daemon))
        deadline = time.monotonic() + self._seconds
        while time.monotonic() < deadline and not clients.broken:
            await asyncio.sleep(self._random.uniform(*FAULT_SECONDS))
            await faults.one()
        clients.stop()
        await load
        sampling.cancel()

    async def _sample(self, daemon: Daemon) -> None:
        process = psutil.Process(daemon.pid)
        while True:
            self._samples.append(
                Sample(time.monotonic(), process.memory_info().rss, process.num_fds(), process.num_threads())
            )
            await asyncio.sleep(SAMPLE_SECONDS)

    def _settle(self, daemon: Daemon) -> None:
        """When nothing goes wrong any more, everything is as it was: models serve, nothing waits, nothing is held."""
        process = psutil.Process(daemon.pid)
        for model in ("mock", "victim", "llama", "mlx"):
            status, answer = daemon.complete(model, max_tokens=2)
            assert status == 200, answer
        eventually_sync(lambda: daemon.control("GET", "/llm/status")[1]["in_flight"] == 0, 20, "nothing is in flight")
        first = self._samples[0]
        eventually_sync(
            lambda: process.num_fds() <= first.descriptors + DESCRIPTORS_MORE_MAX, 20, "descriptors are given back"
        )
        assert process.num_threads() <= first.threads + THREADS_MORE_MAX
        workers = [child for child in process.children() if is_worker(child)]
        assert len(workers) == 4, workers
        grown = process.memory_info().rss - first.rss_bytes
        assert grown < MEMORY_GROWTH_BYTES_MAX, f"the daemon has {grown} bytes more"
        self._samples.append(Sample(time.monotonic(), process.memory_info().rss, process.num_fds(), 0))
        daemon.signal(15)
        assert daemon.wait(60) == 0
        eventually_sync(lambda: not any(alive(worker.pid) for worker in workers), 10, "no worker is left")

    def _report(self, seconds: float, clients: Clients, faults: Faults) -> Report:
        settled = self._samples[len(self._samples) // 3 :]
        first, last = settled[0], settled[-1]
        return Report(
            self._seed,
            seconds,
            dict(clients.ended),
            dict(faults.happened),
            dict(clients.longest_seconds),
            clients.broken,
            first.rss_bytes,
            last.rss_bytes,
            slope(settled) * 3600,
            (self._samples[0].descriptors, last.descriptors),
        )


def slope(samples: list[Sample]) -> float:
    """Bytes a second, by least squares."""
    mean_at = sum(sample.at for sample in samples) / len(samples)
    mean = sum(sample.rss_bytes for sample in samples) / len(samples)
    spread = sum((sample.at - mean_at) ** 2 for sample in samples)
    return sum((sample.at - mean_at) * (sample.rss_bytes - mean) for sample in samples) / spread if spread else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos", description="A daemon under load while things go wrong at random.")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=None, help="of an earlier run, for the same faults")
    given = parser.parse_args()
    seed = secrets.randbelow(10**6) if given.seed is None else given.seed
    print(f"chaos for {given.minutes:g} minutes, seed {seed}", flush=True)
    report = Chaos(seed, given.minutes * 60).run()
    print(report.text())
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
