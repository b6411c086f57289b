"""What the daemon adds to one request, beside what a plain aiohttp proxy adds. One connection, mock runtime.

Measured from outside: a request through the daemon minus the same request given to the worker directly over its
pipes; for the proxy, a request through it minus the same one given to the server behind it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from benchmarks.client import Connection, connect
from benchmarks.figures import Bound, Figure, Options, alone, command, compare, percentile
from benchmarks.harness import HOST, bare_server, daemon, mock_model
from benchmarks.worker import direct_worker
from benchmarks.workload import CHAT, chat_body

P50_MS_MAX = 0.4
P99_MS_MAX = 1.5
PROXY_RATIO_MAX = 2.0

Ask = Callable[[], Awaitable[object]]


async def measure(options: Options) -> list[Figure]:
    requests = options.scaled(1000, 100)
    with daemon(mock_model()) as ours, bare_server("handler") as bare, bare_server("proxy", str(bare.port)) as proxy:
        async with direct_worker() as worker:
            asks: dict[str, Ask] = {"direct": worker.generate}
            connections: list[Connection] = []
            for name, server in (("daemon", ours), ("bare", bare), ("proxy", proxy)):
                connection = await connect(HOST, server.port)
                connections.append(connection)
                asks[name] = _asking(connection)
            for ask in asks.values():
                await _latencies_ms(ask, requests)
            rounds = [
                {name: await _latencies_ms(ask, requests) for name, ask in asks.items()} for _ in range(options.rounds)
            ]
            for connection in connections:
                connection.close()
    return _figures(rounds)


def _figures(rounds: list[dict[str, list[float]]]) -> list[Figure]:
    def added(share: float, with_it: str, without: str) -> list[float]:
        return [percentile(each[with_it], share) - percentile(each[without], share) for each in rounds]

    p50 = added(0.5, "daemon", "direct")
    # Against the worker's median: its own slowest request is another one than the daemon's.
    p99 = [percentile(each["daemon"], 0.99) - percentile(each["direct"], 0.5) for each in rounds]
    by_proxy = added(0.5, "proxy", "bare")
    pooled = {name: percentile([ms for each in rounds for ms in each[name]], 0.5) for name in rounds[0]}
    return [
        alone(
            "added to a request, p50",
            "ms",
            p50,
            target=Bound("ours", "≤", P50_MS_MAX),
            notes={f"{name}_p50_ms": value for name, value in pooled.items()},
        ),
        alone("added to a request, p99", "ms", p99, target=Bound("ours", "≤", P99_MS_MAX)),
        compare(
            "added to a request, p50, beside a proxy",
            "ms",
            list(zip(p50, by_proxy, strict=True)),
            peer_name="plain aiohttp proxy",
            target=Bound("ratio", "≤", PROXY_RATIO_MAX),
        ),
    ]


def _asking(connection: Connection) -> Ask:
    request = connection.request_bytes(CHAT, chat_body(max_tokens=1, stream=False))

    async def ask() -> object:
        return await connection.exchange(request)

    return ask


async def _latencies_ms(ask: Ask, requests: int) -> list[float]:
    times: list[float] = []
    for _ in range(requests):
        began = time.perf_counter()
        await ask()
        times.append((time.perf_counter() - began) * 1000)
    return times


if __name__ == "__main__":
    command(measure, __doc__)
