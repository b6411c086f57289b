"""What each type of job may be told."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmvisor.control.api import JobParams, JobRequest, JobType
from llmvisor.errors import InvalidRequest
from llmvisor.jobs.params import check_request


def request(type: JobType, key: str | None = None, **params: object) -> JobRequest:
    return JobRequest(type, msgspec.convert(params, JobParams), key)


@pytest.mark.parametrize(
    "good",
    [
        request("install", source="starter"),
        request("install", source="hf:Qwen/Qwen2.5-7B-Instruct-GGUF", quantization="Q4_K_M", name="qwen", tier="heavy"),
        request("install", source="hf:org/repo:sub/model-00001-of-00003.gguf"),
        request("install", source="ollama:hf.co/org/repo:Q4_K_M"),
        request("import", path="/models/mine.gguf", mode="link", name="Mine.2"),
        request("load", model="light", restart=True, key="k" * 255),
        request("unload", model="light", force=True),
        request("update", model="light", rollback=True),
        request("delete", model="light", force=True),
    ],
)
def test_what_a_type_takes_is_taken(good: JobRequest) -> None:
    """Nothing is raised."""
    check_request(good)


@pytest.mark.parametrize(
    ("bad", "param"),
    [
        (request("install"), "params.source"),
        (request("install", source=""), "params.source"),
        (request("install", source="file:/etc/passwd"), "params.source"),
        (request("install", source="ftp:x"), "params.source"),
        (request("install", source="hf:org/re\0po"), "params.source"),
        (request("install", source="hf:org/repo:../../x.gguf"), "params.source"),
        (request("install", source="hf:org/../x"), "params.source"),
        (request("install", source="hf:org/rеpo"), "params.source"),
        (request("install", source="hf:org/repo\n"), "params.source"),
        (request("install", source="hf:" + "a" * 10_000), "params.source"),
        (request("install", source="starter", quantization="Q4 K"), "params.quantization"),
        (request("install", source="starter", model="x"), "params.model"),
        (request("install", source="starter", path="/x"), "params.path"),
        (request("install", source="starter", name="../x"), "name"),
        (request("install", source="starter", name="x" * 10_000), "name"),
        (request("install", source="starter", name="ﬁle"), "name"),
        (request("install", source="starter", tier="enormous"), "tier"),
        (request("import"), "params.path"),
        (request("import", path="relative"), "params.path"),
        (request("import", path="/x\0y"), "params.path"),
        (request("import", path="/" + "x" * 5000), "params.path"),
        (request("import", path="/x", source="starter"), "params.source"),
        (request("load"), "params.model"),
        (request("load", model="x", force=True), "params.force"),
        (request("load", model="x" * 1000), "params.model"),
        (request("unload", model="x", restart=True), "params.restart"),
        (request("update", model="x", name="y"), "params.name"),
        (request("delete", model="x", rollback=True), "params.rollback"),
        (request("load", model="x", key=""), "idempotency_key"),
        (request("load", model="x", key="k" * 256), "idempotency_key"),
    ],
)
def test_what_it_does_not_take_is_named(bad: JobRequest, param: str) -> None:
    """With the field's path."""
    with pytest.raises(InvalidRequest) as caught:
        check_request(bad)
    assert caught.value.param == param


@given(st.text(max_size=60), st.sampled_from(["starter", "hf:", "ollama:"]))
def test_no_source_leads_out_of_its_registry(tail: str, head: str) -> None:
    """Whatever is written: what passes has no step up, no control character, nothing beyond ASCII."""
    try:
        check_request(request("install", source=head + tail))
    except InvalidRequest:
        return
    assert (head + tail).isascii()
    assert (head + tail).isprintable()
    assert ".." not in (head + tail).replace(":", "/").split("/")
