"""How a revision becomes the one that is served, and which one before it is kept. What touches the disk blocks."""

from __future__ import annotations

from pathlib import Path

from llmvisor.control.api import InstalledModel
from llmvisor.errors import ModelLoadFailed
from llmvisor.fetch.failures import FetchProblem
from llmvisor.models.installed import Installed, describe
from llmvisor.models.manifest import Manifest
from llmvisor.models.shelf import Shelf


def place(shelf: Shelf, manifest: Manifest, staging: Path) -> Installed:
    """Put what was fetched under its name. Raises `FetchProblem`."""
    # Looked at before anybody can see it: what no backend serves never gets a name.
    try:
        describe(manifest, staging)
    except ModelLoadFailed as error:
        raise FetchProblem("invalid", str(error).replace(f"{staging}/", ""), hint="take another source") from error
    return describe(manifest, shelf.place(manifest, staging))


def choose(shelf: Shelf, manifest: Manifest, folder: Path) -> Installed:
    """Make a revision that lies there the newest. Raises `FetchProblem`, and `ModelLoadFailed` where it is damaged."""
    installed = describe(manifest, folder)
    shelf.choose(manifest)
    return installed


def previous_of(old: InstalledModel | None, revision: str) -> tuple[str | None, str | None]:
    """Of a model that gets this revision: the one to go back to, and one that is wanted no more.

    What has loaded once is worth going back to; what has not is only kept where there is nothing better.
    """
    if old is None:
        return None, None
    if old.linked:
        # What the link leads to has changed: the old files are nowhere.
        return None, None if old.revision == revision else old.revision
    if old.has_loaded or old.previous_revision is None:
        candidates = (old.revision, old.previous_revision)
    else:
        candidates = (old.previous_revision, old.revision)
    kept, unwanted = (None if each == revision else each for each in candidates)
    return (kept, unwanted) if kept is not None else (unwanted, None)
