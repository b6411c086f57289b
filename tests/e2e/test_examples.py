"""The HTTP API as its reference has it: every request in its own words, and the answer in the shape that it names.

Weights decide nothing here but that they are real: a starter model writes, a small BGE-M3 embeds, a small reranker
ranks.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
from array import array
from collections.abc import Generator
from typing import Any, NamedTuple

import pytest
from tests.support.daemon import Daemon, Json, mock_model, starter_model
from tests.support.flag_models import bge_m3_folder, reranker_folder
from tests.support.leaks import no_leaks

pytestmark = pytest.mark.model

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
DIMENSION = 64
"""Of the small BGE-M3."""
USER = {"role": "user", "content": "Say hello."}
OBJECT = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "green"]}},
    "required": ["color"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "paint", "description": "Paints.", "parameters": OBJECT}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "paint", "arguments": '{"color": "red"}'}}


@pytest.fixture(scope="module")
def daemon() -> Generator[Daemon]:
    models = {
        # One thread each: what shares cores with other tests waits for its own threads otherwise.
        "smol": starter_model(n_ctx=2048, parallel=4, n_threads=1),
        "m3": {"path": str(bge_m3_folder()), "tier": "embedding", "n_threads": 1},
        "ranker": {"path": str(reranker_folder()), "tier": "reranker", "n_threads": 1},
        "mock": mock_model(),
    }
    with no_leaks(), Daemon({"models": models, "cache": {"enabled": True}}) as one:
        yield one


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(daemon: Daemon, method: str, path: str, body: object = None, **headers: str) -> Answer:
    """An answer with its headers, as bytes; a body that is bytes is sent as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=60)
    try:
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())
    finally:
        connection.close()


def post(daemon: Daemon, path: str, **body: object) -> Any:
    """The JSON of an answer that is well."""
    answer = ask(daemon, "POST", path, body)
    assert answer.status == 200, answer.body
    return answer.json


def chat(daemon: Daemon, **fields: object) -> Json:
    return post(daemon, CHAT, **{"model": "light", "messages": [USER], "max_tokens": 3, "temperature": 0, **fields})


# ------------------------------------------------------------------------------------------------ /v1/chat/completions

SAMPLING: Json = {
    "temperature": 0.8, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "typical_p": 0.95, "seed": 7,
    "repeat_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": -0.5, "logit_bias": {"42": -5},
    "mirostat": 0, "mirostat_tau": 5, "mirostat_eta": 0.1, "xtc_probability": 0.1, "xtc_threshold": 0.1,
    "dry_multiplier": 0.8, "dry_base": 1.75, "dry_allowed_length": 2,
    "ignore_eos": True, "cache_prompt": True, "keep_alive": "5m", "stop": ["§", "¶"],
}  # fmt: skip
OTHERS: Json = {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "reasoning_effort": "low"}
FORMS: dict[str, Json] = {
    "sampling": SAMPLING,
    "what other servers know": {**OTHERS, "max_completion_tokens": 3, "chat_template_kwargs": {"x": 1}},
    "choices": {"n": 2, "seed": 1, "temperature": 1},
    "log probabilities": {"logprobs": True, "top_logprobs": 2},
    "roles": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": "Be polite."},
            {"role": "user", "content": [{"type": "text", "text": "Paint"}, {"type": "text", "text": " it."}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": "painted"},
            USER,
        ],
        "tools": [TOOL],
        "tool_choice": "none",
    },
    "text": {"response_format": {"type": "text"}},
    "lookup": {"speculative": "lookup"},
}


@pytest.mark.parametrize("name", FORMS)
def test_chat_answers_in_the_shape_of_the_reference(daemon: Daemon, name: str) -> None:
    """Each group of fields is taken, and the answer has OpenAI's fields and ours."""
    answer = chat(daemon, **FORMS[name])
    assert re.fullmatch(r"chatcmpl-\w+", answer["id"])
    assert (answer["object"], answer["model"]) == ("chat.completion", "light/smol")
    assert answer["created"] > 1_700_000_000
    assert answer["system_fingerprint"]
    assert [choice["index"] for choice in answer["choices"]] == list(range(FORMS[name].get("n", 1)))
    for choice in answer["choices"]:
        assert choice["finish_reason"] in {"stop", "length"}
        assert choice["message"]["role"] == "assistant"
        assert isinstance(choice["message"]["content"], str)
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 0 <= usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]
    assert {"prompt_ms", "predicted_ms", "prompt_per_second", "predicted_per_second"} <= answer["timings"].keys()
    if name == "log probabilities":
        (first, *_) = answer["choices"][0]["logprobs"]["content"]
        assert first["token"] == first["top_logprobs"][0]["token"]
        assert first["logprob"] <= 0
        assert len(first["top_logprobs"]) == 2


HELD: dict[str, tuple[Json, str]] = {
    "json_schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": OBJECT, "strict": True}}},
        r'\{"color":"(red|green)"\}',
    ),
    "guided_regex": ({"guided_regex": "[0-9]{4}-[0-9]{2}"}, r"\d{4}-\d{2}"),
    "guided_choice": ({"guided_choice": ["left", "right"]}, "left|right"),
    "guided_grammar": ({"guided_grammar": 'start: "yes" | "no"'}, "yes|no"),
    "grammar": ({"grammar": 'root ::= "up" | "down"'}, "up|down"),
}


@pytest.mark.parametrize("name", HELD)
def test_text_has_the_form_that_was_asked_for(daemon: Daemon, name: str) -> None:
    """Schema, regular expression, choice, Lark and GBNF: plain text of that form, and nothing around it."""
    fields, form = HELD[name]
    answer = chat(daemon, max_tokens=40, **fields)["choices"][0]
    assert re.fullmatch(form, answer["message"]["content"])
    assert answer["finish_reason"] == "stop"


def test_json_that_is_cut_short_says_so(daemon: Daemon) -> None:
    """`json_object` begins as JSON without any fence; `max_tokens` ends it, and `finish_reason` is `length`."""
    choice = chat(daemon, response_format={"type": "json_object"}, max_tokens=1)["choices"][0]
    assert choice["message"]["content"].startswith("{")
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize(
    "tool_choice", ["required", {"type": "function", "function": {"name": "paint"}}], ids=["required", "named"]
)
def test_tool_is_called_with_arguments_of_its_schema(daemon: Daemon, tool_choice: object) -> None:
    """One call, since parallel ones are not wanted; its id can be answered to."""
    fields: Json = {"tools": [TOOL], "tool_choice": tool_choice, "parallel_tool_calls": False, "max_tokens": 100}
    choice = chat(daemon, **fields)["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert (choice["finish_reason"], call["type"], call["function"]["name"]) == ("tool_calls", "function", "paint")
    assert call["id"]
    assert json.loads(call["function"]["arguments"])["color"] in {"red", "green"}


# --------------------------------------------------------------------------------------------------------- streaming


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_stream_keeps_the_conventions(daemon: Daemon, path: str) -> None:
    """Events of one `data:` line each, one id, usage in the last one where it is asked for, `[DONE]` at the end."""
    prompt = {"messages": [USER]} if path == CHAT else {"prompt": "Once"}
    body: Json = {"model": "light", "max_tokens": 3, "temperature": 0, **prompt}
    answer = ask(daemon, "POST", path, {**body, "stream": True, "stream_options": {"include_usage": True}})
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    *events, done, nothing = answer.body.decode().split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    assert all(re.fullmatch(r"data: \{.*\}", event) for event in events if not event.startswith(":"))
    chunks = [json.loads(event[6:]) for event in events if not event.startswith(":")]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk" if path == CHAT else "text_completion"}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 3
    said = [choice for chunk in chunks for choice in chunk["choices"]]
    assert said[-1]["finish_reason"] == "length"
    text = "".join(one["delta"].get("content") or "" if path == CHAT else one["text"] for one in said)
    whole = post(daemon, path, **body)["choices"][0]
    assert text == (whole["message"]["content"] if path == CHAT else whole["text"])


def test_failure_inside_a_stream_is_an_error_event(daemon: Daemon) -> None:
    """The worker dies after two tokens, and no other one is to go on: what was said stands, an error follows, and no
    `[DONE]`."""
    body = {"model": "mock", "prompt": "[[failpoint: generate=2*token->kill(9)]]", "stream": True}
    answer = ask(daemon, "POST", COMPLETIONS, body, **{"X-LLMVISOR-Resume": "off"})
    events = [line[6:] for line in answer.body.decode().splitlines() if line.startswith("data: ")]
    assert answer.status == 200
    error = json.loads(events[-1])["error"]
    assert error.keys() == {"message", "type", "code", "param"}
    assert error["type"] == "model_error"
    assert len([event for event in events if '"text"' in event]) >= 2


# ------------------------------------------------------------------------------------------------------ /v1/completions


@pytest.mark.parametrize(
    ("prompt", "texts"), [("Once upon", 1), (["One", "Two"], 2), ([504, 3575], 1), ([[504], [3575]], 2)]
)
def test_completion_takes_every_form_of_prompt(daemon: Daemon, prompt: object, texts: int) -> None:
    """Text, texts, token ids, lists of those; with `n`, choices are numbered through."""
    fields: Json = {"model": "light", "max_tokens": 2, "n": 2, "best_of": 2, "seed": 3, **SAMPLING}
    answer = post(daemon, COMPLETIONS, prompt=prompt, **fields)
    assert re.fullmatch(r"cmpl-\w+", answer["id"])
    assert answer["object"] == "text_completion"
    assert [choice["index"] for choice in answer["choices"]] == list(range(2 * texts))
    assert all(isinstance(choice["text"], str) for choice in answer["choices"])


def test_completion_echoes_and_scores_its_prompt(daemon: Daemon) -> None:
    """`echo` with `logprobs`: a token, an offset and a probability for each; the very first has none."""
    answer = post(daemon, COMPLETIONS, model="light", prompt="Once upon", echo=True, logprobs=2, max_tokens=2)
    choice = answer["choices"][0]
    assert choice["text"].startswith("Once upon")
    found = choice["logprobs"]
    assert "".join(found["tokens"]) == choice["text"]
    assert len(found["tokens"]) == len(found["token_logprobs"]) == len(found["text_offset"])
    assert found["token_logprobs"][0] is None
    assert all(value <= 0 for value in found["token_logprobs"][1:])


# ------------------------------------------------------------------------------------------------------- /v1/embeddings


def test_embeddings_have_the_shape_of_the_reference(daemon: Daemon) -> None:
    """Dense, sparse and ColBERT vectors of one text, by the tier's name."""
    answer = post(daemon, "/v1/embeddings", model="embedding", input="hello", return_sparse=True, return_colbert=True)
    assert answer.keys() == {"object", "model", "data", "usage"}
    assert (answer["object"], answer["model"]) == ("list", "embedding/m3")
    (one,) = answer["data"]
    assert (one["object"], one["index"], len(one["embedding"])) == ("embedding", 0, DIMENSION)
    assert all(re.fullmatch(r"\d+", token) and weight > 0 for token, weight in one["sparse_embedding"].items())
    assert {len(vector) for vector in one["colbert_embedding"]} == {DIMENSION}
    tokens = answer["usage"]["prompt_tokens"]
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert len(one["colbert_embedding"]) == tokens - 1


def test_embeddings_take_every_form_of_input(daemon: Daemon) -> None:
    """Texts and token ids give as many vectors; base64 is the same numbers; fewer dimensions have length 1 again."""
    tokens = post(daemon, "/tokenize", model="m3", content="hello", add_special=True)["tokens"]
    for input, count in (("hello", 1), (["hello", "you"], 2), (tokens, 1), ([tokens, tokens], 2)):
        data = post(daemon, "/v1/embeddings", model="m3", input=input)["data"]
        assert [one["index"] for one in data] == list(range(count))
    plain = post(daemon, "/v1/embeddings", model="m3", input="hello")["data"][0]["embedding"]
    packed = post(daemon, "/v1/embeddings", model="m3", input="hello", encoding_format="base64")["data"][0]["embedding"]
    assert array("f", base64.b64decode(packed)).tolist() == pytest.approx(plain, abs=1e-6)
    short = post(daemon, "/v1/embeddings", model="m3", input="hello", dimensions=8)["data"][0]["embedding"]
    length = sum(value**2 for value in plain[:8]) ** 0.5
    assert short == pytest.approx([value / length for value in plain[:8]], abs=1e-5)


@pytest.mark.parametrize("kind", ["sparse", "colbert"])
def test_one_kind_of_vector_alone_has_no_embedding(daemon: Daemon, kind: str) -> None:
    """`embedding_type` says which is wanted instead of the dense one."""
    (one,) = post(daemon, "/v1/embeddings", model="embedding", input="hello", embedding_type=kind)["data"]
    assert one.keys() == {"object", "index", f"{kind}_embedding"}


def test_too_long_an_input_is_refused_or_cut(daemon: Daemon) -> None:
    """400 with both numbers; with `truncate` it is cut."""
    long = "hello you " * 9000
    refused = ask(daemon, "POST", "/v1/embeddings", {"model": "m3", "input": long})
    assert (refused.status, refused.json["error"]["code"]) == (400, "context_length_exceeded")
    assert len(re.findall(r"\d{4,}", refused.json["error"]["message"])) == 2
    assert len(post(daemon, "/v1/embeddings", model="m3", input=long, truncate=True)["data"]) == 1


def test_tei_gets_its_own_forms(daemon: Daemon) -> None:
    """`/embed` and `/embed_sparse` answer bare lists."""
    (vector,) = post(daemon, "/embed", inputs="hello")
    assert len(vector) == DIMENSION
    (weights,) = post(daemon, "/embed_sparse", inputs=["hello"])
    assert weights
    assert all(one.keys() == {"index", "value"} for one in weights)


# ------------------------------------------------------------------------------------------------------- rerank, score

QUERY, DOCUMENTS = "rocket moon", ["bread and butter", "a rocket to the moon", {"text": "the moon"}]


def test_rerank_answers_in_both_shapes(daemon: Daemon) -> None:
    """`data` and `results` say the same, sorted by scores from 0 to 1."""
    answer = post(daemon, "/v1/rerank", model="reranker", query=QUERY, documents=DOCUMENTS)
    assert answer.keys() == {"object", "id", "model", "data", "results", "usage"}
    assert (answer["object"], answer["model"], answer["id"][:7]) == ("list", "reranker/ranker", "rerank-")
    scores = [one["score"] for one in answer["data"]]
    assert 1 >= scores[0] >= scores[1] >= scores[2] >= 0
    assert [
        {"index": one["index"], "relevance_score": one["score"], "document": {"text": one["document"]}}
        for one in answer["data"]
    ] == answer["results"]
    assert {one["index"]: one["document"] for one in answer["data"]}[2] == "the moon"
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0


def test_rerank_gives_as_much_as_is_asked_for(daemon: Daemon) -> None:
    """`top_k` and `top_n` are the same; documents can be left out; raw scores are before the sigmoid."""
    asked: Json = {"query": QUERY, "documents": DOCUMENTS}
    for name in ("top_k", "top_n"):
        (one,) = post(daemon, "/v1/rerank", **asked, **{name: 1}, return_documents=False, max_chunks_per_doc=2)["data"]
        assert one.keys() == {"index", "score"}
    whole = {one["index"]: one["score"] for one in post(daemon, "/v1/rerank", **asked)["data"]}
    raw = {one["index"]: one["score"] for one in post(daemon, "/v1/rerank", **asked, raw_scores=True)["data"]}
    assert sorted(whole, key=whole.__getitem__) == sorted(raw, key=raw.__getitem__)
    assert any(not 0 <= score <= 1 for score in raw.values())


def test_rerank_speaks_cohere_and_tei(daemon: Daemon) -> None:
    """`/v2/rerank` has `results` and `meta` alone; `/rerank` answers a list where it is given `texts`."""
    cohere = post(daemon, "/v2/rerank", model="ranker", query=QUERY, documents=DOCUMENTS, top_n=2)
    assert cohere.keys() == {"id", "results", "meta"}
    assert [one.keys() for one in cohere["results"]] == [{"index", "relevance_score"}] * 2
    listed = post(daemon, "/rerank", query=QUERY, texts=["bread", "a rocket to the moon"])
    assert [one.keys() for one in listed] == [{"index", "score"}] * 2
    assert post(daemon, "/rerank", query=QUERY, documents=DOCUMENTS)["object"] == "list"


def test_score_takes_pairs(daemon: Daemon) -> None:
    """One with each of several, or each with its own, in the order in which they came."""
    several = post(daemon, "/v1/score", model="reranker", text_1=QUERY, text_2=["bread", "a rocket to the moon"])
    assert [one["index"] for one in several["data"]] == [0, 1]
    assert several["data"][0]["score"] < several["data"][1]["score"]
    each = post(daemon, "/v1/score", text_1=["bread", QUERY], text_2=["bread", "a rocket to the moon"])
    assert each["data"][1]["score"] == pytest.approx(several["data"][1]["score"], abs=1e-4)
