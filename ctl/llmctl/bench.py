"""Measures how fast a model reads and writes, by requests such as any client makes."""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from llmctl import limits
from llmctl.client import Client, decode
from llmctl.completion import StreamOptions, Usage
from llmctl.errors import CtlError
from llmctl.sse import ServerSentEvent
from llmvisor.control.api import ErrorBody

COMPLETIONS_PATH = "/v1/completions"
_WORDS = (
    "time",
    "house",
    "water",
    "light",
    "people",
    "world",
    "hand",
    "book",
    "night",
    "story",
    "road",
    "city",
    "tree",
)


class BenchRow(msgspec.Struct, frozen=True):
    """What so many requests at once gave; speeds in tokens per second, times in seconds."""

    concurrency: int
    first_token_seconds: float
    """The median over the requests, from asking to the first text."""
    first_token_seconds_max: float
    prefill_tokens_per_second: float
    """Of all prompts together, until the last of them was read."""
    decode_tokens_per_second: float
    """Of all answers together, from the first text of any to the last of all."""
    decode_tokens_per_second_each: float
    """The median over the requests, each from its own first text to its last."""


class BenchAnswer(msgspec.Struct, frozen=True):
    """What `llmctl bench --json` prints."""

    model: str
    prompt_tokens: int
    """As the model counts them; the mean."""
    max_tokens: int
    rows: list[BenchRow]


class Sample(NamedTuple):
    """One request, by a clock that never jumps, in seconds."""

    asked: float
    first: float
    last: float
    prompt_tokens: int
    completion_tokens: int


class _Request(msgspec.Struct):
    model: str
    prompt: str
    max_tokens: int
    stream: bool = True
    stream_options: StreamOptions = msgspec.field(default_factory=StreamOptions)
    temperature: float = 1.0
    ignore_eos: bool = True
    cache_prompt: bool = False


class _Choice(msgspec.Struct):
    text: str = ""


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: ErrorBody | None = None


def levels(most: int) -> list[int]:
    """1, 2, 4 … up to `most`, which is always among them."""
    found = [1 << power for power in range(most.bit_length()) if 1 << power < most]
    return [*found, most]


def measure(client: Client, model: str, *, concurrency: int, prompt_tokens: int, max_tokens: int) -> list[Sample]:
    """That many requests at once, each with words of its own. Raises `CtlError` where one of them fails."""
    samples: list[Sample] = []
    failures: list[CtlError] = []
    begin = threading.Barrier(concurrency)

    def ask() -> None:
        try:
            begin.wait()
            samples.append(_ask(client, _Request(model, _prompt(prompt_tokens), max_tokens)))
        except CtlError as error:
            failures.append(error)

    # Daemon threads: an interrupt ends the process, and with it the connections and what the daemon does for them.
    threads = [threading.Thread(target=ask, daemon=True) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return samples


def summed_up(samples: Sequence[Sample]) -> BenchRow:
    """One level's samples as a row."""
    firsts = [sample.first - sample.asked for sample in samples]
    reading = max(sample.first for sample in samples) - min(sample.asked for sample in samples)
    writing = max(sample.last for sample in samples) - min(sample.first for sample in samples)
    return BenchRow(
        concurrency=len(samples),
        first_token_seconds=statistics.median(firsts),
        first_token_seconds_max=max(firsts),
        prefill_tokens_per_second=_speed(sum(sample.prompt_tokens for sample in samples), reading),
        # The first token of each was there when its time began.
        decode_tokens_per_second=_speed(sum(sample.completion_tokens - 1 for sample in samples), writing),
        decode_tokens_per_second_each=statistics.median(
            _speed(sample.completion_tokens - 1, sample.last - sample.first) for sample in samples
        ),
    )


def _ask(client: Client, request: _Request) -> Sample:
    asked = time.monotonic()
    first: float | None = None
    last = asked
    usage: Usage | None = None
    body = msgspec.json.encode(request)
    silence = client.timeout_seconds or limits.generation_silence_seconds_max
    with client.stream("POST", COMPLETIONS_PATH, body=body, silence_seconds_max=silence) as events:
        for event in events:
            if event.data == b"[DONE]":
                break
            chunk = _chunk(event)
            usage = chunk.usage or usage
            if any(choice.text for choice in chunk.choices):
                last = time.monotonic()
                first = last if first is None else first
    if usage is None or first is None:
        raise CtlError("an answer ended before it had any text")
    return Sample(asked, first, last, usage.prompt_tokens, usage.completion_tokens)


def _chunk(event: ServerSentEvent) -> _Chunk:
    chunk = decode(event.data, _Chunk)
    if chunk.error is not None:
        raise CtlError(chunk.error.message)
    return chunk


def _prompt(tokens: int) -> str:
    """About that many tokens, and no two alike from the first word on: nothing of them was computed before."""
    return " ".join(random.choices(_WORDS, k=tokens))  # noqa: S311 - no secret


def _speed(tokens: int, seconds: float) -> float:
    return tokens / seconds if seconds > 0 and tokens > 0 else 0.0
