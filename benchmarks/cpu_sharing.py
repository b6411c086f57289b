"""Two models that generate at once: tokens/s together with cores shared out ÷ the best fixed split of threads."""

from __future__ import annotations

import asyncio

from benchmarks.client import connect
from benchmarks.figures import Bound, Figure, Options, command, compare
from benchmarks.harness import HOST, Load, Server, daemon, starter_model
from benchmarks.workload import COMPLETIONS, completion_body, fresh_number, text

STREAMS = 2
MODELS = ("one", "two")


async def measure(options: Options) -> list[Figure]:
    load = Load(n_ctx=1024, parallel=STREAMS)
    half = max(1, load.threads // 2)
    tokens = options.scaled(100, 16)
    with (
        daemon(_models(load, None)) as shared,
        daemon(_models(load, half)) as halves,
        daemon(_models(load, load.threads)) as wholes,
    ):
        for server in (shared, halves, wholes):
            await _together(server, 8)
        rounds: list[tuple[float, float]] = []
        collapsed: list[float] = []
        for _ in range(options.rounds):
            ours, half_each, all_each = [await _together(server, tokens) for server in (shared, halves, wholes)]
            rounds.append((ours, max(half_each, all_each)))
            collapsed.append(all_each)
        alone = await _tokens_per_second(shared, MODELS[0], tokens)
    figure = compare(
        "two models at once, cores shared out",
        "tokens/s",
        rounds,
        peer_name="best fixed split",
        target=Bound("ratio", "≥", 0.95),
        notes={"every_core_for_both_tokens_per_second": min(collapsed), "one_alone_tokens_per_second": alone},
    )
    return [figure]


def _models(load: Load, threads: int | None) -> dict[str, dict[str, object]]:
    """The same file twice; without `threads` the daemon shares the cores out."""
    model = dict(starter_model(load)["light"])
    del model["n_threads"]
    return {name: {**model, **({"n_threads": threads} if threads else {})} for name in MODELS}


async def _together(server: Server, tokens: int) -> float:
    return sum(await asyncio.gather(*(_tokens_per_second(server, model, tokens) for model in MODELS)))


async def _tokens_per_second(server: Server, model: str, tokens: int) -> float:
    return sum(await asyncio.gather(*(_one_stream(server, model, tokens) for _ in range(STREAMS))))


async def _one_stream(server: Server, model: str, tokens: int) -> float:
    connection = await connect(HOST, server.port)
    body = completion_body(text(2, seed=fresh_number()), max_tokens=tokens, stream=True, model=model)
    trace = await connection.stream(connection.request_bytes(COMPLETIONS, body))
    connection.close()
    return trace.tokens / (trace.arrivals[-1] - trace.arrivals[0])


if __name__ == "__main__":
    command(measure, __doc__)
