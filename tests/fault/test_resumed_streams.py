"""Streams whose workers are killed with SIGKILL, again and again: all of them complete, and nothing in them shows it.

The mock numbers its tokens, so a gap or a repeat shows in the text. Of real models the text is compared with that of a
run without a fault: equal, or parted where two tokens were as good as equally likely. (A resumed text is computed from
prompt and tokens sent in one batch, whose sums are added in another order.)
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import statistics
import time
from collections.abc import Awaitable, Callable, Generator

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionToolParam
from tests.support.daemon import Daemon, Json, mock_model, starter_model
from tests.support.leaks import no_leaks
from tests.support.mlx_models import tiny_folder
from tests.support.polling import eventually
from tests.support.streams import Streamed, stream_all_now

from llmvisor_runtimes.mock_text import Reply

STREAMS = 100
KILLS = 5
TOKENS = 200
RESTARTS = {"max": 1000, "backoff": [0.01, 0.1]}
STARTER_NOISE = 1.0
"""Of log-probabilities, where a text is computed in batches of another shape: its matrices are multiplied in 8 bits, by
other kernels for each shape. Measured: 0.005 mostly, 0.52 at most. A token that is lost or doubled makes several."""
MLX_NOISE = 5e-3


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


def killer(
    daemon: Daemon,
    model: str,
    chance: random.Random,
    *,
    after: Callable[[list[Streamed]], bool],
    seconds_max: float,
    kills: int = KILLS,
) -> Callable[[list[Streamed]], Awaitable[None]]:
    """Kills the model's worker so often, each time at a random moment after a new one serves and `after` holds."""

    async def kill(found: list[Streamed]) -> None:
        pid = 0
        for _ in range(kills):
            pid = await asyncio.to_thread(daemon.worker_pid, model, other_than=pid)
            await eventually(lambda: after(found), 60)
            await asyncio.sleep(chance.random() * seconds_max)
            os.kill(pid, signal.SIGKILL)

    return kill


def everybody_reads(events: Callable[[], int] = lambda: 1) -> Callable[[list[Streamed]], bool]:
    """Gives whether each stream has got so many events more since this held for the last time, or from the start."""
    before: dict[int, int] = {}
    wanted = events()

    def there(found: list[Streamed]) -> bool:
        nonlocal wanted
        if any(streamed.events < before.get(place, 0) + wanted for place, streamed in enumerate(found)):
            return False
        before.update(enumerate(streamed.events for streamed in found))
        wanted = events()
        return True

    return there


def test_hundred_streams_survive_five_kills_each(daemon: Daemon) -> None:
    """1. A hundred clients stream, every tenth two choices. 2. The worker is killed five times at random moments, with
    all of them inside. Result: each text is that of an undisturbed run, token for token, and usage counts it once."""
    seed = random.randrange(2**32)
    prompts = [f"stream {number} of {seed}" for number in range(STREAMS)]
    asked: Json = {"model": "mock", "max_tokens": TOKENS, "temperature": 1, "seed": 7}
    several = [1 + (place % 10 == 0) for place in range(STREAMS)]
    bodies: list[Json] = [{**asked, "prompt": prompt, "n": n} for prompt, n in zip(prompts, several, strict=True)]
    kill = killer(daemon, "mock", random.Random(seed), after=everybody_reads(), seconds_max=0.5)
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
    kill = killer(daemon, "few", random.Random(seed), after=lambda _: True, seconds_max=0.3)
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


def assert_same_up_to_noise(first: Streamed, second: Streamed, epsilon: float) -> int:
    """Two greedy texts with log-probabilities are equal, or part where both tokens were as good as equally likely.

    Gives how many tokens are equal.
    """
    for place, (mine, other) in enumerate(zip(first.logprobs, second.logprobs, strict=False)):
        if mine[0] == other[0]:
            assert abs(mine[1] - other[1]) < epsilon, f"token {place} has another probability"
            continue
        for one, another in ((mine, other), (other, mine)):
            assert abs(one[1] - one[2].get(another[0], -99.0)) < epsilon, f"token {place} differs by more than noise"
        return place
    assert first.texts == second.texts
    assert len(first.logprobs) == len(second.logprobs)
    return len(first.logprobs)


def deviations(daemon: Daemon, asked: Json, prompt: str, streamed: Streamed) -> list[tuple[float, float]]:
    """A greedy text read again as a whole: how far each token's log-probability is from the one that was streamed, and
    below that of the likeliest. Empty where the text is cut into other tokens than it was written in.
    """
    body = {**asked, "prompt": prompt + streamed.texts[0], "echo": True, "max_tokens": 0}
    status, answer = daemon.request("POST", "/v1/completions", body)
    assert status == 200, answer
    scores = answer["choices"][0]["logprobs"]
    written = len(streamed.logprobs)
    if scores["tokens"][-written:] != [token for token, _, _ in streamed.logprobs]:
        return []
    found = zip(scores["token_logprobs"][-written:], scores["top_logprobs"][-written:], strict=True)
    return [
        (abs(logprob - mine[1]), max(top.values()) - logprob)
        for (logprob, top), mine in zip(found, streamed.logprobs, strict=True)
    ]


async def nothing(_found: list[Streamed]) -> None:
    pass


@pytest.mark.model
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("model", "kills", "tokens", "noise"), [("llama", KILLS, 60, STARTER_NOISE), ("mlx", 2, 160, MLX_NOISE)]
)
def test_real_models_go_on_after_kills(daemon: Daemon, model: str, kills: int, tokens: int, noise: float) -> None:
    """1. Three greedy streams of a real engine. 2. SIGKILLs at random moments, all of them inside. Result: they are
    complete, and the texts are those of a run without a kill up to where float noise decides; there and behind, each
    token is the likeliest after those before it."""
    seed = random.randrange(2**32)
    topics = ("the sea", "a mountain", "bread")
    # Without penalties, so that the log-probabilities say what is chosen.
    asked: Json = {"model": model, "temperature": 0, "repeat_penalty": 1.0, "logprobs": 5, "ignore_eos": True}
    prompts = [f"Here is a long text about {topic}. It" for topic in topics]
    bodies: list[Json] = [{**asked, "prompt": prompt, "max_tokens": tokens} for prompt in prompts]
    undisturbed = stream_all_now(daemon.url, bodies, nothing)
    chance = random.Random(seed)
    read = everybody_reads(lambda: chance.randint(1, tokens // 10))
    kill = killer(daemon, model, chance, after=read, seconds_max=0.01, kills=kills)
    began = time.monotonic()
    found = stream_all_now(daemon.url, bodies, kill)
    seconds = time.monotonic() - began
    equal: list[int] = []
    scored: list[float] = []
    for prompt, streamed, whole in zip(prompts, found, undisturbed, strict=True):
        assert streamed.whole, (seed, streamed.errors)
        assert whole.whole
        equal.append(assert_same_up_to_noise(streamed, whole, noise))
        assert streamed.usage["completion_tokens"] == len(streamed.logprobs) == tokens
        assert streamed.timings["resumed"] == kills
        assert not whole.timings.get("resumed"), daemon.console()[-5000:]
        for deviation, below in deviations(daemon, asked, prompt, streamed):
            assert max(deviation, below) < noise, seed
            scored.append(deviation)
    # What random weights write is not cut into the same tokens again; but nothing of it is a matter of noise.
    assert scored or equal == [tokens] * len(prompts)
    assert not scored or statistics.median(scored) < noise / 10
    print(f"{model}: equal tokens {equal} of {tokens}, {seconds:.1f} s with {kills} kills, seed {seed}")
    if scored:
        print(f"{len(scored)} tokens scored again: off by {statistics.median(scored):.3f}, at most {max(scored):.3f}")
