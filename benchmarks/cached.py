"""A cached answer, ours ÷ a bare aiohttp handler that parses and answers the same JSON."""

from __future__ import annotations

import time

import msgspec

from benchmarks.client import Connection, connect
from benchmarks.figures import Bound, Figure, Options, command, compare, percentile
from benchmarks.harness import HOST, Server, bare_server, daemon, mock_model
from benchmarks.workload import CHAT


def _body() -> bytes:
    messages = [{"role": "user", "content": "Which word comes first?"}]
    return msgspec.json.encode({"model": "light", "messages": messages, "max_tokens": 1, "temperature": 0})


async def measure(options: Options) -> list[Figure]:
    requests = options.scaled(2000, 100)
    with daemon(mock_model(reply_tokens=1), cache=True) as ours, bare_server("handler") as peer:
        rounds: list[tuple[float, float]] = []
        for _ in range(options.rounds):
            pair = [await _median_ms(server, requests) for server in (ours, peer)]
            rounds.append((pair[0], pair[1]))
    target = Bound("ratio", "≤", 2.0)
    return [compare("cached answer, p50", "ms", rounds, peer_name="bare aiohttp handler", target=target)]


async def _median_ms(server: Server, requests: int) -> float:
    connection = await connect(HOST, server.port)
    request = connection.request_bytes(CHAT, _body())
    for _ in range(50):
        await connection.exchange(request)
    times = [await _one_ms(connection, request) for _ in range(requests)]
    connection.close()
    return percentile(times, 0.5)


async def _one_ms(connection: Connection, request: bytes) -> float:
    began = time.perf_counter()
    await connection.exchange(request)
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    command(measure, __doc__)
