"""Which model a request means by the name it gives. Pure.

A name stands for a model, a tier, or (by what such names look like) for a kind and size of model, which is a tier
again. One that stands for nothing is an error; and every answer names the model that gave it.
"""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
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
ALIKE_MAX = 256
"""Models that are compared letter by letter with a name that is none."""
TOLD_MAX = 64
"""Names that are none whose errors are kept."""

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
    installed: bool = False
    """Not of the configuration, whose models come before it where both have a name."""

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
    """The model of a request, from models in the order of configuration; see `NameIndex.resolve`."""
    index = NameIndex()
    for model in catalogue:
        index.put(model)
    loaded = [model.name for model in catalogue if model.loaded]
    return index.resolve(requested, purpose=purpose, loaded=loaded if fallback_to_loaded else ())


class NameIndex:
    """Every name of every model, so that a request finds its model at once among any number of them.

    `type_of` gives what a model is, where that becomes known later than its name.
    """

    def __init__(self, type_of: Callable[[NamedModel], str] = lambda model: model.type) -> None:
        self._type_of = type_of
        self._models: dict[str, NamedModel] = {}
        self._tiers: dict[str, dict[str, NamedModel]] = {}
        self._spelled: tuple[dict[str, dict[str, NamedModel]], ...] = ({}, {}, {})
        self._sorted: list[tuple[str, str]] | None = None
        self._told: dict[str, str] = {}
        """What was said of names that are none: whoever has such a name asks again and again."""

    def put(self, model: NamedModel) -> None:
        """A new model, which comes last, or one that has changed, which keeps its place where it keeps its tier."""
        before = self._models.get(model.name)
        if before is not None:
            self._drop(before, keep_tier=before.tier == model.tier)
        self._models[model.name] = model
        if model.tier:
            self._tiers.setdefault(model.tier, {})[model.name] = model
        for same, spelled in zip(_SPELLINGS, self._spelled, strict=True):
            for own in _names(model):
                spelled.setdefault(same(own), {})[model.name] = model
        self._changed()

    def remove(self, name: str) -> None:
        model = self._models.pop(name, None)
        if model is not None:
            self._drop(model)

    def _drop(self, model: NamedModel, *, keep_tier: bool = False) -> None:
        if model.tier and not keep_tier:
            del self._tiers[model.tier][model.name]
        for same, spelled in zip(_SPELLINGS, self._spelled, strict=True):
            for spelling in {same(own) for own in _names(model)}:
                del spelled[spelling][model.name]
                if not spelled[spelling]:
                    del spelled[spelling]
        self._changed()

    def _changed(self) -> None:
        self._sorted = None
        self._told.clear()

    def resolve(self, requested: str | None, *, purpose: Purpose = "name", loaded: Iterable[str] = ()) -> NamedModel:
        """The model of a request.

        A name is a model's name, `tier/name`, an alias, or a tier, whose first model it then means. Exact spelling
        wins; without it `:latest` is left away, and then capitals count for nothing where that leaves one model. A
        name that is none of these may look like one: `*embed*`, `*bge*`, `*e5*` stand for the tier embedding,
        `*rerank*` and `*cross-encoder*` for reranker, and (for texts) sizes such as `0.5b`, `7b` and `70b` for light,
        medium and heavy, where that tier has a model; not where a model's very name is asked for.

        An absent name, or `default`, takes the first of `loaded`, else the first of a tier that writes text, else the
        first of all; where vectors or scores are wanted the first of that tier, else the only model of that type.

        Raises `ModelNotFound` and `TierNotConfigured`.
        """
        name = requested or DEFAULT
        for same, spelled in zip(_SPELLINGS, self._spelled, strict=True):
            found = self._named(same(name), spelled)
            if found is not None:
                return found
        tier = _folded(name)
        if tier == DEFAULT:
            ready = [self._models[each] for each in loaded if each in self._models]
            return self._default_for(purpose, ready) if purpose in _TYPES else self._default(ready)
        if tier in TIERS:
            raise TierNotConfigured(f"No models available for tier: {tier}", param="model")
        if purpose != "name" and (meant := tier_of_pattern(tier, purpose)) is not None and self._tiers.get(meant):
            return next(iter(self._tiers[meant].values()))
        raise ModelNotFound(self._not_found(name), param="model")

    def _named(self, spelling: str, spelled: dict[str, dict[str, NamedModel]]) -> NamedModel | None:
        """The model that a spelling means: by its own names, else by its tier. None where that is none, or several."""
        found = spelled.get(spelling)
        if found:
            among = list(found.values())
            if len(among) > 1:
                among = [model for model in among if not model.installed]
            return among[0] if len(among) == 1 else None
        return next(iter(self._tiers.get(spelling, {}).values()), None)

    def _default(self, loaded: list[NamedModel]) -> NamedModel:
        if not self._models:
            hint = "set LIGHT_MODEL_PATH, or `models:` in the configuration"
            raise ModelNotFound("No model is configured", hint=hint)
        anything: NamedModel | None = None
        for candidates in (loaded, self._models.values()):
            first: NamedModel | None = None
            for model in candidates:
                anything = anything or model
                if self._type_of(model) not in _TYPES.values():
                    if model.tier in _TEXT_TIERS:
                        return model
                    first = first or model
            if first is not None:
                return first
        assert anything is not None, "a catalogue that is not empty has a first model"
        return anything

    def _default_for(self, purpose: Purpose, loaded: list[NamedModel]) -> NamedModel:
        """The first model of the tier that does it, a loaded one before others; else the only model of that type."""
        of_tier = self._tiers.get(purpose, {})
        if of_tier:
            return next((model for model in loaded if model.name in of_tier), next(iter(of_tier.values())))
        of_type = [model for model in self._models.values() if self._type_of(model) == _TYPES[purpose]]
        if len(of_type) == 1:
            return of_type[0]
        if not of_type:
            raise TierNotConfigured(f"No models available for tier: {purpose}", param="model")
        several = ", ".join(model.id for model in of_type[:NEAREST_MAX])
        raise ModelNotFound(f"model is required: it may be one of {several}", param="model")

    def _not_found(self, name: str) -> str:
        shown = name[: limits.model_name_chars_max]
        if (told := self._told.get(shown)) is None:
            if len(self._told) >= TOLD_MAX:
                self._told.clear()
            told = self._told[shown] = self._say_not_found(shown)
        return told

    def _say_not_found(self, shown: str) -> str:
        how = "`GET /v1/models` or `llmctl models` lists all"
        near = _nearest(shown, self._alike(shown))
        if not near:
            return f"The model {shown!r} does not exist, and none is configured"
        return f"The model {shown!r} does not exist. Nearest: {', '.join(near)}; {how}"

    def _alike(self, name: str) -> Sequence[NamedModel]:
        """All models, or of very many those whose names begin most like this one."""
        if len(self._models) <= ALIKE_MAX:
            return list(self._models.values())
        if self._sorted is None:
            self._sorted = sorted(
                (_folded(own), model.name) for model in self._models.values() for own in _names(model)
            )
        place = bisect.bisect(self._sorted, (_folded(name), ""))
        around = self._sorted[max(0, place - ALIKE_MAX // 2) : place + ALIKE_MAX // 2]
        return [self._models[each] for each in dict.fromkeys(model for _, model in around)]


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


_SPELLINGS = (_as_it_is, _without_tag, _folded)


def _names(model: NamedModel) -> Iterator[str]:
    for name in (model.name, *model.aliases):
        yield name
        if model.tier:
            yield f"{model.tier}/{name}"


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
