"""Which model a request means by the name it gives. Pure.

A name stands for a model, a tier, or (by what such names look like) for a kind and size of model, which is a tier
again. One that stands for nothing is an error; and every answer names the model that gave it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from difflib import SequenceMatcher
from typing import Literal

import msgspec

from llmvisor import limits
from llmvisor.config.tree import TIERS
from llmvisor.errors import ModelNotFound, TierNotConfigured

DEFAULT = "default"
LATEST = ":latest"
"""What Ollama's clients put behind a name that has no tag."""
NEAREST_MAX = 5
NEAREST_RATIO_MIN = 0.4

Purpose = Literal["name", "text", "embedding", "reranker"]
"""What a request wants: the model of that very name (to be shown or managed), a text, vectors or scores."""

_TYPES: dict[Purpose, str] = {"embedding": "embeddings", "reranker": "reranker"}
"""By purpose, which is the tier of such models as well."""
_KIND_PATTERNS = (
    (re.compile(r"rerank|cross-encoder"), "reranker"),
    # `e5` is a name's part of its own: not every `…code5` embeds.
    (re.compile(r"embed|bge|(?<![a-z0-9])e5(?![0-9])"), "embedding"),
)
_SIZE = re.compile(r"(?<![a-z0-9.])(?:(\d{1,3})x)?(\d{1,4}(?:\.\d{1,3})?)(b|m)(?![a-z0-9])")
"""`0.5b`, `8x7b`, `135m`: parameters, in billions or millions."""
_SIZE_TIERS = ((4e9, "light"), (24e9, "medium"), (math.inf, "heavy"))
"""Parameters below which a name of that size stands for the tier."""
_TEXT_TIERS = frozenset({"light", "medium", "heavy"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")


class NamedModel(msgspec.Struct, frozen=True):
    """What resolving needs to know of a model."""

    name: str
    tier: str | None = None
    aliases: Sequence[str] = ()
    loaded: bool = False
    type: str = "llm"
    """llm | embeddings | reranker | unknown"""

    @property
    def id(self) -> str:
        """`tier/name`, or the name alone."""
        return f"{self.tier}/{self.name}" if self.tier else self.name


def resolve(
    requested: str | None,
    catalogue: Sequence[NamedModel],
    *,
    purpose: Purpose = "name",
    fallback_to_loaded: bool = True,
) -> NamedModel:
    """The model of a request, from models in the order of configuration.

    A name is a model's name, `tier/name`, an alias, or a tier, whose first model it then means. Exact spelling wins;
    without it `:latest` is left away, and then capitals count for nothing where that leaves one model. A name that is
    none of these may look like one: `*embed*`, `*bge*`, `*e5*` stand for the tier embedding, `*rerank*` and
    `*cross-encoder*` for reranker, and (for texts) sizes such as `0.5b`, `7b` and `70b` for light, medium and heavy,
    where that tier has a model; not where a model's very name is asked for.

    An absent name, or `default`, takes the first loaded model (with `fallback_to_loaded`), else the first of a tier
    that writes text, else the first of all; where vectors or scores are wanted the first of that tier, else the only
    model of that type.

    Raises `ModelNotFound` and `TierNotConfigured`.
    """
    name = requested or DEFAULT
    for same in (_as_it_is, _without_tag, _folded):
        found = _named(name, catalogue, same)
        if found is not None:
            return found
    tier = _folded(name)
    if tier == DEFAULT:
        if purpose in _TYPES:
            return _default_for(purpose, catalogue)
        return _default(catalogue, fallback_to_loaded=fallback_to_loaded)
    if tier in TIERS:
        raise TierNotConfigured(f"No models available for tier: {tier}", param="model")
    if purpose != "name" and (meant := tier_of_pattern(tier, purpose)) is not None:
        for model in catalogue:
            if model.tier == meant:
                return model
    raise ModelNotFound(_not_found(name, catalogue), param="model")


def tier_of_pattern(name: str, purpose: Purpose) -> str | None:
    """The tier that a name (in small letters) of another place's model stands for by what it looks like, if any.

    A name that says its tier or service itself (`heavy/…`, `openai~…`) stands for nothing else.
    """
    if "~" in name or name.partition("/")[0] in TIERS:
        return None
    for pattern, tier in _KIND_PATTERNS:
        if pattern.search(name):
            return tier
    size = _SIZE.search(name)
    if size is None or purpose != "text":
        return None
    parameters = int(size[1] or 1) * float(size[2]) * (1e9 if size[3] == "b" else 1e6)
    return next(tier for bound, tier in _SIZE_TIERS if parameters < bound)


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
    catalogue = [model for model in catalogue if model.type not in _TYPES.values()] or catalogue
    loaded = [model for model in catalogue if model.loaded] if fallback_to_loaded else []
    for candidates in (loaded, catalogue):
        for model in candidates:
            if model.tier in _TEXT_TIERS:
                return model
        if candidates:
            return candidates[0]
    raise AssertionError("a catalogue that is not empty has a first model")


def _default_for(purpose: Purpose, catalogue: Sequence[NamedModel]) -> NamedModel:
    """The first model of the tier that does it, a loaded one before the others; else the only model of that type."""
    of_tier = [model for model in catalogue if model.tier == purpose]
    if of_tier:
        return next((model for model in of_tier if model.loaded), of_tier[0])
    of_type = [model for model in catalogue if model.type == _TYPES[purpose]]
    if len(of_type) == 1:
        return of_type[0]
    if not of_type:
        raise TierNotConfigured(f"No models available for tier: {purpose}", param="model")
    several = ", ".join(model.id for model in of_type[:NEAREST_MAX])
    raise ModelNotFound(f"model is required: it may be one of {several}", param="model")


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
