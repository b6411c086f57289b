"""The folders of installed models, `<name>/<revision>/`: the files and their manifest. All of it blocks on the disk.

What is seen under its name is whole: a revision is made ready in its staging folder and renamed, and what is deleted is
renamed away before it is taken apart. A kill at any point leaves either the old or the new, and what is left over lies
in `.staging` and `.trash`.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Collection
from datetime import MAXYEAR, UTC, datetime
from pathlib import Path

import msgspec

from llmvisor.errors import InvalidRequest
from llmvisor.fetch.failures import FetchProblem, disk_problem
from llmvisor.models import limits
from llmvisor.models.manifest import MANIFEST_NAME, BadManifestError, Manifest, decode, encode
from llmvisor.models.revision_files import (
    check_whole,
    fill,
    freed_bytes,
    remove_others,
    sync_renamed,
    sync_tree,
    write_whole,
)

STAGING, TRASH = ".staging", ".trash"
_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


class Revision(msgspec.Struct, frozen=True):
    """A revision that lies under its name."""

    manifest: Manifest
    folder: Path


class Shelf:
    """The folder of all installed models."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._text = str(folder)
        self._claim: int | None = None

    # ------------------------------------------------------------------------------------------------ whose it is

    def claim(self) -> bool:
        """Take the folder as one's own; whether nobody else has. Raises `FetchProblem` where it cannot be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise disk_problem(error, str(self.folder)) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._claim = descriptor
        return True

    def release(self) -> None:
        """Let others have the folder, as the end of the process does."""
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None

    # ------------------------------------------------------------------------------------------------ staging

    def staging(self, job_id: str) -> Path:
        """The folder of a job's fetch, made where it is not there. Raises `FetchProblem`."""
        if _JOB_ID.fullmatch(job_id) is None:
            raise InvalidRequest(f"{job_id[:80]!a} is no job's id")
        path = self.folder / STAGING / job_id
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise disk_problem(error, str(path)) from error
        return path

    def clear(self, keep: Collection[str]) -> None:
        """Remove the staging of all other jobs, and what was to be deleted."""
        for path in _listed(self.folder / STAGING):
            if path.name not in keep:
                shutil.rmtree(path, ignore_errors=True)
        for path in _listed(self.folder / TRASH):
            shutil.rmtree(path, ignore_errors=True)

    # ------------------------------------------------------------------------------------------------ one model

    def place(self, manifest: Manifest, staging: Path) -> Path:
        """Put a staging folder under its model's name, whole or not at all. Raises `FetchProblem`."""
        fetched = manifest.fetched
        target = self.folder / manifest.name / fetched.revision
        if target.parent.is_symlink() or target.is_symlink():
            raise FetchProblem("refused", f"{target} is a link, or in one", hint="remove it, or take another name")
        try:
            check_whole(fetched, staging)
            remove_others(staging, {file.path for file in fetched.files} if fetched.linked_to is None else set())
            write_whole(staging / MANIFEST_NAME, encode(manifest))
            sync_tree(staging)
            target.parent.mkdir(exist_ok=True, mode=0o755)
            staging.chmod(0o755)
            if target.exists():
                fill(target, staging, () if fetched.linked_to is not None else [file.path for file in fetched.files])
            else:
                staging.rename(target)
            sync_renamed(target.parent, self.folder)
        except OSError as error:
            raise disk_problem(error, str(target)) from error
        return target

    def choose(self, manifest: Manifest) -> None:
        """Write a revision's manifest anew. Raises `FetchProblem`."""
        folder = self.folder / manifest.name / manifest.fetched.revision
        try:
            write_whole(folder / MANIFEST_NAME, encode(manifest))
            sync_renamed(folder)
        except OSError as error:
            raise disk_problem(error, str(folder)) from error

    def revision(self, name: str, revision: str) -> Revision | None:
        """One revision, where it is there and its manifest can be used."""
        return _read(self.folder / name / revision, name)

    def revisions(self, name: str) -> list[Revision]:
        """All revisions of a model, the one that is served first."""
        found = [each for path in _listed(self.folder / name) if (each := _read(path, name)) is not None]
        return sorted(found, key=lambda each: each.manifest.chosen_at, reverse=True)

    def remove_model(self, name: str) -> Path | None:
        """Take a model out of sight; gives where it lies now, for `destroy`. Raises `FetchProblem`."""
        return self._remove(self.folder / name, "model-")

    def remove_revision(self, name: str, revision: str) -> Path | None:
        """Take one revision out of sight. Raises `FetchProblem`."""
        return self._remove(self.folder / name / revision, "revision-")

    def destroy(self, path: Path) -> int:
        """Delete what was taken out of sight; gives the bytes that were freed, those behind links not counted."""
        freed = sum(freed_bytes(Path(folder, name)) for folder, _, names in os.walk(path) for name in names)
        shutil.rmtree(path.parent, ignore_errors=True)
        return 0 if path.exists() else freed

    # ------------------------------------------------------------------------------------------------ all models

    def names(self) -> list[str]:
        """Every folder that may be a model's. Raises `FetchProblem` where the models' folder cannot be read."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with os.scandir(self.folder) as entries:
                return [entry.name for entry in entries if entry.name[0] != "." and entry.is_dir(follow_symlinks=False)]
        except OSError as error:
            raise disk_problem(error, str(self.folder)) from error

    def revision_names(self, name: str) -> set[str]:
        """The folders of a model's revisions, whatever is in them."""
        try:
            return set(os.listdir(f"{self._text}/{name}"))
        except OSError:
            return set()

    def half_deleted(self) -> list[str]:
        """Models that were taken out of sight by somebody who did not come to tell of it."""
        trash = _listed(self.folder / TRASH)
        return [path.name for each in trash if each.name.startswith("model-") for path in _listed(each)]

    def _remove(self, path: Path, prefix: str) -> Path | None:
        try:
            return self._to_trash(path, prefix)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise disk_problem(error, str(path)) from error

    def _to_trash(self, path: Path, prefix: str) -> Path:
        trash = self.folder / TRASH
        trash.mkdir(parents=True, exist_ok=True, mode=0o700)
        away = Path(tempfile.mkdtemp(prefix=prefix, dir=trash)) / path.name
        try:
            path.rename(away)
        except OSError:
            away.parent.rmdir()
            raise
        sync_renamed(path.parent)
        return away


def _listed(path: Path) -> list[Path]:
    try:
        return list(path.iterdir())
    except OSError:
        return []


def _read(folder: Path, name: str) -> Revision | None:
    """A revision from its folder; None for one without a manifest, or with another's, or one of nonsense."""
    path = folder / MANIFEST_NAME
    try:
        with path.open("rb") as file:
            data = file.read(limits.manifest_bytes_max + 1)
        manifest = decode(data)
    except (OSError, BadManifestError):
        return None
    if len(data) > limits.manifest_bytes_max or (manifest.name, manifest.fetched.revision) != (name, folder.name):
        return None
    if not _is_time(manifest.chosen_at):
        return None
    return Revision(manifest, folder)


def _is_time(text: str) -> bool:
    """Whether it is a time with its zone, and not one so late that none comes after it."""
    try:
        time = datetime.fromisoformat(text)
        return time.tzinfo is not None and time.astimezone(UTC).year < MAXYEAR
    except (ValueError, OverflowError):
        return False
