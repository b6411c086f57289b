"""Models from Ollama's registry: its manifest, and its blobs by their digests.

The template layer becomes `chat_template` where it can be said in Jinja (`ollama_template`), with the system layer as
its default system message. Where it cannot, the GGUF's own template serves, and Ollama's lies beside it as a file.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import msgspec

from llmvisor import limits as daemon_limits
from llmvisor.fetch.download import RemoteFile, Report, download
from llmvisor.fetch.failures import FetchProblem, disk_problem
from llmvisor.fetch.gguf_check import check_gguf
from llmvisor.fetch.go_template import Untranslatable
from llmvisor.fetch.ollama_manifest import (
    OllamaManifest,
    OllamaSource,
    parameters,
    parse_manifest,
    parse_source,
    sampling,
    stop_texts,
)
from llmvisor.fetch.ollama_template import to_jinja
from llmvisor.fetch.protocol import Fetched, FetchedFile, FetchProgress, FetchRequest, Unchanged
from llmvisor.fetch.repository import suggested_name
from llmvisor.fetch.web import get_bytes

_ACCEPT = {"Accept": "application/vnd.docker.distribution.manifest.v2+json"}


class _Message(msgspec.Struct):
    role: str
    content: str = ""


class _Texts(msgspec.Struct, frozen=True):
    """What the small layers say."""

    template: str = ""
    system: str = ""
    params: bytes = b"{}"
    messages: tuple[_Message, ...] = ()


async def fetch(request: FetchRequest, *, session: aiohttp.ClientSession, report: Report) -> Fetched | Unchanged:
    """Bring a model of the registry into the staging folder. Raises `FetchProblem`."""
    source = parse_source(request.source)
    report(FetchProgress("resolving"))
    registry = f"{request.ollama_registry.rstrip('/')}/v2/{source.repository}"
    manifest = parse_manifest(await _manifest_bytes(session, f"{registry}/manifests/{source.tag}", source), source)
    if manifest.revision == request.known_revision:
        return Unchanged(manifest.revision)
    remote = [
        RemoteFile(f"{registry}/blobs/sha256:{layer.digest}", layer.path, size=layer.size, sha256=layer.digest)
        for layer in manifest.layers
    ]
    staging = Path(request.staging)
    files = await download(session, remote, staging, request=request, report=report)
    return await asyncio.to_thread(_described, source, manifest, files, staging)


async def _manifest_bytes(session: aiohttp.ClientSession, url: str, source: OllamaSource) -> bytes:
    try:
        return await get_bytes(session, url, what=str(source), headers=_ACCEPT)
    except FetchProblem as problem:
        if problem.kind != "not_found":
            raise
        hint = "`llmctl search` finds models; the library's page of a model lists its tags"
        raise FetchProblem("not_found", f"there is no {source} in the registry", hint=hint) from problem


def _described(source: OllamaSource, manifest: OllamaManifest, files: list[FetchedFile], staging: Path) -> Fetched:
    """Blocks on the disk."""
    main = manifest.of_kind("model")[0].path
    header = check_gguf(staging, main)
    texts = _read_texts(staging, manifest)
    told = parameters(texts.params)
    template, note = _chat_template(texts, header.chat_template)
    options: dict[str, object] = {"chat_template": template} if template else {}
    if projectors := manifest.of_kind("projector"):
        options["mmproj"] = projectors[0].path
    if stops := stop_texts(told):
        options["stop"] = stops
    if adapters := manifest.of_kind("adapter"):
        options["adapters"] = {layer.path.removesuffix(".gguf"): {"path": layer.path} for layer in adapters}
    return Fetched(
        source=str(source),
        revision=manifest.revision,
        files=files,
        main=main,
        name=_name(source),
        publisher=source.namespace,
        description=note,
        options={name: msgspec.Raw(msgspec.json.encode(value)) for name, value in options.items()},
        sampling=sampling(told),
    )


def _chat_template(texts: _Texts, own: str | None) -> tuple[str | None, str | None]:
    """The template in Jinja, or None for the GGUF's own; and what a person should know of it."""
    unused = "; its system message and example messages are not used" if texts.system or texts.messages else ""
    if not texts.template.strip():
        return None, f"it has no chat template of Ollama's{unused}" if unused else None
    try:
        messages = [{"role": one.role, "content": one.content} for one in texts.messages]
        template = to_jinja(texts.template, system=texts.system, messages=messages)
        if len(template.encode()) <= daemon_limits.option_bytes_max // 2:  # as JSON it may become twice as long
            return template, "its chat template was translated from Ollama's"
        reason = "it is too long"
    except Untranslatable as error:
        reason = str(error)
    instead = "the file's own serves" if own else "and the file has none of its own"
    return None, f"Ollama's chat template (template.gotmpl) was not translated, {instead}{unused}: {reason}"[:500]


def _read_texts(staging: Path, manifest: OllamaManifest) -> _Texts:
    contents = {layer.kind: _read(staging / layer.path) for layer in reversed(manifest.layers) if _is_read(layer.kind)}
    try:
        return _Texts(
            template=contents.get("template", b"").decode(),
            system=contents.get("system", b"").decode(),
            params=contents.get("params", b"{}"),
            messages=tuple(msgspec.json.decode(contents.get("messages", b"[]"), type=list[_Message])),
        )
    except (UnicodeError, msgspec.MsgspecError, RecursionError) as error:
        message = f"a layer of the model cannot be read: {error}"
        raise FetchProblem("invalid", message, hint="choose another model or tag") from error


def _is_read(kind: str) -> bool:
    return kind in {"template", "system", "params", "messages"}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise disk_problem(error, str(path)) from error


def _name(source: OllamaSource) -> str:
    return suggested_name(source.name if source.tag == "latest" else f"{source.name}-{source.tag}")
