"""The worst gap between two tokens of a stream while a 4,000-token prompt prefills beside it, ours ÷ llama-server's."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time

from benchmarks.client import connect
from benchmarks.figures import BenchmarkError, Bound, Figure, Options, command, compare
from benchmarks.harness import HOST, Load, Server, daemon, llama_server, starter_model
from benchmarks.workload import COMPLETIONS, completion_body, fresh_number, sentences_for, text

PROMPT_TOKENS = 4000
LOAD = Load(n_ctx=16_384, parallel=2)
EVENTS_BEFORE = 20
"""The stream runs steadily before the prompt comes."""


async def measure(options: Options) -> list[Figure]:
    with daemon(starter_model(LOAD)) as ours, llama_server(LOAD) as peer:
        sentences = {server.name: await sentences_for(server, PROMPT_TOKENS) for server in (ours, peer)}
        gaps: list[tuple[float, float]] = []
        firsts: list[tuple[float, float]] = []
        for _ in range(options.rounds):
            (gap, first), (peer_gap, peer_first) = [
                await _worst_gap_ms(server, sentences[server.name]) for server in (ours, peer)
            ]
            gaps.append((gap, peer_gap))
            firsts.append((first, peer_first))
    notes = {
        "prompt_first_token_ms": statistics.median(ours for ours, _ in firsts),
        "peer_prompt_first_token_ms": statistics.median(peer for _, peer in firsts),
    }
    figure = compare(
        "worst gap of a stream beside a 4,000-token prefill",
        "ms",
        gaps,
        peer_name="llama-server",
        target=Bound("ratio", "≤", 0.7),
        notes=notes,
    )
    return [figure]


async def _worst_gap_ms(server: Server, sentences: int) -> tuple[float, float]:
    """The stream's worst gap while the prompt was computed, and the prompt's own time to its first token."""
    reader = await connect(HOST, server.port)
    over = asyncio.Event()
    body = completion_body(text(2, seed=fresh_number()), max_tokens=3000, stream=True)
    stream = asyncio.create_task(reader.cut_stream(reader.request_bytes(COMPLETIONS, body), over))
    deadline = time.perf_counter() + 60
    while reader.received_texts() < EVENTS_BEFORE:
        if stream.done() or time.perf_counter() > deadline:
            raise BenchmarkError(f"{server.name}: the stream did not run")
        await asyncio.sleep(0.01)
    prompt = completion_body(text(sentences, seed=fresh_number()), max_tokens=2, stream=True)
    beside = await connect(HOST, server.port)
    began = time.perf_counter()
    prefill = await beside.stream(beside.request_bytes(COMPLETIONS, prompt))
    ended = prefill.arrivals[0]
    over.set()
    arrivals = [moment for moment in (await stream).arrivals if moment < ended]
    beside.close()
    # A gap that began before the prompt came counts too: it is what the prompt made longer.
    seen = [end - start for start, end in itertools.pairwise([*arrivals, ended]) if end > began]
    return max(seen) * 1000, prefill.first_seconds * 1000


if __name__ == "__main__":
    command(measure, __doc__)
