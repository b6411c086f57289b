"""Manifests of Ollama's registry: what can be in one, and what cannot."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.ollama_manifest import (
    OllamaManifest,
    OllamaSource,
    parameters,
    parse_manifest,
    parse_source,
    sampling,
    stop_texts,
)
from llmvisor.models.manifest import is_inner_path

SOURCE = OllamaSource("library", "tiny", "latest")
DIGEST = "sha256:" + "0" * 64


def layer(kind: str, **told: object) -> dict[str, object]:
    return {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": DIGEST, "size": 5, **told}


def parsed(*layers: dict[str, object]) -> OllamaManifest:
    return parse_manifest(json.dumps({"schemaVersion": 2, "layers": layers}).encode(), SOURCE)


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("ollama:tiny", ("library", "tiny", "latest")),
        ("ollama:tiny:1b", ("library", "tiny", "1b")),
        ("ollama:me/Tiny.x:Q4_K_M", ("me", "Tiny.x", "Q4_K_M")),
    ],
)
def test_source_is_taken_apart_and_put_together(source: str, parts: tuple[str, str, str]) -> None:
    """Its text names the tag, so that it can be fetched again."""
    found = parse_source(source)
    assert (found.namespace, found.name, found.tag) == parts
    assert parse_source(str(found)) == found


def test_layers_get_names_of_their_own() -> None:
    """Several of one kind are numbered; what is not needed is left out."""
    found = parsed(layer("model"), layer("license"), layer("license"), layer("embed"), layer("projector"))
    assert [one.path for one in found.layers] == ["tiny-latest.gguf", "LICENSE.txt", "LICENSE-2.txt", "mmproj.gguf"]


def test_media_type_may_have_parameters() -> None:
    """They say nothing that counts here."""
    assert [one.kind for one in parsed(layer("model; type=gguf")).layers] == ["model"]


def test_small_layers_are_bounded() -> None:
    """A template of gigabytes is no template."""
    with pytest.raises(FetchProblem):
        parsed(layer("model"), layer("template", size=2 * 1024 * 1024))


def test_parameters_go_by_the_configurations_names() -> None:
    """Numbers alone; a context of nothing is none."""
    told = {"temperature": 0, "top_k": 5, "num_ctx": 0, "num_predict": 64, "top_p": "0.5", "stop": ["x"], "seed": True}
    assert sampling(parameters(json.dumps(told).encode())) == {"temperature": 0, "top_k": 5, "max_tokens": 64}


@pytest.mark.parametrize(
    ("told", "texts"),
    [
        ({"stop": ["<|im_end|>", "", 3, "x" * 1000, "b"]}, ["<|im_end|>", "b"]),
        ({"stop": "one"}, ["one"]),
        ({"stop": {"a": 1}}, []),
        ({}, []),
        ({"stop": [str(number) for number in range(100)]}, [str(number) for number in range(16)]),
    ],
)
def test_what_ends_an_answer_goes_to_the_backend(told: dict[str, object], texts: list[str]) -> None:
    """As many texts as the backend takes, and none that could not be one."""
    assert stop_texts(told) == texts


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10) | st.just(DIGEST),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["layers", "mediaType", "digest", "size", "config"]), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(json_values)
def test_any_json_is_a_manifest_or_a_problem(value: Any) -> None:
    """No answer makes an error of another kind, or a path that leads out."""
    try:
        found = parse_manifest(json.dumps(value).encode(), SOURCE)
    except FetchProblem:
        return
    assert all(is_inner_path(one.path) for one in found.layers)


@given(st.text(max_size=60))
def test_any_source_is_a_model_or_a_problem(text: str) -> None:
    """And none of them changes the path that is asked for."""
    try:
        found = parse_source(f"ollama:{text}")
    except FetchProblem:
        return
    assert is_inner_path(f"{found.repository}/{found.tag}")
