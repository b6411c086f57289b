"""Streams whose workers are killed with SIGKILL, again and again: all of them complete, and nothing in them shows it.

The mock numbers its tokens, so a gap or a repeat shows in the text. Of real models the text is compared with that of a
run without a fault: equal, or parted where two tokens were as good as equally likely. (A resumed text is computed from
prompt and tokens sent in one batch, whose sums are added in another order.)
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Generator

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionToolParam
from tests.support.daemon import Daemon, Json, mock_model, starter_model
from tests.support.kills import (
    MLX_NOISE,
    RESTARTS,
    STARTER_NOISE,
    assert_kills_change_nothing,
    everybody_reads,
    killer,
)
from tests.support.leaks import no_leaks
from tests.support.mlx_models import tiny_folder
from tests.support.streams import stream_all_now

from llmvisor_runtimes.mock_text import Reply

STREAMS = 100
KILLS = 5
TOKENS = 200


@pytest.fixture(scope="module")
def daemon() -> Generator[Daemon]:
    models: Json = {
        "mock": mock_model(
            token_delay_ms=40, n_ctx=65536, parallel=STREAMS + STREAMS // 10, queue_limit=1000, restart=RESTARTS
        ),
        "few": mock_model(token_delay_ms=20, parallel=8, queue_limit=1000, restart=RESTARTS),
        "llama": starter_model(n_ctx=2048, parallel=4, n_threads=1, restart=RESTARTS),
        "mlx": {"path": str(tiny_folder()), "n_ctx": 2048, "parallel": 4, "restart": RESTARTS},
    }
    with no_leaks(), Daemon({"models": models}) as one:
        yield one


def expected(prompt: str, count: int, seed: int | None = None) -> str:
    """What the mock writes for a prompt."""
    return Reply([*prompt.encode()], seed).run(0, count)[0]


def test_hundred_streams_survive_five_kills_each(daemon: Daemon) -> None:
    """1. A hundred clients stream, every tenth two choices. 2. The worker is killed five times at random moments, with
    all of them inside. Result: each text is that of an undisturbed run, token for token, and usage counts it once."""
    seed = random.randrange(2**32)
    prompts = [f"stream {number} of {seed}" for number in range(STREAMS)]
    asked: Json = {"model": "mock", "max_tokens": TOKENS, "temperature": 1, "seed": 7}
    several = [1 + (place % 10 == 0) for place in range(STREAMS)]
    bodies: list[Json] = [{**asked, "prompt": prompt, "n": n} for prompt, n in zip(prompts, several, strict=True)]
    kill = killer(daemon, "mock", random.Random(seed), after=everybody_reads(), seconds_max=0.5, kills=KILLS)
    found = stream_all_now(daemon.url, bodies, kill)
    for choices, prompt, streamed in zip(several, prompts, found, strict=True):
        assert streamed.whole, (seed, streamed.errors)
        assert streamed.texts == {index: expected(prompt, TOKENS, 7 + index) for index in range(choices)}, seed
        assert streamed.finishes == {index: ["length"] for index in range(choices)}
        assert streamed.usage["completion_tokens"] == TOKENS * choices
        assert streamed.usage["prompt_tokens"] == len(prompt)
        assert streamed.timings["resumed"] == KILLS


def test_kills_at_any_moment_lose_nothing(daemon: Daemon) -> None:
    """1. More clients than slots. 2. Kills at any moment: while a worker starts to serve, before the first token of
    anybody. Result: each stream is complete and exact all the same."""
    seed = random.randrange(2**32)
    prompts = [f"stream {number} of {seed}" for number in range(24)]
    bodies = [{"model": "few", "prompt": prompt, "max_tokens": 60, "temperature": 0} for prompt in prompts]
    kill = killer(daemon, "few", random.Random(seed), after=lambda _: True, seconds_max=0.3, kills=KILLS)
    found = stream_all_now(daemon.url, bodies, kill)
    for prompt, streamed in zip(prompts, found, strict=True):
        assert streamed.whole, (seed, streamed.errors)
        assert streamed.texts == {0: expected(prompt, 60)}, seed
        assert streamed.usage["completion_tokens"] == 60


def test_tool_call_goes_on_under_its_id(daemon: Daemon) -> None:
    """1. The `openai` client streams a call. 2. The worker is killed in the middle of its arguments, three times.
    Result: one call with one id, its arguments whole, and an ordinary end."""
    schema: dict[str, object] = {
        "type": "object",
        "properties": {"text": {"type": "string", "minLength": 60}},
        "required": ["text"],
    }
    tool: ChatCompletionToolParam = {"type": "function", "function": {"name": "write", "parameters": schema}}
    ids: list[str] = []
    finishes: list[str] = []
    arguments = ""
    kill_at = [1, 30, 50]
    pid = 0
    with OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(
            model="few",
            messages=[{"role": "user", "content": "write"}],
            tools=[tool],
            tool_choice="required",
            stream=True,
        )
        for chunk in stream:
            for choice in chunk.choices:
                finishes += [choice.finish_reason] if choice.finish_reason else []
                for call in choice.delta.tool_calls or []:
                    ids += [call.id] if call.id else []
                    arguments += (call.function and call.function.arguments) or ""
            if kill_at and len(arguments) >= kill_at[0]:
                kill_at.pop(0)
                pid = daemon.worker_pid("few", other_than=pid)
                os.kill(pid, signal.SIGKILL)
    assert (len(ids), finishes, kill_at) == (1, ["tool_calls"], [])
    assert json.loads(arguments) == {"text": "x" * 60}


@pytest.mark.model
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("model", "kills", "tokens", "noise"), [("llama", KILLS, 60, STARTER_NOISE), ("mlx", 2, 160, MLX_NOISE)]
)
def test_real_models_go_on_after_kills(daemon: Daemon, model: str, kills: int, tokens: int, noise: float) -> None:
    """1. Three greedy streams of a real engine. 2. SIGKILLs at random moments, all of them inside. Result: they are
    complete, and the texts are those of a run without a kill up to where float noise decides; there and behind, each
    token is the likeliest after those before it."""
    prompts = [f"Here is a long text about {topic}. It" for topic in ("the sea", "a mountain", "bread")]
    assert_kills_change_nothing(daemon, model, prompts, kills=kills, tokens=tokens, noise=noise, reads_max=tokens // 10)
