"""Decode speed with 1, 4, 8 and 16 streams together, ours ÷ llama-server's.

Told how many sequences there are, llama-server splits the context into as many parts, and each step looks at a
sequence's own part alone. Ours shares one cache, so that any sequence may have all of it and prefixes are computed
once; a step then passes over the cells of all. The last figure is against llama-server with one cache as well.
"""

from __future__ import annotations

import asyncio

from benchmarks.client import StreamTrace, connect
from benchmarks.figures import Bound, Figure, Options, command, compare
from benchmarks.harness import HOST, Load, Server, daemon, llama_server, starter_model
from benchmarks.workload import COMPLETIONS, completion_body, fresh_number, text, tokens_per_second

STREAMS = (1, 4, 8, 16)
PROMPT_SENTENCES = 3
CONTEXT_PER_STREAM = 512
UNIFIED = "--kv-unified"


async def measure(options: Options) -> list[Figure]:
    figures: list[Figure] = []
    for streams in STREAMS[:: options.scaled(1, 2)]:
        load = Load(n_ctx=CONTEXT_PER_STREAM * streams, parallel=streams)
        with daemon(starter_model(load)) as ours, llama_server(load) as peer:
            figures.append(await _compare(ours, peer, streams, options, target=Bound("ratio", "≥", 1.0)))
    load = Load(n_ctx=CONTEXT_PER_STREAM * STREAMS[-1], parallel=STREAMS[-1])
    with daemon(starter_model(load)) as ours, llama_server(load, UNIFIED) as peer:
        figures.append(await _compare(ours, peer, STREAMS[-1], options, peer_name=f"llama-server {UNIFIED}"))
    return figures


async def _compare(
    ours: Server,
    peer: Server,
    streams: int,
    options: Options,
    *,
    peer_name: str = "llama-server",
    target: Bound | None = None,
) -> Figure:
    tokens = options.scaled(200, 32)
    for server in (ours, peer):
        await _measured(server, streams, 16)  # what is slow the first time only
    rounds: list[tuple[float, float]] = []
    for _ in range(options.rounds):
        pair = [await _measured(server, streams, tokens) for server in (ours, peer)]
        rounds.append((pair[0], pair[1]))
    name = f"decode, {streams} stream{'s' if streams > 1 else ''}"
    return compare(name, "tokens/s", rounds, peer_name=peer_name, target=target)


async def _measured(server: Server, streams: int, tokens: int) -> float:
    return tokens_per_second(await asyncio.gather(*(_one_stream(server, tokens) for _ in range(streams))))


async def _one_stream(server: Server, tokens: int) -> StreamTrace:
    connection = await connect(HOST, server.port)
    prompt = text(PROMPT_SENTENCES, seed=fresh_number())
    body = completion_body(prompt, max_tokens=tokens, stream=True)
    trace = await connection.stream(connection.request_bytes(COMPLETIONS, body))
    connection.close()
    return trace


if __name__ == "__main__":
    command(measure, __doc__)
