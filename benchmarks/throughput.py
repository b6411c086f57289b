"""Requests per second through the front with 64 connections, mock runtime ÷ a bare aiohttp handler."""

from __future__ import annotations

import asyncio
import time

import psutil

from benchmarks.client import connect
from benchmarks.figures import Bound, Figure, Options, command, compare
from benchmarks.harness import HOST, Server, bare_server, daemon, mock_model
from benchmarks.workload import CHAT, chat_body

CONNECTIONS = 64


async def measure(options: Options) -> list[Figure]:
    requests = options.scaled(6000, 640)
    with daemon(mock_model()) as ours, bare_server("handler") as peer:
        for server in (ours, peer):
            await _requests_per_second(server, 640)
        rounds: list[tuple[float, float]] = []
        cpu_ms: list[float] = []
        for _ in range(options.rounds):
            process = psutil.Process(ours.pid)
            before = sum(process.cpu_times()[:2])
            rate = await _requests_per_second(ours, requests)
            cpu_ms.append((sum(process.cpu_times()[:2]) - before) / requests * 1000)
            rounds.append((rate, await _requests_per_second(peer, requests)))
    figure = compare(
        f"requests, {CONNECTIONS} connections",
        "requests/s",
        rounds,
        peer_name="bare aiohttp handler",
        target=Bound("ratio", "≥", 0.5),
        notes={"daemon_cpu_ms_per_request": sorted(cpu_ms)[len(cpu_ms) // 2]},
    )
    return [figure]


async def _requests_per_second(server: Server, requests: int) -> float:
    each = requests // CONNECTIONS

    async def client() -> None:
        connection = await connect(HOST, server.port)
        request = connection.request_bytes(CHAT, chat_body(max_tokens=1, stream=False))
        for _ in range(each):
            await connection.exchange(request)
        connection.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    return each * CONNECTIONS / (time.perf_counter() - began)


if __name__ == "__main__":
    command(measure, __doc__)
