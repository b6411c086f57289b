"""The llama.cpp engine: what a request gets, whoever it shares the context with.

A tiny model of random weights shows what happens to sequences; the starter model shows that it is language.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from tests.support.llama_driver import LlamaDriver, Output, assert_same_up_to_noise, llama_driver
from tests.support.models import starter_model_path
from tests.support.polling import eventually_sync
from tests.support.tiny_gguf import BOS, EOS, FIRST_BYTE, VOCABULARY, byte_tokens, write_tiny_gguf

from llmvisor_runtimes.backend import LoadError, RequestError
from llmvisor_runtimes.llamacpp.context import Part
from llmvisor_runtimes.protocol import ChatMessage, ChatPrompt, ModelOptions, Sampling, TextPrompt, TokenPrompt

NOISE = 0.02
"""What another order of the same sums changes in a log-probability, generously: half floats stand in the KV cache."""
STARTER_NOISE = 0.5
"""The same for the starter model, whose matrices are multiplied in 8 bits, by other kernels for other batch sizes.
Measured: 0.31 between the candidates where texts part."""
LETTERS = dict.fromkeys(byte_tokens("abcdefghijklmnopqrstuvwxyz"), 0.0)
LETTERS_ONLY = Sampling(temperature=0, logit_bias={token: -1e9 for token in range(VOCABULARY) if token not in LETTERS})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture
def driver(tiny: Path) -> Iterator[LlamaDriver]:
    with llama_driver(tiny, parallel=4) as driver:
        yield driver


def decode_that_gives(status: int) -> Callable[[Sequence[Part]], int]:
    """A `llama_decode` that computes nothing."""

    def decode(_parts: Sequence[Part]) -> int:
        return status

    return decode


def prompt_of(length: int, seed: int = 0) -> list[int]:
    """A prompt of so many tokens that shares its beginning with no other seed's."""
    return [BOS, *(FIRST_BYTE + (seed * 89 + place * (7 + seed)) % 256 for place in range(1, length))]


# ------------------------------------------------------------------------------------------------------------ loading


def test_importing_the_backend_does_not_import_the_engine() -> None:
    """`version` is told without llama_cpp, which takes a while to load and cannot be unloaded."""
    code = (
        "import sys\n"
        "from llmvisor_runtimes.llamacpp import LlamaCppBackend\n"
        "print(LlamaCppBackend().version(), 'llama_cpp' in sys.modules, 'numpy' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    version, *imported = result.stdout.split()
    assert version.startswith("0.3.")
    assert imported == ["False", "False"]


def test_load_tells_what_the_model_is_and_how_far_it_is(driver: LlamaDriver) -> None:
    """The facts come from the file, and the progress ends with all of its bytes."""
    info = driver.info
    assert (info.architecture, info.n_ctx, info.slots, info.vocabulary) == ("llama", 512, 4, VOCABULARY)
    assert (info.context_length, info.embedding_dimension, info.quantization) == (1024, 64, "all F32")
    assert info.capabilities == ["chat", "tools", "completions", "tokenize", "structured_output"]
    assert info.memory.kv_bytes > 0
    assert info.memory.compute_bytes > 0
    weights = [progress for progress in driver.load_progress if progress.stage == "weights"]
    assert weights[-1].done == weights[-1].total > 0
    assert [progress.done for progress in weights] == sorted(progress.done for progress in weights)


def load_error(path: Path, **options: object) -> LoadError:
    with pytest.raises(LoadError) as caught, llama_driver(path, **options):
        pass
    return caught.value


def test_missing_model_is_told(tmp_path: Path) -> None:
    """Permanently: a file does not appear by trying again."""
    error = load_error(tmp_path / "absent.gguf")
    assert error.permanent
    assert "absent.gguf" in error.reason


def test_file_of_another_kind_is_told(tmp_path: Path) -> None:
    """The reason says that it is no GGUF."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(1000))
    error = load_error(path)
    assert error.permanent
    assert "not a GGUF" in error.reason


@pytest.mark.parametrize("part", [0.01, 0.5, 0.99])
def test_cut_model_is_told_with_llama_cpps_own_reason(tiny: Path, tmp_path: Path, part: float) -> None:
    """Cut in the header, in the tokens, or in the weights: an error, not the end of the process."""
    whole = tiny.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: int(len(whole) * part)])
    error = load_error(path)
    assert error.permanent
    assert "cut.gguf cannot be loaded: " in error.reason
    assert "no reason" not in error.reason


def test_garbage_after_the_magic_is_told(tmp_path: Path) -> None:
    """Absurd counts and versions are llama.cpp's errors, too."""
    path = tmp_path / "garbage.gguf"
    path.write_bytes(b"GGUF" + b"\xff" * 4096)
    assert load_error(path).permanent
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 4096)
    assert load_error(path).permanent


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"flash_atn": "on"}, "flash_attn"),
        ({"flash_attn": "maybe"}, "maybe"),
        ({"type_k": "q3"}, "type_k"),
        ({"type_v": "q8_0", "flash_attn": "off"}, "flash attention"),
        ({"n_ubatch": 0}, "n_ubatch"),
    ],
)
def test_wrong_option_is_told(tiny: Path, options: dict[str, object], words: str) -> None:
    """A key that does not exist names the nearest; a value says where it stands."""
    raw = {name: msgspec.Raw(msgspec.msgpack.encode(value)) for name, value in options.items()}
    with pytest.raises(LoadError) as caught:
        LlamaDriver(tiny, ModelOptions(options=raw))
    assert caught.value.permanent
    assert words in caught.value.reason


def test_options_take_effect(tiny: Path) -> None:
    """A chat template of one's own, a quantized cache."""
    own = {"chat_template": "own:{{ messages[0].content }}", "type_k": "f32", "type_v": "f32"}
    raw = {name: msgspec.Raw(msgspec.msgpack.encode(value)) for name, value in own.items()}
    driver = LlamaDriver(tiny, ModelOptions(n_ctx=256, n_threads=1, options=raw))
    with llama_driver(tiny, n_ctx=256) as plain:
        # llama.cpp names its buffers in hundredths of a MiB.
        assert driver.info.memory.kv_bytes == pytest.approx(2 * plain.info.memory.kv_bytes, rel=0.1)
        assert driver.info.chat_template_sha256 != plain.info.chat_template_sha256
    assert driver.backend.apply_template(ChatPrompt([ChatMessage("user", "hi")])) == "own:hi"
    driver.close()


def test_stop_texts_of_the_options_end_conversations(tiny: Path) -> None:
    """What a model's source says of where answers end counts as the request's own does; plain prompts go on."""
    conversation = ChatPrompt([ChatMessage("user", "hi")])
    with llama_driver(tiny) as driver:
        id = driver.converse(conversation, sampling=LETTERS_ONLY, max_tokens=12)
        driver.run()
        free = driver.outputs[id, 0]
    stop = free.text[4:6]
    with llama_driver(tiny, options={"stop": msgspec.Raw(msgspec.msgpack.encode([stop]))}) as driver:
        prompt = driver.backend.tokenize(conversation, add_special=True, parse_special=True)
        plain = driver.generate(prompt, sampling=LETTERS_ONLY, max_tokens=12)
        id = driver.converse(conversation, sampling=LETTERS_ONLY, max_tokens=12)
        driver.run()
        assert (free.finish, plain.finish, driver.outputs[id, 0].finish) == ("length", "length", "stop")
        assert driver.outputs[id, 0].text == free.text[: free.text.index(stop)]


def test_context_beyond_what_the_model_was_trained_for_is_warned_of(
    tiny: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It loads, and the log says what to expect."""
    with llama_driver(tiny, n_ctx=2048):
        pass
    assert "trained for 1024 tokens" in capfd.readouterr().err


# ---------------------------------------------------------------------------------------------------- text and tokens


def test_tokenize_takes_every_kind_of_prompt(driver: LlamaDriver) -> None:
    """Text with the leading token, ids as they are, conversations through the template with one leading token."""
    backend = driver.backend
    assert backend.tokenize(TextPrompt("hé"), add_special=True, parse_special=True) == [BOS, *byte_tokens("hé")]
    assert backend.tokenize(TextPrompt("hé"), add_special=False, parse_special=True) == byte_tokens("hé")
    assert backend.tokenize(TokenPrompt([5, 6]), add_special=True, parse_special=True) == [5, 6]
    chat = backend.tokenize(ChatPrompt([ChatMessage("user", "x")]), add_special=True, parse_special=True)
    assert chat == [BOS, *byte_tokens("[user]x"), 260, *byte_tokens("[assistant]")]
    plain = backend.tokenize(TextPrompt("<|end|>"), add_special=False, parse_special=False)
    assert plain == byte_tokens("<|end|>")


def test_detokenize_gives_text_and_the_bytes_of_each_token(driver: LlamaDriver) -> None:
    """Special tokens are written out, cut characters are bytes."""
    text, pieces = driver.backend.detokenize([*byte_tokens("hé"), 260])
    assert text == "hé<|end|>"
    assert pieces == [b"h", b"\xc3", b"\xa9", b"<|end|>"]
    assert driver.backend.detokenize([]) == ("", [])


@pytest.mark.parametrize("token", [-1, VOCABULARY, 2**31])
def test_token_that_does_not_exist_is_refused(driver: LlamaDriver, token: int) -> None:
    """In a prompt, to be detokenized, in a request: never an index into llama.cpp's memory."""
    with pytest.raises(RequestError, match="vocabulary"):
        driver.backend.detokenize([token])
    with pytest.raises(RequestError, match="vocabulary"):
        driver.backend.tokenize(TokenPrompt([token]), add_special=True, parse_special=True)
    with pytest.raises(RequestError, match="vocabulary"):
        driver.submit([BOS, token])


def test_text_is_whole_characters_however_tokens_cut_them(driver: LlamaDriver) -> None:
    """Every token is one byte here: the text is what decoding all bytes at once gives, and a euro sign comes whole."""
    euro_bytes = set(byte_tokens("€"))
    only_these = {token: -1e9 for token in range(VOCABULARY) if token not in euro_bytes}
    sampling = Sampling(temperature=1000.0, top_k=0, top_p=1.0, seed=3, logit_bias=only_these)
    output = driver.generate([BOS], sampling=sampling, max_tokens=300)
    raw = bytes(token - FIRST_BYTE for token in output.tokens)
    assert output.text == raw.decode("utf-8", "replace")
    assert "€" in output.texts


# --------------------------------------------------------------------------------------------------------------- ends


def test_stop_string_across_token_borders_cuts_the_text(driver: LlamaDriver) -> None:
    """Each letter is a token; the text ends before a stop string of three of them, which never shows."""
    free = driver.generate(prompt_of(9), sampling=LETTERS_ONLY, max_tokens=30).text
    stop = free[10:13]
    output = driver.generate(prompt_of(9), sampling=LETTERS_ONLY, max_tokens=30, stop=["never", stop])
    assert output.finish == "stop"
    assert output.text == free[: free.index(stop)]


def test_stop_string_hides_the_log_probabilities_of_what_it_cut(driver: LlamaDriver) -> None:
    """The tokens of the log-probabilities are those of the text."""
    free = driver.generate(prompt_of(9), sampling=LETTERS_ONLY, max_tokens=30).text
    output = driver.generate(prompt_of(9), sampling=LETTERS_ONLY, max_tokens=30, stop=[free[10:13]], logprobs=1)
    assert b"".join(entry.piece for entry in output.logprobs).decode() == output.text


def test_end_token_stops_and_is_no_text(driver: LlamaDriver) -> None:
    """It counts as a token, and nothing of it shows."""
    output = driver.generate(prompt_of(9), sampling=Sampling(temperature=0, logit_bias={EOS: 1e6}), logprobs=1)
    assert (output.finish, output.text, output.tokens, output.logprobs) == ("stop", "", [EOS], [])


def test_max_tokens_is_exact(driver: LlamaDriver) -> None:
    """The usage says the same as the tokens that came."""
    id = driver.submit(prompt_of(9), max_tokens=5, ignore_eos=True)
    driver.run()
    assert driver.outputs[id, 0].finish == "length"
    assert len(driver.outputs[id, 0].tokens) == 5
    assert (driver.done[id].prompt_tokens, driver.done[id].completion_tokens) == (9, 5)


def test_no_tokens_wanted_is_done_at_once(driver: LlamaDriver) -> None:
    """Nothing is computed for nothing."""
    output = driver.generate(prompt_of(9), max_tokens=0)
    assert (output.finish, output.text, output.tokens) == ("length", "", [])
    assert driver.backend.progress().tokens == 0


def test_without_max_tokens_the_context_is_the_end(driver: LlamaDriver) -> None:
    """Prompt and text together fill it exactly."""
    output = driver.generate(prompt_of(100), max_tokens=None, ignore_eos=True)
    assert output.finish == "length"
    assert len(output.tokens) == 512 - 100


def test_prompt_as_long_as_the_context_is_refused_with_both_numbers(driver: LlamaDriver) -> None:
    """There has to be room for one token; one token less is served."""
    with pytest.raises(RequestError) as caught:
        driver.submit(prompt_of(512))
    assert caught.value.kind == "context_length_exceeded"
    assert caught.value.message.count("512") == 2
    assert len(driver.generate(prompt_of(511), max_tokens=None, ignore_eos=True).tokens) == 1


def test_empty_prompt_is_refused(driver: LlamaDriver) -> None:
    """There is nothing to continue."""
    with pytest.raises(RequestError, match="empty"):
        driver.submit([])


# -------------------------------------------------------------------------------------------- echo, log-probabilities


def test_echo_gives_the_prompt_first(driver: LlamaDriver) -> None:
    """Its text without the leading token, its ids with it."""
    prompt = [BOS, *byte_tokens("abc")]
    output = driver.generate(prompt, sampling=LETTERS_ONLY, max_tokens=4, echo=True)
    assert output.texts[0] == "abc"
    assert output.tokens[:4] == prompt
    assert len(output.tokens) == 8


def test_echo_scores_the_prompt_as_generating_it_did(driver: LlamaDriver) -> None:
    """The log-probabilities of a text that was generated are the same when the text is a prompt of many steps."""
    prompt = prompt_of(20)
    generated = driver.generate(prompt, max_tokens=150, ignore_eos=True, logprobs=2)
    id = driver.submit([*prompt, *generated.tokens], max_tokens=0, echo=True, logprobs=2)
    driver.run()
    scored = driver.outputs[id, 0]
    assert scored.finish == "length"
    assert [entry.token for entry in scored.logprobs] == [*prompt, *generated.tokens]
    assert scored.logprobs[0].logprob is None
    for mine, theirs in zip(scored.logprobs[20:], generated.logprobs, strict=True):
        assert mine.logprob == pytest.approx(theirs.logprob, abs=NOISE)
        assert mine.top[0].logprob == pytest.approx(theirs.top[0].logprob, abs=NOISE)


def test_echo_with_choices_scores_the_prompt_once(driver: LlamaDriver) -> None:
    """Each choice echoes the same scores, and the prompt is computed for the first only."""
    id = driver.submit(prompt_of(150), n=3, max_tokens=2, echo=True, logprobs=1, ignore_eos=True)
    driver.run()
    first, *others = [driver.outputs[id, index] for index in range(3)]
    assert len(first.logprobs) == 152
    for other in others:
        assert other.logprobs[:150] == first.logprobs[:150]
    assert driver.backend.progress().tokens == 150 + 2 + 3


def test_scored_prompts_of_many_requests_share_the_steps(driver: LlamaDriver) -> None:
    """Four at once give what each gives alone."""
    prompts = [prompt_of(120, seed) for seed in range(4)]
    ids = [driver.submit(prompt, max_tokens=1, echo=True, logprobs=0, ignore_eos=True) for prompt in prompts]
    driver.run()
    for id, prompt in zip(ids, prompts, strict=True):
        alone = driver.generate(prompt, max_tokens=1, echo=True, logprobs=0, ignore_eos=True, cache_prompt=False)
        for mine, theirs in zip(driver.outputs[id, 0].logprobs[1:], alone.logprobs[1:], strict=True):
            assert mine.logprob == pytest.approx(theirs.logprob, abs=NOISE)


# --------------------------------------------------------------------------------------------------- sharing a prefix


def test_next_turn_of_a_conversation_computes_only_what_is_new(driver: LlamaDriver) -> None:
    """Prompt and answer of the last turn are there already; `cached_tokens` says so."""
    prompt = prompt_of(100)
    answer = driver.generate(prompt, max_tokens=10, ignore_eos=True).tokens
    before = driver.backend.progress().tokens
    id = driver.submit([*prompt, *answer, *byte_tokens("more")], max_tokens=1)
    driver.run()
    # The last token of the answer was never computed.
    assert driver.done[id].cached_tokens == 109
    assert driver.backend.progress().tokens - before == 5


def test_cached_prefix_gives_the_same_text(driver: LlamaDriver) -> None:
    """Up to the noise of another batch."""
    prompt = prompt_of(120)
    fresh = driver.generate(prompt, max_tokens=40, ignore_eos=True, logprobs=5)
    again = driver.generate(prompt, max_tokens=40, ignore_eos=True, logprobs=5)
    assert_same_up_to_noise(fresh, again, epsilon=NOISE)


def test_cache_prompt_false_computes_everything_and_leaves_nothing(driver: LlamaDriver) -> None:
    """A request that must not use the cache is not in it afterwards either."""
    driver.generate(prompt_of(100), max_tokens=2)
    alone = driver.submit(prompt_of(100), max_tokens=2, cache_prompt=False)
    driver.run()
    assert driver.done[alone].cached_tokens == 0
    assert driver.backend.progress().kv_used == 0
    again = driver.submit(prompt_of(100), max_tokens=2)
    driver.run()
    assert driver.done[again].cached_tokens == 99


def test_idle_cache_makes_way_for_who_decodes_and_comes_back(driver: LlamaDriver) -> None:
    """1. A long prompt ends. 2. Another one decodes: its cells are the only ones in the context. 3. The first goes on.
    Result: what it had is not computed again, and it says what it would have said."""
    first = driver.generate(prompt_of(200), max_tokens=8, logprobs=5)
    driver.generate(prompt_of(120, 1), max_tokens=8)
    assert driver.backend.progress().kv_used < 140
    again = driver.submit(prompt_of(200), max_tokens=8, logprobs=5)
    driver.run()
    assert driver.done[again].cached_tokens == 199
    assert_same_up_to_noise(first, driver.outputs[again, 0], epsilon=NOISE)


def test_choices_share_one_prefill(driver: LlamaDriver) -> None:
    """Three choices compute a prompt of 200 once, and each its last token again."""
    id = driver.submit(prompt_of(200), n=3, max_tokens=1, ignore_eos=True)
    driver.run()
    assert driver.backend.progress().tokens == 200 + 2
    assert driver.done[id].prompt_tokens == 200
    assert driver.done[id].completion_tokens == 3


def test_more_choices_than_slots_all_come(driver: LlamaDriver) -> None:
    """Ten greedy choices on four slots are the same ten times."""
    id = driver.submit(prompt_of(50), n=10, max_tokens=10, ignore_eos=True, logprobs=5)
    driver.run()
    first = driver.outputs[id, 0]
    for index in range(10):
        assert_same_up_to_noise(first, driver.outputs[id, index], epsilon=NOISE)
    assert driver.done[id].completion_tokens == 100


def test_common_prefix_of_requests_that_come_together_is_computed_once(driver: LlamaDriver) -> None:
    """The second waits for the system prompt that the first is computing."""
    system = prompt_of(200)
    first = driver.submit([*system, *byte_tokens("one")], max_tokens=1)
    second = driver.submit([*system, *byte_tokens("two")], max_tokens=1)
    driver.run()
    assert driver.done[first].cached_tokens == 0
    assert driver.done[second].cached_tokens == 200
    assert driver.backend.progress().tokens == 203 + 3


def test_prefix_that_somebody_stopped_computing_is_not_waited_for(driver: LlamaDriver) -> None:
    """The first is paused, then cancelled, in the middle of the common prompt; the second goes on without it."""
    first = driver.submit(prompt_of(500), max_tokens=1)
    driver.backend.pause(first)
    second = driver.submit([*prompt_of(500), 7], max_tokens=1)
    driver.run(lambda: second in driver.done)
    driver.backend.cancel(first)
    driver.run()
    assert driver.outputs[first, 0].finish == "cancelled"


# ---------------------------------------------------------------------------------------- many at once, room, waiting


def test_sequences_together_give_what_each_gives_alone(tiny: Path) -> None:
    """Sixteen greedy streams of different lengths, joined one after another."""
    with llama_driver(tiny, parallel=16, n_ctx=2048) as driver:
        prompts = [prompt_of(10 + 7 * seed, seed) for seed in range(16)]
        ids: list[int] = []
        for prompt in prompts:
            ids.append(driver.submit(prompt, max_tokens=40, ignore_eos=True, logprobs=5))
            driver.step()
        driver.run()
        for id, prompt in zip(ids, prompts, strict=True):
            alone = driver.generate(prompt, max_tokens=40, ignore_eos=True, logprobs=5, cache_prompt=False)
            assert_same_up_to_noise(driver.outputs[id, 0], alone, epsilon=NOISE)


def test_requests_beyond_the_slots_wait_in_order(tiny: Path) -> None:
    """Two slots, six requests of equal length: never more than two at once, first come, first served."""
    with llama_driver(tiny, parallel=2) as driver:
        ids = [driver.submit(prompt_of(10, seed), max_tokens=6, ignore_eos=True) for seed in range(6)]
        busiest = 0
        while driver.backend.delay_seconds() is not None:
            driver.step()
            busiest = max(busiest, driver.backend.progress().active)
        assert busiest == 2
        assert driver.order == ids


def test_full_cache_sends_the_youngest_back_and_nobody_notices(tiny: Path) -> None:
    """Four sequences that need 640 cells of 256: all end, with the text that each gives alone."""
    with llama_driver(tiny, parallel=4, n_ctx=256) as driver:
        prompts = [prompt_of(30, seed) for seed in range(4)]
        ids = [driver.submit(prompt, max_tokens=130, ignore_eos=True, logprobs=5) for prompt in prompts]
        preempted = False
        before = 0
        while driver.backend.delay_seconds() is not None:
            driver.step()
            progress = driver.backend.progress()
            assert progress.kv_used <= 256
            preempted |= progress.waiting > before
            before = progress.waiting
        assert preempted
        assert driver.order[0] == ids[0], "the oldest is never sent back"
        for id, prompt in zip(ids, prompts, strict=True):
            alone = driver.generate(prompt, max_tokens=130, ignore_eos=True, logprobs=5, cache_prompt=False)
            assert driver.done[id].completion_tokens == 130
            assert_same_up_to_noise(driver.outputs[id, 0], alone, epsilon=NOISE)


def test_sampling_goes_on_where_it_was_after_being_sent_back(tiny: Path) -> None:
    """The random state of a sequence survives: not one draw is repeated or lost."""
    sampling = Sampling(temperature=1.0, top_k=2, top_p=1.0, seed=11, logit_bias={5: 1000.0, 6: 1000.0})
    with llama_driver(tiny, parallel=3, n_ctx=256) as driver:
        ids = [driver.submit(prompt_of(30, seed), sampling=sampling, max_tokens=120) for seed in range(3)]
        driver.run()
        for id, seed in zip(ids, range(3), strict=True):
            alone = driver.generate(prompt_of(30, seed), sampling=sampling, max_tokens=120, cache_prompt=False)
            same = sum(a == b for a, b in zip(driver.outputs[id, 0].tokens, alone.tokens, strict=True))
            assert same >= 110


def test_prompt_that_does_not_fit_beside_others_waits_and_is_not_overtaken(tiny: Path) -> None:
    """400 tokens of 512 have to wait for the 200 under way; a small one behind them does not slip past."""
    with llama_driver(tiny, parallel=4) as driver:
        running = driver.submit(prompt_of(200, 1), max_tokens=20, ignore_eos=True)
        driver.step()
        large = driver.submit(prompt_of(400, 2), max_tokens=20, ignore_eos=True)
        small = driver.submit(prompt_of(10, 3), max_tokens=1, ignore_eos=True)
        driver.step()
        assert driver.backend.progress().waiting == 2
        driver.run()
        assert driver.order.index(running) < driver.order.index(small)
        assert set(driver.order) == {running, large, small}


def test_idle_cache_makes_room_for_new_prompts(tiny: Path) -> None:
    """Ten prompts that fill half of the context each pass through it one after another."""
    with llama_driver(tiny, parallel=2) as driver:
        for seed in range(10):
            output = driver.generate(prompt_of(250, seed), max_tokens=3, ignore_eos=True)
            assert len(output.tokens) == 3
            assert driver.backend.progress().kv_used <= 512


def test_long_prompt_does_not_stall_who_streams(driver: LlamaDriver) -> None:
    """While 400 tokens of prompt are read in pieces, every step brings the stream its token."""
    streaming = driver.submit(prompt_of(10, 1), max_tokens=60, ignore_eos=True)
    driver.run(lambda: len(driver.outputs[streaming, 0].tokens) == 5)
    driver.submit(prompt_of(400, 2), max_tokens=1)
    for expected in range(6, 12):
        driver.step()
        assert len(driver.outputs[streaming, 0].tokens) == expected
    driver.run()


# --------------------------------------------------------------------------------------------- cancel, pause, failure


def test_cancel_ends_a_request_in_the_next_step(driver: LlamaDriver) -> None:
    """Waiting, half-read or streaming: the last delta and the usage come with the next step, and the slot is free."""
    ids = [driver.submit(prompt_of(60, seed), max_tokens=None, ignore_eos=True) for seed in range(6)]
    driver.step()
    driver.step()
    for id in ids:
        driver.backend.cancel(id)
    assert driver.backend.delay_seconds() == 0
    driver.step()
    assert [driver.outputs[id, 0].finish for id in ids] == ["cancelled"] * 6
    assert sorted(driver.done) == ids
    progress = driver.backend.progress()
    assert (progress.active, progress.waiting, progress.phase) == (0, 0, "idle")
    assert driver.backend.delay_seconds() is None


def test_cancel_of_an_unknown_or_ended_request_is_ignored(driver: LlamaDriver) -> None:
    """Its frame may cross the end on the way."""
    id = driver.submit(prompt_of(9), max_tokens=1)
    driver.run()
    driver.backend.cancel(id)
    driver.backend.cancel(999)
    driver.backend.pause(999)
    assert driver.backend.delay_seconds() is None


def test_cancelled_choices_all_end(driver: LlamaDriver) -> None:
    """One request, three choices, one `Done`."""
    id = driver.submit(prompt_of(60), n=3, max_tokens=None, ignore_eos=True)
    driver.step()
    driver.backend.cancel(id)
    driver.step()
    assert [driver.outputs[id, index].finish for index in range(3)] == ["cancelled"] * 3


def test_paused_request_waits_while_others_go_on(driver: LlamaDriver) -> None:
    """Nothing comes for it until it is resumed, and then the same text as ever."""
    alone = driver.generate(prompt_of(20, 1), max_tokens=30, ignore_eos=True, logprobs=5, cache_prompt=False)
    slow = driver.submit(prompt_of(20, 1), max_tokens=30, ignore_eos=True, logprobs=5)
    other = driver.submit(prompt_of(20, 2), max_tokens=60, ignore_eos=True)
    driver.run(lambda: len(driver.outputs[slow, 0].tokens) == 5)
    driver.backend.pause(slow)
    driver.run(lambda: other in driver.done)
    assert len(driver.outputs[slow, 0].tokens) == 5
    assert driver.backend.delay_seconds() is None
    driver.backend.resume(slow)
    driver.run()
    assert_same_up_to_noise(driver.outputs[slow, 0], alone, epsilon=NOISE)


def test_paused_request_gives_its_cells_to_one_that_needs_them(tiny: Path) -> None:
    """A slow reader does not keep others out; it is computed again when it goes on."""
    with llama_driver(tiny, parallel=2, n_ctx=256) as driver:
        slow = driver.submit(prompt_of(100, 1), max_tokens=60, ignore_eos=True)
        fast = driver.submit(prompt_of(60, 2), max_tokens=150, ignore_eos=True)
        driver.run(lambda: bool(driver.outputs[fast, 0].tokens and driver.outputs[slow, 0].tokens))
        driver.backend.pause(slow)
        driver.run(lambda: fast in driver.done)
        driver.backend.resume(slow)
        driver.run()
        assert len(driver.outputs[slow, 0].tokens) == 60


def test_failed_computation_fails_its_requests_and_no_others(
    driver: LlamaDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama_decode gives an error once: who was in that batch gets `internal_error`, the next request is served."""
    expected = driver.generate(prompt_of(40), max_tokens=10, ignore_eos=True, cache_prompt=False).tokens
    context = driver.context
    id = driver.submit(prompt_of(40), n=2, max_tokens=10, ignore_eos=True)
    with monkeypatch.context() as patch:
        patch.setattr(context, "decode", decode_that_gives(-3))
        driver.step()
    assert driver.failed[id].kind == "internal_error"
    assert "-3" in driver.failed[id].message
    assert driver.backend.progress().kv_used == 0
    assert driver.backend.delay_seconds() is None
    assert driver.generate(prompt_of(40), max_tokens=10, ignore_eos=True).tokens == expected


@pytest.mark.parametrize("status", [1, 2])
def test_step_that_was_not_computed_is_done_again(
    driver: LlamaDriver, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """No room against the books, or aborted: nothing is lost, the text is what it would have been."""
    prompts = [prompt_of(40, seed) for seed in range(3)]
    ids = [driver.submit(prompt, max_tokens=30, ignore_eos=True, logprobs=5) for prompt in prompts]
    context = driver.context
    for _ in range(4):
        driver.step()
        driver.step()
        with monkeypatch.context() as patch:
            patch.setattr(context, "decode", decode_that_gives(status))
            driver.step()
    driver.run()
    for id, prompt in zip(ids, prompts, strict=True):
        alone = driver.generate(prompt, max_tokens=30, ignore_eos=True, logprobs=5, cache_prompt=False)
        assert_same_up_to_noise(driver.outputs[id, 0], alone, epsilon=NOISE)


def test_progress_counts_steps_and_tokens(driver: LlamaDriver) -> None:
    """What a tick tells the daemon moves with every step, and is idle in the end."""
    driver.submit(prompt_of(40), max_tokens=3, ignore_eos=True)
    driver.step()
    first = driver.backend.progress()
    assert (first.step, first.active, first.tokens, first.kv_used) == (1, 1, 40, 40)
    assert first.phase == "prefill"
    driver.step()
    assert driver.backend.progress().phase == "decode"
    driver.run()
    last = driver.backend.progress()
    assert (last.step, last.active, last.waiting, last.phase) == (3, 0, 0, "idle")


# -------------------------------------------------------------------------------------------------- the starter model


@pytest.fixture(scope="module")
def starter() -> Iterator[LlamaDriver]:
    with llama_driver(starter_model_path(), n_ctx=4608, n_batch=2048, parallel=16) as driver:
        yield driver


def chat(driver: LlamaDriver, text: str) -> list[int]:
    return driver.backend.tokenize(ChatPrompt([ChatMessage("user", text)]), add_special=True, parse_special=True)


@pytest.mark.model
def test_starter_model_knows_the_capital_of_france(starter: LlamaDriver) -> None:
    """The template, the tokens and the text are those of a language model."""
    output = starter.generate(chat(starter, "What is the capital of France? Answer in one sentence."), max_tokens=40)
    assert "Paris" in output.text
    assert output.finish == "stop"
    assert starter.info.architecture == "llama"
    assert starter.info.quantization == "Q4_1"


@pytest.mark.model
def test_starter_model_batched_equals_alone(starter: LlamaDriver) -> None:
    """Sixteen greedy streams at once: where a text differs from the one alone, both tokens were equally likely."""
    cities = ("Paris", "Rome", "Oslo", "Bern", "Kyiv", "Lima", "Cairo", "Doha")
    cities += ("Baku", "Riga", "Prague", "Sofia", "Seoul", "Tokyo", "Delhi", "Accra")
    prompts = [chat(starter, f"Tell me about {city}.") for city in cities]
    ids = [starter.submit(prompt, max_tokens=16, logprobs=5) for prompt in prompts]
    starter.run()
    for id, prompt in list(zip(ids, prompts, strict=True))[::5]:
        alone = starter.generate(prompt, max_tokens=16, logprobs=5, cache_prompt=False)
        assert_same_up_to_noise(starter.outputs[id, 0], alone, epsilon=STARTER_NOISE)


@pytest.mark.model
def test_cancel_aborts_a_long_prefill_under_way(starter: LlamaDriver) -> None:
    """A batch of 2,048 tokens takes a second and more; a cancellation from another thread ends it unfinished."""
    backend = starter.backend
    backend.step()
    before = backend.progress()
    words = backend.tokenize(TextPrompt("history " * 5_000), add_special=True, parse_special=True)
    id = starter.submit(words[:4_000], max_tokens=1)
    thread = threading.Thread(target=starter.step)
    thread.start()
    eventually_sync(lambda: backend.progress().phase == "prefill", 30, "the prefill has begun")
    backend.cancel(id)
    thread.join(60)
    assert not thread.is_alive()
    assert backend.progress().tokens == before.tokens, "the batch was given up"
    starter.step()
    assert starter.outputs[id, 0].finish == "cancelled"
    assert backend.progress().active == 0
    output = starter.generate(chat(starter, "What is the capital of France? Answer in one sentence."), max_tokens=40)
    assert "Paris" in output.text


def test_outputs_part_only_where_noise_decides() -> None:
    """The check itself: it refuses another token that was not as likely."""

    def run(*steps: tuple[int, float, dict[int, float]]) -> Output:
        from llmvisor_runtimes.protocol import TokenLogprob, TopLogprob  # noqa: PLC0415

        output = Output()
        for token, logprob, top in steps:
            output.tokens.append(token)
            ranked = [TopLogprob(other, b"", value) for other, value in top.items()]
            output.logprobs.append(TokenLogprob(token, b"", logprob, ranked))
        return output

    left = run((1, -0.5, {1: -0.5, 2: -0.501}))
    assert_same_up_to_noise(left, run((2, -0.5, {1: -0.501, 2: -0.5})), epsilon=0.01)
    with pytest.raises(AssertionError):
        assert_same_up_to_noise(left, run((2, -0.1, {1: -3.0, 2: -0.1})), epsilon=0.01)
    with pytest.raises(AssertionError):
        assert_same_up_to_noise(left, run((3, -0.5, {3: -0.5})), epsilon=0.01)
