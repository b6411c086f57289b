"""The models of a tree: names, tiers, backends and files, and what they inherit. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import cast

from llmvisor import limits
from llmvisor.config.draft import Draft, absolute
from llmvisor.config.origins import Path, dotted
from llmvisor.config.tree import TIERS, Llm, Server
from llmvisor.routing.names import check_name

BACKENDS = ("flag", "llamacpp", "mlx", "mock")
"""The backends that come with this version."""
PATHLESS_BACKENDS = ("mock",)
_FILE_OPTIONS = ("draft_model", "mmproj")
"""Options of llamacpp that name a file; each of `adapters` does as well."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def complete_models(draft: Draft) -> None:
    """Fill in and check every model."""
    if len(draft.models) > limits.models_configured_max:
        draft.wrong(("models",), f"found {len(draft.models)} models, allowed: up to {limits.models_configured_max}")
        return
    for name in draft.models:
        path = ("models", name)
        _check_name(draft, name)
        _complete_tier(draft, name)
        _complete_backend(draft, path)
        if draft.text((*path, "backend")) == "llamacpp":
            _complete_file_options(draft, (*path, "options"))
        _check_restart(draft, (*path, "restart", "backoff"))
        for key, value in (("temperature", Llm().temperature), ("max_tokens", Llm().max_tokens)):
            _inherit(draft, (*path, key), ("llm", key), value)
        _inherit(draft, (*path, "sandbox"), ("server", "sandbox"), Server().sandbox)
    _check_aliases(draft)
    for path in draft.settings:
        _check_free_name(draft, path)


def _check_name(draft: Draft, name: str) -> None:
    said = check_name(name)
    if said is not None:
        draft.wrong(("models", name), f"found the name {name!r}: {said}")


def _check_free_name(draft: Draft, path: Path) -> None:
    """The names that a person gives beside the models': of backends and of environment variables."""
    if path[0] == "backends" and (said := check_name(path[1])) is not None:
        draft.wrong(path, f"found the backend {path[1]!r}: {said}")
    elif path[2:3] == ("env",) and _VARIABLE.fullmatch(path[3]) is None:
        draft.wrong(path, f"found the name {path[3]!r}, allowed: letters, digits and _, no digit first")
    elif path[2:3] == ("options",) and not (path[3].isprintable() and 0 < len(path[3]) <= limits.option_name_chars_max):
        draft.wrong(path, f"allowed: a name of 1 to {limits.option_name_chars_max} printable characters")


def _complete_tier(draft: Draft, name: str) -> None:
    path = ("models", name, "tier")
    tier = draft.value(path)
    if name not in TIERS:
        return
    if tier is None:
        draft.put(path, name, draft.origin(path))
    elif tier != name:
        draft.wrong(path, f"found {tier}, allowed for a model called {name}: {name}")


def _complete_backend(draft: Draft, path: Path) -> None:
    key = (*path, "backend")
    file_key = (*path, "path")
    draft.make_absolute(file_key)
    if {path, key, file_key} & draft.broken:
        return
    backend, file = draft.text(key), draft.text(file_key)
    if backend is not None:
        if not _is_known(draft, backend):
            draft.wrong(key, f'found "{backend}", allowed in this version: {", ".join(BACKENDS)}, or a plug-in\'s')
            return
    elif file is not None:
        backend = _guess(draft, file_key, file)
    if backend is None:
        if file is None:
            draft.wrong(path, "no path, allowed: `path:` of a GGUF file, or `backend: mock`")
        return
    draft.put(key, backend, draft.origin(key))
    if backend in PATHLESS_BACKENDS:
        return
    if file is None:
        draft.wrong(path, f"no path, and the backend {backend} needs one")
    elif backend == "llamacpp" and draft.around.is_folder(file):
        draft.wrong(file_key, f"found a folder ({file}), allowed for llamacpp: a GGUF file")


def _complete_file_options(draft: Draft, path: Path) -> None:
    """A worker has another working directory than whoever wrote a relative path."""
    for name in _FILE_OPTIONS:
        draft.make_absolute((*path, name))
    key = (*path, "adapters")
    setting = draft.settings.get(key)
    if setting is None or not isinstance(setting.value, dict):
        return  # what is no mapping is the backend's to refuse
    adapters = cast("dict[str, object]", setting.value)
    located = {name: _located(adapter, setting.folder, draft.around.home) for name, adapter in adapters.items()}
    draft.put(key, located, setting.origin)


def _located(adapter: object, folder: str, home: str) -> object:
    if not isinstance(adapter, dict):
        return adapter
    fields = cast("dict[str, object]", adapter)
    file = fields.get("path")
    return {**fields, "path": absolute(file, folder, home)} if isinstance(file, str) else fields


def _is_known(draft: Draft, backend: str) -> bool:
    if backend in BACKENDS or draft.around.has_backend(backend):
        return True
    # A plug-in in an interpreter of its own cannot be seen from here.
    return draft.text(("backends", backend, "python")) is not None


def _guess(draft: Draft, key: Path, file: str) -> str | None:
    """The backend that a file or folder is for; notes a problem and gives None where no backend here reads it."""
    if file.lower().endswith(".gguf"):
        return "llamacpp"
    has = f"this version has the backends {', '.join(BACKENDS)}"
    if draft.around.is_folder(file):
        backend = draft.around.folder_backend(file)
        if backend is None:
            draft.wrong(key, f"found a folder ({file}) without config.json and weights, and {has}: set `backend:`")
        return backend
    draft.wrong(key, f"found {file}, whose kind its name does not tell; {has}: set `backend:`")
    return None


def _check_restart(draft: Draft, key: Path) -> None:
    backoff = draft.value(key)
    if isinstance(backoff, tuple) and backoff[0] > backoff[1]:
        found = list(backoff)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        draft.wrong(key, f"found {found}, allowed: the shortest wait first, and not above the longest")


def _inherit(draft: Draft, key: Path, general: Path, default: float | str) -> None:
    if draft.value(key) is None:
        value = draft.value(general)
        draft.put(key, default if value is None else value, draft.origin(general))


def _aliases(draft: Draft) -> Iterator[tuple[Path, str]]:
    for name in draft.models:
        key = ("models", name, "aliases")
        value = draft.value(key)
        for alias in value if isinstance(value, list) else []:  # pyright: ignore[reportUnknownVariableType]
            yield key, str(alias)  # pyright: ignore[reportUnknownArgumentType]


def _check_aliases(draft: Draft) -> None:
    """An alias is no name, no tier and no other alias: each name stands for one model."""
    seen: dict[str, Path] = {}
    for key, alias in _aliases(draft):
        said = check_name(alias)
        if said is not None:
            draft.wrong(key, f"found {alias!r}: {said}")
        elif alias in draft.models:
            draft.wrong(key, f'found "{alias}", which is a model\'s name already')
        elif alias in TIERS:
            draft.wrong(key, f'found "{alias}", which is a tier; `tier: {alias}` makes the model fill it')
        elif alias in seen:
            draft.wrong(key, f'found "{alias}", which {dotted(seen[alias])} has already')
        seen.setdefault(alias, key)
