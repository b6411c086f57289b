"""The mock backend's replies: text, tokens, lengths, stop strings, log-probabilities."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.mock_driver import Mock, numbers, reply_of
from tests.support.worker_client import text_request

from llmvisor_runtimes import limits, mock_text
from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.mock import MockBackend
from llmvisor_runtimes.protocol import (
    ChatMessage,
    ChatPrompt,
    Generate,
    Sampling,
    TextPrompt,
    TokenPrompt,
)

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
def test_reply_ends_where_it_should(fields: dict[str, Any], options: dict[str, Any], tokens: int, finish: str) -> None:
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
