"""Decode speed held to a JSON Schema ÷ free decode of the same daemon, with 1 and 8 streams."""

from __future__ import annotations

import asyncio

import msgspec

from benchmarks.client import StreamTrace, connect
from benchmarks.figures import Bound, Figure, Options, command, compare
from benchmarks.harness import HOST, Load, Server, daemon, starter_model
from benchmarks.workload import CHAT, fresh_number, tokens_per_second

STREAMS = (1, 8)
SCHEMA = {
    "type": "object",
    "properties": {
        "people": {
            "type": "array",
            "minItems": 100,
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "minLength": 5, "maxLength": 20},
                    "age": {"type": "integer", "minimum": 0, "maximum": 120},
                    "role": {"enum": ["reader", "writer", "owner"]},
                    "active": {"type": "boolean"},
                },
                "required": ["name", "age", "role", "active"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["people"],
    "additionalProperties": False,
}


async def measure(options: Options) -> list[Figure]:
    return [await _compare(streams, options) for streams in STREAMS]


async def _compare(streams: int, options: Options) -> Figure:
    tokens = options.scaled(200, 24)
    with daemon(starter_model(Load(n_ctx=512 * streams, parallel=streams))) as server:
        for held in (True, False):
            await _measured(server, streams, 16, held=held)
        rounds: list[tuple[float, float]] = []
        for _ in range(options.rounds):
            pair = [await _measured(server, streams, tokens, held=held) for held in (True, False)]
            rounds.append((pair[0], pair[1]))
    name = f"decode held to a JSON Schema, {streams} stream{'s' if streams > 1 else ''}"
    return compare(name, "tokens/s", rounds, peer_name="free decode", target=Bound("ratio", "≥", 0.9))


async def _measured(server: Server, streams: int, tokens: int, *, held: bool) -> float:
    return tokens_per_second(await asyncio.gather(*(_one_stream(server, tokens, held=held) for _ in range(streams))))


async def _one_stream(server: Server, tokens: int, *, held: bool) -> StreamTrace:
    content = f"List people with their age and role. Number {fresh_number()}."
    body: dict[str, object] = {
        "model": "light",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if held:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "people", "schema": SCHEMA}}
    else:
        body["ignore_eos"] = True
    connection = await connect(HOST, server.port)
    trace = await connection.stream(connection.request_bytes(CHAT, msgspec.json.encode(body)))
    connection.close()
    return trace


if __name__ == "__main__":
    command(measure, __doc__)
