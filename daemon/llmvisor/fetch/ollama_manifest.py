"""A manifest of Ollama's registry, checked: which layers make a model, and what they say of how it runs. Pure.

Manifests are Docker's (schema 2); a layer's media type says what it is. See `docs/import.md` and
`server/internal/manifest` of ollama/ollama.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final, cast

import msgspec

from llmvisor import limits as daemon_limits
from llmvisor.fetch import limits
from llmvisor.fetch.failures import FetchProblem

DEFAULT_NAMESPACE: Final = "library"
DEFAULT_TAG: Final = "latest"

_SOURCE = re.compile(
    r"ollama:(?:(?P<namespace>[A-Za-z0-9][A-Za-z0-9._-]{0,79})/)?(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,79})"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,79}))?",
    re.ASCII,
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_LAYER: Final = "application/vnd.ollama.image."
_FILES: Final = {"adapter": "adapter", "projector": "mmproj"}
_TEXTS: Final = {
    "template": "template.gotmpl",
    "system": "system.txt",
    "params": "params.json",
    "messages": "messages.json",
    "license": "LICENSE.txt",
}
_SETTINGS: Final = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "repeat_penalty": "repeat_penalty",
    "num_ctx": "n_ctx",
    "num_batch": "n_batch",
    "num_predict": "max_tokens",
}
"""Ollama's parameters by the configuration's names."""


class OllamaSource(msgspec.Struct, frozen=True):
    """`ollama:[namespace/]name[:tag]`, taken apart."""

    namespace: str
    name: str
    tag: str

    def __str__(self) -> str:
        namespace = "" if self.namespace == DEFAULT_NAMESPACE else f"{self.namespace}/"
        return f"ollama:{namespace}{self.name}:{self.tag}"

    @property
    def repository(self) -> str:
        return f"{self.namespace}/{self.name}"


class Layer(msgspec.Struct, frozen=True):
    """One layer as a file of the model's folder."""

    kind: str
    """`model`, `adapter`, `projector`, `template`, …"""
    path: str
    digest: str
    """Of SHA-256, in hexadecimal."""
    size: int


class OllamaManifest(msgspec.Struct, frozen=True):
    """The layers that are taken."""

    revision: str
    layers: tuple[Layer, ...]

    def of_kind(self, kind: str) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers if layer.kind == kind)


class _Blob(msgspec.Struct):
    media_type: str = msgspec.field(name="mediaType")
    digest: str
    size: int


class _Manifest(msgspec.Struct):
    layers: list[_Blob]
    config: _Blob | None = None


def parse_source(source: str) -> OllamaSource:
    """Raises `FetchProblem` (`invalid`)."""
    found = _SOURCE.fullmatch(source) if len(source) <= daemon_limits.source_chars_max else None
    if found is None or ".." in source:
        message = f"{source[:100]!a} names no model of Ollama's registry"
        raise FetchProblem("invalid", message, hint="write ollama:NAME, ollama:NAME:TAG or ollama:USER/NAME:TAG")
    return OllamaSource(found["namespace"] or DEFAULT_NAMESPACE, found["name"], found["tag"] or DEFAULT_TAG)


def parse_manifest(body: bytes, source: OllamaSource) -> OllamaManifest:
    """Raises `FetchProblem`: `invalid` for what cannot be a manifest, `refused` for a model that is no GGUF."""
    try:
        manifest = msgspec.json.decode(body, type=_Manifest)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise _invalid(source, str(error)) from error
    if len(manifest.layers) > daemon_limits.model_folder_files_max:
        raise _invalid(source, f"it has {len(manifest.layers)} layers")
    kinds = [blob.media_type.partition(";")[0].removeprefix(_LAYER) for blob in manifest.layers]
    for blob, kind in zip(manifest.layers, kinds, strict=True):
        _check(blob, kind, source)
    if kinds.count("model") != 1:
        raise _no_model(source, kinds)
    counts: dict[str, int] = {}
    layers: list[Layer] = []
    for blob, kind in zip(manifest.layers, kinds, strict=True):
        counts[kind] = counts.get(kind, 0) + 1
        if (path := _path(kind, counts[kind], source)) is not None:
            layers.append(Layer(kind, path, blob.digest.removeprefix("sha256:"), blob.size))
    return OllamaManifest(hashlib.sha256(body).hexdigest(), tuple(layers))


def parameters(params: bytes) -> dict[str, object]:
    """What a `params` layer says. Raises `FetchProblem`."""
    try:
        return msgspec.json.decode(params, type=dict[str, object])
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        message = f"the model's parameters are no JSON object: {error}"
        raise FetchProblem("invalid", message, hint="choose another model or tag") from error


def stop_texts(told: dict[str, object]) -> list[str]:
    """What ends an answer, for the backend's `stop`; what cannot be one is left out."""
    texts = told.get("stop")
    found = [texts] if isinstance(texts, str) else cast("list[object]", texts) if isinstance(texts, list) else []
    fitting = [text for text in found if isinstance(text, str) and 0 < len(text) <= limits.ollama_stop_chars_max]
    return fitting[: limits.ollama_stops_max]


def sampling(told: dict[str, object]) -> dict[str, float | int | str]:
    """The settings of parameters by the configuration's names; what is no number there is left out."""
    found: dict[str, float | int | str] = {}
    for theirs, ours in _SETTINGS.items():
        value = told.get(theirs)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and (value > 0 or theirs == "temperature"):
            found[ours] = value
    return found


def _path(kind: str, number: int, source: OllamaSource) -> str | None:
    """The file that a layer becomes; None for what is not needed."""
    suffix = "" if number == 1 else f"-{number}"
    if kind == "model":
        return f"{source.name}-{source.tag}.gguf"
    if kind in _FILES:
        return f"{_FILES[kind]}{suffix}.gguf"
    if kind not in _TEXTS:
        return None
    stem, _, ending = _TEXTS[kind].rpartition(".")
    return f"{stem}{suffix}.{ending}"


def _check(blob: _Blob, kind: str, source: OllamaSource) -> None:
    if not _DIGEST.fullmatch(blob.digest):
        raise _invalid(source, f"{blob.digest[:80]!a} is no digest")
    most = limits.ollama_text_bytes_max if kind in _TEXTS else limits.model_file_bytes_max
    if not 0 <= blob.size <= most:
        raise _invalid(source, f"a layer ({kind[:40]!a}) is said to have {blob.size} bytes")


def _no_model(source: OllamaSource, kinds: list[str]) -> FetchProblem:
    if not kinds or "tensor" not in kinds:
        what = "it has no weights: it runs on Ollama's own servers" if "model" not in kinds else "it has several models"
    else:
        what = "its weights are in a format of Ollama's own engine"
    hint = "choose another tag, or a GGUF from Hugging Face (`llmctl search`)"
    return FetchProblem("refused", f"{source} cannot be served here: {what}", hint=hint)


def _invalid(source: OllamaSource, reason: str) -> FetchProblem:
    message = f"the registry's manifest of {source} cannot be used: {reason}"
    return FetchProblem("invalid", message, hint="check registries.ollama, or choose another tag")
