"""A hub as the one of Hugging Face: its listings, its redirects to a content's host, its refusals."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from aiohttp import web
from tests.support.http_double import Fault, HttpDouble

COMMIT = "5d0a1b2c3d4e5f60718293a4b5c6d7e8f9010203"
LFS_BYTES_MIN = 1024
"""Smaller files stand in git itself; what they are called does not matter here."""
TOKEN = "hf_ofsomebody"


@dataclass
class Repository:
    """A model's repository at one commit."""

    files: dict[str, bytes]
    commit: str = COMMIT
    gated: str | bool = False
    private: bool = False
    granted: bool = False
    """Whether `TOKEN` opens it where it is gated."""
    likes: int = 3
    downloads: int = 1000
    tags: list[str] = field(default_factory=lambda: ["gguf"])
    gguf: dict[str, object] | None = None
    safetensors: dict[str, int] | None = None
    """Numbers by their type."""
    sizes_told: dict[str, int] = field(default_factory=dict[str, int])
    """Sizes in the listing that are not those of the files."""
    digests_told: dict[str, str] = field(default_factory=dict[str, str])
    names_told: list[str] = field(default_factory=list[str])
    """Further names in the listing."""


class HubDouble(HttpDouble):
    """Repositories by `org/name`."""

    def __init__(self, repositories: Mapping[str, Repository] | None = None) -> None:
        super().__init__()
        self.repositories = dict(repositories or {})
        self.renamed: dict[str, str] = {}
        """New names by old ones."""
        self.etag_told: str | None = None
        """Instead of the contents' own."""

    async def answer(self, request: web.BaseRequest, fault: Fault | None) -> web.StreamResponse:
        return self._redirect(request) or await self._answer(request, fault)

    def _redirect(self, request: web.BaseRequest) -> web.Response | None:
        for old, new in self.renamed.items():
            if f"/{old}" in request.path:
                location = request.path_qs.replace(f"/{old}", f"/{new}", 1)
                return web.Response(status=307, headers={"Location": location})
        return None

    async def _answer(self, request: web.BaseRequest, fault: Fault | None) -> web.StreamResponse:
        match request.path.strip("/").split("/"):
            case ["api", "models"]:
                return self._search(request)
            case ["api", "models", org, name]:
                return self._info(request, f"{org}/{name}", "main")
            case ["api", "models", org, name, "revision", revision]:
                return self._info(request, f"{org}/{name}", revision)
            case ["api", "resolve-cache", "models", org, name, revision, *path]:
                return await self._small(request, self.repositories[f"{org}/{name}"], "/".join(path), fault)
            case [org, name, "resolve", revision, *path]:
                return self._resolve(request, f"{org}/{name}", revision, "/".join(path))
            case _:
                return _error(404, None, "Not Found")

    # -------------------------------------------------------------------------------------------------- the listing

    def _info(self, request: web.BaseRequest, id: str, revision: str) -> web.Response:
        repository = self.repositories.get(id)
        if refusal := self._refusal(request, repository, revision):
            return refusal
        assert repository is not None
        blobs = request.query.get("blobs") in {"true", "True"}
        siblings = [self._sibling(repository, path, blobs) for path in (*repository.files, *repository.names_told)]
        return web.json_response({**_described(id, repository), "siblings": siblings})

    def _sibling(self, repository: Repository, path: str, blobs: bool) -> dict[str, object]:
        if not blobs:
            return {"rfilename": path}
        content = repository.files.get(path, b"?")
        size = repository.sizes_told.get(path, len(content))
        told: dict[str, object] = {"rfilename": path, "size": size, "blobId": git_blob_id(content)}
        if is_lfs(content):
            digest = repository.digests_told.get(path, hashlib.sha256(content).hexdigest())
            told["lfs"] = {"sha256": digest, "size": size, "pointerSize": 135}
        return told

    def _search(self, request: web.BaseRequest) -> web.Response:
        words = request.query.get("search", "").lower()
        wanted = set(request.query.getall("filter", []))
        found = [
            _described(id, repository)
            for id, repository in self.repositories.items()
            if words in id.lower() and wanted <= set(repository.tags) and not repository.private
        ]
        found.sort(key=lambda one: -int(str(one["downloads"])))
        return web.json_response(found[: int(request.query.get("limit", "1000"))])

    # --------------------------------------------------------------------------------------------------- the files

    def _resolve(self, request: web.BaseRequest, id: str, revision: str, path: str) -> web.Response:
        repository = self.repositories.get(id)
        if refusal := self._refusal(request, repository, revision) or _gate(request, id, repository):
            return refusal
        assert repository is not None
        content = repository.files.get(path)
        headers = {"X-Repo-Commit": repository.commit}
        if content is None:
            return _error(404, "EntryNotFound", "Entry not found", headers)
        headers["X-Linked-Size"] = str(repository.sizes_told.get(path, len(content)))
        if not is_lfs(content):
            headers["Location"] = f"/api/resolve-cache/models/{id}/{repository.commit}/{path}"
            return web.Response(status=307, headers={**headers, "X-Linked-Etag": f'"{git_blob_id(content)}"'})
        digest = self.add_blob(content)
        told = repository.digests_told.get(path, digest)
        etag = f'"{told}"' if self.etag_told is None else self.etag_told
        return self.to_cdn(digest, {**headers, "X-Linked-Etag": etag})

    async def _small(
        self, request: web.BaseRequest, repository: Repository, path: str, fault: Fault | None
    ) -> web.StreamResponse:
        content = repository.files[path]
        headers = {"ETag": f'"{git_blob_id(content)}"', "X-Repo-Commit": repository.commit}
        return await self.send(request, content, headers, fault)

    def _refusal(self, request: web.BaseRequest, repository: Repository | None, revision: str) -> web.Response | None:
        token = _token(request)
        if token is not None and token != TOKEN:
            return _error(401, None, "Invalid credentials in Authorization header")
        if repository is None or (repository.private and token is None):
            return _error(401 if token is None else 404, "RepoNotFound", "Repository not found")
        if revision not in {"main", repository.commit}:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return None


def git_blob_id(content: bytes) -> str:
    """What git calls a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def is_lfs(content: bytes) -> bool:
    return len(content) >= LFS_BYTES_MIN


def _gate(request: web.BaseRequest, id: str, repository: Repository | None) -> web.Response | None:
    if repository is None or not repository.gated:
        return None
    if _token(request) is None:
        return _error(401, "GatedRepo", f"Access to model {id} is restricted. You must have access to it.")
    if not repository.granted:
        return _error(403, "GatedRepo", f"Access to model {id} is restricted and you are not in the authorized list.")
    return None


def _described(id: str, repository: Repository) -> dict[str, object]:
    told: dict[str, object] = {
        "_id": "6489",
        "id": id,
        "modelId": id,
        "author": id.split("/", maxsplit=1)[0],
        "sha": repository.commit,
        "lastModified": "2026-05-01T10:00:00.000Z",
        "createdAt": "2026-04-01T10:00:00.000Z",
        "private": repository.private,
        "gated": repository.gated,
        "disabled": False,
        "likes": repository.likes,
        "downloads": repository.downloads,
        "trendingScore": 7,
        "tags": repository.tags,
        "pipeline_tag": "text-generation",
    }
    if repository.safetensors is not None:
        told["safetensors"] = {"parameters": repository.safetensors, "total": sum(repository.safetensors.values())}
    return told if repository.gguf is None else {**told, "gguf": repository.gguf}


def _token(request: web.BaseRequest) -> str | None:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token if scheme == "Bearer" else None


def _error(status: int, code: str | None, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    told = {"X-Error-Message": message, **(headers or {})}
    if code is not None:
        told["X-Error-Code"] = code
    return web.json_response({"error": message}, status=status, headers=told)
