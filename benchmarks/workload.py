"""Prompts and requests, the same for ours and the peer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec

from benchmarks.client import Connection, StreamTrace, Usage, connect
from benchmarks.harness import HOST, Server

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"

_SUBJECTS = (
    "The river",
    "A quiet engine",
    "The old library",
    "Every morning the baker",
    "The last train",
    "Her letter",
)
_VERBS = ("carries", "remembers", "crosses", "repairs", "follows", "describes")
_OBJECTS = (
    "the town below the hill",
    "a box of brass keys",
    "the winter road",
    "an unfinished map",
    "the harbour lights",
)
_numbers = itertools.count(1)


class _Completion(msgspec.Struct):
    usage: Usage


def fresh_number() -> int:
    """A number that no prompt has had yet, so that nothing of it stands in a cache."""
    return next(_numbers)


def text(sentences: int, *, seed: int) -> str:
    """Plain English, different for each seed from its first word on."""
    parts = [f"Story {seed}."]
    for index in range(sentences):
        subject, verb, thing = (words[(seed + index * step) % len(words)] for words, step in _PARTS)
        parts.append(f"{subject} {verb} {thing}, {seed * 31 + index}.")
    return " ".join(parts)


_PARTS = ((_SUBJECTS, 1), (_VERBS, 5), (_OBJECTS, 3))


def completion_body(prompt: str, *, max_tokens: int, stream: bool, model: str = "light") -> bytes:
    """A greedy completion that does not end before `max_tokens`."""
    request: dict[str, object] = {
        "model": model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "repeat_penalty": 1.0,
        "ignore_eos": True,
        "stream": stream,
    }
    if stream:
        request["stream_options"] = {"include_usage": True}
    return msgspec.json.encode(request)


def chat_body(*, max_tokens: int, stream: bool) -> bytes:
    """A short conversation, for the mock."""
    request: dict[str, object] = {
        "model": "light",
        "messages": [{"role": "user", "content": "Say something."}],
        "max_tokens": max_tokens,
        "stream": stream,
    }
    if stream:
        request["stream_options"] = {"include_usage": True}
    return msgspec.json.encode(request)


async def complete(connection: Connection, prompt: str, *, max_tokens: int = 1) -> Usage:
    """A completion that is not streamed."""
    body = completion_body(prompt, max_tokens=max_tokens, stream=False)
    answer = await connection.exchange(connection.request_bytes(COMPLETIONS, body))
    return msgspec.json.decode(answer, type=_Completion).usage


def tokens_per_second(traces: Sequence[StreamTrace]) -> float:
    """All streams' tokens while all of them decode: from the last one's first text to the first one's end.

    Prompts are read before that: one that still is would be counted against whoever answers the others early.
    """
    began = max(trace.arrivals[0] for trace in traces)
    ended = min(trace.arrivals[-1] for trace in traces)
    within = sum(
        trace.tokens / len(trace.arrivals) * sum(began < arrival <= ended for arrival in trace.arrivals)
        for trace in traces
    )
    return within / (ended - began)


async def sentences_for(server: Server, tokens: int) -> int:
    """How many sentences make a prompt of about so many tokens, by the server's own count."""
    connection = await connect(HOST, server.port)
    sample = 40
    usage = await complete(connection, text(sample, seed=fresh_number()))
    connection.close()
    return round(sample * tokens / usage.prompt_tokens)
