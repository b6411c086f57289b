"""What of the installed models the store's rows know, and what only their folders do. Blocks on the disk."""

from __future__ import annotations

import os
from collections.abc import Iterable

import msgspec

from llmvisor.errors import ModelLoadFailed
from llmvisor.models.installed import Installed, describe
from llmvisor.models.shelf import Shelf


class Found(msgspec.Struct):
    """The models at a start."""

    models: list[Installed] = []
    healed: set[str] = set()
    """Whose rows were not there, or said something else than the folders."""
    gone: set[str] = set()
    """Whose files are not where the rows say."""
    deleted: list[str] = []
    """Whose deletion had only begun."""
    surplus: list[tuple[str, str]] = []
    """Models and revisions of them that nobody goes back to."""
    refused: dict[str, str] = {}
    """Folders that cannot be used, and why."""


def take_stock(shelf: Shelf, rows: Iterable[Installed]) -> Found:
    """Compare rows and folders; the folders are right. Raises `FetchProblem` where they cannot be read at all.

    Only where the two differ are manifests and models' headers read.
    """
    found = Found()
    known = {row.model.name: row for row in rows}
    half_deleted = set(shelf.half_deleted())
    expected = {name: _revisions(row) for name, row in known.items()}
    present = set(shelf.names())
    for name in (*known, *sorted(present - known.keys())):
        row = known.get(name)
        if name not in present:
            _absent(found, name, row, deleted=name in half_deleted)
        elif row is not None and shelf.revision_names(name) == expected[name] and os.path.exists(row.model.path):
            found.models.append(row)
        else:
            _read(found, shelf, name, row)
    return found


def _absent(found: Found, name: str, row: Installed | None, *, deleted: bool) -> None:
    if deleted:
        found.deleted.append(name)
    elif row is not None:
        found.models.append(row)
        found.gone.add(name)


def _read(found: Found, shelf: Shelf, name: str, row: Installed | None) -> None:
    """A model whose folder is not what its row says: its newest revision is the one that is served."""
    revisions = shelf.revisions(name)
    if not revisions:
        if row is not None:
            found.models.append(row)
            found.gone.add(name)
        return
    newest, before = revisions[0], revisions[1] if len(revisions) > 1 else None
    try:
        installed = describe(newest.manifest, newest.folder)
    except ModelLoadFailed as error:
        found.refused[name] = str(error)
        if row is not None:
            found.models.append(row)
            found.gone.add(name)
        return
    same = row is not None and row.model.revision == newest.manifest.fetched.revision
    model = msgspec.structs.replace(
        installed.model,
        previous_revision=before.manifest.fetched.revision if before else None,
        has_loaded=row.model.has_loaded if row is not None and same else False,
    )
    found.models.append(msgspec.structs.replace(installed, model=model))
    found.healed.add(name)
    found.surplus += [(name, each.manifest.fetched.revision) for each in revisions[2:]]


def _revisions(row: Installed) -> set[str]:
    return {each for each in (row.model.revision, row.model.previous_revision) if each is not None}
