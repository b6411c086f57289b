"""The official `openai` client where something is wrong: it raises its own exceptions, with what a user needs to know.

Requests that cannot be honoured say which field; models that are not there, cannot load or have crashed say why and
when to come again; a worker that is killed is no more than a pause; whoever gives up frees a place.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator

import openai
import pytest
from openai import OpenAI
from tests.support.daemon import Daemon
from tests.support.openai_daemon import COUNTING, MODEL, QUESTION, openai_client, openai_daemon
from tests.support.polling import eventually_sync

RESUME_OFF = {"X-LLMVISOR-Resume": "off"}

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def daemon() -> Generator[Daemon]:
    with openai_daemon() as one:
        yield one


@pytest.fixture(scope="module")
def client(daemon: Daemon) -> Iterator[OpenAI]:
    with openai_client(daemon) as one:
        yield one


def test_value_out_of_range_is_a_bad_request(client: OpenAI) -> None:
    """The client's own exception, with the field that is wrong."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=5)
    error = caught.value
    assert (error.status_code, error.param, error.code) == (400, "temperature", "invalid_value")
    assert error.type == "invalid_request_error"
    assert "2" in error.message


def test_fields_that_change_nothing_are_ignored(client: OpenAI) -> None:
    """What OpenAI's own service takes besides is no error."""
    answer = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        max_tokens=1,
        user="someone",
        metadata={"run": "7"},
        store=False,
        service_tier="auto",
        response_format={"type": "text"},
        extra_body={"something_new": {"deep": [1]}},
    )
    assert answer.choices[0].finish_reason == "length"


def test_fields_that_cannot_be_honoured_are_refused(client: OpenAI) -> None:
    """Rather than answered as if they had not been there."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=QUESTION, modalities=["text", "audio"])
    assert (caught.value.param, caught.value.code) == ("modalities", "unsupported_operation")


def test_unknown_model_is_not_found_with_near_names(client: OpenAI) -> None:
    """A typing mistake is answered with what was probably meant."""
    with pytest.raises(openai.NotFoundError, match="light/smol") as caught:
        client.chat.completions.create(model="smoll", messages=QUESTION)
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("smoll")


def test_tier_without_a_model_is_not_found(client: OpenAI) -> None:
    """As the specification words it."""
    with pytest.raises(openai.NotFoundError, match="No models available for tier: heavy") as caught:
        client.chat.completions.create(model="heavy", messages=QUESTION)
    assert caught.value.code == "tier_not_configured"


def test_prompt_longer_than_the_context_is_a_bad_request(client: OpenAI) -> None:
    """The message has both numbers: what came and what fits."""
    with pytest.raises(openai.BadRequestError, match=r"\b1024\b") as caught:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "tree " * 1200}])
    assert caught.value.code == "context_length_exceeded"
    assert "12" in caught.value.message


def test_model_that_cannot_load_is_a_server_error_with_its_reason(client: OpenAI) -> None:
    """503 is the class that clients retry; without retries it is raised at once."""
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="hopeless", messages=QUESTION)
    assert (caught.value.status_code, caught.value.type) == (503, "model_error")
    assert caught.value.code in {"model_load_failed", "model_unavailable"}
    assert "78" in caught.value.message


def test_crash_inside_a_stream_is_an_api_error_where_that_is_asked_for(client: OpenAI) -> None:
    """A stream is never cut in silence: the client raises what the worker died of."""
    stream = client.chat.completions.create(
        model="mock",
        messages=[{"role": "user", "content": "[[failpoint: generate=3*token->kill(9)]]"}],
        stream=True,
        extra_headers=RESUME_OFF,
    )
    with pytest.raises(openai.APIError, match="SIGKILL") as caught:
        list(stream)
    assert caught.value.code == "runtime_crashed"


def test_real_worker_that_is_killed_is_a_pause(client: OpenAI, daemon: Daemon) -> None:
    """1. A stream of the real model runs. 2. Its worker gets SIGKILL. Result: the stream goes on to its end, and the
    next call is answered by the new worker, as it would have been by the old one."""
    before = client.completions.create(model=MODEL, prompt=COUNTING, max_tokens=8, temperature=0)
    pid = daemon.worker_pid(MODEL)
    stream = client.completions.create(
        model=MODEL,
        prompt="Once",
        max_tokens=100,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    os.kill(pid, signal.SIGKILL)
    *_, last = stream
    assert last.usage is not None
    assert last.usage.completion_tokens == 100
    after = client.completions.create(model=MODEL, prompt=COUNTING, max_tokens=8, temperature=0)
    assert after.choices[0].text == before.choices[0].text
    assert daemon.worker_pid(MODEL) != pid


def test_crash_before_the_first_byte_asks_to_come_again_where_that_is_asked_for(client: OpenAI) -> None:
    """What the client goes by when it retries, as it does without `max_retries=0`."""
    with pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(model="mock", prompt="[[failpoint: generate=kill(9)]]", extra_headers=RESUME_OFF)
    assert caught.value.code == "runtime_crashed"
    assert int(caught.value.response.headers["Retry-After"]) > 0


def test_poison_request_is_an_error_that_no_client_repeats(client: OpenAI) -> None:
    """422: the second worker that it ended was the last."""
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        client.completions.create(model="mock", prompt="[[failpoint: generate=2*token->kill(11)]]")
    assert caught.value.code == "poison_request"


def test_endpoint_that_does_not_exist_is_not_found(client: OpenAI) -> None:
    """Parts that are not there answer in JSON, which the client makes its exception of."""
    with pytest.raises(openai.NotFoundError) as caught:
        client.images.generate(prompt="a tree")
    assert caught.value.code == "not_found"


def test_client_that_gives_up_frees_its_place(client: OpenAI, daemon: Daemon) -> None:
    """The client's own timeout closes the connection, and that is all it takes."""
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=1.5).completions.create(model="sleepy", prompt="hi")
    eventually_sync(lambda: daemon.runtime("sleepy")["slots_busy"] == 0, 10)


def test_raw_response_has_the_request_id(client: OpenAI) -> None:
    """What the client shows as `_request_id` is in our log as well."""
    answer = client.with_raw_response.models.list()
    assert answer.headers["X-Request-Id"]
    given = client.with_options(default_headers={"X-Request-Id": "mine-1"}).chat.completions.create(
        model="mock", messages=QUESTION, max_tokens=1
    )
    assert given._request_id == "mine-1"  # pyright: ignore[reportPrivateUsage] - documented under this name
