"""Ollama's registry, and the page that its library is searched on."""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aiohttp import web
from tests.support.http_double import Fault, HttpDouble

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
_LAYER = "application/vnd.ollama.image."


@dataclass
class LibraryModel:
    """A card of the library's search page."""

    name: str
    description: str = "A model."
    pulls: str = "1.2M"
    sizes: Sequence[str] = ("1b", "3b")
    capabilities: Sequence[str] = ("tools",)
    updated: str = "3 weeks ago"


@dataclass
class Manifest:
    """Layers by their kinds, as `(kind, content)`."""

    layers: list[tuple[str, bytes]]
    told: dict[str, dict[str, object]] = field(default_factory=dict[str, dict[str, object]])
    """Fields of a kind's layer that are not what they should be."""


class OllamaDouble(HttpDouble):
    """Manifests by `namespace/name:tag`, and the library's cards."""

    def __init__(self) -> None:
        super().__init__()
        self.manifests: dict[str, Manifest | bytes] = {}
        self.library: list[LibraryModel] = []
        self.marked = True
        """Whether the page has the marks that its own tests go by."""
        self.page: str | None = None
        """Served instead."""

    async def answer(self, request: web.BaseRequest, fault: Fault | None) -> web.StreamResponse:
        match request.path.strip("/").split("/"):
            case ["v2", namespace, name, "manifests", tag]:
                return self._manifest(f"{namespace}/{name}:{tag}", fault)
            case ["v2", _, _, "blobs", digest]:
                return self._blob(digest)
            case ["search"]:
                page = self._page(request.query.get("q", "")) if self.page is None else self.page
                return web.Response(text=page, content_type="text/html")
            case _:
                return web.Response(status=404, text="404 page not found")

    def manifest_bytes(self, id: str) -> bytes:
        """A manifest as it is served."""
        manifest = self.manifests[id]
        if isinstance(manifest, bytes):
            return manifest
        config = self._layer("application/vnd.docker.container.image.v1+json", b'{"model_format":"gguf"}', {})
        layers = [self._layer(_LAYER + kind, content, manifest.told.get(kind, {})) for kind, content in manifest.layers]
        told = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers}
        return json.dumps(told).encode()

    def _layer(self, media_type: str, content: bytes, told: Mapping[str, object]) -> dict[str, object]:
        digest = f"sha256:{self.add_blob(content)}"
        return {"mediaType": media_type, "digest": digest, "size": len(content), **told}

    def _manifest(self, id: str, fault: Fault | None) -> web.Response:
        if id not in self.manifests:
            told = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
            return web.json_response(told, status=404)
        body = self.manifest_bytes(id) if fault is None or fault.content is None else fault.content
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        return web.Response(body=body, headers={"Content-Type": MANIFEST_TYPE, "Docker-Content-Digest": digest})

    def _blob(self, digest: str) -> web.Response:
        known = digest.removeprefix("sha256:")
        if self.blob(known) is None:
            return web.json_response({"errors": [{"code": "BLOB_UNKNOWN", "message": "blob unknown"}]}, status=404)
        return self.to_cdn(known, status=307)

    def _page(self, query: str) -> str:
        found = [model for model in self.library if query.lower() in f"{model.name} {model.description}".lower()]
        cards = "".join(map(self._card, found)) or "<p>No models found.</p>"
        return f"<!doctype html><html><body><nav><a href='/library'>Models</a></nav><ul>{cards}</ul></body></html>"

    def _card(self, model: LibraryModel) -> str:
        link = model.name if "/" in model.name else f"library/{model.name}"

        def spans(mark: str, words: Sequence[str]) -> str:
            return "".join(f"<span {mark if self.marked else ''}>{html.escape(word)}</span>" for word in words)

        title = "x-test-search-response-title" if self.marked else "class='truncate'"
        return f"""<li {"x-test-model" if self.marked else ""} class="flex items-baseline border-b py-6">
<a href="/{link}" class="group w-full"><div title="{model.name}"><h2><span {title}>{model.name}</span></h2>
<p class="max-w-lg break-words">{html.escape(model.description)}</p></div>
<div>{spans("x-test-capability", model.capabilities)}{spans("x-test-size", model.sizes)}</div>
<p class="my-1 flex"><span class="flex"><svg><path d="M1"/></svg>{spans("x-test-pull-count", [model.pulls])}
<span class="hidden sm:flex">&nbsp;Pulls</span></span><span>{spans("x-test-tag-count", ["93"])}&nbsp;Tags</span>
<span>Updated&nbsp;{spans("x-test-updated", [model.updated])}</span></p></a></li>"""
