"""What a new configuration changes, and how each change is applied. Pure.

Applied in the order of the fields of `ReloadPlan`: logging, cache, limits, routing, listeners, then models.
"""

from __future__ import annotations

import posixpath
from typing import Final, Literal

import msgspec

from llmvisor.config.origins import Path, dotted, leaves, shown
from llmvisor.config.tree import Config, ModelConfig

Effect = Literal[
    "logging", "cache", "limits", "routing", "http_listener", "control_listener", "update", "replace", "restart"
]
"""`update`: the model takes it as it runs; `replace`: it needs a new worker; `restart`: the whole daemon has to start
anew; the others name their part."""

MODEL_EFFECTS: Final[dict[str, Effect]] = {
    "path": "replace",
    "backend": "replace",
    "tier": "update",
    "aliases": "update",
    "n_ctx": "replace",
    "n_batch": "replace",
    "n_threads": "replace",
    "n_gpu_layers": "replace",
    "parallel": "replace",
    "temperature": "update",
    "top_p": "update",
    "top_k": "update",
    "max_tokens": "update",
    "repeat_penalty": "update",
    "use_mmap": "replace",
    "use_mlock": "replace",
    "embedding_mode": "replace",
    "embedding_dimension": "update",
    "idle_timeout": "update",
    "preload": "update",
    "pinned": "update",
    "load_timeout": "update",
    "stall_timeout": "update",
    "queue_limit": "update",
    "restart": "update",
    "sandbox": "replace",
    "env": "replace",
    "options": "replace",
    "memory": "update",
}
"""What a change of each of a model's keys means."""

SECTION_EFFECTS: Final[dict[Path, Effect]] = {
    ("server", "host"): "http_listener",
    ("server", "port"): "http_listener",
    ("server", "port_file"): "http_listener",
    ("server", "management"): "limits",
    ("server", "api_keys"): "limits",
    ("server", "allowed_hosts"): "limits",
    ("server", "cors_origins"): "limits",
    ("server", "media_hosts"): "limits",
    ("server", "max_body_mb"): "limits",
    ("server", "shutdown_timeout"): "limits",
    ("server", "drain_timeout"): "limits",
    ("server", "upgrade_timeout"): "limits",
    ("server", "upgrade"): "limits",
    ("server", "sandbox"): "routing",
    ("control", "socket"): "control_listener",
    ("control", "mode"): "control_listener",
    ("control", "group"): "control_listener",
    ("logging", "main"): "logging",
    ("memory", "limit"): "limits",
    ("memory", "min_residency"): "limits",
    ("memory", "wait_timeout"): "limits",
    ("memory", "soft_free"): "limits",
    ("memory", "hard_free"): "limits",
    ("cache", "enabled"): "cache",
    ("cache", "max_size"): "cache",
    ("cache", "ttl_seconds"): "cache",
    ("cache", "always"): "cache",
    ("cache", "persist_to_disk"): "cache",
    ("cache", "dir"): "cache",
    ("cache", "state_dir"): "cache",
    ("cpu", "threads"): "limits",
    ("storage", "dir"): "restart",
    ("downloads", "jobs"): "limits",
    ("downloads", "connections"): "limits",
    ("downloads", "mb_per_second"): "limits",
    ("registries", "huggingface"): "limits",
    ("registries", "ollama"): "limits",
    ("registries", "ollama_library"): "limits",
    ("llm", "default_service"): "routing",
    ("llm", "temperature"): "routing",
    ("llm", "max_tokens"): "routing",
    ("llm", "fallback_to_loaded"): "routing",
}
"""What a change means in the other sections, by the first two keys of its path."""


class Change(msgspec.Struct, frozen=True):
    """One value that differs, secrets masked; None where there was, or is, none."""

    path: str
    old: object
    new: object


class ModelChange(msgspec.Struct, frozen=True):
    """A model that stays, with something changed: all of its changes, and those that need a new worker."""

    name: str
    changes: list[Change]
    reasons: list[str] = []
    """The keys for which the worker has to be a new one."""


class Wait(msgspec.Struct, frozen=True):
    """What does not change before the daemon starts anew."""

    path: str
    reason: str


class ReloadPlan(msgspec.Struct, frozen=True):
    """Everything to do, from one configuration to another."""

    logging: list[Change] = []
    cache: list[Change] = []
    limits: list[Change] = []
    routing: list[Change] = []
    http_listener: list[Change] = []
    """Not empty = bind host and port anew, and write the port's file; connections in use stay."""
    control_listener: list[Change] = []
    models_added: list[str] = []
    models_removed: list[str] = []
    """Drain and unload."""
    models_updated: list[ModelChange] = []
    """Take the new values as they run."""
    models_replaced: list[ModelChange] = []
    """A new worker beside the old one, or after it."""
    waits: list[Wait] = []

    @property
    def is_empty(self) -> bool:
        return self == ReloadPlan()

    def summary(self) -> str:
        """All of it on one line, for the log."""
        if self.is_empty:
            return "nothing changed"
        values = [*self.logging, *self.cache, *self.limits, *self.routing, *self.http_listener, *self.control_listener]
        parts = [f"changed {', '.join(change.path for change in values)}"] if values else []
        parts += [f"{verb} {', '.join(names)}" for verb, names in self._models() if names]
        parts += [f"{wait.path} waits for a restart: {wait.reason}" for wait in self.waits]
        return "; ".join(parts)

    def _models(self) -> list[tuple[str, list[str]]]:
        return [
            ("added", self.models_added),
            ("removed", self.models_removed),
            ("updated", [model.name for model in self.models_updated]),
            ("replaced", [f"{model.name} ({', '.join(model.reasons)})" for model in self.models_replaced]),
        ]


def plan(old: Config, new: Config) -> ReloadPlan:
    """What has to be done for `new` to hold where `old` does. Both are complete, as `load_config` gives them."""
    found = ReloadPlan(
        models_added=[name for name in new.models if name not in old.models],
        models_removed=[name for name in old.models if name not in new.models],
    )
    of_models: dict[str, list[_Difference]] = {name: [] for name in new.models if name in old.models}
    for difference in _differences(old, new):
        section, name, *_ = difference.path
        if SECTION_EFFECTS.get(difference.path[:2]) == "restart":
            found.waits.append(Wait(dotted(difference.path), "the store and the models are open where they are"))
        elif section != "models":
            _part(found, difference.path).append(difference.change())
        elif name in of_models:
            of_models[name].append(difference)
        if section == "backends":
            _add_interpreter(of_models, difference, old, new)
    for name, differences in of_models.items():
        _plan_model(found, name, differences)
    if _folder(old) != _folder(new):
        reason = "the socket moves, the lock and the journal of workers stay in the folder of the old one"
        found.waits.append(Wait("control.socket", reason))
    return found


def worker_changes(old: ModelConfig, new: ModelConfig) -> list[str]:
    """The keys that differ and for which a model's worker has to be a new one."""
    return [
        key
        for key, effect in MODEL_EFFECTS.items()
        if effect == "replace" and _key(getattr(old, key)) != _key(getattr(new, key))
    ]


def is_same_model(old: ModelConfig, new: ModelConfig) -> bool:
    """Whether two configurations of a model say the same."""
    return old is new or _key(old) == _key(new)


class _Difference(msgspec.Struct, frozen=True):
    path: Path
    old: object
    new: object

    def change(self) -> Change:
        return Change(dotted(self.path), shown(self.path, self.old), shown(self.path, self.new))

    def reason(self) -> str | None:
        """The key that needs a new worker, if it is one."""
        if self.path[0] == "backends":
            return dotted(self.path)
        key = self.path[2]
        return key if MODEL_EFFECTS[key] == "replace" else None


def _part(found: ReloadPlan, path: Path) -> list[Change]:
    # An interpreter is read whenever a worker starts.
    effect = "limits" if path[0] == "backends" else SECTION_EFFECTS[path[:2]]
    parts: dict[str, list[Change]] = {
        "logging": found.logging,
        "cache": found.cache,
        "limits": found.limits,
        "routing": found.routing,
        "http_listener": found.http_listener,
        "control_listener": found.control_listener,
    }
    return parts[effect]


def _add_interpreter(
    of_models: dict[str, list[_Difference]], difference: _Difference, old: Config, new: Config
) -> None:
    """A backend's other interpreter is a difference of each model that keeps that backend."""
    for name, differences in of_models.items():
        if old.models[name].backend == new.models[name].backend == difference.path[1]:
            differences.append(difference)


def _plan_model(found: ReloadPlan, name: str, differences: list[_Difference]) -> None:
    changes = [difference.change() for difference in differences]
    reasons = list(dict.fromkeys(reason for each in differences if (reason := each.reason()) is not None))
    if reasons:
        found.models_replaced.append(ModelChange(name, changes, reasons))
    elif changes:
        found.models_updated.append(ModelChange(name, changes))


def _folder(config: Config) -> str:
    return posixpath.dirname(config.control.socket or "")


def _differences(old: Config, new: Config) -> list[_Difference]:
    """Values that differ, those that one side alone has included (there None stands for the other)."""
    before, after = dict(leaves(old)), dict(leaves(new))
    return [
        _Difference(path, before.get(path), after.get(path))
        for path in dict.fromkeys([*before, *after])
        if (path in before) != (path in after) or _key(before[path]) != _key(after[path])
    ]


def _key(value: object) -> bytes:
    # Compared as JSON because Python takes 1, 1.0 and True for the same.
    return msgspec.json.encode(value, order="deterministic")
