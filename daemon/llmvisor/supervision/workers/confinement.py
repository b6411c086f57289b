"""What a worker may use of the machine: the files that its model is made of, and folders of its own.

The worker gives up the rest by itself before it reads anything (`llmvisor_runtimes.confinement`); what it has given up
stands in its `Hello`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

from llmvisor.config.tree import ModelConfig, Sandbox

_SCRATCH = "llmvisor-scratch-"
_DIGEST_BYTES = 16
_PATH_CHARS_MAX = 4096


class Confinement(msgspec.Struct, frozen=True):
    """What a worker is told about it."""

    mode: Literal["auto", "required"] = "auto"
    read: list[str] = []
    write: list[str] = []

    def arguments(self) -> list[str]:
        """As arguments of the worker's command line."""
        options = (("--read", self.read), ("--write", self.write))
        return ["--sandbox", self.mode, *(part for name, paths in options for path in paths for part in (name, path))]


def confinement(config: ModelConfig, state_folder: str, *, otherwise: Sandbox) -> Confinement | None:
    """For the worker of a model that is configured so, `otherwise` where that says nothing; None = not confined."""
    mode = config.sandbox or otherwise
    if mode == "off":
        return None
    options: object = config.options
    paths = [config.path or "", *_paths(options)]
    read = [path for path in dict.fromkeys(paths) if path]
    return Confinement(mode, read, [state_folder] if state_folder else [])


def state_folder(folder: str, model: str) -> str:
    """A model's own part of the folder for what is kept of prompts: no worker may read another's. Empty = nowhere."""
    if not folder:
        return ""
    return os.path.join(folder, hashlib.blake2b(model.encode(), digest_size=_DIGEST_BYTES).hexdigest())


def _paths(value: object) -> Iterator[str]:
    """Every absolute path in a model's options: an adapter, a projector, a draft model, and what a plug-in calls so."""
    if isinstance(value, str):
        path = os.path.expanduser(value) if value.startswith("~") else value
        if path.startswith("/") and len(path) <= _PATH_CHARS_MAX and path.isprintable() and not _holds_home(path):
            yield path
    elif isinstance(value, dict):
        for item in value.values():  # pyright: ignore[reportUnknownVariableType]
            yield from _paths(item)  # pyright: ignore[reportUnknownArgumentType]
    elif isinstance(value, list | tuple):
        for item in value:  # pyright: ignore[reportUnknownVariableType]
            yield from _paths(item)  # pyright: ignore[reportUnknownArgumentType]


def _holds_home(path: str) -> bool:
    """Whether it is the person's home, or all that this is in: a stop string (`/`, `~`) rather than a model's file."""
    return f"{os.path.expanduser('~')}/".startswith(os.path.normpath(path).rstrip("/") + "/")


# ---------------------------------------------------------------------------------------------------- temporary files


def scratch(run_dir: Path, nonce: str) -> Path:
    """The folder for temporary files of one worker: in the daemon's own, which nobody else may enter."""
    return _base(run_dir) / f"{_prefix(run_dir)}{nonce}"


def make_scratch(run_dir: Path, nonce: str) -> Path:
    """Raises OSError."""
    folder = scratch(run_dir, nonce)
    folder.mkdir(mode=0o700)
    return folder


def remove_scratch(run_dir: Path, nonce: str) -> None:
    """Remove it with all that is in it; a folder that is not empty goes in a thread of its own."""
    folder = scratch(run_dir, nonce)
    try:
        folder.rmdir()
    except FileNotFoundError:
        pass
    except OSError:
        threading.Thread(target=shutil.rmtree, args=(folder, True), name="remove scratch", daemon=True).start()


def sweep_scratch(run_dir: Path, living: set[str]) -> None:
    """Remove what workers of an earlier daemon left behind, but for those with these nonces."""
    prefix = _prefix(run_dir)
    with suppress(OSError):
        for path in _base(run_dir).iterdir():
            nonce = path.name.removeprefix(prefix)
            if nonce != path.name and nonce not in living and path.lstat().st_uid == os.geteuid():
                shutil.rmtree(path, ignore_errors=True)  # which follows no link


def _base(run_dir: Path) -> Path:
    """The run folder, unless nothing may be executed there (as in some systems' /run): MLX compiles what it computes,
    and loads it from there."""
    with suppress(OSError):
        if os.statvfs(run_dir).f_flag & os.ST_NOEXEC:
            return Path(tempfile.gettempdir())
    return run_dir


def _prefix(run_dir: Path) -> str:
    """Tells the folders of this daemon from those of others, where they lie side by side."""
    return f"{_SCRATCH}{hashlib.blake2b(os.fsencode(run_dir), digest_size=4).hexdigest()}-"
