"""A7: every number that reaches native code has bounds, and what nobody knows reaches nothing."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from tests.support.http_front import CHAT, COMPLETIONS, Served, served

from llmvisor import limits

MESSAGES = '"messages": [{"role": "user", "content": "hi"}]'
NUMBERS = [
    "temperature", "top_p", "top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n", "presence_penalty",
    "frequency_penalty", "mirostat", "mirostat_tau", "mirostat_eta", "dry_multiplier", "dry_base", "dry_allowed_length",
    "dry_penalty_last_n", "xtc_probability", "xtc_threshold", "n", "max_tokens", "top_logprobs",
]  # fmt: skip
NO_NUMBERS = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e400",
    "-1e400",
    "1" * 100_000,
    "-" + "9" * 400,
    '"1"',
    "[1]",
    "{}",
    "true",
]
BOUNDS: list[tuple[str, str, str]] = [
    ("n", str(limits.choices_max), str(limits.choices_max + 1)),
    ("max_tokens", str(limits.tokens_max), str(limits.tokens_max + 1)),
    ("top_k", str(limits.tokens_max), str(limits.tokens_max + 1)),
    ("temperature", "2", "2.0001"),
    ("top_p", "1", "1.0001"),
    ("min_p", "0", "-0.0001"),
    ("repeat_last_n", "-1", "-2"),
    ("dry_penalty_last_n", "-1", "-2"),
    ("presence_penalty", "-2", "-2.0001"),
    ("mirostat", "2", "3"),
    ("stop", json.dumps(["x"] * 16), json.dumps(["x"] * 17)),
    ("stop", json.dumps("x" * 1024), json.dumps("x" * 1025)),
    ("logit_bias", '{"5": 100}', '{"5": 100.5}'),
    ("logit_bias", '{"0": 1}', '{"-1": 1}'),
]
FORWARDED_BY_OTHERS = [
    "n_discard", "n_keep", "n_predict", "n_probs", "cache_type_k", "id_slot", "t_max_predict_ms", "samplers",
    "slot_id", "lora_path", "model_path", "chat_template", "rope_scaling", "__class__", "guided_decoding_backend",
]  # fmt: skip


@pytest.fixture
async def front(tmp_path: Path) -> AsyncGenerator[Served]:
    async with served(tmp_path) as it:
        yield it


async def status_of(front: Served, path: str, body: str) -> int:
    return (await front.post_bytes(path, body.encode())).status


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: value[:12])
async def test_number_that_is_none_is_refused(front: Served, value: str) -> None:
    """Not a number, infinite, or with a hundred thousand digits: 400 for each field, and nothing is generated."""
    for name in NUMBERS:
        assert await status_of(front, CHAT, f'{{{MESSAGES}, "{name}": {value}}}') == 400, name
    assert front.service.generations == []
    assert (await front.chat()).status == 200


@pytest.mark.parametrize(("name", "bound", "past"), BOUNDS, ids=lambda value: value[:12])
async def test_bound_is_taken_and_what_is_past_it_refused(front: Served, name: str, bound: str, past: str) -> None:
    """On both endpoints."""
    for path, prompt in ((CHAT, MESSAGES), (COMPLETIONS, '"prompt": "hi"')):
        assert await status_of(front, path, f'{{{prompt}, "{name}": {bound}}}') == 200
        count = len(front.service.generations)
        assert await status_of(front, path, f'{{{prompt}, "{name}": {past}}}') == 400
        assert len(front.service.generations) == count


@pytest.mark.parametrize("value", ["-2147483648", "18446744073709551616", '"$(id)"', "[[[[]]]]"])
async def test_parameter_that_nobody_knows_reaches_no_worker(front: Served, value: str) -> None:
    """Other servers hand these on to native code: here they are refused or left out, whatever they are."""
    for name in FORWARDED_BY_OTHERS:
        status = await status_of(front, CHAT, f'{{{MESSAGES}, "{name}": {value}}}')
        assert status in {200, 400}
    for generation in front.service.generations:
        told = repr(generation)
        assert [name for name in FORWARDED_BY_OTHERS if f"{name}=" in told] == []
        assert value.strip('"') not in told


@pytest.mark.parametrize("depth", [200, 5_000, 200_000])
async def test_nesting_brings_nothing_down(front: Served, depth: int) -> None:
    """Arrays in arrays, in a known field and in an unknown one: 400 or ignored, never 500."""
    nested = "[" * depth + "]" * depth
    for field in ("messages", "unknown", "logit_bias", "stop"):
        assert await status_of(front, CHAT, f'{{{MESSAGES}, "{field}": {nested}}}') in {200, 400}
    assert (await front.chat()).status == 200


@pytest.mark.parametrize(
    "body", [b"\xff\xfe{}", b'{"prompt": "\xed\xa0\x80"}', b'{"prompt": "\\ud800"}', b"", b"null", b"[]", b'"x"', b"{"]
)
async def test_body_that_is_no_text_is_refused(front: Served, body: bytes) -> None:
    """Bytes that are no UTF-8, lone surrogates, and JSON that is no object."""
    answer = await front.post_bytes(COMPLETIONS, body)
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
