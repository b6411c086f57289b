"""MLX behind the daemon: its folder is enough to be told apart, and it answers what llama.cpp answers."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

import jsonschema
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam
from tests.support.daemon import Daemon, Json, starter_model
from tests.support.leaks import no_leaks
from tests.support.mlx_models import tiny_folder

SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "green"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["color", "count"],
    "additionalProperties": False,
}
MESSAGES = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": "Which color?"}]
TOOL = {"type": "function", "function": {"name": "paint", "parameters": SCHEMA}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "paint", "schema": SCHEMA, "strict": True}}

CHAT: dict[str, Json] = {
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 1.2, "top_p": 0.9, "top_k": 50, "min_p": 0.01, "seed": 5},
    "penalties": {"presence_penalty": 0.5, "frequency_penalty": 0.5, "repeat_penalty": 1.2},
    "choices": {"n": 3, "seed": 1},
    "logprobs": {"logprobs": True, "top_logprobs": 3},
    "bias": {"logit_bias": {"42": 100}, "temperature": 0},
    "stop": {"stop": ["e", "a"]},
    "json": {"response_format": {"type": "json_object"}, "max_tokens": 100},
    "schema": {"response_format": FORMAT, "max_tokens": 100},
    "tool": {"tools": [TOOL], "tool_choice": "required", "max_tokens": 200, "temperature": 0},
    "free tool": {"tools": [TOOL]},
}
COMPLETIONS: dict[str, Json] = {
    "echo": {"echo": True},
    "scored": {"echo": True, "logprobs": 2, "max_tokens": 0},
    "tokens": {"prompt": [504, 3575, 282]},
    "several": {"prompt": ["One", "Two"], "n": 2},
}


@pytest.fixture(scope="module")
def daemon() -> Generator[Daemon]:
    models = {"mlx": {"path": str(tiny_folder()), "n_ctx": 2048}, "llama": starter_model(n_ctx=2048)}
    # Every answer comes from a worker.
    with no_leaks(), Daemon({"models": models, "cache": {"enabled": False}}) as one:
        yield one


def shape(value: Any) -> Any:
    """The keys of an answer and the types of what they have, whatever the words."""
    if isinstance(value, dict):
        return {str(key): shape(inner) for key, inner in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, list):
        return [shape(inner) for inner in value[:1]]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return "null" if value is None else type(value).__name__


@pytest.mark.model
@pytest.mark.parametrize("name", CHAT)
def test_chat_request_gets_an_answer_of_the_same_shape(daemon: Daemon, name: str) -> None:
    """The same request to both backends. Result: 200 from both, with the same fields.

    What a grammar holds takes the real model long, and has tests of its own there.
    """
    body = {"messages": MESSAGES, "max_tokens": 6, **CHAT[name]}
    answers: dict[str, Json] = {}
    for model in ("mlx",) if name in {"json", "schema", "tool"} else ("mlx", "llama"):
        status, answer = daemon.request("POST", "/v1/chat/completions", {"model": model, **body})
        assert status == 200, answer
        answers[model] = answer
        assert len(answer["choices"]) == body.get("n", 1)
        assert {choice["finish_reason"] for choice in answer["choices"]} <= {"stop", "length", "tool_calls"}
        message = answer["choices"][0]["message"]
        if name == "schema":
            jsonschema.validate(json.loads(message["content"]), SCHEMA)
        if name == "tool":
            jsonschema.validate(json.loads(message["tool_calls"][0]["function"]["arguments"]), SCHEMA)
    shapes = [{key: shape(value) for key, value in answer.items()} for answer in answers.values()]
    assert shapes[0].keys() == shapes[-1].keys()
    assert shapes[0]["usage"] == shapes[-1]["usage"]
    if name in {"greedy", "logprobs", "choices", "bias"}:
        assert shapes[0]["choices"] == shapes[1]["choices"]


@pytest.mark.model
@pytest.mark.parametrize("name", COMPLETIONS)
def test_completion_gets_an_answer_of_the_same_shape(daemon: Daemon, name: str) -> None:
    """The same request to both backends. Result: 200 from both, with the same fields."""
    body = {"prompt": "Once upon a time", "max_tokens": 6, "temperature": 0, **COMPLETIONS[name]}
    shapes: list[Any] = []
    for model in ("mlx", "llama"):
        status, answer = daemon.request("POST", "/v1/completions", {"model": model, **body})
        assert status == 200, answer
        shapes.append([sorted(answer), sorted(answer["choices"][0]), len(answer["choices"]), shape(answer["usage"])])
    assert shapes[0] == shapes[1]


@pytest.mark.model
def test_stream_joins_to_the_answer_in_one_piece(daemon: Daemon) -> None:
    """The `openai` client streams a chat; its pieces are what comes without streaming."""
    with OpenAI(base_url=f"{daemon.url}/v1", api_key="none") as client:
        chat: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Which color?"}]
        answer = client.chat.completions.create(model="mlx", messages=chat, max_tokens=16, temperature=0)
        whole = answer.choices[0].message.content
        pieces: list[str] = []
        stream = client.chat.completions.create(model="mlx", messages=chat, max_tokens=16, temperature=0, stream=True)
        for chunk in stream:
            pieces += [choice.delta.content or "" for choice in chunk.choices]
    assert whole
    assert "".join(pieces) == whole
    assert len(pieces) > 5


@pytest.mark.model
def test_what_mlx_does_not_have_is_a_bad_request(daemon: Daemon) -> None:
    """The answer names the parameter, and the worker stays."""
    pid = daemon.worker_pid("mlx") if daemon.runtime("mlx")["state"] == "loaded" else None
    status, answer = daemon.complete("mlx", mirostat=2, max_tokens=2)
    assert status == 400, answer
    assert answer["error"]["param"] == "mirostat"
    assert daemon.complete("mlx", max_tokens=2)[0] == 200
    assert pid in {None, daemon.worker_pid("mlx")}


@pytest.mark.model
def test_unloaded_model_comes_back(daemon: Daemon) -> None:
    """1. The model serves. 2. It is unloaded: its process ends. 3. The next request loads it again."""
    first = daemon.complete("mlx", "Once", max_tokens=4, temperature=0)[1]["choices"][0]["text"]
    status, answer = daemon.control("POST", "/jobs", {"type": "unload", "params": {"model": "mlx"}})
    assert status == 202, answer
    daemon.wait_for_state("mlx", "not_loaded")
    again = daemon.complete("mlx", "Once", max_tokens=4, temperature=0)[1]["choices"][0]["text"]
    assert again == first
