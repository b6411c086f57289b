"""LangChain's ChatOpenAI against the real starter model."""

from __future__ import annotations

from collections.abc import Generator

import httpx
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from pydantic import SecretStr
from tests.support.daemon import Daemon, starter_model

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def daemon() -> Generator[Daemon]:
    with Daemon({"models": {"smol": starter_model(n_ctx=1024, parallel=4, n_threads=1)}}) as one:
        yield one


@pytest.fixture
def chat(daemon: Daemon) -> ChatOpenAI:
    return chat_model(daemon)


def chat_model(daemon: Daemon, http: httpx.AsyncClient | None = None) -> ChatOpenAI:
    return ChatOpenAI(
        http_async_client=http,
        model="light",
        base_url=f"{daemon.url}/v1",
        api_key=SecretStr("none"),
        temperature=0,
        max_completion_tokens=10,
        max_retries=0,
        timeout=100,
        stream_usage=True,
    )


def test_invoke_answers(chat: ChatOpenAI) -> None:
    """A message of the assistant with its metadata."""
    answer = chat.invoke([SystemMessage("You are terse."), HumanMessage("Name three trees.")])
    assert isinstance(answer, AIMessage)
    assert isinstance(answer.content, str)
    assert answer.content
    assert answer.response_metadata["model_name"] == "light/smol"
    assert answer.response_metadata["finish_reason"] in {"stop", "length"}
    assert answer.usage_metadata is not None
    assert 0 < answer.usage_metadata["output_tokens"] <= 10


def test_stream_adds_up_to_invoke(chat: ChatOpenAI) -> None:
    """The chunks make the same message, usage included."""
    whole = chat.invoke("Name three trees.")
    chunks = list(chat.stream("Name three trees."))
    assert len(chunks) > 3
    total = chunks[0]
    for chunk in chunks[1:]:
        total = total + chunk
    assert isinstance(total, AIMessageChunk)
    assert total.content == whole.content
    assert total.usage_metadata is not None
    assert whole.usage_metadata is not None
    assert total.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]


def test_batch_answers_in_order(chat: ChatOpenAI) -> None:
    """Three prompts side by side, each with its own answer."""
    questions = ["Name three trees.", "What is two plus two?", "Say hello in French."]
    alone = [chat.invoke(question) for question in questions]
    together = chat.batch(list(questions))
    assert len({str(answer.content) for answer in together}) == 3
    # The first words are beyond the noise of a batch of another shape.
    assert [str(answer.content)[:3] for answer in together] == [str(answer.content)[:3] for answer in alone]


async def test_ainvoke_and_astream_answer(daemon: Daemon) -> None:
    """The asynchronous ways give the same text."""
    # LangChain never closes a client of its own making, and this loop ends with the test.
    async with httpx.AsyncClient(timeout=100) as http:
        chat = chat_model(daemon, http)
        answer = await chat.ainvoke("Name three trees.")
        pieces = [str(chunk.content) async for chunk in chat.astream("Name three trees.")]
    assert answer.content
    assert "".join(pieces) == answer.content


def test_logprobs_reach_the_metadata(chat: ChatOpenAI) -> None:
    """`bind` hands them on."""
    answer = chat.bind(logprobs=True, top_logprobs=2).invoke("Name three trees.")
    content = answer.response_metadata["logprobs"]["content"]
    assert "".join(token["token"] for token in content) == answer.content
    assert all(len(token["top_logprobs"]) == 2 for token in content)
