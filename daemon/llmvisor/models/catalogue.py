"""What is known of each model from its file or folder, read before anything loads it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import msgspec

from llmvisor.config.tree import ModelConfig
from llmvisor.models.folders import ModelFolder, folder_size, is_folder, read_folder
from llmvisor.models.gguf import GgufError, GgufHeader, ModelType, estimate_memory, read_header


class FileSignature(msgspec.Struct, frozen=True):
    """Changes when the file does."""

    size: int
    modified_ns: int


class Entry(msgspec.Struct, frozen=True):
    signature: FileSignature | None
    header: GgufHeader | None
    """None for a file of another kind."""
    folder: ModelFolder | None = None
    """None for a file."""


def file_signature(config: ModelConfig) -> FileSignature | None:
    """The signature of a model's file, or of all files of its folder; None without one. Blocks on the disk."""
    if config.path is None:
        return None
    try:
        status = Path(config.path).stat()
        if is_folder(status):
            return FileSignature(*folder_size(Path(config.path)))
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

    def folder(self, name: str) -> ModelFolder | None:
        """What the model's folder says, as last read; None for models without one."""
        entry = self._entries.get(name)
        return entry.folder if entry is not None else None

    def type(self, name: str) -> ModelType:
        """What the model is, as configuration and its file say; `llm` where that is not known."""
        if self._models[name].embedding_mode:
            return "embeddings"
        header, folder = self.header(name), self.folder(name)
        return header.type if header else folder.type if folder else "llm"

    def memory_estimated(self, name: str) -> int | None:
        """Bytes that the model will take, by arithmetic on its header, or by the size of its weights."""
        header, folder = self.header(name), self.folder(name)
        if folder is not None:
            return folder.memory_estimated
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
    if config.backend == "llamacpp":
        return Entry(signature, read_header(Path(path)))
    return Entry(signature, None, _folder(Path(path), config.backend) if Path(path).is_dir() else None)


def _folder(path: Path, backend: str | None) -> ModelFolder:
    """What a folder says, of another type than its backend serves where that is what was configured: it may know."""
    folder = read_folder(path)
    if folder.backend == backend:
        return folder
    return msgspec.structs.replace(folder, type="unknown")
