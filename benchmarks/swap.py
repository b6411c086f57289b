"""First token of a model that has to wait until another one has made room for it ÷ a bare process that just loads it.

Two models of which memory holds one, asked for in turns: each request finds the other one loaded and idle. What a swap
has beside a load is the decision, the other worker's end until its memory is back, and HTTP. The bare process starts,
imports llama-cpp-python, loads the same file and computes as many tokens.
"""

from __future__ import annotations

import statistics
import time

from benchmarks.client import Connection, connect
from benchmarks.figures import BenchmarkError, Bound, Figure, Options, command, compare
from benchmarks.harness import HOST, Load, daemon, starter_model
from benchmarks.resume import bare
from benchmarks.workload import COMPLETIONS, completion_body, fresh_number

LOAD = Load(n_ctx=8192, parallel=4)
NAMES = ("one", "other")
ROOM = {"limit": "1500MiB", "min_residency": 0}
NEEDED = "1GiB"


async def measure(options: Options) -> list[Figure]:
    model = {**starter_model(LOAD)["light"], "preload": False, "memory": NEEDED}
    own: list[float] = []
    rounds: list[tuple[float, float]] = []
    with daemon({name: dict(model) for name in NAMES}, memory=ROOM) as server:
        connection = await connect(HOST, server.port)
        own.append((await _first_token(connection, NAMES[1]))[0])  # with nobody to make room
        await _first_token(connection, NAMES[0])  # what is slow the first time only
        for number in range(options.rounds):
            seconds, tokens = await _first_token(connection, NAMES[(number + 1) % 2])
            rounds.append((seconds * 1000, bare(tokens)[0] * 1000))
        connection.close()
    figure = compare(
        "swap under memory pressure, to the first token",
        "ms",
        rounds,
        peer_name="bare load",
        target=Bound("ratio", "≤", 1.15),
        notes={"the daemon's own first load, memory free, ms": statistics.median(own) * 1000},
    )
    return [figure]


async def _first_token(connection: Connection, name: str) -> tuple[float, int]:
    """Seconds to the first token, and how many tokens the prompt had."""
    body = completion_body(f"Question {fresh_number()}:", max_tokens=1, stream=True, model=name)
    began = time.perf_counter()
    trace = await connection.stream(connection.request_bytes(COMPLETIONS, body))
    if trace.usage is None or not trace.arrivals:
        raise BenchmarkError(f"{name} did not answer")
    return trace.arrivals[0] - began, trace.usage.prompt_tokens


if __name__ == "__main__":
    command(measure, __doc__)
