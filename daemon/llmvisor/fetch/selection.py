"""Which files of this machine are a model: a GGUF with its parts, or a folder as the hub has them.

Nothing is loaded. What it is, is told from headers and names; what would have to be unpickled is not taken.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from llmvisor import limits
from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.staging import checked_path
from llmvisor.models.file_kinds import recognised
from llmvisor.models.folders import read_folder
from llmvisor.models.gguf import GgufError, GgufHeader, read_header, read_tensors

T = TypeVar("T")
_GGUF = ".gguf"
_TAKEN = (".safetensors", ".json", ".txt", ".model", ".tiktoken", ".jinja", ".spm", ".vocab", ".md")
_HEADS = frozenset({"sparse_linear.pt", "colbert_linear.pt"})
"""What BGE-M3 has beside its encoder; torch loads them with `weights_only`."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy")
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE | re.ASCII)
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors", re.ASCII)
_CONVERT = "convert it to GGUF or safetensors, or install the model from the hub in one of these"


class Selection(msgspec.Struct, frozen=True):
    """What is taken of what lies there."""

    root: Path
    """What the paths are relative to."""
    paths: tuple[str, ...]
    """With `/`."""
    main: str = ""
    """Empty for a folder."""
    description: str | None = None
    mmproj: str | None = None


def select(path: Path, *, code: bool) -> Selection:
    """What to take of a file or folder, which exists. With `code`, a folder's Python files as well.

    Raises `FetchProblem`: `refused` for pickles and links that lead out, `invalid` for what is no model. OSError.
    """
    status = path.stat()
    if stat.S_ISREG(status.st_mode):
        return _of_file(path)
    if not stat.S_ISDIR(status.st_mode):
        raise _no_model(path, "it is neither a file nor a folder")
    paths = _files(path)
    ggufs = [name for name in paths if name.lower().endswith(_GGUF)]
    if ggufs and not any(name.endswith(".safetensors") for name in paths):
        return _of_ggufs(path, ggufs)
    return _of_folder(path, paths, code=code)


# ---------------------------------------------------------------------------------------------------------- a GGUF


def _of_file(path: Path) -> Selection:
    checked_path(path.name)
    if path.name.lower().endswith(_PICKLES) and not _is_gguf(path):
        raise FetchProblem("refused", f"{path} is a pickle, which can run any code when it is loaded", hint=_CONVERT)
    header = _header(path)
    if header.type == "unknown":
        raise _no_model(path, "it is an adapter, a projector or a vocabulary, which belongs to a model's options")
    paths = _parts(path, header)
    return Selection(path.parent, paths, paths[0], header.name)


def _of_ggufs(folder: Path, names: list[str]) -> Selection:
    """The one model of a folder, with its projector where there is one."""
    firsts = [name for name in names if (part := _PART.fullmatch(name)) is None or int(part[2]) == 1]
    headers = {name: _header(folder / name) for name in firsts}
    models = [name for name in firsts if headers[name].type != "unknown"]
    projectors = [name for name in firsts if headers[name].architecture == "clip"]
    if len(models) != 1:
        shown = ", ".join(models[:5]) or "none"
        raise FetchProblem("invalid", f"{folder} holds {len(models)} models ({shown})", hint="import one of its files")
    main = folder / models[0]
    paths = tuple(f"{part}" for part in _parts(main, headers[models[0]], root=folder))
    mmproj = projectors[0] if len(projectors) == 1 else None
    return Selection(folder, (*paths, mmproj) if mmproj else paths, paths[0], headers[models[0]].name, mmproj)


def _parts(path: Path, header: GgufHeader, root: Path | None = None) -> tuple[str, ...]:
    """All files of a GGUF model, the first one first, relative to `root` (its own folder)."""
    inner = path.parent.relative_to(root or path.parent).as_posix()
    prefix = "" if inner == "." else f"{inner}/"
    if header.split_count <= 1:
        return (f"{prefix}{path.name}",)
    part = _PART.fullmatch(path.name)
    if part is None or int(part[3]) != header.split_count:
        reason = f"it is one of {header.split_count} parts, and its name does not say which (…-00001-of-00003.gguf)"
        raise _no_model(path, reason)
    names = [f"{part[1]}-{number:05}-of-{part[3]}.gguf" for number in range(1, header.split_count + 1)]
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise _no_model(path, f"of its {len(names)} parts {len(missing)} are missing, such as {missing[0]}")
    for name in names[1:]:
        _told(path.parent / name, read_tensors)  # only the first part says what the model is
    return tuple(prefix + name for name in names)


def _header(path: Path) -> GgufHeader:
    return _told(path, read_header)


def _told(path: Path, read: Callable[[Path], T]) -> T:
    try:
        return read(path)
    except GgufError as error:
        if isinstance(error.__cause__, PermissionError):
            raise error.__cause__ from None
        raise FetchProblem("invalid", error.message, hint="import a GGUF file, or a folder of safetensors") from error


def _is_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


# -------------------------------------------------------------------------------------------------------- a folder


def _of_folder(folder: Path, paths: list[str], *, code: bool) -> Selection:
    taken = (*_TAKEN, ".py") if code else _TAKEN
    weights = [name for name in paths if name.endswith(".safetensors")]
    pickles = [name for name in paths if name.lower().endswith(_PICKLES)]
    if not weights and pickles:
        shown = ", ".join(pickles[:3])
        message = f"the weights in {folder} are pickles ({shown}), which can run any code when they are loaded"
        raise FetchProblem("refused", message, hint=_CONVERT)
    if not weights or read_folder(folder).backend is None:
        raise _no_model(folder, "no backend serves such a folder: config.json and safetensors are needed")
    _check_shards(folder, weights)
    kept = [name for name in paths if name.endswith(taken) or name in _HEADS]
    return Selection(folder, tuple(checked_path(name) for name in kept if name != "manifest.json"))


def _check_shards(folder: Path, weights: list[str]) -> None:
    """Every file of tensors begins as one, and none of a numbered row is missing."""
    rows: dict[tuple[str, int], set[int]] = {}
    for name in weights:
        with (folder / name).open("rb") as file:
            beginning = file.read(512)
        length = int.from_bytes(beginning[:8], "little")
        size = (folder / name).stat().st_size
        if beginning[8:9] != b"{" or not 2 <= length <= size - 8:
            raise _no_model(folder / name, f"it is {recognised(beginning)}, or it is not whole")
        if shard := _SHARD.fullmatch(name):
            rows.setdefault((shard[1], int(shard[3])), set()).add(int(shard[2]))
    for (stem, count), numbers in rows.items():
        if missing := set(range(1, count + 1)) - numbers:
            raise _no_model(folder, f"of the {count} files of {stem} number {min(missing)} is missing")


def _files(folder: Path) -> list[str]:
    """The folder's files, relative to it, but for hidden ones. Raises `FetchProblem` for links that lead out."""
    found: list[str] = []
    for parent, inner, names in os.walk(folder, onerror=_raise):
        here = Path(parent)
        depth = len(here.relative_to(folder).parts)
        for link in (here / name for name in inner if (here / name).is_symlink()):
            _check_link(link, folder)
        inner[:] = sorted(name for name in inner if not name.startswith(".")) if depth < _DEPTH_MAX else []
        for name in sorted(names):
            path = here / name
            if name.startswith(".") or not _is_content(path, folder):
                continue
            found.append(path.relative_to(folder).as_posix())
            if len(found) > limits.model_folder_files_max:
                raise FetchProblem(
                    "refused", f"{folder} has more than {limits.model_folder_files_max} files", hint=_ONE
                )
    return found


_DEPTH_MAX = limits.model_folder_depth_max
_ONE = "import the model's own folder"


def _is_content(path: Path, folder: Path) -> bool:
    if path.is_symlink():
        _check_link(path, folder)
    return path.is_file()


def _check_link(link: Path, folder: Path) -> None:
    # A hub's cache has a revision's files as links into a folder beside those of all revisions.
    cached = [folder.parents[1] / "blobs"] if folder.parent.name == "snapshots" else []
    target = link.resolve()
    if not any(target.is_relative_to(allowed) for allowed in [folder, *cached]):
        message = f"{link} is a link that leads out of the folder"
        hint = f"copy the folder with what its links lead to: cp -rL {folder} COPY"
        raise FetchProblem("refused", message, hint=hint)


def _raise(error: OSError) -> None:
    raise error


def _no_model(path: Path, reason: str) -> FetchProblem:
    return FetchProblem("invalid", f"{path}: {reason}", hint="import a GGUF file, or a folder of safetensors")
