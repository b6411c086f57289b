"""What is taken of a repository on a hub: the files of one GGUF model, or a whole folder of safetensors. Pure.

Only GGUF, safetensors, JSON and what tokenizers are made of ever comes to the disk. Weights that have to be unpickled
are code of a stranger's, and stay where they are.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Final

import msgspec

from llmvisor import limits as daemon_limits
from llmvisor.fetch import quantization
from llmvisor.fetch.failures import FetchProblem
from llmvisor.models.manifest import MANIFEST_NAME, is_inner_path

_PART: Final = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
REPOSITORY: Final = f"{_PART}/{_PART}"
"""Of a repository's name."""
_FOLDER_SUFFIXES: Final = (".safetensors", ".json", ".txt", ".model", ".tiktoken", ".jinja", ".spm", ".vocab")
_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")
_OTHER_ENGINES: Final = frozenset(
    {"onnx", "openvino", "original", "coreml", "tensorrt", "flax", "tf", "runs", "checkpoints", "gguf", ".cache"}
)
"""Folders of the same model for somebody else."""
_SHARD = re.compile(r"^(.+)-(\d{5})-of-(\d{5})\.safetensors$")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[^a-z0-9._-]+")
_NAME_CHARS_MAX = 100
_REVISION_CHARS = 40


class RepositoryFile(msgspec.Struct, frozen=True):
    """One file as the hub lists it."""

    path: str
    size: int | None
    sha256: str | None = None
    """Of files in LFS; small ones have none."""
    blob_id: str | None = None
    """Git's name of the content: SHA-1 of its length and itself."""

    @property
    def digest(self) -> str:
        """What changes with the content."""
        return self.sha256 or self.blob_id or str(self.size)


class Selection(msgspec.Struct, frozen=True):
    """What is fetched."""

    files: tuple[RepositoryFile, ...]
    """The main one first, where there is one."""
    main: str
    """Empty for a folder."""
    projector: str | None = None

    @property
    def revision(self) -> str:
        """Changes when one of these files does: a new commit that only touches the others brings nothing new."""
        sums = "\n".join(sorted(f"{file.path}\0{file.digest}" for file in self.files))
        return hashlib.sha256(sums.encode()).hexdigest()[:_REVISION_CHARS]


def select(
    files: Sequence[RepositoryFile], *, file: str | None, quantization_asked: str | None, code: bool = False
) -> Selection:
    """What to take of a repository. With `code`, the Python files that a folder brings come with it.

    Raises `FetchProblem`: `refused` for pickles, names that lead out and parts that are missing, `not_found` and
    `invalid` as `quantization.choose` does.
    """
    by_path = {one.path: one for one in files}
    ggufs = [path for path in by_path if quantization.is_gguf_path(path)]
    if file is not None and file.lower().endswith(_PICKLES):
        raise _pickles([file])
    if any(quantization.is_model(path) for path in ggufs):
        choice = quantization.choose(ggufs, file=file, quantization=quantization_asked)
        paths = [*choice.files, *([choice.projector] if choice.projector else [])]
        taken = Selection(tuple(by_path[path] for path in paths), choice.files[0], choice.projector)
    elif file is not None or quantization_asked is not None:
        raise FetchProblem(
            "not_found", "there are no GGUF files to choose from", hint="leave the file or quantization out"
        )
    else:
        taken = Selection(tuple(_folder(files, code=code)), "")
    _check_names(taken.files)
    return taken


def suggested_name(text: str) -> str:
    """What a model might be called after a repository, a file or a registry's name."""
    name = re.sub(r"[-_.]?gguf$", "", _NAME.sub("-", text.rpartition("/")[2].lower().removesuffix(".gguf")))
    return name.strip("._-")[:_NAME_CHARS_MAX].rstrip("._-") or "model"


def git_blob_id(content: bytes) -> str:
    """What git calls a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def is_repository(id: str) -> bool:
    """Whether it can be a repository's name: `org/name`."""
    return re.fullmatch(REPOSITORY, id) is not None and ".." not in id


def is_sha256(text: str) -> bool:
    """Whether it is one in lower-case hexadecimal."""
    return _SHA256.fullmatch(text) is not None


def _folder(files: Sequence[RepositoryFile], *, code: bool) -> list[RepositoryFile]:
    suffixes = (*_FOLDER_SUFFIXES, ".py") if code else _FOLDER_SUFFIXES
    names = {one.path for one in files}
    weights = sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
    if not weights:
        pickles = sorted(name for name in names if name.lower().endswith(_PICKLES))
        raise (
            _pickles(pickles)
            if pickles
            else FetchProblem(
                "not_found",
                "there is no model in it: neither GGUF nor safetensors",
                hint="choose a repository of GGUF files, or of safetensors with config.json",
            )
        )
    if "config.json" not in names:
        hint = "choose the model's own repository"
        raise FetchProblem("refused", "there are safetensors, but no config.json that says what they are", hint=hint)
    _check_shards(weights)
    doubled = _doubled(weights)
    taken = [one for one in files if one.path.endswith(suffixes) and _serves(one.path) and one.path not in doubled]
    return sorted(taken, key=lambda one: one.path)


def _serves(path: str) -> bool:
    folders = path.lower().split("/")[:-1]
    hidden = any(part.startswith(".") for part in path.split("/")) and is_inner_path(path)
    return not hidden and not _OTHER_ENGINES.intersection(folders) and path != MANIFEST_NAME


def _doubled(weights: Sequence[str]) -> set[str]:
    """The same weights again, in one more layout or precision beside `model…`."""
    if not any(re.fullmatch(r"model(-\d{5}-of-\d{5})?\.safetensors", name) for name in weights):
        return set()
    return {name for name in weights if re.match(r"consolidated|model\.(fp16|bf16|fp32)\b", name)}


def _check_shards(weights: Sequence[str]) -> None:
    shards: dict[tuple[str, int], set[int]] = {}
    for name in weights:
        if found := _SHARD.match(name):
            shards.setdefault((found[1], int(found[3])), set()).add(int(found[2]))
    for (stem, count), parts in shards.items():
        if parts != set(range(1, count + 1)):
            there = f"{stem} has {count} parts, and only {len(parts)} of them are there"
            raise FetchProblem("refused", there, hint="choose another repository or revision")


def _check_names(files: Sequence[RepositoryFile]) -> None:
    seen: set[str] = set()
    if len(files) > daemon_limits.model_folder_files_max:
        raise FetchProblem("refused", f"{len(files)} files are too many for a model", hint="choose another repository")
    for one in files:
        if not is_inner_path(one.path):
            message = f"a file of it is called {one.path[:100]!a}, which leads out of the model's folder"
            raise FetchProblem("refused", message, hint="choose a repository that you trust")
        if one.path.casefold() in seen:
            message = f"two of its files are called {one.path[:100]!a}, but for upper and lower case"
            raise FetchProblem("refused", message, hint="choose another repository")
        seen.add(one.path.casefold())


def _pickles(names: Sequence[str]) -> FetchProblem:
    several = ", ".join(names[:5])
    return FetchProblem(
        "refused",
        f"its weights are pickles ({several}), which can run any code when they are loaded",
        hint="choose a repository with GGUF or safetensors",
    )
