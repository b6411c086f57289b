"""Tools and structured output through the clients that people use, against a real daemon.

Each test runs on the mock, whose answers are exact, and on the real 135M model, whose calls and objects are whatever it
thinks of, and valid all the same.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from typing import Any, Literal

import jsonschema
import openai
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageFunctionToolCall
from pydantic import BaseModel, SecretStr
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from tests.support.daemon import Daemon, mock_model, starter_model

MODEL = "assistant"
MAX_TOKENS = 160
"""The mock writes a byte with each token."""
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Rome", "Oslo", "Lima"]},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "enum": [1, 2, 3]},
    },
    "required": ["city", "unit", "days"],
    "additionalProperties": False,
}
WEATHER: Any = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather of a city.", "parameters": PARAMETERS},
}
CLOCK: Any = {"type": "function", "function": {"name": "get_time", "description": "The time now."}}
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}
SCHEMA_FORMAT: Any = {
    "type": "json_schema",
    "json_schema": {"name": "weather", "strict": True, "schema": PARAMETERS},
}
QUESTION: Any = [{"role": "user", "content": "What is the weather like in Rome tomorrow?"}]


class Weather(BaseModel):
    """What a program wants to know."""

    city: Literal["Rome", "Oslo", "Lima"]
    warm: bool
    days: Literal[1, 2, 3]


@pytest.fixture(scope="module", params=["mock", pytest.param("starter", marks=pytest.mark.model)])
def daemon(request: pytest.FixtureRequest) -> Generator[Daemon]:
    # One thread: llama.cpp's threads wait for each other by spinning, which a busy machine makes very slow.
    model = mock_model() if request.param == "mock" else starter_model(n_ctx=2048, parallel=2, n_threads=1)
    with Daemon({"models": {MODEL: model}}) as one:
        yield one


@pytest.fixture(scope="module")
def client(daemon: Daemon) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0, timeout=100) as one:
        yield one


def checked(name: str, arguments: str) -> None:
    """A call of one of the two tools, with arguments that keep to its schema."""
    value = json.loads(arguments)
    if name == "get_time":
        assert value == {}
    else:
        assert name == "get_weather"
        jsonschema.validate(value, PARAMETERS)


# ------------------------------------------------------------------------------------------------ the openai client


def test_required_call_is_a_valid_call(client: OpenAI) -> None:
    """One of the tools is called, whatever the model would rather have said."""
    answer = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        tools=[WEATHER, CLOCK],
        tool_choice="required",
        max_tokens=MAX_TOKENS,
        temperature=0,
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls
    for call in choice.message.tool_calls:
        assert isinstance(call, ChatCompletionMessageFunctionToolCall)
        assert call.id
        checked(call.function.name, call.function.arguments)


def test_named_tool_is_the_one_that_is_called(client: OpenAI) -> None:
    """Whole and streamed; with `parallel_tool_calls: false` there is one call."""
    create, stream_of = client.chat.completions.create, client.chat.completions.stream
    whole = create(
        model=MODEL,
        messages=QUESTION,
        tools=[CLOCK, WEATHER],
        tool_choice=NAMED,
        parallel_tool_calls=False,
        max_tokens=MAX_TOKENS,
    )
    (call,) = whole.choices[0].message.tool_calls or []
    assert isinstance(call, ChatCompletionMessageFunctionToolCall)
    assert call.function.name == "get_weather"
    checked(call.function.name, call.function.arguments)
    with stream_of(
        model=MODEL,
        messages=QUESTION,
        tools=[CLOCK, WEATHER],
        tool_choice=NAMED,
        parallel_tool_calls=False,
        max_tokens=MAX_TOKENS,
    ) as stream:
        pieces = [event.arguments_delta for event in stream if event.type == "tool_calls.function.arguments.delta"]
        final = stream.get_final_completion().choices[0]
    (streamed,) = final.message.tool_calls or []
    assert final.finish_reason == "tool_calls"
    assert streamed.function.name == "get_weather"
    checked(streamed.function.name, streamed.function.arguments)
    assert "".join(pieces) == streamed.function.arguments
    assert len(pieces) > 1


def test_results_go_back_and_an_answer_comes(client: OpenAI) -> None:
    """The second half of a tool's round: its result in the conversation, and then text."""
    messages: Any = [
        *QUESTION,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "12:30"},
    ]
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, tools=[WEATHER, CLOCK], tool_choice="none", max_tokens=8
    )
    assert answer.choices[0].message.content
    assert not answer.choices[0].message.tool_calls


def test_json_schema_answers_validate(client: OpenAI) -> None:
    """`response_format`, whole and streamed: plain JSON of that schema and nothing around it."""
    create = client.chat.completions.create
    whole = create(model=MODEL, messages=QUESTION, response_format=SCHEMA_FORMAT, max_tokens=MAX_TOKENS)
    assert whole.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(whole.choices[0].message.content or ""), PARAMETERS)
    with create(
        model=MODEL, messages=QUESTION, response_format=SCHEMA_FORMAT, max_tokens=MAX_TOKENS, stream=True
    ) as stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    jsonschema.validate(json.loads(text), PARAMETERS)


def test_parse_gives_the_pydantic_model(client: OpenAI) -> None:
    """The client's own way from a class to an object of it."""
    answer = client.chat.completions.parse(
        model=MODEL, messages=QUESTION, response_format=Weather, max_tokens=MAX_TOKENS
    )
    assert isinstance(answer.choices[0].message.parsed, Weather)


def test_json_object_is_an_object_or_says_that_it_was_cut(client: OpenAI) -> None:
    """What ends by itself parses; what `max_tokens` ended says `length`."""
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Answer in JSON: name one tree."}],
        response_format={"type": "json_object"},
        max_tokens=48,
        temperature=0,
    )
    choice = answer.choices[0]
    assert (choice.message.content or "").startswith("{")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content or ""), dict)
    else:
        assert choice.finish_reason == "length"


def test_choice_is_one_of_the_texts(client: OpenAI) -> None:
    """vLLM's field, through `extra_body`, on both endpoints."""
    texts = ["positive", "negative", "neutral"]
    body = {"guided_choice": texts}
    chat = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=16, extra_body=body)
    assert chat.choices[0].message.content in texts
    plain = client.completions.create(model=MODEL, prompt="Great! It is", max_tokens=16, extra_body=body)
    assert plain.choices[0].text in texts


def test_schema_that_cannot_be_is_refused_with_the_reason(client: OpenAI) -> None:
    """A 400 that names the field, and the next request is served."""
    schema = {"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}, "required": ["a"]}
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(
            model=MODEL, messages=QUESTION, max_tokens=16, extra_body={"guided_json": schema}
        )
    assert error.value.param == "guided_json"
    test_choice_is_one_of_the_texts(client)


def test_image_is_not_dropped_by_a_model_that_reads_text(daemon: Daemon) -> None:
    """Refused also where the request itself had the model loaded, and nothing was known of it before."""
    picture = {"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0lGODlhAQABAAAAACw="}}
    body = {"model": MODEL, "messages": [{"role": "user", "content": [picture]}], "max_tokens": 2}
    assert daemon.control("POST", "/jobs", {"type": "unload", "params": {"model": MODEL}})[0] == 202
    daemon.wait_for_state(MODEL, "not_loaded")
    for _ in range(2):
        status, answer = daemon.request("POST", "/v1/chat/completions", body)
        assert (status, answer["error"]["code"]) == (400, "unsupported_operation")
    assert daemon.request("POST", "/v1/completions", {"model": MODEL, "prompt": "a", "max_tokens": 2})[0] == 200


# --------------------------------------------------------------------------------------------------------- LangChain


@pytest.fixture
def chat(daemon: Daemon) -> ChatOpenAI:
    return ChatOpenAI(
        model=MODEL,
        base_url=f"{daemon.url}/v1",
        api_key=SecretStr("none"),
        temperature=0,
        max_completion_tokens=MAX_TOKENS,
        max_retries=0,
        timeout=100,
        stream_usage=True,
    )


def test_langchain_binds_tools(chat: ChatOpenAI) -> None:
    """`bind_tools` with a tool that has to be called: a parsed call, and the chunks of a stream add up to one too."""
    bound = chat.bind_tools([WEATHER], tool_choice="any")  # pyright: ignore[reportUnknownMemberType]  # LangChain's
    answer = bound.invoke("What is the weather like in Oslo?")
    assert isinstance(answer, AIMessage)
    assert answer.tool_calls
    assert answer.invalid_tool_calls == []
    jsonschema.validate(answer.tool_calls[0]["args"], PARAMETERS)
    chunks = list(bound.stream("What is the weather like in Oslo?"))
    total = chunks[0]
    for chunk in chunks[1:]:
        total = total + chunk
    assert isinstance(total, AIMessageChunk)
    assert total.tool_calls
    jsonschema.validate(total.tool_calls[0]["args"], PARAMETERS)
    # Its result goes back, and the model has the word again.
    result = ToolMessage("12 degrees", tool_call_id=answer.tool_calls[0]["id"] or "")
    final = chat.bind(max_tokens=4).invoke([HumanMessage("What is the weather like?"), answer, result])
    assert final.content


def test_langchain_gives_structured_output(chat: ChatOpenAI) -> None:
    """Through a schema and through a call alike."""
    model: Any = chat  # its own types are partly unknown
    for method in ("json_schema", "function_calling"):
        structured = model.with_structured_output(Weather, method=method)
        assert isinstance(structured.invoke("The weather in Lima."), Weather)


# ------------------------------------------------------------------------------------------------------- pydantic-ai


@pytest.mark.parametrize("output", [ToolOutput(Weather), NativeOutput(Weather)], ids=["tool", "native"])
async def test_pydantic_ai_agent_gives_the_object(daemon: Daemon, output: Any) -> None:
    """An agent whose answer has a type: by a call that is required, or by the schema of the answer."""
    async with AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0, timeout=100) as client:
        agent = Agent(
            OpenAIChatModel(MODEL, provider=OpenAIProvider(openai_client=client)),
            output_type=output,
            model_settings={"max_tokens": MAX_TOKENS, "temperature": 0},
        )
        result = await agent.run("What is the weather like in Rome?")
        assert isinstance(result.output, Weather)
        async with agent.run_stream("What is the weather like in Rome?") as stream:
            assert isinstance(await stream.get_output(), Weather)
