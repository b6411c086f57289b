"""What is known of each model from its file, read before anything loads it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import msgspec

from llmvisor.config.tree import ModelConfig
from llmvisor.models.gguf import GgufError, GgufHeader, estimate_memory, read_header


class FileSignature(msgspec.Struct, frozen=True):
    """Changes when the file does."""

    size: int
    modified_ns: int


class Entry(msgspec.Struct, frozen=True):
    signature: FileSignature | None
    header: GgufHeader | None
    """None for a file of another kind."""


def file_signature(config: ModelConfig) -> FileSignature | None:
    """The signature of a model's file; None where there is none. Blocks on the disk."""
    if config.path is None:
        return None
    try:
        status = Path(config.path).stat()
    except OSError:
        return None
    return FileSignature(status.st_size, status.st_mtime_ns)


class Catalogue:
    """What the models' files say, read once and again when a file has changed.

    Nothing here but `inspect` looks at a file, and it does so in a thread: a disk may take any time to answer.
    """

    def __init__(self, models: Mapping[str, ModelConfig]) -> None:
        self._models = models
        self._entries: dict[str, Entry] = {}

    def header(self, name: str) -> GgufHeader | None:
        """The header as last read; None for models without one, or not read yet."""
        entry = self._entries.get(name)
        return entry.header if entry is not None else None

    def signature(self, name: str) -> FileSignature | None:
        """The file's signature as last seen; None for models without a file, or not read yet."""
        entry = self._entries.get(name)
        return entry.signature if entry is not None else None

    def memory_estimated(self, name: str) -> int | None:
        """Bytes that the model will take, by arithmetic on its header."""
        header = self.header(name)
        if header is None:
            return None
        config = self._models[name]
        memory = estimate_memory(header, n_ctx=config.n_ctx, n_batch=config.n_batch)
        return memory.weights_bytes + memory.kv_bytes + memory.compute_bytes

    async def inspect(self, name: str) -> None:
        """Read a model's file again if it has changed. Raises `GgufError`."""
        config = self._models[name]
        if config.path is None:
            return
        try:
            self._entries[name] = await asyncio.to_thread(_look, config.path, config, self._entries.get(name))
        except GgufError:
            self._entries.pop(name, None)
            raise


def _look(path: str, config: ModelConfig, before: Entry | None) -> Entry:
    signature = file_signature(config)
    if before is not None and before.signature == signature:
        return before
    return Entry(signature, read_header(Path(path)) if config.backend == "llamacpp" else None)
