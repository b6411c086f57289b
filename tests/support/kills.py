"""Kills of workers while clients stream, and whether a real model's texts show them."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence

from tests.support.daemon import Daemon, Json
from tests.support.polling import eventually
from tests.support.streams import Streamed, stream_all_now

RESTARTS = {"max": 1000, "backoff": [0.01, 0.1]}
STARTER_NOISE = 1.0
"""Of log-probabilities, where a text is computed in batches of another shape: its matrices are multiplied in 8 bits, by
other kernels for each shape. Measured: 0.005 mostly, 0.52 at most. A token that is lost or doubled makes several."""
MLX_NOISE = 5e-3


def killer(
    daemon: Daemon,
    model: str,
    chance: random.Random,
    *,
    after: Callable[[list[Streamed]], bool],
    seconds_max: float,
    kills: int,
) -> Callable[[list[Streamed]], Awaitable[None]]:
    """Kills the model's worker so often, each time at a random moment after a new one serves and `after` holds."""

    async def kill(found: list[Streamed]) -> None:
        pid = 0
        for _ in range(kills):
            pid = await asyncio.to_thread(daemon.worker_pid, model, other_than=pid)
            await eventually(lambda: after(found), 120)
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


async def nothing(_found: list[Streamed]) -> None:
    pass


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
    below that of the likeliest (ends of the text aside, which are not wanted). Empty where the text is cut into other
    tokens than it was written in.
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
        (abs(logprob - mine[1]), max(value for token, value in top.items() if not token.startswith("<|")) - logprob)
        for (logprob, top), mine in zip(found, streamed.logprobs, strict=True)
    ]


def assert_kills_change_nothing(
    daemon: Daemon, model: str, prompts: Sequence[str], *, kills: int, tokens: int, noise: float, reads_max: int
) -> None:
    """Greedy streams of a real model, all at once and then with kills at random moments, all of them inside: complete,
    and the texts are those of the run without a kill up to where float noise decides; there and behind, each token is
    the likeliest after those before it. Between two kills each stream reads one to `reads_max` events."""
    seed = random.randrange(2**32)
    # Without penalties, so that the log-probabilities say what is chosen.
    asked: Json = {"model": model, "temperature": 0, "repeat_penalty": 1.0, "logprobs": 5, "ignore_eos": True}
    bodies: list[Json] = [{**asked, "prompt": prompt, "max_tokens": tokens} for prompt in prompts]
    undisturbed = stream_all_now(daemon.url, bodies, nothing)
    chance = random.Random(seed)
    read = everybody_reads(lambda: chance.randint(1, reads_max))
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
        assert streamed.timings.get("resumed", 0) == kills
        assert not whole.timings.get("resumed"), daemon.console()[-5000:]
        for deviation, below in deviations(daemon, asked, prompt, streamed):
            assert max(deviation, below) < noise, seed
            scored.append(deviation)
    # What random weights write is not cut into the same tokens again; but nothing of it is a matter of noise.
    assert scored or equal == [tokens] * len(prompts)
    assert not scored or statistics.median(scored) < noise / 10
    same = sum(count == tokens for count in equal)
    print(f"{model}: {len(prompts)} streams of {tokens} tokens, {kills} kills each in {seconds:.1f} s, seed {seed}:")
    print(f"{same} are equal to the last token, the others to the {min(equal)}th at least")
    if scored:
        print(f"{len(scored)} tokens scored again: off by {statistics.median(scored):.3f}, at most {max(scored):.3f}")
