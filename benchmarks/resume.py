"""From SIGKILL of the worker to the stream's next token ÷ a bare process that loads the model and computes as much.

The bare process does what any new one has to: start, import llama-cpp-python, load the file, compute prompt and text so
far, choose a token. A stream's pause has beside that: noticing the death, the worker's own modules, two pipes, HTTP.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from itertools import pairwise

import msgspec
import psutil

from benchmarks.client import connect
from benchmarks.figures import BenchmarkError, Bound, Figure, Options, command, compare
from benchmarks.harness import HOST, Load, Server, daemon, starter_model
from benchmarks.workload import COMPLETIONS, completion_body, fresh_number, sentences_for, text
from llmvisor.config.paths import starter_model_path

PROMPT_TOKENS = 500
TEXT_TOKENS = 24
"""So many have come when the worker is killed."""
LOAD = Load(n_ctx=8192, parallel=4)


class Pause(msgspec.Struct, frozen=True):
    """One kill, and a bare process's share of it."""

    resumed_ms: float
    """From SIGKILL to the next token."""
    bare_ms: float
    """The bare process, from its start to its token."""
    load_and_prefill_ms: float
    """Of that, without its start and its import."""


async def measure(options: Options) -> list[Figure]:
    await _pause()  # what is slow the first time only: bytecode, the page cache
    rounds = [await _pause() for _ in range(options.rounds)]
    strict = [one.resumed_ms / one.load_and_prefill_ms for one in rounds]
    figure = compare(
        f"SIGKILL to next token, {PROMPT_TOKENS}-token prompt",
        "ms",
        [(one.resumed_ms, one.bare_ms) for one in rounds],
        peer_name="bare load and prefill",
        target=Bound("ratio", "≤", 1.3),
        notes={"÷ load and prefill alone, without the process's start and import": statistics.median(strict)},
    )
    return [figure]


async def _pause() -> Pause:
    """A daemon's first kill: later ones soon after it wait a little. Then the bare process."""
    with daemon(starter_model(LOAD)) as server:
        return await _kill_in_the_middle(server)


async def _kill_in_the_middle(server: Server) -> Pause:
    prompt = text(await sentences_for(server, PROMPT_TOKENS), seed=fresh_number())
    worker = _worker_of(server)
    connection = await connect(HOST, server.port)
    killed_at: list[float] = []

    def kill() -> None:
        if not killed_at and connection.received_texts() >= TEXT_TOKENS:
            worker.kill()
            killed_at.append(time.perf_counter())

    body = completion_body(prompt, max_tokens=2 * TEXT_TOKENS, stream=True)
    trace = await connection.stream(connection.request_bytes(COMPLETIONS, body), on_data=kill)
    connection.close()
    after = [arrival for arrival in trace.arrivals if killed_at and arrival > killed_at[0]]
    if trace.usage is None or trace.tokens != 2 * TEXT_TOKENS or not after:
        raise BenchmarkError("the stream did not go on after its worker was killed")
    # What had been written before the kill arrives at once: the pause is the longest gap.
    _, next_token = max(pairwise([killed_at[0], *after]), key=lambda gap: gap[1] - gap[0])
    process_seconds, part_seconds = bare(trace.usage.prompt_tokens + TEXT_TOKENS)
    return Pause(
        resumed_ms=(next_token - killed_at[0]) * 1000,
        bare_ms=process_seconds * 1000,
        load_and_prefill_ms=(part_seconds["load"] + part_seconds["prefill"]) * 1000,
    )


def _worker_of(server: Server) -> psutil.Process:
    children = psutil.Process(server.pid).children()
    (worker,) = (child for child in children if "llmvisor_runtimes" in child.cmdline())
    return worker


def bare(tokens: int) -> tuple[float, dict[str, float]]:
    """Seconds of a bare process that computes so many tokens, and of its parts."""
    argv = [sys.executable, "-m", "benchmarks.bare_load"]
    argv += [str(starter_model_path(os.environ)), str(LOAD.n_ctx), str(LOAD.threads)]
    ids = json.dumps([1000 + place % 20_000 for place in range(tokens)])
    began = time.perf_counter()
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(ids.encode())
        process.stdin.close()
        line = process.stdout.readline()
        seconds = time.perf_counter() - began
    if not line:
        raise BenchmarkError("the bare process failed")
    return seconds, msgspec.json.decode(line, type=dict[str, float])


if __name__ == "__main__":
    command(measure, __doc__)
