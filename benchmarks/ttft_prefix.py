"""Time to the first token of a prompt of 1,500 tokens whose prefix was seen, ours ÷ llama-server's."""

from __future__ import annotations

import statistics

from benchmarks.client import connect
from benchmarks.figures import Bound, Figure, Options, command, compare
from benchmarks.harness import HOST, Load, Server, daemon, llama_server, starter_model
from benchmarks.workload import COMPLETIONS, complete, completion_body, fresh_number, sentences_for, text

PROMPT_TOKENS = 1500
LOAD = Load(n_ctx=8192, parallel=4)


async def measure(options: Options) -> list[Figure]:
    with daemon(starter_model(LOAD)) as ours, llama_server(LOAD) as peer:
        prefix_of = {server.name: await _seen_prefix(server) for server in (ours, peer)}
        rounds: list[tuple[float, float]] = []
        for _ in range(options.rounds):
            pair = [await _first_token_ms(server, prefix_of[server.name], options) for server in (ours, peer)]
            rounds.append((pair[0], pair[1]))
    figure = compare(
        "first token, 1,500-token prompt with a prefix that was seen",
        "ms",
        rounds,
        peer_name="llama-server",
        target=Bound("ratio", "≤", 1.0),
    )
    return [figure]


async def _seen_prefix(server: Server) -> str:
    """A long text that the server has computed once."""
    prefix = text(await sentences_for(server, PROMPT_TOKENS), seed=fresh_number())
    connection = await connect(HOST, server.port)
    await complete(connection, prefix)
    connection.close()
    return prefix


async def _first_token_ms(server: Server, prefix: str, options: Options) -> float:
    """The median over several prompts that end in a question of their own."""
    return statistics.median([await _one_ms(server, prefix) for _ in range(options.scaled(8, 2))])


async def _one_ms(server: Server, prefix: str) -> float:
    # llama-server closes a connection after a stream, so each has its own, made before the time counts.
    connection = await connect(HOST, server.port)
    prompt = f"{prefix} Question {fresh_number()}: what does the story tell about the map?"
    body = completion_body(prompt, max_tokens=2, stream=True)
    trace = await connection.stream(connection.request_bytes(COMPLETIONS, body))
    connection.close()
    return trace.first_seconds * 1000


if __name__ == "__main__":
    command(measure, __doc__)
