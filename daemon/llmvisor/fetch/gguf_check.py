"""Whether a GGUF that came is one that can be loaded, before anybody counts on it."""

from __future__ import annotations

from pathlib import Path

from llmvisor.fetch.failures import FetchProblem
from llmvisor.models.gguf import GgufError, GgufHeader, read_header


def check_gguf(staging: Path, name: str) -> GgufHeader:
    """The header of a file in the staging folder. Raises `FetchProblem` (`invalid`). Blocks on the disk."""
    try:
        header = read_header(staging / name)
    except GgufError as error:
        reason = error.message.removeprefix(f"{staging / name}: ")
        raise FetchProblem("invalid", f"{name} cannot be loaded: {reason}", hint="choose another file") from error
    if header.type == "unknown":
        message = f"{name} is no model, but an adapter, a projector or a vocabulary"
        raise FetchProblem("invalid", message, hint="choose the model's own file")
    return header
