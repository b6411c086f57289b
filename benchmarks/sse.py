"""Tokens through the front: 64 streams of the mock at full speed, by the second and by the daemon's CPU second."""

from __future__ import annotations

import asyncio
import statistics
import time

import msgspec
import psutil

from benchmarks.client import connect
from benchmarks.figures import Bound, Figure, Options, alone, command
from benchmarks.harness import HOST, Server, daemon, mock_model
from benchmarks.workload import CHAT, chat_body

STREAMS = 64
TOKENS_PER_CORE_SECOND_MIN = 100_000


async def measure(options: Options) -> list[Figure]:
    with daemon(mock_model()) as server:
        await _run(server, 50)
        results = [await _run(server, options.scaled(4000, 300)) for _ in range(options.rounds)]
    by_cpu = [run.tokens / run.cpu_seconds for run in results]
    notes = {
        "wall_tokens_per_second": statistics.median(run.tokens / run.wall_seconds for run in results),
        # Tells whether each token has an event of its own or shares one.
        "bytes_per_token": statistics.median(run.received_bytes / run.tokens for run in results),
    }
    figure = alone(
        f"SSE, {STREAMS} streams of the mock",
        "tokens per CPU second of the daemon",
        by_cpu,
        target=Bound("ours", "≥", TOKENS_PER_CORE_SECOND_MIN),
        notes=notes,
    )
    return [figure]


class _Run(msgspec.Struct, frozen=True):
    """Tokens that came, and what they took of the daemon's CPU and of the clock."""

    tokens: int
    received_bytes: int
    cpu_seconds: float
    wall_seconds: float


async def _run(server: Server, tokens: int) -> _Run:
    process = psutil.Process(server.pid)
    connections = [await connect(HOST, server.port) for _ in range(STREAMS)]
    request = connections[0].request_bytes(CHAT, chat_body(max_tokens=tokens, stream=True))
    cpu, began = _cpu_seconds(process), time.perf_counter()
    usages = await asyncio.gather(*(connection.drain_stream(request) for connection in connections))
    cpu, wall = _cpu_seconds(process) - cpu, time.perf_counter() - began
    for connection in connections:
        connection.close()
    return _Run(
        tokens=sum(usage.completion_tokens for usage in usages),
        received_bytes=sum(connection.bytes_received for connection in connections),
        cpu_seconds=cpu,
        wall_seconds=wall,
    )


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    command(measure, __doc__)
