"""What is known of each model from its file, read before anything loads it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import msgspec

from llmvisor.config.tree import ModelConfig
from llmvisor.models.gguf import GgufHeader, estimate_memory, read_header


class FileSignature(msgspec.Struct, frozen=True):
    """Changes when the file does."""

    size: int
    modified_ns: int


class Entry(msgspec.Struct, frozen=True):
    signature: FileSignature | None
    header: GgufHeader


def file_signature(config: ModelConfig) -> FileSignature | None:
    """The signature of a model's file; None where there is none."""
    if config.path is None:
        return None
    try:
        status = Path(config.path).stat()
    except OSError:
        return None
    return FileSignature(status.st_size, status.st_mtime_ns)


class Catalogue:
    """The headers of the models' files, read once and again when a file has changed."""

    def __init__(self, models: Mapping[str, ModelConfig]) -> None:
        self._models = models
        self._entries: dict[str, Entry] = {}

    def header(self, name: str) -> GgufHeader | None:
        """The header as last read; None for models without one, or not read yet."""
        entry = self._entries.get(name)
        return entry.header if entry is not None else None

    def memory_estimated(self, name: str) -> int | None:
        """Bytes that the model will take, by arithmetic on its header."""
        header = self.header(name)
        if header is None:
            return None
        config = self._models[name]
        memory = estimate_memory(header, n_ctx=config.n_ctx, n_batch=config.n_batch)
        return memory.weights_bytes + memory.kv_bytes + memory.compute_bytes

    async def inspect(self, name: str) -> GgufHeader | None:
        """Read the header of a model's file, if it is a GGUF, in a thread. Raises `GgufError`."""
        config = self._models[name]
        if config.backend != "llamacpp" or config.path is None:
            return None
        signature = file_signature(config)
        entry = self._entries.get(name)
        if entry is None or entry.signature != signature:
            self._entries.pop(name, None)
            entry = Entry(signature, await asyncio.to_thread(read_header, Path(config.path)))
            self._entries[name] = entry
        return entry.header
