"""A model in one GGUF file or split into several, of which each says its own tensors and the first one all the rest."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from llmvisor.models.gguf import GgufError, GgufHeader, read_header, read_tensors

_PART = re.compile(r"(.+-)(\d{5})(-of-)(\d{5})(\.gguf)", re.IGNORECASE | re.ASCII)


def read_model(path: Path) -> GgufHeader:
    """The header of a model's file; where it is split, with the weights of all its files, which lie side by side.

    Raises `GgufError`, also for a part that is not there. Blocks on the disk.
    """
    header = read_header(path)
    if header.split_count == 1:
        return header
    for part in _others(path, header.split_count):
        tensors = read_tensors(part)
        header = msgspec.structs.replace(
            header,
            parameters=header.parameters + sum(tensors.elements_by_type.values()),
            weights_bytes=header.weights_bytes + tensors.data_bytes,
            vocabulary=header.vocabulary or tensors.embedding_rows,
            file_bytes=header.file_bytes + part.stat().st_size,
        )
    return header


def _others(path: Path, count: int) -> list[Path]:
    named = _PART.fullmatch(path.name)
    if named is None or int(named[4]) != count:
        raise GgufError(f"{path}: it is one of {count} parts, and its name does not say which (…-00001-of-00003.gguf)")
    if int(named[2]) != 1:
        raise GgufError(f"{path}: it is a later part of a split model; the first one is what a path names")
    return [path.with_name(f"{named[1]}{number:05}{named[3]}{named[4]}{named[5]}") for number in range(2, count + 1)]
