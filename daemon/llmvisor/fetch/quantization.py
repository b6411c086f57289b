"""Which GGUF files of a repository make one model, and which of its models is meant. Pure.

Names follow llama.cpp's habits: `model-Q4_K_M.gguf`, `model.Q4_K_M-00001-of-00003.gguf`, and folders named after the
quantisation. Beside models there are projectors (`mmproj`), which images need, and importance matrices, which nobody
does who only runs the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from llmvisor.fetch.failures import FetchProblem

PREFERRED: Final = (
    *("Q4_K_M", "Q4_K_L", "Q4_K_XL", "Q4_K_S", "Q4_K", "IQ4_NL", "IQ4_XS", "MXFP4", "MXFP4_MOE", "Q4_1", "Q4_0", "Q4"),
    *("Q5_K_M", "Q5_K_S", "Q5_K_L", "Q5_K_XL", "Q5_K", "Q5_1", "Q5_0", "Q5", "Q6_K", "Q6_K_L", "Q6"),
    *("Q3_K_L", "Q3_K_XL", "Q3_K_M", "IQ3_M", "Q8_0", "Q8", "Q3_K_S", "IQ3_S", "IQ3_XS", "IQ3_XXS", "Q3_K"),
    *("BF16", "F16", "Q2_K_L", "Q2_K_XL", "Q2_K", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "F32"),
)
"""The default first, then what is nearest to it in what it keeps and what it takes."""
_PROJECTORS: Final = ("F16", "BF16", "Q8_0", "F32")
"""Best first: small enough beside a model that there is nothing to save."""

_PART = re.compile(r"[-.](\d{5})-of-(\d{5})$")
_QUANTIZATION = re.compile(
    r"(?<![A-Z0-9])((?:UD-)?(?:I?Q[1-8]_(?:[0-9](?:_[0-9]){0,2}|K|NL|XXS|XS|S|M)(?:_(?:XXL|XL|XS|L|M|S))?"
    r"|TQ[12]_0|BF16|FP?16|FP?32|MXFP4(?:_MOE)?|NVFP4|Q[2-8]))(?![A-Z0-9_])",
    re.IGNORECASE,
)
_COMPANION = re.compile(r"(?<![a-z])(?:draft|eagle\d*|mtp|lora|adapter)(?![a-z])")
"""In the names of what only runs beside a model: drafts of its answers, and adapters."""
_ALIASES: Final = {"FP16": "F16", "FP32": "F32"}
_SHOWN_MAX = 40


class Choice(msgspec.Struct, frozen=True):
    """What is fetched of a repository of GGUF files."""

    files: tuple[str, ...]
    """The one that a backend is given first, then the other parts of a split model."""
    quantization: str | None
    """As the name says it; None where it does not."""
    projector: str | None
    """The file that turns images into what the model reads."""


class _File(msgspec.Struct, frozen=True):
    path: str
    stem: str
    """The path without folders of quantisations, part numbers and quantisation: the same for one model's variants."""
    quantization: str | None
    part: int
    parts: int


class _Variant(msgspec.Struct, frozen=True):
    """All parts of one model in one quantisation."""

    stem: str
    quantization: str | None
    files: tuple[_File, ...]

    @property
    def main(self) -> str:
        return self.files[0].path

    @property
    def complete(self) -> bool:
        return [file.part for file in self.files] == list(range(1, self.files[0].parts + 1))


def choose(paths: Iterable[str], *, file: str | None = None, quantization: str | None = None) -> Choice:
    """The files of the model that is meant: a `file` by its name, a quantisation, or the default one.

    Raises `FetchProblem`: `not_found` names what there is, `invalid` says what else has to be told, `refused` that
    parts of a split model are missing.
    """
    names = sorted(path for path in paths if path.lower().endswith(".gguf"))
    variants = _variants([path for path in names if is_model(path)])
    if not variants:
        raise FetchProblem("not_found", "there is no GGUF model here", hint="choose another repository")
    chosen = _by_file(variants, names, file) if file else _by_quantization(variants, quantization)
    if not chosen.complete:
        there = f"{len(chosen.files)} of {chosen.files[0].parts} parts"
        hint = "choose another quantization or repository"
        raise FetchProblem("refused", f"{chosen.main} is split, and only {there} are there", hint=hint)
    return Choice(tuple(one.path for one in chosen.files), chosen.quantization, _projector(names, chosen.main))


def is_gguf_path(path: str) -> bool:
    """Whether it is a GGUF by its name, of whatever use."""
    return path.lower().endswith(".gguf")


def is_model(path: str) -> bool:
    """Whether a GGUF holds a model, by its name: no projector, no importance matrix, no vocabulary alone."""
    name = path.rpartition("/")[2].lower()
    # `-imatrix` behind a quantisation tells how a model was made.
    matrix = "imatrix" in name and quantization_of(name) is None
    return not ("mmproj" in name or matrix or name.startswith("ggml-vocab"))


def quantization_of(path: str) -> str | None:
    """The quantisation that a path names, in capitals, the file's own name before its folders'."""
    for name in reversed(path.split("/")):
        if found := _QUANTIZATION.findall(_PART.sub("", name.removesuffix(".gguf"))):
            return _normal(found[-1])
    return None


def _variants(paths: Sequence[str]) -> list[_Variant]:
    grouped: dict[tuple[str, str | None, int, str], list[_File]] = {}
    for path in paths:
        file = _file(path)
        # Parts stand together in one folder; the same model in one piece beside them is another variant.
        key = (file.stem, file.quantization, file.parts, path.rpartition("/")[0])
        grouped.setdefault(key, []).append(file)
    return [
        _Variant(stem, quantization, tuple(sorted(files, key=lambda file: file.part)))
        for (stem, quantization, _, _), files in sorted(grouped.items(), key=lambda item: item[1][0].path)
    ]


def _file(path: str) -> _File:
    whole = path[: -len(".gguf")]
    split = _PART.search(whole)
    part, parts = (int(split[1]), int(split[2])) if split else (1, 1)
    folders, _, name = (whole[: split.start()] if split else whole).rpartition("/")
    stem = _QUANTIZATION.sub("", name).strip("-._ ").lower()
    kept = [folder for folder in folders.split("/") if folder and not _QUANTIZATION.search(folder)]
    return _File(path, "/".join([*kept, stem]), quantization_of(path), part, parts)


def _by_file(variants: Sequence[_Variant], names: Sequence[str], file: str) -> _Variant:
    for matches in _matches(file):
        found = [one for one in variants if any(matches(part.path) for part in one.files)]
        if len(found) == 1:
            return found[0]
        if found:
            raise _ambiguous(found)
    if file in names:
        raise FetchProblem("refused", f"{file} is no model, but goes with one", hint="choose the model's own file")
    if not is_gguf_path(file) and _QUANTIZATION.fullmatch(file):
        return _by_quantization(variants, file)
    raise FetchProblem("not_found", f"there is no file {file[:200]!r}", hint=f"there is {_listed(names)}")


def _matches(file: str) -> tuple[Callable[[str], bool], ...]:
    return (lambda path: path == file, lambda path: path.rpartition("/")[2] == file)


def _by_quantization(variants: Sequence[_Variant], asked: str | None) -> _Variant:
    variants = [one for one in variants if not _COMPANION.search(one.stem.rpartition("/")[2])] or variants
    if asked is None:
        return _default(variants)
    wanted = _normal(asked)
    named = [one for one in variants if one.quantization is not None]
    if found := [one for one in named if one.quantization == wanted]:
        return _only(found)
    # Unsloth's dynamic ones (`UD-`) answer to the plain name where no plain one is there, and the other way round.
    if found := [one for one in named if _plain(one) == wanted.removeprefix("UD-")]:
        return _only(found)
    there = sorted({one.quantization or "" for one in named}) or [one.main for one in variants]
    raise FetchProblem("not_found", f"there is no quantization {asked[:40]!r}", hint=f"there is {_listed(there)}")


def _default(variants: Sequence[_Variant]) -> _Variant:
    ranks = {name: place for place, name in enumerate(PREFERRED)}

    def rank(variant: _Variant) -> tuple[int, bool]:
        return ranks.get(_plain(variant), len(ranks)), variant.quantization != _plain(variant)

    whole = [one for one in variants if one.complete] or variants
    best = min(map(rank, whole))
    return _only([one for one in whole if rank(one) == best])


def _plain(variant: _Variant) -> str:
    return (variant.quantization or "").removeprefix("UD-")


def _only(found: Sequence[_Variant]) -> _Variant:
    """The one that is meant; of the same model once whole and once split, the whole one."""
    if len({one.stem for one in found}) > 1:
        raise _ambiguous(found)
    return min(found, key=lambda one: (not one.complete, len(one.files), one.main.count("/"), one.main))


def _ambiguous(found: Sequence[_Variant]) -> FetchProblem:
    several = _listed([one.main for one in found])
    return FetchProblem("invalid", f"several files could be meant: {several}", hint="name one: hf:ORG/REPO:FILE")


def _projector(names: Sequence[str], main: str) -> str | None:
    folder = main.rpartition("/")[0]
    found = [
        name
        for name in names
        if "mmproj" in name.rpartition("/")[2].lower() and name.rpartition("/")[0] in {folder, ""}
    ]

    def rank(name: str) -> tuple[int, str]:
        quantization = quantization_of(name)
        return (_PROJECTORS.index(quantization) if quantization in _PROJECTORS else len(_PROJECTORS), name)

    return min(found, key=rank, default=None)


def _normal(name: str) -> str:
    upper = name.strip().upper()
    head, body = ("UD-", upper[3:]) if upper.startswith("UD-") else ("", upper)
    body = body.replace("-", "_")
    return head + _ALIASES.get(body, body)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN_MAX])
    return shown if len(names) <= _SHOWN_MAX else f"{shown} and {len(names) - _SHOWN_MAX} more"
