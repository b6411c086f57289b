"""Images and sounds through the `openai` client: a data URL becomes what the model sees, and bad ones are refused."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from tests.support.daemon import Daemon
from tests.support.tiny_gguf import write_tiny_gguf
from tests.support.tiny_mmproj import IMAGE_TOKENS, data_url, png, wav, write_tiny_mmproj


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Generator[Daemon]:
    folder = tmp_path_factory.mktemp("models")
    tiny = {"backend": "llamacpp", "path": str(write_tiny_gguf(folder / "tiny.gguf")), "n_ctx": 512, "n_threads": 1}
    models = {
        "eyes": {**tiny, "options": {"mmproj": str(write_tiny_mmproj(folder / "eyes.gguf"))}},
        "ears": {**tiny, "options": {"mmproj": str(write_tiny_mmproj(folder / "ears.gguf", "ultravox"))}},
        "blind": tiny,
        "unfit": {**tiny, "options": {"mmproj": str(write_tiny_mmproj(folder / "wide.gguf", dims=128))}},
    }
    with Daemon({"models": models}) as one:
        yield one


@pytest.fixture(scope="module")
def client(daemon: Daemon) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0, timeout=100) as one:
        yield one


def image_part(image: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(image)}}


def sound_part(sound: bytes) -> dict[str, Any]:
    _, _, data = data_url(sound).partition(",")
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def ask(client: OpenAI, model: str, *parts: dict[str, Any], **wanted: Any) -> Any:
    content = [
        {"type": "text", "text": "look"},
        *parts,
        {"type": "text", "text": "and tell what it is, in a few words"},
    ]
    settings: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "extra_body": {"ignore_eos": True}, **wanted}
    messages: Any = [{"role": "user", "content": content}]
    create: Any = client.chat.completions.create
    return create(model=model, messages=messages, **settings)


def test_answer_depends_on_the_image(client: OpenAI) -> None:
    """Two images, one of them twice: two answers; usage counts the image, and knows what came from the cache."""
    plain = ask(client, "eyes")
    first, other, again = (ask(client, "eyes", image_part(png(seed)), logprobs=True) for seed in (1, 2, 1))
    said = [[one.token for one in each.choices[0].logprobs.content] for each in (first, other, again)]
    assert said[0] == said[2] != said[1]
    assert first.usage.prompt_tokens == plain.usage.prompt_tokens + IMAGE_TOKENS
    assert again.usage.prompt_tokens_details.cached_tokens > IMAGE_TOKENS


def test_images_stream_and_mix_with_texts(client: OpenAI) -> None:
    """Two images in one streamed answer."""
    stream = ask(client, "eyes", image_part(png(3)), {"type": "text", "text": " and "}, image_part(png(4)), stream=True)
    chunks = list(stream)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_sound_is_heard(client: OpenAI) -> None:
    """`input_audio` of a model whose mmproj hears."""
    said = [
        [one.token for one in ask(client, "ears", sound_part(wav(seed)), logprobs=True).choices[0].logprobs.content]
        for seed in (1, 2)
    ]
    assert said[0] != said[1]


def test_models_list_what_they_see_and_hear(client: OpenAI, daemon: Daemon) -> None:
    """`vision` and `audio` stand in the capabilities of loaded models."""
    for model in ("eyes", "ears", "blind"):
        ask(client, model)
    _, answer = daemon.request("GET", "/v1/models")
    listed = {one["id"].rpartition("/")[2]: one["capabilities"] for one in answer["data"]}
    able = {model: {"vision", "audio"} & {*listed[model]} for model in ("eyes", "ears", "blind")}
    assert able == {"eyes": {"vision"}, "ears": {"audio"}, "blind": set()}


def test_tokenize_counts_an_image(daemon: Daemon) -> None:
    """An image's places are tokens of the number -1."""
    messages = [{"role": "user", "content": [image_part(png(1))]}]
    status, answer = daemon.request("POST", "/tokenize", {"model": "eyes", "messages": messages})
    assert status == 200, answer
    assert answer["tokens"].count(-1) == IMAGE_TOKENS
    assert answer["count"] == len(answer["tokens"])


@pytest.mark.parametrize(
    ("model", "part", "said"),
    [
        pytest.param("blind", image_part(png(1)), "mmproj", id="an image without an mmproj"),
        pytest.param("eyes", sound_part(wav(1)), "mmproj", id="a sound where it only sees"),
        pytest.param("ears", image_part(png(1)), "mmproj", id="an image where it only hears"),
        pytest.param("eyes", image_part(png(1, width=200, height=200)[:400]), "cannot be decoded", id="a cut PNG"),
    ],
)
def test_what_a_model_cannot_see_is_refused_and_the_next_request_served(
    client: OpenAI, model: str, part: dict[str, Any], said: str
) -> None:
    """400 with the reason and what to do; the worker is as well as before."""
    ask(client, model)
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, model, part)
    assert said in caught.value.message
    assert len(ask(client, model, logprobs=True).choices[0].logprobs.content) == 8


def test_images_beyond_the_context_are_the_usual_error(client: OpenAI) -> None:
    """40 images are more tokens than the model's context has."""
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "eyes", *[image_part(png(1))] * 40)
    assert caught.value.code == "context_length_exceeded"


def test_model_with_an_mmproj_of_another_says_why_it_does_not_load(client: OpenAI) -> None:
    """503 with both sizes, once and for all."""
    with pytest.raises(openai.InternalServerError) as caught:
        ask(client, "unfit")
    assert caught.value.status_code == 503
    assert "n_embd = 128" in caught.value.message
