"""Command line flags into settings. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from llmvisor.config import schema
from llmvisor.config.environment import Models
from llmvisor.config.origins import Origin, Path
from llmvisor.config.settings import Layer, Problem, Setting, wrong_value
from llmvisor.config.values import Given, WrongValue, convert

FLAG_PATHS: dict[str, Path] = {
    "host": ("server", "host"),
    "port": ("server", "port"),
    "port_file": ("server", "port_file"),
    "socket": ("control", "socket"),
    "log_level": ("logging", "main", "console_level"),
    "log_file": ("logging", "main", "file"),
    "log_format": ("logging", "main", "format"),
    "memory_limit": ("memory", "limit"),
}
"""The flags that stand for a key; `--set PATH=VALUE` stands for any other, its dotted path being the flag's name."""

NOT_SETTINGS = ("config", "insecure_no_auth")


def read_flags(flags: Mapping[str, object], models: Models, folder: str) -> Layer:
    """The layer of flags. A value of None is a flag that was not given."""
    layer = Layer()
    for flag, value in flags.items():
        if value is None or flag in NOT_SETTINGS:
            continue
        where = f"--{flag.replace('_', '-')}" if flag in FLAG_PATHS else f"--set {flag}"
        origin = Origin("flag", where)
        path = FLAG_PATHS.get(flag) or _split(flag, models)
        place = _descend(path)
        if isinstance(place, str):
            layer.problems.append(Problem(origin, place))
            continue
        try:
            converted = convert(Given(value, textual=isinstance(value, str)), place.type)
        except WrongValue as error:
            layer.problems.append(Problem(origin, wrong_value(path, value, error.allowed), path))
        else:
            layer.settings.append(Setting(path, converted, origin, folder))
    return layer


def _split(flag: str, models: Models) -> Path:
    """A dotted path, in which a model's name may have dots of its own."""
    for name in sorted(models.tiers, key=len, reverse=True):
        if flag.startswith(f"models.{name}."):
            return ("models", name, *flag.removeprefix(f"models.{name}.").split("."))
    return tuple(flag.split("."))


def _descend(path: Path) -> schema.Place | str:
    """What stands at a path, or what is wrong with the path."""
    place = schema.ROOT
    for index, key in enumerate(path):
        below = schema.below(place, key)
        if below is None:
            here = path[: index + 1]
            return f"{'.'.join(here)}: {schema.unknown_key(place, here)}"
        place = below
    if place.kind != "leaf":
        return f"{'.'.join(path)}: a part of the tree, not one value"
    return place
