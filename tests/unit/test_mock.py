"""The mock backend, driven by hand: its text, its limits, its timing, its cancels."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.worker_client import Reply, load_of, text_request

from llmvisor_runtimes import limits, mock_text
from llmvisor_runtimes.backend import LoadError, RequestError
from llmvisor_runtimes.mock import LOAD_STEPS, MockBackend
from llmvisor_runtimes.protocol import (
    ChatMessage,
    ChatPrompt,
    Failed,
    Generate,
    ModelInfo,
    Sampling,
    Step,
    TextPrompt,
    TokenPrompt,
)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Mock:
    """A loaded mock, its clock, and what it said."""

    def __init__(self, *, parallel: int = 4, **options: object) -> None:
        self.clock = Clock()
        self.backend = MockBackend(clock=self.clock, sleep=self.clock.sleep)
        self.progress: list[tuple[str, int, int, str]] = []
        load = load_of(parallel=parallel, **options)
        self.info: ModelInfo = self.backend.load(load, lambda *call: self.progress.append(call))
        self.replies: dict[int, Reply] = {}
        self.steps: list[Step] = []

    def take(self, *requests: Generate) -> None:
        for request in requests:
            self.replies[request.id] = Reply()
            tokens = self.backend.tokenize(request.prompt, add_special=True, parse_special=True)
            self.backend.generate(request, tokens)

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            for report in self.backend.step():
                if isinstance(report, Failed):
                    self.replies[report.id].failed = report
                    continue
                assert isinstance(report, Step)
                self.steps.append(report)
                for delta in report.deltas:
                    self.replies[delta.id].deltas.append(delta)
                for done in report.done:
                    assert self.replies[done.id].done is None
                    self.replies[done.id].done = done

    def run(self, *requests: Generate) -> Reply:
        """Serve requests until nothing is to do; gives the first one's reply."""
        self.take(*requests)
        while (delay := self.backend.delay_seconds()) is not None:
            self.clock.now += delay
            self.step()
        return self.replies[requests[0].id]


def numbers(tokens: Iterable[int]) -> list[int]:
    """The numbers of reply tokens, which show gaps and repeats."""
    return [(token - mock_text.FIRST_WORD) // 16 for token in tokens]


def reply_of(request: Generate, **options: object) -> Reply:
    """What a fresh mock replies."""
    return Mock(**options).run(request)


# ----------------------------------------------------------------------------------------------------------- text


@given(st.text(max_size=200))
@settings(deadline=None)
def test_detokenize_is_the_inverse_of_tokenize(text: str) -> None:
    """Any text comes back from its tokens, and the pieces are its bytes."""
    backend = MockBackend()
    tokens = backend.tokenize(TextPrompt(text), add_special=True, parse_special=True)
    assert backend.detokenize(tokens) == (text, [bytes([token]) for token in tokens])


def test_reply_tokens_detokenize_to_the_reply() -> None:
    """Ids and text of a reply say the same."""
    reply = reply_of(text_request(1, "hello", max_tokens=40))
    assert MockBackend().detokenize(reply.tokens())[0] == reply.text()


def test_id_that_is_no_token_is_refused() -> None:
    """Below 0 and from the vocabulary's end on, in calls and in prompts."""
    mock = Mock()
    last = mock.info.vocabulary - 1
    assert mock.backend.detokenize([last])[0].endswith(str(2**20 - 1))
    for token in (-1, last + 1):
        with pytest.raises(RequestError) as caught:
            mock.backend.detokenize([token])
        assert caught.value.kind == "invalid_value"
        with pytest.raises(RequestError):
            mock.backend.generate(Generate(1, "", TokenPrompt([token]), Sampling()), [token])


def test_reply_numbers_its_tokens() -> None:
    """A gap or a repeat would show: the k-th token carries number k."""
    reply = reply_of(text_request(1, "hello", max_tokens=50))
    assert numbers(reply.tokens()) == list(range(50))
    assert reply.text().split()[7].strip("abcdefghijklmnopqrstuvwxyz") == "7"


def test_greedy_reply_depends_on_the_prompt_alone() -> None:
    """Same prompt, same reply, whatever the seed; another prompt, another reply."""
    ask = text_request(1, "hello", max_tokens=30)
    first = reply_of(ask).text()
    assert reply_of(msgspec.structs.replace(ask, sampling=Sampling(temperature=0, seed=5))).text() == first
    assert reply_of(msgspec.structs.replace(ask, prompt=TextPrompt("hello!"))).text() != first


def test_sampled_reply_depends_on_the_seed_too() -> None:
    """Above temperature 0 a seed makes a reply, and choice i has seed + i."""
    ask = text_request(1, "hello", max_tokens=30, sampling=Sampling(temperature=1, seed=5), n=2)
    first = reply_of(ask)
    assert reply_of(ask).text() == first.text() != first.text(1)
    other = reply_of(msgspec.structs.replace(ask, sampling=Sampling(temperature=1, seed=6)))
    assert other.text() == first.text(1)


def test_reply_goes_on_where_a_prompt_breaks_off_within_one() -> None:
    """A prompt that ends with a part of a reply gets the rest, so that a generation can be taken up again."""
    whole = reply_of(text_request(1, "hello", max_tokens=40)).tokens()
    prompt = [*b"hello", *whole[:13]]
    rest = reply_of(Generate(1, "", TokenPrompt(prompt), Sampling(temperature=0), max_tokens=27))
    assert rest.tokens() == whole[13:]


def test_chat_renders_each_message_and_asks_for_the_next() -> None:
    """The template is fixed, and the last line only comes where a reply is wanted."""
    chat = ChatPrompt([ChatMessage("system", "brief"), ChatMessage("user", "hi")])
    backend = MockBackend()
    assert backend.apply_template(chat) == "<|system|>brief\n<|user|>hi\n<|assistant|>"
    assert backend.apply_template(msgspec.structs.replace(chat, add_generation_prompt=False)).endswith("hi\n")
    assert bytes(backend.tokenize(chat, add_special=True, parse_special=True)).decode() == backend.apply_template(chat)


# --------------------------------------------------------------------------------------------------------- lengths


@pytest.mark.parametrize(
    ("fields", "options", "tokens", "finish"),
    [
        ({"max_tokens": 5}, {}, 5, "length"),
        ({}, {}, 64, "length"),
        ({"max_tokens": 1}, {}, 1, "length"),
        ({"max_tokens": 0}, {}, 0, "length"),
        ({}, {"reply_tokens": 100}, 100, "stop"),
        ({"max_tokens": 9}, {"reply_tokens": 8}, 8, "stop"),
        ({"max_tokens": 8}, {"reply_tokens": 8}, 8, "length"),
        ({"max_tokens": 20, "ignore_eos": True}, {"reply_tokens": 8}, 20, "length"),
        ({"ignore_eos": True}, {"reply_tokens": 8}, 64, "length"),
        ({"max_tokens": 900}, {"n_ctx": 50}, 45, "length"),
        ({"max_tokens": 30}, {"tokens_per_step": 7}, 30, "length"),
    ],
)
def test_reply_ends_where_it_should(
    fields: dict[str, object], options: dict[str, object], tokens: int, finish: str
) -> None:
    """At `max_tokens`, by itself, or where the context is full; exactly one finish, in the last delta."""
    reply = reply_of(text_request(1, "hello", **fields), **options)
    assert numbers(reply.tokens()) == list(range(tokens))
    assert [delta.finish for delta in reply.deltas if delta.finish] == [finish] == [reply.deltas[-1].finish]
    assert reply.done is not None
    assert reply.done.completion_tokens == tokens


def test_prompt_that_fills_the_context_is_refused() -> None:
    """One token has to be left for the reply."""
    mock = Mock(n_ctx=10)
    assert mock.run(text_request(1, "x" * 9)).done is not None
    with pytest.raises(RequestError) as caught:
        mock.take(text_request(2, "x" * 10))
    assert caught.value.kind == "context_length_exceeded"


@pytest.mark.parametrize("tokens_per_step", [1, 5, 100])
def test_stop_string_ends_the_choice_and_is_not_in_its_text(tokens_per_step: int) -> None:
    """A stop string across token borders: the text before it, no more tokens after it."""
    words = reply_of(text_request(1, "hello", max_tokens=40)).text()
    stop = words[words.index("12") - 3 : words.index("13") - 2]
    reply = reply_of(text_request(1, "hello", max_tokens=40, stop=["never", stop]), tokens_per_step=tokens_per_step)
    assert reply.text() == words[: words.index(stop)]
    assert reply.finish() == "stop"
    assert len(reply.tokens()) in {13, 14}


def test_text_held_back_for_a_stop_string_comes_at_the_end() -> None:
    """A stop string that only begins keeps nothing back for good."""
    words = reply_of(text_request(1, "hello", max_tokens=6)).text()
    reply = reply_of(text_request(1, "hello", max_tokens=6, stop=[words[-4:] + "!"]))
    assert reply.text() == words
    assert reply.finish() == "length"


def test_logprobs_come_with_every_token() -> None:
    """As many alternatives as asked, the token itself first, all of them together below probability 1."""
    for asked in (0, 1, limits.top_logprobs_max):
        reply = reply_of(text_request(1, "hello", max_tokens=9, logprobs=asked), tokens_per_step=2)
        entries = [entry for delta in reply.deltas for entry in delta.logprobs]
        assert [entry.token for entry in entries] == reply.tokens()
        for entry in entries:
            assert len({other.token for other in entry.top}) == len(entry.top) == asked
            assert sum(math.exp(other.logprob) for other in entry.top) <= 1
            assert [entry.token] * min(asked, 1) == [other.token for other in entry.top[:1]]
            assert mock_text.piece(entry.token) == entry.piece


def test_reply_without_logprobs_has_none() -> None:
    """They are only there where they were asked for."""
    assert all(not delta.logprobs for delta in reply_of(text_request(1, "hello")).deltas)


def test_echo_puts_the_prompt_before_each_choice() -> None:
    """Text, tokens and log-probabilities; nothing predicts the first token."""
    reply = reply_of(text_request(1, "café", max_tokens=2, n=2, echo=True, logprobs=1))
    for index in range(2):
        assert reply.text(index).startswith("café ")
        assert reply.tokens(index)[:5] == list("café".encode())
        entries = [entry for delta in reply.deltas if delta.index == index for entry in delta.logprobs]
        assert [entry.token for entry in entries] == reply.tokens(index)
        assert [entry.logprob is None for entry in entries] == [True] + [False] * 6
    assert reply.done is not None
    assert reply.done.completion_tokens == 4


def test_echo_without_new_tokens_gives_the_prompt() -> None:
    """`max_tokens` 0 with echo: the prompt's own log-probabilities, as evaluation programs ask for them."""
    reply = reply_of(text_request(1, "hello", max_tokens=0, echo=True, logprobs=1))
    assert (reply.text(), reply.finish(), len(reply.deltas)) == ("hello", "length", 1)


# --------------------------------------------------------------------------------------------- slots and batching


def test_sixteen_streams_equal_what_each_gives_alone() -> None:
    """Requests that run together do not touch each other."""
    requests = [text_request(id, f"prompt {id}", max_tokens=20 + id) for id in range(16)]
    mock = Mock(parallel=16)
    mock.run(*requests)
    assert max(len(step.deltas) for step in mock.steps) == 16
    for request in requests:
        assert mock.replies[request.id].tokens() == reply_of(request).tokens()


def test_requests_beyond_the_slots_wait_their_turn() -> None:
    """First come, first served; the others count as waiting."""
    mock = Mock(parallel=2)
    mock.take(*[text_request(id, "x", max_tokens=3) for id in range(1, 5)])
    mock.step()
    assert [mock.replies[id].tokens() != [] for id in range(1, 5)] == [True, True, False, False]
    assert (mock.backend.progress().active, mock.backend.progress().waiting) == (2, 2)
    mock.step(3)
    assert mock.replies[3].tokens() != []
    mock.run(text_request(5, "x"))
    assert all(reply.done for reply in mock.replies.values())


def test_choices_beyond_the_slots_all_come() -> None:
    """A request may have more choices than there are slots."""
    reply = reply_of(text_request(1, "x", n=5, max_tokens=3), parallel=2)
    assert [reply.finish(index) for index in range(5)] == ["length"] * 5
    assert reply.done is not None
    assert reply.done.completion_tokens == 15


def test_done_comes_once_with_the_last_choice() -> None:
    """One `Done` for a request, in the step of its last delta."""
    mock = Mock()
    mock.run(text_request(1, "x", n=3, max_tokens=4))
    assert [bool(step.done) for step in mock.steps] == [False] * 3 + [True]


def test_common_prefix_counts_as_cached() -> None:
    """Prompt tokens seen before are not computed again, but for the last one; not where the request says so."""
    mock = Mock()
    cached = [
        mock.run(text_request(id, text, max_tokens=1, cache_prompt=cache_prompt)).done
        for id, (text, cache_prompt) in enumerate(
            [("system one", True), ("system two", True), ("system two", True), ("system two", False), ("new", True)]
        )
    ]
    assert [done.cached_tokens if done else None for done in cached] == [0, 7, 9, 0, 0]


# ---------------------------------------------------------------------------------------------------------- timing


def test_delays_follow_the_clock() -> None:
    """Prefill by prompt token, then one token each `token_delay_ms`; the reply's timings tell it."""
    mock = Mock(token_delay_ms=20, prefill_ms_per_token=10)
    began = mock.clock.now
    reply = mock.run(text_request(1, "hello", max_tokens=5))
    assert mock.clock.now - began == pytest.approx(0.05 + 4 * 0.02)
    assert reply.done is not None
    assert reply.done.prompt_ms == pytest.approx(50)
    assert reply.done.predicted_ms == pytest.approx(80)


def test_long_delay_moves_the_step_number() -> None:
    """The daemon judges by progress: while a token takes long, steps go on."""
    mock = Mock(prefill_ms_per_token=1000)
    mock.take(text_request(1, "hello", max_tokens=1))
    mock.step()
    assert mock.backend.progress().phase == "prefill"
    assert mock.backend.delay_seconds() == limits.mock_step_seconds_max
    before = mock.backend.progress().step
    mock.step()
    assert mock.backend.progress().step > before
    assert mock.replies[1].deltas == []


def test_load_takes_its_time_and_tells_of_it() -> None:
    """`load_seconds` in ten steps of progress, and in the model's info."""
    mock = Mock(load_seconds=3)
    assert mock.info.load_seconds == pytest.approx(3)
    assert [done for _, done, _, _ in mock.progress] == list(range(LOAD_STEPS + 1))
    assert {call[2:] for call in mock.progress} == {(LOAD_STEPS, "steps")}


def test_progress_tells_phase_and_tokens() -> None:
    """Idle, decoding, idle; tokens are prompt and reply."""
    mock = Mock()
    assert mock.backend.progress().phase == "idle"
    assert mock.backend.delay_seconds() is None
    mock.take(text_request(1, "hello", max_tokens=3))
    mock.step()
    progress = mock.backend.progress()
    assert (progress.phase, progress.active, progress.tokens, progress.kv_used) == ("decode", 1, 6, 6)
    mock.step(2)
    assert mock.backend.progress().phase == "idle"
    assert mock.backend.progress().tokens == 8


# -------------------------------------------------------------------------------------------- cancel, pause, resume


def test_cancel_ends_a_request_within_one_step() -> None:
    """Its choices end `cancelled`, its `Done` tells what there was, the others go on."""
    mock = Mock()
    mock.take(text_request(1, "x", n=2), text_request(2, "x"))
    mock.step(3)
    mock.backend.cancel(1)
    assert mock.backend.delay_seconds() == 0
    mock.step()
    reply = mock.replies[1]
    assert (reply.finish(0), reply.finish(1)) == ("cancelled", "cancelled")
    assert reply.done is not None
    assert reply.done.completion_tokens == 6
    assert mock.run(text_request(3, "x")).done is not None
    assert mock.replies[2].finish() == "length"


def test_cancel_reaches_a_request_that_waits_for_a_slot() -> None:
    """It ends without ever having run, and the queue goes on behind it."""
    mock = Mock(parallel=1)
    mock.take(text_request(1, "x"), text_request(2, "x"), text_request(3, "x"))
    mock.step()
    mock.backend.cancel(2)
    mock.step()
    reply = mock.replies[2]
    assert (reply.finish(), reply.tokens()) == ("cancelled", [])
    assert mock.backend.progress().waiting == 1
    mock.run(text_request(4, "x"))
    assert mock.replies[3].finish() == "length"


def test_cancel_of_an_unknown_or_ended_request_does_nothing() -> None:
    """The daemon may be late."""
    mock = Mock()
    mock.run(text_request(1, "x", max_tokens=1))
    steps = len(mock.steps)
    mock.backend.cancel(1)
    mock.backend.cancel(99)
    mock.step()
    assert len(mock.steps) == steps


def test_cancel_gives_the_text_held_back() -> None:
    """Text that waited for a stop string to be told comes with the last delta."""
    words = reply_of(text_request(1, "x", max_tokens=3)).text()
    mock = Mock()
    mock.take(text_request(1, "x", stop=[words + "!"]))
    mock.step(3)
    assert mock.replies[1].text() == ""
    mock.backend.cancel(1)
    mock.step()
    assert mock.replies[1].text() == words


def test_paused_request_gets_no_token_until_it_is_resumed() -> None:
    """Others go on; a mock that has only paused requests is idle; a paused request can be cancelled."""
    mock = Mock()
    mock.take(text_request(1, "x", max_tokens=9), text_request(2, "x", max_tokens=3))
    mock.step()
    mock.backend.pause(1)
    mock.step(4)
    assert len(mock.replies[1].tokens()) == 1
    assert mock.replies[2].finish() == "length"
    assert mock.backend.delay_seconds() is None
    assert mock.backend.progress().phase == "idle"
    mock.backend.resume(1)
    assert mock.backend.delay_seconds() == 0
    mock.step()
    assert len(mock.replies[1].tokens()) == 2
    mock.backend.pause(1)
    mock.backend.cancel(1)
    mock.step()
    assert mock.replies[1].finish() == "cancelled"


# -------------------------------------------------------------------------------------------- options and failpoints


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token_delay": 3}, "token_delay"),
        ({"token_delay_ms": -1}, "token_delay_ms"),
        ({"tokens_per_step": 0}, "tokens_per_step"),
        ({"reply_tokens": "many"}, "reply_tokens"),
        ({"failpoints": "load=fly"}, "options.failpoints: no verb 'fly'.*at position 5"),
    ],
)
def test_wrong_option_can_never_load(options: dict[str, object], message: str) -> None:
    """It is named, and trying again is of no use."""
    with pytest.raises(LoadError, match=message) as caught:
        Mock(**options)
    assert caught.value.permanent


@pytest.mark.parametrize(("verb", "permanent"), [("error(disk is slow)", False), ("refuse(disk is slow)", True)])
def test_load_fails_as_told(verb: str, permanent: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """`error` may work another time, `refuse` never."""
    with pytest.raises(LoadError, match="disk is slow") as caught:
        Mock(failpoints=f"load=2*ok->{verb}".replace("2*ok", "2*token"))
    assert caught.value.permanent is permanent


def test_generation_fails_after_exactly_so_many_tokens() -> None:
    """The tokens before it come, then one `Failed`, and no `Done`; other requests go on."""
    mock = Mock(tokens_per_step=4)
    mock.take(text_request(1, "[[failpoint: generate=3*token->error(oops)]]", n=2), text_request(2, "x"))
    mock.step(9)
    reply = mock.replies[1]
    assert reply.failed == Failed(1, "internal_error", "oops")
    assert numbers(reply.tokens(0)) + numbers(reply.tokens(1)) == [0, 1, 0]
    assert reply.done is None
    assert len(mock.replies[2].tokens()) == 36


def test_models_failpoints_hit_the_request_that_comes_then() -> None:
    """`1*ok->1*error`: the first request is served, the second fails, the third is served."""
    mock = Mock(failpoints="generate=1*ok->1*error(oops)->ok")
    replies = [mock.run(text_request(id, "x", max_tokens=3)) for id in range(3)]
    assert [bool(reply.failed) for reply in replies] == [False, True, False]


def test_panic_comes_out_of_step() -> None:
    """An exception of the engine itself is not the request's failure."""
    mock = Mock()
    mock.take(text_request(1, "[[failpoint: generate=panic]]"))
    with pytest.raises(RuntimeError, match="injected"):
        mock.step()


@pytest.mark.parametrize("operation", ["tokenize", "apply_template"])
def test_other_operations_fail_as_told(operation: str) -> None:
    """Each operation has its own failpoint."""
    mock = Mock(failpoints=f"{operation}=1*refuse(not now)")
    chat = ChatPrompt([ChatMessage("user", "hi")])
    with pytest.raises(RequestError, match="not now") as caught:
        if operation == "tokenize":
            mock.backend.tokenize(chat, add_special=True, parse_special=True)
        else:
            mock.backend.apply_template(chat)
    assert caught.value.kind == "invalid_value"
    assert mock.backend.apply_template(chat)


def test_prompts_wrong_failpoint_is_the_requests_error() -> None:
    """With its position in the prompt, and the parameter that holds it."""
    with pytest.raises(RequestError, match="at position 13") as caught:
        Mock().take(text_request(1, "[[failpoint: fly=ok]]"))
    assert (caught.value.kind, caught.value.param) == ("invalid_value", "prompt")


def test_fault_of_frames_needs_a_host() -> None:
    """Without pipes there is nothing to break; it says so rather than pass."""
    mock = Mock()
    mock.take(text_request(1, "[[failpoint: generate=badid]]"))
    with pytest.raises(RuntimeError, match="pipes"):
        mock.step()
