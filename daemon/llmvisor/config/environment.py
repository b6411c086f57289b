"""Environment variables into settings. Pure.

Three families of names: those of the server (`PORT`), those of the five tiers (`LIGHT_N_CTX`), and
`LLMVISOR__SERVER__PORT` for anything in the tree. In the last, a model's name is written with `_` for every sign that
is no letter or digit, in any case: `LLMVISOR__MODELS__QWEN2_5_CODER__N_CTX` is `models.qwen2.5-coder.n_ctx`. An empty
variable is one that is not set.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

from llmvisor.config import schema
from llmvisor.config.origins import Origin, Path, dotted
from llmvisor.config.settings import Layer, Problem, Setting, wrong_value
from llmvisor.config.tree import TIERS, ModelConfig, Tier
from llmvisor.config.values import Given, WrongValue, convert

PREFIX = "LLMVISOR__"

SERVER_NAMES: dict[str, Path] = {
    "HOST": ("server", "host"),
    "PORT": ("server", "port"),
    "SHUTDOWN_TIMEOUT": ("server", "shutdown_timeout"),
    "LOG_LEVEL": ("logging", "main", "console_level"),
    "LLMVISOR_SOCKET": ("control", "socket"),
    "ENABLE_CACHE": ("cache", "enabled"),
    "LLM_CACHE_ENABLED": ("cache", "enabled"),
    "CACHE_MAX_SIZE": ("cache", "max_size"),
    "CACHE_TTL_SECONDS": ("cache", "ttl_seconds"),
    "LLM_CACHE_TTL_SECONDS": ("cache", "ttl_seconds"),
    "CACHE_PERSIST_TO_DISK": ("cache", "persist_to_disk"),
    "CACHE_DIR": ("cache", "dir"),
}
"""`LLMVISOR_SOCKET` is what `llmctl` reads as well, so that one variable moves both ends."""

OUTSIDE_TREE = ("LLMVISOR_CONFIG", "LLMVISOR_DATA_DIR", "LLMVISOR_UPGRADE_FD", "LLMVISOR_PREFLIGHT")
"""Names that say where things are rather than what they are set to, and those that one run hands to the next."""

TIER_KEYS: dict[str, str] = {
    "MODEL_PATH": "path",
    "BACKEND": "backend",
    "N_CTX": "n_ctx",
    "N_BATCH": "n_batch",
    "N_THREADS": "n_threads",
    "N_GPU_LAYERS": "n_gpu_layers",
    "TEMPERATURE": "temperature",
    "TOP_P": "top_p",
    "TOP_K": "top_k",
    "MAX_TOKENS": "max_tokens",
    "REPEAT_PENALTY": "repeat_penalty",
    "USE_MMAP": "use_mmap",
    "USE_MLOCK": "use_mlock",
    "EMBEDDING_MODE": "embedding_mode",
    "EMBEDDING_DIMENSION": "embedding_dimension",
}

TIER_NAMES: dict[str, tuple[Tier, str]] = {
    f"{tier.upper()}_{suffix}": (tier, key) for tier in TIERS for suffix, key in TIER_KEYS.items()
}

_FOREIGN = re.compile(
    r"LM_STUDIO_ENDPOINT|OPENAI_(API_KEY|MODEL|MAX_TOKENS|TEMPERATURE)|CLAUDE_(API_KEY|MODEL)|ANTHROPIC_API_KEY"
    r"|LLM_ROUTING_STRATEGY"
    r"|LLM_(GENERAL|SQL|ANALYSIS|UI_GENERATION|CONFIG_MANAGEMENT)_MODEL(_\d+)?"
)
"""Names that later versions read, and that stand in many an environment for other programs."""


class Variable(msgspec.Struct, frozen=True):
    """One variable of one layer."""

    name: str
    value: str
    origin: Origin
    folder: str
    """What a relative path in the value starts from."""


class Models(msgspec.Struct):
    """The models that all layers together name, in order, and the tier of each."""

    tiers: dict[str, str | None]

    def of_tier(self, tier: str) -> str | None:
        """The model that a tier's variables speak of: the one called so, else the first of that tier."""
        if tier in self.tiers:
            return tier
        return next((name for name, its in self.tiers.items() if its == tier), None)

    def by_folded(self, folded: str) -> list[str]:
        return [name for name in self.tiers if fold(name) == folded]


def fold(name: str) -> str:
    """A model's name as it stands in a variable's."""
    return re.sub(r"[^A-Z0-9]", "_", name.upper())


def name_models(models: Models, variables: Iterable[Variable]) -> None:
    """Add the models that variables define: by a path, or by a backend that needs none."""
    for variable in variables:
        known = TIER_NAMES.get(variable.name)
        if known is not None:
            tier, key = known
            if (key == "path" or (key == "backend" and variable.value == "mock")) and models.of_tier(tier) is None:
                models.tiers[tier] = tier
            continue
        parts = variable.name.upper().split("__")
        if parts[:2] == ["LLMVISOR", "MODELS"] and parts[-1] in ("PATH", "BACKEND"):
            name, rest = _at_key(parts[2:])
            if len(rest) == 1 and not models.by_folded(fold(name)):
                models.tiers[name.lower()] = name.lower() if name.lower() in TIERS else None


def _at_key(parts: list[str]) -> tuple[str, list[str]]:
    """A model's name as it stands in a variable's, and the parts from the first that is a key of models."""
    known = schema.fields(ModelConfig)
    end = next((index for index, part in enumerate(parts) if index and part.lower() in known), 1)
    return "__".join(parts[:end]), parts[end:]


def read_variables(variables: Mapping[str, Variable], models: Models) -> tuple[Layer, list[str]]:
    """One layer's settings, and its variables that have no effect, each with why."""
    layer = Layer()
    unused: list[str] = []
    general = [each for each in variables.values() if each.name.upper().startswith(PREFIX)]
    for variable in variables.values():
        if variable.name in SERVER_NAMES:
            _set(layer, variable, SERVER_NAMES[variable.name])
        elif variable.name in TIER_NAMES:
            _set_tier(layer, variable, models, unused)
        elif _FOREIGN.fullmatch(variable.name):
            unused.append(f"{variable.origin.where}: not used by this version")
        elif variable.name.startswith("LLMVISOR_") and variable not in general and variable.name not in OUTSIDE_TREE:
            unused.append(f"{variable.origin.where}: not used; names of the tree begin with {PREFIX}")
    # Last, because the long name is the more exact one where both are set.
    for variable in general:
        _set_general(layer, variable, models)
    return layer, unused


def _set_tier(layer: Layer, variable: Variable, models: Models, unused: list[str]) -> None:
    tier, key = TIER_NAMES[variable.name]
    model = models.of_tier(tier)
    if model is None:
        unused.append(f"{variable.origin.where}: not used, no model is of the tier {tier}")
    else:
        _set(layer, variable, ("models", model, key))


def _set(layer: Layer, variable: Variable, path: Path) -> None:
    place = schema.ROOT
    for key in path:
        below = schema.below(place, key)
        assert below is not None, f"no key {path}"
        place = below
    value = variable.value.strip()
    try:
        converted = convert(Given(value, value, textual=True), place.type)
    except WrongValue as error:
        text = wrong_value(path, variable.value, error.allowed)
        layer.problems.append(Problem(variable.origin, text, path))
        return
    layer.settings.append(Setting(path, converted, variable.origin, variable.folder))


def _set_general(layer: Layer, variable: Variable, models: Models) -> None:
    parts = variable.name[len(PREFIX) :].split("__")
    try:
        path = _path(parts, models)
    except LookupError as error:
        _problem(layer, variable, str(error.args[0]))
        return
    _set(layer, variable, path)


def _path(parts: list[str], models: Models) -> Path:
    """The key that the parts of a variable's name stand for. Raises `LookupError` with what is wrong."""
    if parts[0].lower() == "models" and len(parts) > 2:
        name, rest = _model_and_rest(parts[1:], models)
        return _descend(("models", name), rest)
    if parts[0].lower() == "backends" and len(parts) > 2:
        return _descend(("backends", parts[1].lower()), parts[2:])
    return _descend((), parts)


def _model_and_rest(parts: list[str], models: Models) -> tuple[str, list[str]]:
    word, rest = _at_key(parts)
    named = models.by_folded(fold(word))
    if len(named) > 1:
        raise LookupError(f"stands for more than one model: {', '.join(named)}")
    if named:
        return named[0], rest
    near = schema.nearest(word, list(models.tiers))
    hint = f", the nearest is {near}" if near else f"; there are: {', '.join(models.tiers)}"
    raise LookupError(f"no model is called {word.lower()}{hint} (a new one needs its PATH or BACKEND set, too)")


def _descend(path: Path, parts: list[str]) -> Path:
    place = schema.ROOT
    for key in path:
        place = schema.below(place, key) or place
    for index, part in enumerate(parts):
        if place.kind == "open":
            # Names of environment variables are in the case that they have.
            rest = "__".join(parts[index:])
            return (*path, rest if path[-1] == "env" else rest.lower())
        path = (*path, part.lower())
        below = None if place.kind == "leaf" else schema.below(place, part.lower())
        if below is None:
            raise LookupError(_unknown(place, path))
        place = below
    if place.kind != "leaf":
        raise LookupError(f"{dotted(path)}: a part of the tree, not one value; it has: {', '.join(schema.keys(place))}")
    return path


def _unknown(place: schema.Place, path: Path) -> str:
    if place.kind == "leaf":
        return f"{dotted(path)}: unknown key, {dotted(path[:-1])} is one value"
    known = schema.unknown_key(place, path)
    near = schema.nearest(path[-1], schema.keys(place))
    name = "" if near is None else f" ({PREFIX}{'__'.join(fold(each) for each in (*path[:-1], near))})"
    return f"{dotted(path)}: {known}{name}"


def _problem(layer: Layer, variable: Variable, text: str) -> None:
    layer.problems.append(Problem(variable.origin, text))
