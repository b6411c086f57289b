"""The official `openai` client against the real starter model: what its users write works as it is.

Chats and completions, whole and streamed; all that steers an answer; the models by each of their names; and streams
side by side. `test_openai_client_errors.py` has what goes wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterator
from functools import partial

import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam
from tests.support.daemon import Daemon
from tests.support.openai_daemon import COUNTING, MODEL, QUESTION, openai_client, openai_daemon
from tests.support.polling import eventually_sync

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def daemon() -> Generator[Daemon]:
    with openai_daemon() as one:
        yield one


@pytest.fixture(scope="module")
def client(daemon: Daemon) -> Iterator[OpenAI]:
    with openai_client(daemon) as one:
        yield one


def test_seed_repeats_the_text(client: OpenAI) -> None:
    """At temperature 1 the same seed gives the same text, and another one another text.

    It comes first, while the cache is fresh: llama.cpp by itself changes log-probabilities by up to 0.17 with the order
    in which a sequence's tokens lie in its cache, and such a difference tips a choice now and then.
    """

    def ask(seed: int) -> str | None:
        answer = client.chat.completions.create(
            model=MODEL, messages=QUESTION, max_tokens=16, temperature=1, top_p=1, seed=seed
        )
        return answer.choices[0].message.content

    first = ask(42)
    assert ask(42) == first
    assert {ask(43), ask(44)} != {first}


# -------------------------------------------------------------------------------------------------------------- chat


def test_chat_answers_with_usage(client: OpenAI) -> None:
    """An ordinary call: text, why it ended, and what it took."""
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=8, temperature=0)
    choice = answer.choices[0]
    assert (answer.object, answer.model, choice.index) == ("chat.completion", "light/smol", 0)
    assert answer.id.startswith("chatcmpl-")
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert answer.usage.prompt_tokens > 4
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8


def test_chat_reads_system_messages_and_parts(client: OpenAI) -> None:
    """Every message counts, and content in parts is the same as one string."""

    def ask(*messages: ChatCompletionMessageParam) -> tuple[str | None, int]:
        answer = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=8, temperature=0)
        assert answer.usage is not None
        return answer.choices[0].message.content, answer.usage.prompt_tokens

    whole = ask({"role": "system", "content": "You are a pirate."}, {"role": "user", "content": "Who are you?"})
    parts = ask(
        {"role": "system", "content": "You are a pirate."},
        {"role": "user", "content": [{"type": "text", "text": "Who are "}, {"type": "text", "text": "you?"}]},
    )
    assert whole[1] == parts[1]
    plain = ask({"role": "user", "content": "Who are you?"})
    assert plain[0] != whole[0]


def test_chat_stream_is_the_whole_answer_in_pieces(client: OpenAI) -> None:
    """The pieces make the text of the call without `stream`; usage comes in a last chunk of its own."""
    whole = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=12, temperature=0)
    stream = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 12
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_chat_stream_without_the_option_has_no_usage(client: OpenAI) -> None:
    """Clients that index `choices[0]` of every chunk work."""
    chunks = list(client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=3, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_model_ends_its_turn_by_itself(client: OpenAI) -> None:
    """`stop` is said when the model was done, and its end mark is not in the text."""
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Answer with one word: what colour is grass?"}],
        max_completion_tokens=120,
        temperature=0,
    )
    assert answer.choices[0].finish_reason == "stop"
    assert "<|im_end|>" not in (answer.choices[0].message.content or "")


# ------------------------------------------------------------------------------------------------------- completions


def test_completions_take_every_form_of_prompt(client: OpenAI, daemon: Daemon) -> None:
    """A text, a list of texts, token ids, and lists of token ids: the same text goes on in the same way."""
    _, tokenized = daemon.request("POST", "/tokenize", {"model": MODEL, "content": COUNTING})
    ids: list[int] = tokenized["tokens"]

    def ask(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str]:
        answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=8, temperature=0)
        assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 8 * len(answer.choices)
        assert answer.usage.prompt_tokens == len(ids) * len(answer.choices)
        return [choice.text for choice in answer.choices]

    (text,) = ask(COUNTING)
    assert text.startswith(" 5, 6,")
    assert ask([COUNTING, COUNTING]) == [text, text]
    assert ask(ids) == [text]
    assert ask([ids, ids]) == [text, text]


def test_completion_stream_joins_to_the_whole(client: OpenAI) -> None:
    """Several prompts stream side by side, each under its own index."""
    texts = {0: "", 1: ""}
    stream = client.completions.create(
        model=MODEL, prompt=[COUNTING, "1, 2, 3, 4, 5, 6,"], max_tokens=6, temperature=0, stream=True
    )
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts[0].startswith(" 5, 6,")
    assert texts[1].startswith(" 7, 8,")


def test_completion_echo_gives_the_prompt_back(client: OpenAI) -> None:
    """The prompt stands before what follows it, with log-probabilities from its second token on."""
    answer = client.completions.create(model=MODEL, prompt=COUNTING, max_tokens=2, temperature=0, echo=True, logprobs=1)
    choice = answer.choices[0]
    assert choice.text.startswith(COUNTING + " 5")
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert choice.logprobs.token_logprobs is not None
    assert choice.logprobs.text_offset is not None
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in choice.logprobs.token_logprobs[1:])
    assert choice.logprobs.text_offset == sorted(choice.logprobs.text_offset)


# ------------------------------------------------------------------------------------------------- what steers answers


def test_n_gives_as_many_choices_from_one_prompt(client: OpenAI) -> None:
    """The prompt is counted once, and the choices go their own ways."""
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, n=2, max_tokens=16, temperature=1.5, seed=1, top_p=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    first, second = (choice.message.content for choice in answer.choices)
    assert first != second
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 32
    alone = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=1)
    assert alone.usage is not None
    assert answer.usage.prompt_tokens == alone.usage.prompt_tokens


def test_more_choices_than_places_all_come(client: OpenAI) -> None:
    """Four decode together, seven are asked for; the best of five is one."""
    answer = client.completions.create(model=MODEL, prompt=COUNTING, n=7, max_tokens=2, temperature=0)
    assert [choice.index for choice in answer.choices] == list(range(7))
    assert all(choice.text.startswith(" 5") for choice in answer.choices)
    best = client.completions.create(model=MODEL, prompt=COUNTING, best_of=5, max_tokens=4, temperature=1, seed=3)
    assert len(best.choices) == 1
    assert best.usage is not None
    assert best.usage.completion_tokens <= 20


def test_logprobs_come_with_their_alternatives(client: OpenAI) -> None:
    """The chosen token stands first among them at temperature 0, and together they are what `text` is made of."""
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(token.token for token in logprobs.content) == answer.choices[0].message.content
    for token in logprobs.content:
        assert len(token.top_logprobs) == 3
        values = [top.logprob for top in token.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert token.top_logprobs[0].token == token.token
        assert token.logprob == pytest.approx(values[0])
        assert bytes(token.bytes or []).decode() == token.token
    none = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=1)
    assert none.choices[0].logprobs is None


def test_second_turn_takes_the_first_one_from_the_cache(client: OpenAI) -> None:
    """A conversation that goes on computes what is new alone, and usage tells."""
    story: ChatCompletionMessageParam = {"role": "user", "content": "Tell a story of a fox who met a bear. " * 8}
    first = client.chat.completions.create(model=MODEL, messages=[story], max_tokens=4, temperature=0)
    reply = first.choices[0].message.content
    second = client.chat.completions.create(
        model=MODEL,
        messages=[story, {"role": "assistant", "content": reply}, {"role": "user", "content": "Go on."}],
        max_tokens=2,
    )
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert (second.usage.prompt_tokens_details.cached_tokens or 0) > first.usage.prompt_tokens - 16


@pytest.mark.parametrize("stop", [" 7", "6, 7", ["nothing", ", 7, 8"]])
@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_end_the_text_before_them(client: OpenAI, stop: str | list[str], stream: bool) -> None:
    """Also where one lies across tokens, and nothing of it gets into a stream."""
    text, reason = "", None
    if stream:
        for chunk in client.completions.create(
            model=MODEL, prompt=COUNTING, max_tokens=30, temperature=0, stop=stop, stream=True
        ):
            text += chunk.choices[0].text
            reason = chunk.choices[0].finish_reason
    else:
        choice = client.completions.create(
            model=MODEL, prompt=COUNTING, max_tokens=30, temperature=0, stop=stop
        ).choices[0]
        text, reason = choice.text, choice.finish_reason
    before = {" 7": " 5, 6,", "6, 7": " 5, "}.get(stop if isinstance(stop, str) else "", " 5, 6")
    assert (text, reason) == (before, "stop")


def test_stream_of_characters_of_several_tokens_is_whole(client: OpenAI) -> None:
    """A fox is four bytes in more than one token: no piece of one gets out, and the stream joins to the whole text."""
    request = partial(
        client.completions.create,
        model=MODEL,
        prompt="🦊 🐻 " * 5 + "🦊",
        max_tokens=15,
        temperature=0,
        extra_body={"repeat_penalty": 1},
    )
    whole = request().choices[0].text
    pieces = [chunk.choices[0].text for chunk in request(stream=True)]
    assert "".join(pieces) == whole
    assert whole.startswith(" 🐻 🦊")
    assert not [piece for piece in pieces[:-1] if "\ufffd" in piece]
    assert 0 < sum(piece.count("🦊") for piece in pieces) < 16


def test_logit_bias_forces_and_bans(client: OpenAI, daemon: Daemon) -> None:
    """A bias of 100 decides, one of -100 excludes."""
    _, tokenized = daemon.request("POST", "/tokenize", {"model": MODEL, "content": " 5"})
    five: int = tokenized["tokens"][-1]

    def ask(**bias: int) -> str:
        answer = client.completions.create(
            model=MODEL, prompt="1, 2, 3, 4, 5,", max_tokens=4, temperature=0, logit_bias=bias
        )
        return answer.choices[0].text

    assert "5" not in ask()[:3]
    assert ask(**{str(five): 100}).count("5") >= 3
    assert "5" not in ask(**{str(five): -100})


# ------------------------------------------------------------------------------------------------------------ models


def test_models_are_listed_and_found_by_every_name(client: OpenAI) -> None:
    """The list has each model once; a tier, a name, both and an alias find it."""
    listed = {model.id: model for model in client.models.list()}
    assert set(listed) == {"light/smol", "hopeless", "mock", "sleepy"}
    assert listed["light/smol"].owned_by == "llmvisor-light"
    assert listed["light/smol"].created > 1_600_000_000
    for name in ("light", "smol", "light/smol", "gpt-4o-mini"):
        assert client.models.retrieve(name).id == "light/smol"


@pytest.mark.parametrize("name", ["light", "light/smol", "gpt-4o-mini"])
def test_chat_takes_every_name_of_a_model(client: OpenAI, name: str) -> None:
    """And says which model it was."""
    answer = client.chat.completions.create(model=name, messages=QUESTION, max_tokens=1)
    assert answer.model == "light/smol"


# ------------------------------------------------------------------------------------------------------------- async


async def test_async_streams_run_side_by_side(daemon: Daemon) -> None:
    """More streams than the model has places: each counts on from where its own prompt ends."""
    starts = [1, 11, 21, 31, 41, 51]

    async def count(client: AsyncOpenAI, start: int) -> str:
        prompt = ",".join(f" {number}" for number in range(start, start + 6)) + ","
        stream = await client.completions.create(model=MODEL, prompt=prompt, max_tokens=5, temperature=0, stream=True)
        return "".join([chunk.choices[0].text async for chunk in stream])

    async with AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0, timeout=100) as client:
        texts = await asyncio.gather(*(count(client, start) for start in starts))
    for start, text in zip(starts, texts, strict=True):
        assert text.startswith(f" {start + 6}"), texts


async def test_async_stream_that_is_closed_early_frees_its_place(daemon: Daemon) -> None:
    """Leaving the loop is enough: the sequence is free before the model would have been done."""
    async with (
        AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as client,
        await client.chat.completions.create(model="mock", messages=QUESTION, max_tokens=5000, stream=True) as stream,
    ):
        await anext(aiter(stream))
        assert daemon.runtime("mock")["slots_busy"] == 1
    await asyncio.to_thread(eventually_sync, lambda: daemon.runtime("mock")["slots_busy"] == 0, 5)
