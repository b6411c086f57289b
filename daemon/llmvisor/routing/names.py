"""Which model a request means by the name it gives. Pure.

A name that stands for nothing is an error: no request is served by another model than it asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from difflib import SequenceMatcher

import msgspec

from llmvisor import limits
from llmvisor.config.tree import TIERS
from llmvisor.errors import ModelNotFound, TierNotConfigured

DEFAULT = "default"
LATEST = ":latest"
"""What Ollama's clients put behind a name that has no tag."""
NEAREST_MAX = 5
NEAREST_RATIO_MIN = 0.4

_TEXT_TIERS = frozenset({"light", "medium", "heavy"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")


class NamedModel(msgspec.Struct, frozen=True):
    """What resolving needs to know of a model."""

    name: str
    tier: str | None = None
    aliases: Sequence[str] = ()
    loaded: bool = False

    @property
    def id(self) -> str:
        """`tier/name`, or the name alone."""
        return f"{self.tier}/{self.name}" if self.tier else self.name


def resolve(requested: str | None, catalogue: Sequence[NamedModel], *, fallback_to_loaded: bool = True) -> NamedModel:
    """The model of a request, from models in the order of configuration.

    A name is a model's name, `tier/name`, an alias, or a tier, whose first model it then means. Exact spelling wins;
    without it `:latest` is left away, and then capitals count for nothing where that leaves one model. An absent
    name, or `default`, takes the first loaded model (with `fallback_to_loaded`), else the first of a tier that
    writes text, else the first of all.

    Raises `ModelNotFound` and `TierNotConfigured`.
    """
    name = requested or DEFAULT
    for same in (_as_it_is, _without_tag, _folded):
        found = _named(name, catalogue, same)
        if found is not None:
            return found
    tier = _folded(name)
    if tier == DEFAULT:
        return _default(catalogue, fallback_to_loaded=fallback_to_loaded)
    if tier in TIERS:
        raise TierNotConfigured(f"No models available for tier: {tier}", param="model")
    raise ModelNotFound(_not_found(name, catalogue), param="model")


def check_name(name: str) -> str | None:
    """What is wrong with a name (or alias) in configuration; None if nothing is.

    `/` parts a tier from a name and `~` a service from its model; both stay free for that.
    """
    if not name:
        return "a name cannot be empty"
    if len(name) > limits.model_name_chars_max:
        return f"a name has at most {limits.model_name_chars_max} characters"
    if not _NAME.fullmatch(name):
        return "allowed are letters, digits and . _ - : with a letter or digit first"
    if name.lower() == DEFAULT:
        return f"`{DEFAULT}` stands for whatever model is loaded"
    return None


def _as_it_is(name: str) -> str:
    return name


def _without_tag(name: str) -> str:
    return name.removesuffix(LATEST)


def _folded(name: str) -> str:
    return name.casefold().removesuffix(LATEST)


def _named(name: str, catalogue: Sequence[NamedModel], same: Callable[[str], str]) -> NamedModel | None:
    """The model that a spelling means: by its own names, else by its tier. None where that is nobody, or several."""
    spelling = same(name)
    found = [model for model in catalogue if any(same(own) == spelling for own in _names(model))]
    if found:
        return found[0] if len(found) == 1 else None
    return next((model for model in catalogue if model.tier == spelling), None)


def _names(model: NamedModel) -> Iterator[str]:
    for name in (model.name, *model.aliases):
        yield name
        if model.tier:
            yield f"{model.tier}/{name}"


def _default(catalogue: Sequence[NamedModel], *, fallback_to_loaded: bool) -> NamedModel:
    if not catalogue:
        raise ModelNotFound("No model is configured", hint="set LIGHT_MODEL_PATH, or `models:` in the configuration")
    loaded = [model for model in catalogue if model.loaded] if fallback_to_loaded else []
    for candidates in (loaded, catalogue):
        for model in candidates:
            if model.tier in _TEXT_TIERS:
                return model
        if candidates:
            return candidates[0]
    raise AssertionError("a catalogue that is not empty has a first model")


def _not_found(name: str, catalogue: Sequence[NamedModel]) -> str:
    shown = name[: limits.model_name_chars_max]
    how = "`GET /v1/models` or `llmctl models` lists all"
    near = _nearest(shown, catalogue)
    if not near:
        return f"The model {shown!r} does not exist, and none is configured"
    return f"The model {shown!r} does not exist. Nearest: {', '.join(near)}; {how}"


def _nearest(name: str, catalogue: Sequence[NamedModel]) -> list[str]:
    """Ids of the models that are spelled most like a name, or the first ones where none is."""
    wanted = SequenceMatcher(b=_folded(name), autojunk=False)

    def likeness(model: NamedModel) -> float:
        best = 0.0
        for own in _names(model):
            wanted.set_seq1(_folded(own))
            best = max(best, wanted.ratio() if wanted.real_quick_ratio() > best else 0.0)
        return best

    rated = sorted(((likeness(model), model.id) for model in catalogue), key=lambda pair: -pair[0])
    near = [id for rating, id in rated if rating >= NEAREST_RATIO_MIN]
    return (near or [model.id for model in catalogue])[:NEAREST_MAX]
