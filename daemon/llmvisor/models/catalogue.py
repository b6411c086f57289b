"""What is known of each model from its file or folder, read before anything loads it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import cast

import msgspec

from llmvisor import limits
from llmvisor.config.tree import ModelConfig
from llmvisor.models.folders import ModelFolder, folder_size, is_folder, read_folder
from llmvisor.models.gguf import GgufError, GgufHeader, estimate_memory
from llmvisor.models.gguf_split import read_model


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
    beside_bytes: int = 0
    """Of the files beside a model's own that are loaded with it."""


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


def paths_in(options: object) -> Iterator[str]:
    """What stands in a model's options like a path: adapters, a draft model, a projector."""
    if isinstance(options, str) and "/" in options and len(options) < limits.option_path_chars_max:
        yield options
    elif isinstance(options, Mapping):
        for each in cast("Mapping[str, object]", options).values():
            yield from paths_in(each)


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

    def type(self, name: str, *, before_read: str = "llm") -> str:
        """What the model is, as configuration and its file say; `before_read` where that is not known yet."""
        if self._models[name].embedding_mode:
            return "embeddings"
        header, folder = self.header(name), self.folder(name)
        return header.type if header else folder.type if folder else before_read

    def memory_estimated(self, name: str) -> int | None:
        """Bytes that the model will take, by arithmetic on its header, or by the size of its weights."""
        entry = self._entries.get(name)
        if entry is not None and entry.folder is not None:
            return entry.folder.memory_estimated
        if entry is None or entry.header is None:
            return None
        config = self._models[name]
        memory = estimate_memory(entry.header, n_ctx=config.n_ctx, n_batch=config.n_batch)
        return memory.weights_bytes + memory.kv_bytes + memory.compute_bytes + entry.beside_bytes

    def exchange(self, one: str, other: str) -> None:
        """Two models take each other's names."""
        here, there = self._entries.pop(one, None), self._entries.pop(other, None)
        found = {other: here, one: there}
        self._entries |= {name: entry for name, entry in found.items() if entry is not None}

    def forget(self, name: str) -> None:
        """The model is another one now, or none."""
        self._entries.pop(name, None)

    async def inspect(self, name: str) -> None:
        """Read a model's file again if it has changed. Raises `GgufError`."""
        config = self._models[name]
        if config.path is None:
            return
        try:
            entry = await asyncio.to_thread(_look, config.path, config, self._entries.get(name))
        except GgufError:
            self._entries.pop(name, None)
            raise
        if self._models.get(name) is config:  # else it has been replaced or removed meanwhile
            self._entries[name] = entry


def _look(path: str, config: ModelConfig, before: Entry | None) -> Entry:
    signature = file_signature(config)
    if before is not None and before.signature == signature:
        return msgspec.structs.replace(before, beside_bytes=_beside_bytes(config))
    if config.backend == "llamacpp":
        return Entry(signature, read_model(Path(path)), beside_bytes=_beside_bytes(config))
    return Entry(signature, None, _folder(Path(path), config.backend) if Path(path).is_dir() else None)


def _beside_bytes(config: ModelConfig) -> int:
    """The size of a projector and a draft model; what is not there counts nothing. Blocks on the disk."""
    total = 0
    for option in ("mmproj", "draft_model") if config.backend == "llamacpp" else ():
        file = config.options.get(option)
        with suppress(OSError, ValueError, RuntimeError):  # absent, no path, no home
            total += Path(file).expanduser().stat().st_size if isinstance(file, str) else 0
    return total


def _folder(path: Path, backend: str | None) -> ModelFolder:
    """What a folder says, of another type than its backend serves where that is what was configured: it may know."""
    folder = read_folder(path)
    if folder.backend == backend:
        return folder
    return msgspec.structs.replace(folder, type="unknown")
