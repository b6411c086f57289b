"""What lies beside an installed model's files and says all of it: `manifest.json`, and what may stand in one.

The store's rows can be made again from these; what a manifest says is checked on the way in as if a stranger had
written it. Pure.
"""

from __future__ import annotations

import re
from typing import cast

import msgspec

from llmvisor import limits
from llmvisor.config.tree import TIERS, Tier
from llmvisor.errors import InvalidRequest
from llmvisor.fetch.protocol import Fetched
from llmvisor.models import limits as model_limits
from llmvisor.routing.names import check_name

MANIFEST_NAME = "manifest.json"
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{model_limits.installed_name_chars_max - 1}}}")
_REVISION = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,{model_limits.revision_chars_max - 1}}}")


class Manifest(msgspec.Struct, frozen=True):
    """One revision of one installed model."""

    fetched: Fetched
    name: str
    tier: str | None
    installed_at: str
    """ISO 8601 in UTC, as is the next."""
    chosen_at: str
    """When this revision became the one that is served: of a model's revisions the newest by this is."""


class BadManifestError(Exception):
    """A manifest that cannot be used; says why."""


def encode(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2)


def decode(data: bytes) -> Manifest:
    """A manifest from its file's bytes, with everything in it checked. Raises `BadManifestError`."""
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise BadManifestError(str(error)) from None
    said = installed_name_problem(manifest.name) or fetched_problem(manifest.fetched)
    if said is None and manifest.tier not in {None, *TIERS}:
        said = "its tier is none"
    if said is not None:
        raise BadManifestError(said)
    return manifest


def check_installed_name(name: str) -> str:
    """The name, as it is. Raises `InvalidRequest` for one that cannot be a model's folder."""
    said = installed_name_problem(name)
    if said is not None:
        raise InvalidRequest(f"the name {_shown(name)}: {said}", param="name", hint="`--name` takes another one")
    return name


def check_tier(tier: str | None) -> Tier | None:
    """The tier, as it is. Raises `InvalidRequest`."""
    if tier not in {None, *TIERS}:
        raise InvalidRequest(f"tier: expected one of {', '.join(TIERS)}, found {_shown(tier or '')}", param="tier")
    return cast("Tier | None", tier)


def installed_name_problem(name: str) -> str | None:
    """What is wrong with the name of a model that is to be installed; None if nothing is."""
    if len(name) > model_limits.installed_name_chars_max:
        return f"a name has at most {model_limits.installed_name_chars_max} characters"
    if name.casefold() in TIERS:
        return "that is a tier; `--tier` makes a model fill it"
    if _NAME.fullmatch(name) is None:
        return "allowed are ASCII letters, digits and . _ - with a letter or digit first"
    return check_name(name)


def fetched_problem(fetched: Fetched) -> str | None:
    """What is wrong with what a fetch says that it has brought; None if nothing is."""
    if _REVISION.fullmatch(fetched.revision) is None:
        return f"the revision {_shown(fetched.revision)} is none"
    if not 0 < len(fetched.files) <= limits.model_folder_files_max:
        return f"a model has 1 to {limits.model_folder_files_max} files, not {len(fetched.files)}"
    return _paths_problem(fetched.main, [file.path for file in fetched.files])


def _paths_problem(main: str, paths: list[str]) -> str | None:
    for path in (*paths, *([main] if main else [])):
        if not is_inner_path(path):
            return f"the path {_shown(path)} leads out of the model's folder"
    if len({path.casefold() for path in paths}) < len(paths):
        return "two files have the same name"
    if main and main not in paths:
        return f"the main file {_shown(main)} is not among the files"
    return f"a file is called {MANIFEST_NAME}" if MANIFEST_NAME in paths else None


def is_inner_path(path: str) -> bool:
    """Whether a relative path with `/` stays below the folder that it starts from, on every system."""
    parts = path.split("/")
    printable = path.isprintable() and "\\" not in path and ":" not in path
    within = 0 < len(path) <= model_limits.inner_path_chars_max and all(len(part.encode()) <= 255 for part in parts)
    return printable and within and not any(part in {"", ".", ".."} for part in parts)


def _shown(text: str) -> str:
    return ascii(text[:80])
