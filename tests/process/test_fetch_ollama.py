"""Models from Ollama's registry, against a double that speaks its protocol."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Literal

import msgspec
import pytest
from tests.support.http_double import Fault
from tests.support.leaks import no_leaks
from tests.support.ollama_double import Manifest, OllamaDouble
from tests.support.tiny_gguf import write_tiny_gguf

from llmvisor.fetch.download import open_session
from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.ollama import fetch
from llmvisor.fetch.protocol import Fetched, FetchProgress, FetchRequest, Unchanged
from llmvisor_runtimes.protocol import ChatMessage, ChatPrompt
from llmvisor_runtimes.template import ChatTemplate

TEMPLATE = b"""{{- if .System }}<|sys|>{{ .System }}
{{ end }}{{- range $i, $_ := .Messages }}{{- if eq .Role "user" }}<|user|>{{ .Content }}
{{ else if eq .Role "assistant" }}<|bot|>{{ .Content }}
{{ end }}{{- end }}<|bot|>"""
PARAMS = b'{"stop":["<|user|>"],"temperature":0.25,"top_k":20,"num_ctx":4096,"num_predict":-1,"mirostat":"x"}'


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


@pytest.fixture
def registry() -> Generator[OllamaDouble]:
    with OllamaDouble() as double:
        yield double


class Trial:
    """One fetch after another into the same staging folder."""

    def __init__(self, registry: OllamaDouble, staging: Path) -> None:
        staging.mkdir()
        self._registry = registry
        self.staging = staging
        self.progress: list[FetchProgress] = []

    async def run(self, source: str, known_revision: str | None = None) -> Fetched | Unchanged:
        request = FetchRequest(
            source,
            str(self.staging),
            connections=1,
            ollama_registry=self._registry.url + "/",
            known_revision=known_revision,
        )
        async with open_session() as session:
            return await fetch(request, session=session, report=self.progress.append)

    async def fetched(self, source: str) -> Fetched:
        got = await self.run(source)
        assert isinstance(got, Fetched)
        return got

    async def problem(self, source: str) -> FetchProblem:
        with pytest.raises(FetchProblem) as caught:
            await self.run(source)
        assert caught.value.hint
        assert len(caught.value.message) < 600
        return caught.value

    def files(self) -> dict[str, bytes]:
        """What lies in the staging folder under its own name."""
        found = [path for path in self.staging.rglob("*") if path.is_file() and ".partial" not in path.name]
        return {path.relative_to(self.staging).as_posix(): path.read_bytes() for path in found}


@pytest.fixture
def trial(registry: OllamaDouble, tmp_path: Path) -> Trial:
    return Trial(registry, tmp_path / "staging")


def options_of(fetched: Fetched) -> dict[str, object]:
    return {name: msgspec.json.decode(value) for name, value in fetched.options.items()}


def rendered(template: object, *messages: tuple[Literal["system", "user"], str]) -> str:
    assert isinstance(template, str)
    prompt = ChatPrompt(messages=[ChatMessage(role, content) for role, content in messages])
    return ChatTemplate(template, bos_token="", eos_token="").render(prompt)


async def test_model_comes_with_its_template_and_parameters(registry: OllamaDouble, trial: Trial, gguf: bytes) -> None:
    """The template layer is the model's chat template, its system layer the default, its params the settings."""
    layers = [("model", gguf), ("template", TEMPLATE), ("system", b"Be kind."), ("params", PARAMS), ("license", b"MIT")]
    registry.manifests["library/tiny:1b"] = Manifest(layers)
    got = await trial.fetched("ollama:tiny:1b")
    assert trial.files() == {
        "tiny-1b.gguf": gguf,
        "template.gotmpl": TEMPLATE,
        "system.txt": b"Be kind.",
        "params.json": PARAMS,
        "LICENSE.txt": b"MIT",
    }
    assert (got.source, got.main, got.name, got.publisher) == ("ollama:tiny:1b", "tiny-1b.gguf", "tiny-1b", "library")
    assert got.revision == hashlib.sha256(registry.manifest_bytes("library/tiny:1b")).hexdigest()
    assert got.sampling == {"temperature": 0.25, "top_k": 20, "n_ctx": 4096}
    template = options_of(got)["chat_template"]
    assert rendered(template, ("user", "Hi")) == "<|sys|>Be kind.\n<|user|>Hi\n<|bot|>"
    assert rendered(template, ("system", "Be rude."), ("user", "Hi")) == "<|sys|>Be rude.\n<|user|>Hi\n<|bot|>"
    assert await trial.run(got.source, got.revision) == Unchanged(got.revision)


async def test_tag_and_namespace_default_as_with_ollama(registry: OllamaDouble, trial: Trial, gguf: bytes) -> None:
    """`latest`, and `library`; a user's own model has the user in front."""
    registry.manifests["library/tiny:latest"] = Manifest([("model", gguf)])
    registry.manifests["someone/Tiny:v2"] = Manifest([("model", gguf)])
    first = await trial.fetched("ollama:tiny")
    assert (first.source, first.name, first.options) == ("ollama:tiny:latest", "tiny", {})
    second = await trial.fetched("ollama:someone/Tiny:v2")
    assert (second.source, second.name, second.publisher) == ("ollama:someone/Tiny:v2", "tiny-v2", "someone")


async def test_projector_and_adapters_become_options(registry: OllamaDouble, trial: Trial, gguf: bytes) -> None:
    """By their paths below the model's folder."""
    layers = [("model", gguf), ("projector", gguf + b"p"), ("adapter", gguf + b"a"), ("adapter", gguf + b"b")]
    registry.manifests["library/tiny:latest"] = Manifest(layers)
    got = await trial.fetched("ollama:tiny")
    assert options_of(got) == {
        "mmproj": "mmproj.gguf",
        "adapters": {"adapter": {"path": "adapter.gguf"}, "adapter-2": {"path": "adapter-2.gguf"}},
    }
    assert {one.path for one in got.files} >= {"mmproj.gguf", "adapter.gguf", "adapter-2.gguf"}


async def test_messages_layer_stands_before_each_conversation(
    registry: OllamaDouble, trial: Trial, gguf: bytes
) -> None:
    """As `MESSAGE` of a Modelfile has it."""
    said = json.dumps([{"role": "user", "content": 'It\'s "2"?'}, {"role": "assistant", "content": "Yes {{ x }}"}])
    registry.manifests["library/tiny:latest"] = Manifest(
        [("model", gguf), ("template", TEMPLATE), ("messages", said.encode())]
    )
    template = options_of(await trial.fetched("ollama:tiny"))["chat_template"]
    assert rendered(template, ("user", "3?")) == '<|user|>It\'s "2"?\n<|bot|>Yes {{ x }}\n<|user|>3?\n<|bot|>'


async def test_template_that_jinja_cannot_say_leaves_the_files_own(
    registry: OllamaDouble, trial: Trial, gguf: bytes
) -> None:
    """Ollama's is kept as a file, and what happened is said."""
    odd = b'{{ define "x" }}{{ .Prompt }}{{ end }}{{ template "x" . }}'
    registry.manifests["library/tiny:latest"] = Manifest([("model", gguf), ("template", odd)])
    got = await trial.fetched("ollama:tiny")
    assert "chat_template" not in got.options
    assert "the file's own serves" in (got.description or "")
    assert "system message" not in (got.description or "")
    assert trial.files()["template.gotmpl"] == odd


@pytest.mark.parametrize("template", [b"", b'{{ template "x" . }}'])
async def test_system_message_that_has_no_place_is_told(
    registry: OllamaDouble, trial: Trial, gguf: bytes, template: bytes
) -> None:
    """The file's own template serves, which knows nothing of it."""
    registry.manifests["library/tiny:latest"] = Manifest(
        [("model", gguf), ("template", template), ("system", b"Sing.")]
    )
    got = await trial.fetched("ollama:tiny")
    assert "chat_template" not in got.options
    assert "its system message and example messages are not used" in (got.description or "")


# ------------------------------------------------------------------------------------------------------------ refusals


async def test_unknown_model_and_tag_are_not_found(registry: OllamaDouble, trial: Trial, gguf: bytes) -> None:
    """With the name in the message."""
    registry.manifests["library/tiny:latest"] = Manifest([("model", gguf)])
    for source in ("ollama:none", "ollama:tiny:9b"):
        problem = await trial.problem(source)
        assert problem.kind == "not_found"
        assert source in problem.message


@pytest.mark.parametrize(
    "source",
    [
        *("ollama:", "ollama:../x", "ollama:a/b/c", "ollama:a:..", "ollama:a\0b", "ollama:a:b c", "ollama:a\n"),
        *("ollama:" + "a" * 10_000, "ollama:/etc/passwd", "ollama:a..b", "ollama:ä"),
    ],
)
async def test_sources_that_name_no_model_are_refused_unasked(
    registry: OllamaDouble, trial: Trial, source: str
) -> None:
    """They never reach the registry."""
    assert (await trial.problem(source)).kind == "invalid"
    assert registry.asked == []


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([("tensor", b"x"), ("tensor", b"y")], "format of Ollama's own engine"),
        ([("license", b"x")], "Ollama's own servers"),
        ([], "Ollama's own servers"),
        ([("model", b"x"), ("model", b"y")], "several models"),
    ],
)
async def test_models_that_are_no_gguf_are_refused_with_the_reason(
    registry: OllamaDouble, trial: Trial, layers: list[tuple[str, bytes]], words: str
) -> None:
    """Before a byte of them is fetched."""
    registry.manifests["library/tiny:latest"] = Manifest(layers)
    problem = await trial.problem("ollama:tiny")
    assert problem.kind == "refused"
    assert words in problem.message
    assert registry.asked_of("/v2/library/tiny/blobs/") == []


@pytest.mark.parametrize(
    "told",
    [
        *(
            {"digest": digest}
            for digest in ("sha256:../../x", "md5:" + "0" * 64, "sha256:" + "G" * 64, "", "x" * 10_000)
        ),
        *({"digest": "sha256:" + "0" * 64 + "\n"}, {"digest": 5}),
        *({"size": size} for size in (-1, 10**18, "many", None, 1.5)),
    ],
)
async def test_manifest_that_cannot_be_is_refused(
    registry: OllamaDouble, trial: Trial, gguf: bytes, told: dict[str, object]
) -> None:
    """Digests that are none, and sizes that are none."""
    registry.manifests["library/tiny:latest"] = Manifest([("model", gguf)], told={"model": told})
    assert (await trial.problem("ollama:tiny")).kind == "invalid"
    assert registry.asked_of("/v2/library/tiny/blobs/") == []
    assert os.listdir(trial.staging) == []


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"<html>", b'{"layers": 5}', b"[" * 100_000, b"\xff" * 100])
async def test_answer_that_is_no_manifest_is_refused(registry: OllamaDouble, trial: Trial, body: bytes) -> None:
    """Whatever a server answers there."""
    registry.manifests["library/tiny:latest"] = body
    assert (await trial.problem("ollama:tiny")).kind == "invalid"


async def test_endless_manifest_is_not_read_to_its_end(registry: OllamaDouble, trial: Trial) -> None:
    """An answer has a bound."""
    registry.manifests["library/tiny:latest"] = b" " * (17 * 1024 * 1024)
    problem = await trial.problem("ollama:tiny")
    assert problem.kind == "invalid"
    assert "bytes" in problem.message


@pytest.mark.parametrize("size", [10, 10_000_000])
async def test_manifest_that_lies_about_a_size_is_refused(
    registry: OllamaDouble, trial: Trial, gguf: bytes, size: int
) -> None:
    """The blob has another one; nothing is kept of it."""
    registry.manifests["library/tiny:latest"] = Manifest([("model", gguf)], told={"model": {"size": size}})
    assert (await trial.problem("ollama:tiny")).kind in {"invalid", "wrong_checksum"}
    assert trial.files() == {}


async def test_blob_with_another_digest_is_not_kept(registry: OllamaDouble, trial: Trial, gguf: bytes) -> None:
    """Its bytes are another content's."""
    registry.manifests["library/tiny:latest"] = Manifest([("model", gguf)])
    registry.faults["/cdn/"] = [Fault(content=bytes(len(gguf)))] * 4
    assert (await trial.problem("ollama:tiny")).kind == "wrong_checksum"
    assert trial.files() == {}


async def test_blob_that_is_no_gguf_is_refused(registry: OllamaDouble, trial: Trial) -> None:
    """Whatever the manifest calls it."""
    registry.manifests["library/tiny:latest"] = Manifest([("model", b"GGUF" + b"\xff" * 1000)])
    assert (await trial.problem("ollama:tiny")).kind == "invalid"


@pytest.mark.parametrize(
    ("kind", "content"), [("params", b"[1]"), ("params", b"\xff"), ("template", b"\xff\xfe"), ("messages", b"{}")]
)
async def test_small_layers_that_cannot_be_read_are_refused(
    registry: OllamaDouble, trial: Trial, gguf: bytes, kind: str, content: bytes
) -> None:
    """Instead of a model that runs differently than it should."""
    registry.manifests["library/tiny:latest"] = Manifest([("model", gguf), (kind, content)])
    assert (await trial.problem("ollama:tiny")).kind == "invalid"


# ------------------------------------------------------------------------------------------------------------- faults


async def test_cut_blob_is_resumed(registry: OllamaDouble, trial: Trial, gguf: bytes) -> None:
    """From the byte where the connection broke."""
    registry.manifests["library/tiny:latest"] = Manifest([("model", gguf)])
    registry.faults["/cdn/"] = [Fault(cut_after_bytes=60_000)]
    await trial.fetched("ollama:tiny")
    assert trial.files() == {"tiny-latest.gguf": gguf}
    starts = [one.headers["Range"].split("=")[1].split("-")[0] for one in registry.asked_of("/cdn/", "GET")]
    assert starts[0] == "0"
    assert int(starts[-1]) > 0


async def test_busy_registry_is_told_with_its_own_wait(registry: OllamaDouble, trial: Trial, gguf: bytes) -> None:
    """429 and 5xx may pass, and then it goes well."""
    registry.manifests["library/tiny:latest"] = Manifest([("model", gguf)])
    registry.faults["/v2/"] = [Fault(status=429, headers={"Retry-After": "12"}), Fault(status=502)]
    busy = await trial.problem("ollama:tiny")
    assert (busy.kind, busy.retry_after_seconds) == ("network", 12.0)
    assert (await trial.problem("ollama:tiny")).kind == "network"
    await trial.fetched("ollama:tiny")


def test_fetches_that_fail_leave_nothing_open(registry: OllamaDouble, trial: Trial, gguf: bytes) -> None:
    """No descriptor, thread or child, after each kind of failure; each fetch has a loop of its own."""
    registry.manifests["library/tiny:latest"] = Manifest([("model", gguf)])
    asyncio.run(trial.problem("ollama:none"))  # what libraries open once and keep
    with no_leaks():
        for path, fault in (("/cdn/", Fault(content=bytes(len(gguf)))), ("/v2/", Fault(status=500))):
            registry.faults[path] = [fault]
            assert asyncio.run(trial.problem("ollama:tiny")).kind in {"wrong_checksum", "network"}
