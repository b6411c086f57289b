"""Worker processes over real pipes: what they answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.leaks import no_leaks
from tests.support.worker_client import GREEDY, Worker, load_of, text_request

from llmvisor_runtimes import limits
from llmvisor_runtimes.protocol import (
    PROTOCOL_VERSION,
    ApplyTemplate,
    Cancel,
    ChatMessage,
    ChatPrompt,
    Detokenize,
    Failed,
    Generate,
    Hello,
    Loaded,
    LoadProgress,
    Pause,
    Resume,
    Step,
    Text,
    TextPrompt,
    Tick,
    Tokenize,
    TokenPrompt,
    Tokens,
)


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """Every test here gives back its processes and descriptors."""
    with no_leaks():
        yield


# -------------------------------------------------------------------------------------------------------------- serving


def test_worker_greets_loads_and_generates() -> None:
    """1. Hello comes before anything is asked. 2. Load gives progress, then Loaded. 3. A request gives its reply."""
    with Worker() as worker:
        hello = worker.receive()
        assert isinstance(hello, Hello)
        assert (hello.protocol_version, hello.backend, hello.pid) == (PROTOCOL_VERSION, "mock", worker.pid)
        worker.send(load_of(load_seconds=0.2))
        assert isinstance(worker.receive(), LoadProgress)
        loaded = worker.receive_until(Loaded)
        assert loaded.info.architecture == "mock"
        reply = worker.generate(text_request(1, "hello", max_tokens=8))[1]
        assert len(reply.tokens()) == 8
        assert reply.done is not None
        assert reply.done.prompt_tokens == 5


def test_worker_answers_tokenizer_calls() -> None:
    """Tokenize with the bytes of each token, Detokenize, ApplyTemplate; each carries its id."""
    chat = ChatPrompt([ChatMessage("user", "hé")])
    with Worker() as worker:
        worker.load()
        worker.send(Tokenize(1, TextPrompt("hé")), Detokenize(2, [104, 105]), ApplyTemplate(3, chat))
        assert worker.receive_until(Tokens) == Tokens(1, [104, 0xC3, 0xA9], [b"h", b"\xc3", b"\xa9"])
        assert worker.receive_until(Text) == Text(2, "hi")
        assert worker.receive_until(Text) == Text(3, "<|user|>hé\n<|assistant|>")
        worker.send(Detokenize(4, [-1]))
        assert worker.receive_until(Failed).kind == "invalid_value"


def test_requests_share_the_frames_of_a_step() -> None:
    """Two requests decode together: one `Step` carries the deltas of both."""
    with Worker() as worker:
        worker.load(token_delay_ms=1)
        worker.send(text_request(1, "a", max_tokens=50), text_request(2, "b", max_tokens=50))
        together = 0
        ended = 0
        while ended < 2:
            step = worker.receive_until(Step)
            together += {delta.id for delta in step.deltas} == {1, 2}
            ended += len(step.done)
        assert together > 0


def test_frames_larger_than_the_pipe_come_whole() -> None:
    """Commands and reports of several megabytes cross a pipe that holds 64 KiB."""
    text = "0123456789abcdef" * 65_536
    with Worker() as worker:
        worker.load()
        worker.send(Tokenize(1, TextPrompt(text)))
        tokens = worker.receive_until(Tokens)
        assert bytes(tokens.tokens).decode() == text


def test_token_prompt_and_text_prompt_give_the_same() -> None:
    """A prompt that needs no tokenizer takes a shorter way, to the same reply."""
    with Worker() as worker:
        worker.load()
        tokens = Generate(2, "req", TokenPrompt(list(b"hello")), GREEDY)
        replies = worker.generate(text_request(1, "hello"), tokens)
        assert replies[1].text() == replies[2].text() != ""


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": limits.choices_max + 1}, "n"),
        ({"n": 0}, "n"),
        ({"stop": ["x"] * (limits.stop_strings_max + 1)}, "stop"),
        ({"logprobs": limits.top_logprobs_max + 1}, "logprobs"),
        ({"max_tokens": -1}, "max_tokens"),
    ],
)
def test_worker_keeps_its_own_bounds(fields: dict[str, Any], param: str) -> None:
    """Whatever the daemon let through: over a bound is one request's error, at the bound it is served."""
    at_bound = {"n": limits.choices_max, "stop": ["x"] * limits.stop_strings_max, "logprobs": limits.top_logprobs_max}
    with Worker() as worker:
        worker.load()
        replies = worker.generate(
            text_request(1, "hello", **fields), text_request(2, "hello", max_tokens=2, **at_bound)
        )
        failed = replies[1].failed
        assert failed is not None
        assert (failed.kind, failed.param) == ("invalid_value", param)
        assert replies[2].done is not None


def test_text_over_the_tokenizers_bound_fails() -> None:
    """Bytes count, not characters; the bound itself passes."""
    with Worker(program=_program("tokenize_text_bytes_max = 10")) as worker:
        worker.load()
        worker.send(Tokenize(1, TextPrompt("é" * 5)), Tokenize(2, TextPrompt("é" * 5 + "x")))
        assert worker.receive_until(Tokens).id == 1
        failed = worker.receive_until(Failed)
        assert (failed.id, failed.kind) == (2, "invalid_value")


def test_answer_too_long_for_a_frame_fails_alone() -> None:
    """The worker goes on with the next call."""
    with Worker(program=_program("frame_bytes_max = 3000")) as worker:
        worker.load()
        worker.send(Tokenize(1, TextPrompt("x" * 2000)), Detokenize(2, [104]))
        failed = worker.receive_until(Failed)
        assert (failed.id, failed.kind) == (1, "invalid_value")
        assert worker.receive_until(Text) == Text(2, "h")


def _program(limit: str) -> str:
    """A worker with one bound set low."""
    return (
        f"import sys; from llmvisor_runtimes import limits; limits.{limit};"
        "from llmvisor_runtimes.process import main; main(sys.argv[1:])"
    )


def test_request_before_a_model_is_there_fails() -> None:
    """The daemon never does it; the worker says so and lives."""
    with Worker() as worker:
        worker.receive_until(Hello)
        worker.send(text_request(1, "hello"), Tokenize(2, TextPrompt("x")))
        assert worker.receive_until(Failed).id == 1
        assert worker.receive_until(Failed).id == 2
        worker.send(load_of())
        worker.receive_until(Loaded)
        assert worker.generate(text_request(3, "hello"))[3].done is not None


# ------------------------------------------------------------------------------------------------ cancel, pause, resume


def test_cancel_of_a_prompt_that_waits_for_the_tokenizer_is_answered_at_once() -> None:
    """1. One prompt occupies the prompt thread. 2. One behind it is cancelled: it ends with all counts zero, long
    before its turn. 3. The first is served."""
    with Worker() as worker:
        worker.load()
        worker.send(text_request(1, "[[failpoint: tokenize=1*delay(1500)]]", max_tokens=3))
        worker.send(text_request(2, "hello", n=2), Cancel(2))
        first = worker.receive_until(Step)
        assert [(delta.id, delta.index, delta.finish) for delta in first.deltas] == [
            (2, 0, "cancelled"),
            (2, 1, "cancelled"),
        ]
        assert [(done.id, done.prompt_tokens, done.completion_tokens) for done in first.done] == [(2, 0, 0)]
        assert len(worker.collect([1])[1].tokens()) == 3


def test_cancel_of_a_prompt_inside_the_tokenizer_is_answered_before_it_is_through() -> None:
    """The answer does not wait for the tokenizer, and nothing more comes for the request."""
    with Worker() as worker:
        worker.load()
        worker.send(text_request(1, "[[failpoint: tokenize=1*delay(700)]]"), Cancel(1), text_request(2, "x"))
        first = worker.receive_until(Step)
        assert [(delta.id, delta.finish) for delta in first.deltas] == [(1, "cancelled")]
        assert worker.collect([2])[2].finish() == "length"


def test_cancel_of_a_running_request_ends_it() -> None:
    """Also while it is paused, when nothing else would wake the engine."""
    with Worker() as worker:
        worker.load(token_delay_ms=5)
        worker.send(text_request(1, "a", max_tokens=5000), text_request(2, "b", max_tokens=5000))
        worker.receive_until(Step)
        worker.send(Cancel(1), Pause(2), Cancel(2))
        replies = worker.collect([1, 2])
        assert [replies[id].finish() for id in (1, 2)] == ["cancelled"] * 2


def test_pause_right_behind_a_request_is_not_lost() -> None:
    """It holds from the first token on, until Resume."""
    with Worker() as worker:
        worker.load()
        worker.send(text_request(1, "a", max_tokens=9), Pause(1), text_request(2, "b", max_tokens=9))
        # The second request came later on the same way, so the first has been in the engine all along.
        first = worker.receive_until(Step)
        while not first.done:
            assert {delta.id for delta in first.deltas} == {2}
            first = worker.receive_until(Step)
        worker.send(Resume(1))
        assert len(worker.collect([1])[1].tokens()) == 9


# ---------------------------------------------------------------------------------------------------------------- ticks


@pytest.mark.parametrize("where", ["load", "generate"])
def test_ticks_come_while_native_code_hangs(where: str) -> None:
    """An engine that hangs without the GIL is seen by ticks whose step number stands still."""
    with Worker() as worker:
        worker.receive_until(Hello)
        worker.send(load_of(failpoints=f"{where}=1*token->hang"))
        if where == "generate":
            worker.receive_until(Loaded)
            worker.send(text_request(1, "hello"))
        ticks = [worker.receive_until(Tick) for _ in range(3)]
        assert {tick.phase for tick in ticks[1:]} == {"load" if where == "load" else "decode"}
        assert ticks[1].step == ticks[2].step > 0
        assert ticks[2].rss_bytes > 5_000_000


def test_no_tick_comes_while_the_gil_is_held() -> None:
    """A worker that holds the GIL is silent: that, too, the daemon can tell."""
    with Worker() as worker:
        worker.load()
        worker.send(text_request(1, "[[failpoint: generate=1*token->spin(gil)]]"))
        worker.receive_until(Step)
        with pytest.raises(TimeoutError):
            worker.receive_until(Tick, seconds=2.5 * limits.tick_interval_seconds)


def test_ticks_count_tokens_once() -> None:
    """Each token is in one tick, prompt and reply alike."""
    with Worker() as worker:
        worker.load()
        worker.send(text_request(1, "hello", max_tokens=20))
        counted = 0
        while counted < 25:
            counted += worker.receive_until(Tick).tokens
        after = worker.receive_until(Tick)
        assert (counted, after.tokens) == (25, 0)
        assert (after.phase, after.active) == ("idle", 0)
