"""Tokens guessed ahead change how fast a text comes, and nothing else about it."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from tests.support.llama_driver import LlamaDriver, Output, assert_same_up_to_noise, llama_driver
from tests.support.models import starter_model_path
from tests.support.tiny_gguf import BOS, EOS, FIRST_BYTE, VOCABULARY, byte_tokens, write_tiny_gguf

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import LoadError, RequestError
from llmvisor_runtimes.llamacpp.choice import Choice
from llmvisor_runtimes.llamacpp.context import LlamaContext
from llmvisor_runtimes.llamacpp.native import llama_cpp
from llmvisor_runtimes.llamacpp.sampling import Sampler
from llmvisor_runtimes.llamacpp.speculative import LookupDrafter
from llmvisor_runtimes.logprobs import Row
from llmvisor_runtimes.protocol import AdapterScale, Grammar, Sampling

NOISE = 0.02
"""What another order of the same sums changes in a log-probability, generously."""
FEW = Sampling(temperature=1.0, top_k=0, top_p=1.0, seed=5, logit_bias=dict.fromkeys(range(5, 9), 1000.0))
"""Chance among four tokens: what was there comes again, and guesses are right now and then."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture
def driver(tiny: Path) -> Iterator[LlamaDriver]:
    with llama_driver(tiny, parallel=4) as driver:
        yield driver


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return [BOS, *(FIRST_BYTE + (seed * 89 + place * (7 + seed)) % 256 for place in range(1, length))]


def both(driver: LlamaDriver, prompt: list[int], **wanted: object) -> tuple[Output, Output, int]:
    """The same request without and with lookup, each computed afresh; and the id of the second."""
    plain = driver.generate(prompt, cache_prompt=False, speculative="off", **wanted)
    id = driver.submit(prompt, cache_prompt=False, speculative="lookup", **wanted)  # type: ignore[arg-type]
    driver.run()
    return plain, driver.outputs[id, 0], id


def test_greedy_text_is_the_same_in_fewer_steps(driver: LlamaDriver) -> None:
    """A text that goes round is guessed right: several tokens a step, and `Done` says how many."""
    prompt = prompt_of(20)
    sampling = msgspec.structs.replace(FEW, temperature=0, seed=None, logit_bias={5: 1000.0, 6: 1000.0})
    before = driver.backend.progress()
    plain, guessed, id = both(driver, prompt, sampling=sampling, max_tokens=200, logprobs=5)
    after = driver.backend.progress()
    assert_same_up_to_noise(plain, guessed, epsilon=NOISE)
    done = driver.done[id]
    assert len(guessed.tokens) == done.completion_tokens == 200
    assert 50 < done.accepted_tokens <= done.drafted_tokens
    assert after.step - before.step - 200 == 200 - done.accepted_tokens
    assert after.tokens - before.tokens == 2 * (20 + 199), "only tokens that count are counted"


@pytest.mark.parametrize(
    "sampling",
    [
        FEW,
        msgspec.structs.replace(FEW, top_k=3, min_p=0.01, temperature=1.5),
        msgspec.structs.replace(FEW, repeat_penalty=1.3, frequency_penalty=0.2, presence_penalty=0.1),
        msgspec.structs.replace(FEW, dry_multiplier=0.8, dry_allowed_length=2),
        msgspec.structs.replace(FEW, mirostat=2),
        msgspec.structs.replace(FEW, temperature=0, repeat_penalty=1.2),
    ],
    ids=["plain", "truncated", "penalties", "dry", "mirostat", "greedy with penalties"],
)
def test_sampled_text_is_the_same_with_the_same_seed(driver: LlamaDriver, sampling: Sampling) -> None:
    """Every token is drawn by the sequence's own sampler, once, in its turn: not one draw is lost or added."""
    plain, guessed, id = both(driver, prompt_of(20), sampling=sampling, max_tokens=200, ignore_eos=True, logprobs=0)
    assert driver.done[id].drafted_tokens > 0
    assert_same_up_to_noise_of_draws(plain, guessed)


def assert_same_up_to_noise_of_draws(plain: Output, guessed: Output) -> None:
    """Equal, or equal for long: a draw on the border between two tokens may fall to either side of float noise."""
    same = next(
        (place for place, (a, b) in enumerate(zip(plain.tokens, guessed.tokens, strict=True)) if a != b),
        len(plain.tokens),
    )
    assert same >= 100, f"they part after {same} tokens"


def test_wrong_guesses_leave_no_trace(driver: LlamaDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drafter that guesses at random: the text, the log-probabilities and the cache are as if it had said nothing."""
    chance = random.Random(7)

    def propose(_self: LookupDrafter, _tokens: Sequence[int], count: int) -> list[int]:
        return [chance.randrange(VOCABULARY) for _ in range(count)]

    monkeypatch.setattr(LookupDrafter, "propose", propose)
    prompt = prompt_of(30)
    plain = driver.generate(prompt, max_tokens=60, ignore_eos=True, logprobs=5, cache_prompt=False)
    id = driver.submit(prompt, max_tokens=60, ignore_eos=True, logprobs=5, speculative="lookup")
    driver.run()
    guessed = driver.outputs[id, 0]
    assert_same_up_to_noise(plain, guessed, epsilon=NOISE)
    assert driver.done[id].drafted_tokens > 10
    assert driver.backend.progress().kv_used <= 30 + 60
    again = driver.submit([*prompt, *guessed.tokens, 7], max_tokens=5, ignore_eos=True, logprobs=5)
    driver.run()
    assert driver.done[again].cached_tokens >= 30 + 59
    fresh = driver.generate(
        [*prompt, *guessed.tokens, 7], max_tokens=5, ignore_eos=True, logprobs=5, cache_prompt=False
    )
    assert_same_up_to_noise(driver.outputs[again, 0], fresh, epsilon=NOISE)


def test_wrong_guesses_become_rare(driver: LlamaDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """They cost a normal text hardly anything: a few tokens of two hundred."""

    def propose(self: LookupDrafter, _tokens: Sequence[int], count: int) -> list[int]:
        return [] if self.resting else [BOS] * count

    monkeypatch.setattr(LookupDrafter, "propose", propose)
    id = driver.submit(prompt_of(30), max_tokens=200, ignore_eos=True, speculative="lookup")
    driver.run()
    assert 0 < driver.done[id].drafted_tokens <= 24


def test_guesses_share_a_batch_with_everybody_else(driver: LlamaDriver) -> None:
    """Two that guess, one that does not, and a long prompt that joins: each as it is alone."""
    wanted = [("lookup", 20, 1), ("off", 25, 2), ("lookup", 30, 3), ("lookup", 150, 4)]
    ids: list[int] = []
    for speculative, length, seed in wanted:
        ids.append(
            driver.submit(
                prompt_of(length, seed),
                max_tokens=60,
                ignore_eos=True,
                logprobs=5,
                speculative=speculative,  # type: ignore[arg-type]
            )
        )
        for _ in range(5):
            driver.step()
    driver.run()
    for id, (_, length, seed) in zip(ids, wanted, strict=True):
        alone = driver.generate(prompt_of(length, seed), max_tokens=60, ignore_eos=True, logprobs=5, cache_prompt=False)
        assert_same_up_to_noise(driver.outputs[id, 0], alone, epsilon=NOISE)
    assert driver.done[ids[1]].drafted_tokens == 0


def test_choices_guess_each_for_itself(driver: LlamaDriver) -> None:
    """Six choices on four slots, counted together."""
    plain = driver.submit(prompt_of(20), n=6, sampling=FEW, max_tokens=50, ignore_eos=True)
    guessed = driver.submit(prompt_of(20), n=6, sampling=FEW, max_tokens=50, ignore_eos=True, speculative="lookup")
    driver.run()
    for index in range(6):
        left, right = driver.outputs[plain, index].tokens, driver.outputs[guessed, index].tokens
        assert sum(a == b for a, b in zip(left, right, strict=True)) >= 40
    assert driver.done[guessed].completion_tokens == 300
    assert driver.done[guessed].drafted_tokens > 0


def test_max_tokens_and_the_end_of_the_context_are_exact(driver: LlamaDriver) -> None:
    """No guess goes beyond them."""
    for max_tokens, expected in ((1, 1), (2, 2), (37, 37), (None, 512 - 300)):
        output = driver.generate(prompt_of(300), max_tokens=max_tokens, ignore_eos=True, speculative="lookup")
        assert (len(output.tokens), output.finish) == (expected, "length")


def test_stop_string_within_accepted_guesses_ends_the_text(driver: LlamaDriver) -> None:
    """What was guessed beyond it is neither text, nor counted, nor kept."""
    letters = set(byte_tokens("ab"))
    sampling = Sampling(temperature=0, logit_bias={token: -1e9 for token in range(VOCABULARY) if token not in letters})
    prompt = [*prompt_of(9), *byte_tokens("abababababababab")]
    free = driver.generate(prompt, sampling=sampling, max_tokens=64).text
    stop = free[41:47]
    cut = driver.submit(prompt, sampling=sampling, max_tokens=64, stop=[stop], speculative="lookup", logprobs=1)
    driver.run()
    output = driver.outputs[cut, 0]
    assert output.finish == "stop"
    assert output.text == free[: free.index(stop)]
    assert len(output.tokens) == driver.done[cut].completion_tokens == free.index(stop) + len(stop)
    assert b"".join(entry.piece for entry in output.logprobs).decode() == output.text


def test_end_token_within_a_guess_ends_the_text(driver: LlamaDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guessed right or not, nothing comes after it."""
    prompt = prompt_of(20)
    biased = {**FEW.logit_bias, EOS: 1000.0}
    samplings = (msgspec.structs.replace(FEW, seed=seed, logit_bias=biased) for seed in range(50))
    sampling, plain = next(
        (sampling, output)
        for sampling in samplings
        if 5 < len((output := driver.generate(prompt, sampling=sampling, max_tokens=60)).tokens) < 60
    )
    assert plain.finish == "stop"

    def propose(_self: LookupDrafter, tokens: Sequence[int], count: int) -> list[int]:
        place = len(tokens) - len(prompt)
        return [*plain.tokens[place : place + count], *[BOS] * count][:count]

    monkeypatch.setattr(LookupDrafter, "propose", propose)
    ended = driver.submit(prompt, sampling=sampling, max_tokens=60, speculative="lookup")
    driver.run()
    assert driver.outputs[ended, 0].tokens == plain.tokens
    assert driver.outputs[ended, 0].finish == "stop"
    assert driver.done[ended].accepted_tokens > 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_grammar_holds_guessed_text_as_any_other(driver: LlamaDriver, temperature: float) -> None:
    """The matcher sees what was accepted and nothing else: the same text, which matches."""
    plain, guessed, id = both(
        driver,
        prompt_of(30),
        sampling=Sampling(temperature=temperature, seed=4),
        max_tokens=150,
        grammar=Grammar("regex", "((ab|cd){3,5}, ){8,12}end"),
    )
    assert plain.text == guessed.text
    assert re.fullmatch(r"((ab|cd){3,5}, ){8,12}end", guessed.text)
    assert driver.done[id].accepted_tokens > 0


def test_same_seed_gives_the_same_text_from_a_warm_cache_too(driver: LlamaDriver) -> None:
    """Alone on the machine, the guesses and so the batches are the same again."""
    first, again = (
        driver.generate(prompt_of(40), sampling=FEW, max_tokens=150, logprobs=0, speculative="lookup") for _ in range(2)
    )
    assert first.tokens == again.tokens
    assert first.logprobs == again.logprobs


def test_full_cache_is_no_obstacle(tiny: Path) -> None:
    """Four that need 640 cells of 256 and guess: all end, with the text that each gives alone."""
    with llama_driver(tiny, parallel=4, n_ctx=256) as driver:
        prompts = [prompt_of(30, seed) for seed in range(4)]
        ids = [
            driver.submit(prompt, max_tokens=130, ignore_eos=True, logprobs=5, speculative="lookup")
            for prompt in prompts
        ]
        while driver.backend.delay_seconds() is not None:
            driver.step()
            assert driver.backend.progress().kv_used <= 256
        for id, prompt in zip(ids, prompts, strict=True):
            alone = driver.generate(prompt, max_tokens=130, ignore_eos=True, logprobs=5, cache_prompt=False)
            assert_same_up_to_noise(driver.outputs[id, 0], alone, epsilon=NOISE)


def test_cancel_in_the_middle_leaves_nothing(driver: LlamaDriver) -> None:
    """The slot is free in the next step, and the next request is served as ever."""
    id = driver.submit(prompt_of(20), max_tokens=None, ignore_eos=True, speculative="lookup")
    driver.run(lambda: len(driver.outputs[id, 0].tokens) > 50)
    driver.backend.cancel(id)
    driver.step()
    assert driver.outputs[id, 0].finish == "cancelled"
    assert driver.backend.progress().active == 0
    plain, guessed, _ = both(driver, prompt_of(20), max_tokens=50, ignore_eos=True, logprobs=5)
    assert_same_up_to_noise(plain, guessed, epsilon=NOISE)


def test_model_option_turns_it_on_and_a_request_off(tiny: Path) -> None:
    """The request has the last word."""
    raw = {"speculative": msgspec.Raw(msgspec.msgpack.encode("lookup"))}
    with llama_driver(tiny, options=raw) as driver:
        on = driver.submit(prompt_of(20), sampling=FEW, max_tokens=100)
        off = driver.submit(prompt_of(20, 1), sampling=FEW, max_tokens=100, speculative="off")
        driver.run()
        assert driver.done[on].drafted_tokens > 0
        assert driver.done[off].drafted_tokens == 0


def test_draft_model_that_is_not_there_is_refused(driver: LlamaDriver) -> None:
    """Rather than silently left out."""
    with pytest.raises(RequestError) as caught:
        driver.submit(prompt_of(20), speculative="draft")
    assert (caught.value.kind, caught.value.param) == ("unsupported_operation", "speculative")


# ------------------------------------------------------------------------------------------------------ a draft model


def draft_options(path: Path, **options: object) -> dict[str, msgspec.Raw]:
    own: dict[str, object] = {"draft_model": str(path), **options}
    return {name: msgspec.Raw(msgspec.msgpack.encode(value)) for name, value in own.items()}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same vocabulary that says something else."""
    return write_tiny_gguf(tmp_path_factory.mktemp("drafts") / "other.gguf", seed=2, layers=1)


@pytest.fixture
def sure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A draft model of random weights is never sure of itself."""
    monkeypatch.setattr(limits, "draft_probability_min", 0.0)


@pytest.mark.usefixtures("sure")
def test_draft_model_that_knows_the_text_guesses_nearly_all_of_it(tiny: Path) -> None:
    """The model itself as its own draft: few steps, the same text, the prompt read in pieces that hold nobody up."""
    with llama_driver(tiny, n_batch=64, options=draft_options(tiny)) as driver:
        prompt = prompt_of(200)
        plain = driver.generate(prompt, max_tokens=100, ignore_eos=True, logprobs=5, cache_prompt=False)
        steps = driver.backend.progress().step
        id = driver.submit(prompt, max_tokens=100, ignore_eos=True, logprobs=5, cache_prompt=False, speculative="draft")
        driver.run()
        assert_same_up_to_noise(driver.outputs[id, 0], plain, epsilon=NOISE)
        done = driver.done[id]
        assert done.accepted_tokens > 70
        assert done.accepted_tokens > 0.8 * done.drafted_tokens
        assert driver.backend.progress().step - steps < 30


@pytest.mark.usefixtures("sure")
def test_draft_model_that_knows_nothing_changes_nothing(tiny: Path, other: Path) -> None:
    """Greedy, sampled, many at once, again and again: the text is the large model's."""
    with llama_driver(tiny, parallel=2, options=draft_options(other, speculative="draft")) as driver:
        ids = [driver.submit(prompt_of(30, seed), max_tokens=60, ignore_eos=True, logprobs=5) for seed in range(5)]
        driver.run()
        for seed, id in enumerate(ids):
            alone = driver.generate(
                prompt_of(30, seed), max_tokens=60, ignore_eos=True, logprobs=5, cache_prompt=False, speculative="off"
            )
            assert_same_up_to_noise(driver.outputs[id, 0], alone, epsilon=NOISE)
            assert driver.done[id].drafted_tokens > 0
        seeded = [
            driver.generate(prompt_of(30), sampling=FEW, max_tokens=120, cache_prompt=False, speculative=speculative)
            for speculative in ("off", "draft")
        ]
        assert_same_up_to_noise_of_draws(*seeded)


def test_draft_model_that_is_not_sure_says_nothing(tiny: Path, other: Path) -> None:
    """Random weights find nothing likely: hardly a token is guessed."""
    with llama_driver(tiny, options=draft_options(other, speculative="draft")) as driver:
        id = driver.submit(prompt_of(30), max_tokens=60, ignore_eos=True)
        driver.run()
        assert driver.done[id].drafted_tokens < 30
        assert driver.done[id].completion_tokens == 60


def test_lookup_goes_on_beside_a_draft_model(tiny: Path, other: Path) -> None:
    """Each request says which."""
    with llama_driver(tiny, options=draft_options(other)) as driver:
        off = driver.submit(prompt_of(20), sampling=FEW, max_tokens=100)
        lookup = driver.submit(prompt_of(20, 1), sampling=FEW, max_tokens=100, speculative="lookup")
        driver.run()
        assert driver.done[off].drafted_tokens == 0
        assert driver.done[lookup].drafted_tokens > 0


def test_draft_model_that_does_not_fit_is_told(tiny: Path, tmp_path: Path) -> None:
    """Absent, no GGUF, or of another vocabulary; and `draft` without any."""
    junk = tmp_path / "junk.gguf"
    junk.write_bytes(bytes(100))
    foreign = tmp_path / "foreign.gguf"
    foreign.write_bytes(tiny.read_bytes().replace(b"<|end|>", b"<|fin|>"))
    wrong = {
        "token 260 differs": draft_options(foreign),
        "is no file": draft_options(tmp_path / "absent.gguf"),
        "not a GGUF": draft_options(junk),
        "49152 tokens, the model 261": draft_options(starter_model_path()),
        "needs a draft_model": {"speculative": msgspec.Raw(msgspec.msgpack.encode("draft"))},
    }
    for words, options in wrong.items():
        with pytest.raises(LoadError) as caught, llama_driver(tiny, options=options):
            pass
        assert caught.value.permanent
        assert words in caught.value.reason


def test_slow_grammar_holds_up_nobody_for_all_of_its_guesses(
    driver: LlamaDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each token takes a grammar 30 ms: a step takes a few of its guesses and no more, and the text is the same."""

    def propose(_self: LookupDrafter, tokens: Sequence[int], count: int) -> list[int]:
        return [tokens[-1]] * count

    monkeypatch.setattr(LookupDrafter, "propose", propose)
    slow = Sampling(temperature=0, logit_bias={5: 1000.0})
    choose = Sampler.choose

    def slowly(self: Sampler, context: LlamaContext, row: Row, output: int) -> int:
        time.sleep(0.03)
        return choose(self, context, row, output)

    monkeypatch.setattr(Sampler, "choose", slowly)
    id = driver.submit(prompt_of(20), sampling=slow, max_tokens=40, ignore_eos=True, speculative="lookup")
    output, most = driver.outputs[id, 0], 0
    while driver.backend.delay_seconds() is not None:
        before = len(output.tokens)
        driver.step()
        most = max(most, len(output.tokens) - before)
    assert output.tokens == [5] * 40
    assert 1 < most <= 2 + limits.sample_seconds_max // 0.03


@pytest.mark.parametrize("wrong", ["adapter", "draft", "parser"])
def test_refused_request_leaves_no_sampler_behind(
    driver: LlamaDriver, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    """Every chain that is made for a request is freed, also where the request turns out to be none halfway."""
    made: list[object] = []
    freed: list[object] = []
    init, free = llama_cpp.llama_sampler_chain_init, llama_cpp.llama_sampler_free

    def noted_init(params: object) -> object:
        made.append(chain := init(params))
        return chain

    def noted_free(chain: object) -> None:
        freed.append(chain)
        free(chain)

    monkeypatch.setattr(llama_cpp, "llama_sampler_chain_init", noted_init)
    monkeypatch.setattr(llama_cpp, "llama_sampler_free", noted_free)
    wanted: dict[str, object] = {}
    if wrong == "adapter":
        wanted = {"adapters": [AdapterScale("none", 1.0)]}
    if wrong == "draft":
        wanted = {"speculative": "draft"}
    if wrong == "parser":
        monkeypatch.setattr(Choice, "__init__", fails_at_the_third(Choice.__init__))
    with pytest.raises((RequestError, ZeroDivisionError)):
        driver.submit(prompt_of(20), sampling=FEW, n=4, **wanted)  # type: ignore[arg-type]
    assert len(made) == len(freed) == (3 if wrong == "parser" else 0)
    assert driver.backend.delay_seconds() is None


def fails_at_the_third(init: Callable[..., None]) -> Callable[..., None]:
    def failing(self: Choice, request: object, index: int, **named: object) -> None:
        if index == 2:
            raise ZeroDivisionError
        init(self, request, index, **named)

    return failing
