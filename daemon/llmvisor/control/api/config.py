"""What becomes of the configuration while the daemon runs."""

from __future__ import annotations

from typing import Literal

import msgspec

ReloadCause = Literal["watch", "signal", "request"]
"""watch: its files changed; signal: SIGHUP; request: somebody asked for it."""
ReloadOutcome = Literal["applied", "unchanged", "refused", "failed"]
"""refused: it is wrong; failed: it could not be applied. In both cases all is as it was before."""


class ConfigChange(msgspec.Struct, frozen=True):
    """One value that is another now, secrets masked; null where there was, or is, none."""

    path: str
    old: msgspec.Raw
    new: msgspec.Raw


class ConfigWait(msgspec.Struct, frozen=True):
    """What does not change before the daemon starts anew."""

    path: str
    reason: str


class ReloadReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one reload did: `POST /config/reload`, `PUT /config`, and an event of the kind `config`."""

    time: str
    cause: ReloadCause
    outcome: ReloadOutcome
    summary: str
    """All of it on one line."""
    changed: list[ConfigChange] = []
    models_added: list[str] = []
    models_removed: list[str] = []
    models_updated: list[str] = []
    models_replaced: list[str] = []
    """They get new workers, which takes a while yet: `DaemonStatus.config` tells how it goes on."""
    waits: list[ConfigWait] = []
    problems: list[str] = []
    """Why nothing of it holds."""


class ConfigStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """Part of `GET /llm/status`."""

    file: str | None = None
    loaded_at: str = ""
    """When what holds now was read."""
    problems: list[str] = []
    """Why what the files say now does not hold; empty = it does."""
    failed_at: str | None = None
    waits: list[ConfigWait] = []
    """What changes at the next start."""
    replacing: list[str] = []
    """Models whose new workers are yet to load, beside the old ones or after them."""
    stayed: dict[str, str] = {}
    """Models that cannot be loaded as they are configured now and run as they were before: why."""


class ConfigPut(msgspec.Struct, forbid_unknown_fields=True):
    """`PUT /config`: the whole text of the configuration file."""

    text: str
