"""What the daemon takes while it does nothing and no worker runs: memory, and CPU over some seconds."""

from __future__ import annotations

import asyncio

import psutil

from benchmarks.figures import Bound, Figure, Options, alone, command
from benchmarks.harness import daemon

BYTES_PER_MB = 1_000_000
RSS_MB_MAX = 60
CPU_PERCENT_MAX = 0.1


async def measure(options: Options) -> list[Figure]:
    memory: list[float] = []
    cpu: list[float] = []
    seconds = options.scaled(20, 2)
    with daemon({"light": {"backend": "mock"}}) as server:
        process = psutil.Process(server.pid)
        await asyncio.sleep(1)
        for _ in range(options.scaled(min(options.rounds, 3), 1)):
            before = sum(process.cpu_times()[:2])
            await asyncio.sleep(seconds)
            cpu.append((sum(process.cpu_times()[:2]) - before) / seconds * 100)
            memory.append(process.memory_info().rss / BYTES_PER_MB)
    return [
        alone("memory of the idle daemon (RSS)", "MB", memory, target=Bound("ours", "≤", RSS_MB_MAX)),
        alone("CPU of the idle daemon", "%", cpu, target=Bound("ours", "≤", CPU_PERCENT_MAX)),
    ]


if __name__ == "__main__":
    command(measure, __doc__)
