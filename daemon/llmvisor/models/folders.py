"""What a model's folder says of itself (Hugging Face's layout), from its small JSON files, before anything loads it.

Weights are never opened: their size and the names of the files are all that is looked at.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from llmvisor import limits
from llmvisor.models.gguf import ModelType

T = TypeVar("T")
FolderBackend = Literal["flag", "mlx"]

_WEIGHTS = (".safetensors", ".bin", ".pt", ".npz")
_HEADS = ("sparse_linear.pt", "sparse_linear.safetensors", "colbert_linear.pt", "colbert_linear.safetensors")
"""What BGE-M3 has beside its encoder."""


class _Quantization(msgspec.Struct):
    bits: int = 0


class _Config(msgspec.Struct):
    """What is read of `config.json`, whatever else it has."""

    architectures: list[str] = []
    model_type: str = ""
    torch_dtype: str | None = None
    dtype: str | None = None
    max_position_embeddings: int = 0
    hidden_size: int = 0
    id2label: dict[str, object] | None = None
    num_labels: int | None = None
    quantization: _Quantization | None = None
    """MLX's own."""


class _Module(msgspec.Struct):
    """A step of a sentence-transformers model."""

    type: str = ""


class ModelFolder(msgspec.Struct, frozen=True):
    """The facts of one folder. 0 and empty texts are "not said"."""

    type: ModelType
    backend: FolderBackend | None
    """The backend that serves such a folder; None where that cannot be told."""
    architecture: str
    quantization: str
    context_length: int | None
    embedding_length: int
    weights_bytes: int

    @property
    def memory_estimated(self) -> int:
        """Bytes that the weights take once loaded: torch computes in float32 on a CPU, whatever the file has."""
        widened = 2 if self.backend == "flag" and self.quantization in {"float16", "bfloat16"} else 1
        return self.weights_bytes * widened


def is_folder(status: os.stat_result) -> bool:
    return stat.S_ISDIR(status.st_mode)


def backend_of(path: Path) -> FolderBackend | None:
    """The backend that a model's folder is for: `flag` for encoders, `mlx` for models that write text.

    None where it is no model's folder. Blocks on the disk, for a few small files.
    """
    return read_folder(path).backend if path.is_dir() else None


def read_folder(path: Path) -> ModelFolder:
    """What a folder says. One that cannot be read, or says nothing, is of type `unknown`. Blocks on the disk."""
    config = _read(path / "config.json", _Config) or _Config()
    names = {entry.name: entry.size for entry in _files(path)}
    kind = _type(path, config, names)
    dtype = config.torch_dtype or config.dtype or ""
    quantized = config.quantization is not None and config.quantization.bits > 0
    return ModelFolder(
        type=kind,
        backend=_backend(kind, names),
        architecture=config.model_type or next(iter(config.architectures), ""),
        quantization=f"{config.quantization.bits}-bit" if quantized and config.quantization else dtype or "unknown",
        context_length=config.max_position_embeddings or None,
        embedding_length=config.hidden_size,
        weights_bytes=_weights_bytes(names),
    )


def folder_size(path: Path) -> tuple[int, int]:
    """Bytes of all files of a model's folder, and when the newest of them was changed (ns). Raises OSError."""
    files = list(_files(path))
    return sum(file.size for file in files), max((file.modified_ns for file in files), default=path.stat().st_mtime_ns)


class _File(msgspec.Struct, frozen=True):
    name: str
    """Relative to the folder, with `/`."""
    size: int
    modified_ns: int


def _files(path: Path) -> Iterator[_File]:
    """The folder's files, and those of its own folders: links to files as a hub's cache has them count as files."""
    left = limits.model_folder_files_max
    for folder, inner, names in os.walk(path):
        depth = len(Path(folder).relative_to(path).parts)
        inner[:] = [] if depth >= limits.model_folder_depth_max else sorted(n for n in inner if not n.startswith("."))
        for name in sorted(names):
            left -= 1
            if left < 0:
                return
            file = Path(folder, name)
            try:
                status = file.stat()
            except OSError:
                continue  # a link to nothing
            yield _File(file.relative_to(path).as_posix(), status.st_size, status.st_mtime_ns)


def _type(path: Path, config: _Config, names: dict[str, int]) -> ModelType:
    classifies = any("SequenceClassification" in name for name in config.architectures)
    modules = _read(path / "modules.json", list[_Module]) or []
    # LLM rerankers are causal language models like any other: the name alone tells.
    said = f"{path.name} {config.model_type}".casefold()
    if classifies or "rerank" in said or any("CrossEncoder" in module.type for module in modules):
        return "reranker"
    pooled = any("Pooling" in module.type for module in modules) or "1_Pooling/config.json" in names
    if pooled or any(head in names for head in _HEADS):
        return "embeddings"
    if any("CausalLM" in name or "ConditionalGeneration" in name for name in config.architectures):
        return "llm"
    encoder = any(name.endswith(("Model", "ForMaskedLM")) for name in config.architectures)
    return "embeddings" if encoder else "unknown"


def _backend(kind: ModelType, names: dict[str, int]) -> FolderBackend | None:
    if kind in {"embeddings", "reranker"}:
        return "flag"
    return "mlx" if kind == "llm" and any(name.endswith(".safetensors") for name in names) else None


def _weights_bytes(names: dict[str, int]) -> int:
    """The bytes of the weights, of one format where the folder has several."""
    by_format = {ending: sum(size for name, size in names.items() if name.endswith(ending)) for ending in _WEIGHTS}
    heads = sum(names.get(head, 0) for head in _HEADS)
    return by_format[".safetensors"] + heads if by_format[".safetensors"] else sum(by_format.values())


def _read(path: Path, type: type[T]) -> T | None:
    """A small JSON file; None where it is not there, too large or something else."""
    try:
        with path.open("rb") as file:
            data = file.read(limits.model_folder_json_bytes_max + 1)
    except OSError:
        return None
    if len(data) > limits.model_folder_json_bytes_max:
        return None
    try:
        return msgspec.json.decode(data, type=type, strict=False)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
