"""A14: no request gets a word of another, whatever is shared between them: slots, caches, prefixes, state files."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, repeat
from pathlib import Path
from random import Random

import pytest
from tests.support.daemon import Daemon, Json, mock_model, stream
from tests.support.nosy import REFUSED, ask_daemon, nosy_python
from tests.support.tiny_gguf import write_tiny_gguf

from llmvisor.supervision.requests import RequestTable
from llmvisor.supervision.workers.confinement import state_folder
from llmvisor_runtimes.confinement import landlock
from llmvisor_runtimes.protocol import Delta, Done, ProtocolViolation, Step

INTERLEAVINGS = 1000
CLIENTS = 8
NOISE = 0.02
"""Of a log-probability, from sums taken in another order."""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Generator[Daemon]:
    folder = tmp_path_factory.mktemp("leakage")
    tiny = write_tiny_gguf(folder / "tiny.gguf", context_length=256)
    models: Json = {
        "mock": mock_model(parallel=8, queue_limit=100, reply_tokens=4),
        "tiny": {
            "backend": "llamacpp",
            "path": str(tiny),
            "n_ctx": 2048,
            "parallel": 8,
            "n_threads": 1,
            "queue_limit": 100,
        },
    }
    cache = {"enabled": True, "state_dir": str(folder / "state")}
    with Daemon({"models": models, "cache": cache}) as daemon:
        yield daemon


def canary(client: int, number: int) -> str:
    """Letters alone, so that any tokenizer gives them back."""
    letters = "abcdefghij"
    digits = f"{client}{number:04d}"
    return "zq" + "".join(letters[int(digit)] for digit in digits) + "qz"


@pytest.mark.parametrize("model", ["mock", "tiny"])
def test_thousand_interleavings_give_each_client_its_own(daemon: Daemon, model: str) -> None:
    """Eight clients at once with prompts that begin alike and go on with a canary of their own, streamed and whole,
    some left in the middle: each echo is the client's own prompt, and no answer has another's canary."""
    prefix = "the system says be kind "
    failures: list[str] = []
    lock = threading.Lock()

    def one(number: int) -> None:
        random = Random(number)
        client, own = number % CLIENTS, canary(number % CLIENTS, number)
        prompt = prefix[: random.randrange(len(prefix))] + own + prefix[: random.randrange(4)]
        fields: Json = {"echo": True, "max_tokens": random.randrange(1, 4), "temperature": 0, "n": 1}
        if number % 7 == 0:
            with stream(daemon, model, prompt, **fields) as left:
                first = left.next_event()
            text, complete = json.loads(first)["choices"][0]["text"] if "choices" in first else "", False
        else:
            status, answer = daemon.complete(model, prompt, **fields)
            assert status == 200, answer
            text, complete = answer["choices"][0]["text"], True
        begun = text.strip().startswith(prompt.strip()) if complete else prompt.strip().startswith(text.strip()[:3])
        foreign = [word for word in text.split() if "zq" in word and "qz" in word and own not in word]
        if foreign or (complete and own not in text) or (complete and not begun):
            with lock:
                failures.append(f"client {client}: {prompt!r} → {text!r}")

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(one, range(INTERLEAVINGS)))
    assert failures == []


def likely(daemon: Daemon, prompt: str, **fields: object) -> dict[str, float]:
    """The likeliest next tokens after a prompt, with their log-probabilities."""
    wanted = {"max_tokens": 1, "temperature": 0, "logprobs": 5, **fields}
    status, answer = daemon.complete("tiny", prompt, **wanted)
    assert status == 200, answer
    return answer["choices"][0]["logprobs"]["top_logprobs"][0]


def differs(one: dict[str, float], other: dict[str, float]) -> bool:
    """Whether the two saw different texts: of the tokens that both name, or of the likeliest."""
    shared = one.keys() & other.keys()
    return len(shared) < 3 or any(abs(one[token] - other[token]) > NOISE for token in shared)


def test_computed_prompts_of_others_change_nothing(daemon: Daemon) -> None:
    """What a model computes of a prompt is taken up by others that begin alike: with seven others beside it, and from
    their prefixes, the next token is as likely as it is alone and computed anew."""
    prompts = [f"the system says be kind {canary(number % CLIENTS, number)} and" for number in range(200)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        together = list(pool.map(likely, repeat(daemon), prompts))
    alone = [likely(daemon, prompt, cache_prompt=False) for prompt in prompts[:50]]
    assert [prompt for prompt, one, other in zip(prompts, together, alone, strict=False) if differs(one, other)] == []
    # The check has teeth: other prompts do give other figures.
    assert sum(differs(one, other) for one, other in pairwise(alone)) > 25


def test_answer_for_an_unknown_request_is_a_violation() -> None:
    """A worker that mixes up its ids is replaced: what it says is given to nobody."""
    table = RequestTable()
    for report in (Step([Delta(7, 0, "secret", [1])]), Step([], [Done(7, 1, 0, 1, 1.0, 1.0)])):
        with pytest.raises(ProtocolViolation):
            table.route(report)


def test_cached_answer_is_of_the_very_same_question(daemon: Daemon) -> None:
    """The response cache: two prompts that differ in one character never share an answer, nor do two models."""
    first = daemon.complete("mock", "canary one", temperature=0, echo=True, max_tokens=2)[1]
    again = daemon.complete("mock", "canary one", temperature=0, echo=True, max_tokens=2)[1]
    other = daemon.complete("mock", "canary onE", temperature=0, echo=True, max_tokens=2)[1]
    assert first["choices"][0]["text"] == again["choices"][0]["text"]
    assert "canary onE" in other["choices"][0]["text"]
    assert "canary one" not in other["choices"][0]["text"]


@pytest.mark.skipif(landlock.abi_version() == 0, reason="this kernel has no Landlock")
def test_kept_state_of_a_model_is_its_own(tmp_path: Path) -> None:
    """What one model's worker leaves of prompts lies in a folder of its own, which no other model's worker can read."""
    state = tmp_path / "state"
    config: Json = {
        "models": {"one": mock_model(), "two": mock_model()},
        "backends": {"mock": {"python": nosy_python(tmp_path)}},
        "cache": {"state_dir": str(state)},
    }
    own, other = state_folder(str(state), "one"), state_folder(str(state), "two")
    assert own != other
    with Daemon(config) as daemon:
        assert ask_daemon(daemon, "two", f"open('{other}/kept', 'w').write('prompt of two'); said('kept')") == "kept"
        assert ask_daemon(daemon, "one", f"open('{own}/kept', 'w').write('x'); said('kept')") == "kept"
        assert ask_daemon(daemon, "one", f"said(open('{other}/kept').read())") in REFUSED
        assert ask_daemon(daemon, "one", f"import os; said(str(os.listdir('{state}')))") in REFUSED
