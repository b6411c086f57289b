"""Installed models put into their folders by hand, as a daemon that was killed before it wrote a row leaves them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.support.tiny_gguf import write_tiny_gguf

from llmvisor.fetch.protocol import Fetched, FetchedFile
from llmvisor.models.manifest import MANIFEST_NAME, Manifest, encode

TIME = "2026-01-01T00:00:00+00:00"


def publish_by_hand(folder: Path, name: str, *, tier: str | None = None, seed: int = 1) -> Path:
    """A tiny model under its name, whole with its manifest; gives the path of its file."""
    revision = folder / name / f"seed{seed}"
    revision.mkdir(parents=True)
    path = write_tiny_gguf(revision / "tiny.gguf", seed=seed)
    data = path.read_bytes()
    files = [FetchedFile("tiny.gguf", len(data), hashlib.sha256(data).hexdigest())]
    fetched = Fetched(source="file:/by/hand", revision=revision.name, files=files, main="tiny.gguf", name=name)
    (revision / MANIFEST_NAME).write_bytes(encode(Manifest(fetched, name, tier, TIME, TIME)))
    return path
