"""Repetitive text with prompt lookup ÷ without, at temperature 0, one stream."""

from __future__ import annotations

import msgspec

from benchmarks.client import connect
from benchmarks.figures import Bound, Figure, Options, command, compare
from benchmarks.harness import HOST, Load, Server, daemon, starter_model
from benchmarks.workload import COMPLETIONS, fresh_number

LINES = 24


async def measure(options: Options) -> list[Figure]:
    tokens = options.scaled(300, 32)
    with daemon(starter_model(Load(n_ctx=2048, parallel=1))) as server:
        rounds: list[tuple[float, float]] = []
        for _ in range(options.rounds):
            prompt = _prompt(fresh_number())
            pair = [await _tokens_per_second(server, prompt, tokens, how) for how in ("lookup", "off")]
            rounds.append((pair[0], pair[1]))
    name = "repetitive text with prompt lookup, 1 stream"
    return [compare(name, "tokens/s", rounds, peer_name="without", target=Bound("ratio", "≥", 1.8))]


def _prompt(number: int) -> str:
    """One line, again and again: the model goes on with it."""
    return (
        f"Line {number}: the quiet engine repairs the harbour lights, and the baker crosses the winter road.\n" * LINES
    )


async def _tokens_per_second(server: Server, prompt: str, tokens: int, how: str) -> float:
    connection = await connect(HOST, server.port)
    request = {
        "model": "light",
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "repeat_penalty": 1.0,
        "ignore_eos": True,
        "speculative": how,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    trace = await connection.stream(connection.request_bytes(COMPLETIONS, msgspec.json.encode(request)))
    connection.close()
    return trace.tokens / (trace.arrivals[-1] - trace.arrivals[0])


if __name__ == "__main__":
    command(measure, __doc__)
