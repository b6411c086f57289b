"""API keys, as `llmctl keys` adds and lists them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

KeyScope = Literal["inference", "management"]


class KeyRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`POST /keys`."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]
    scopes: Annotated[list[KeyScope], Meta(min_length=1, max_length=2)] = msgspec.field(
        default_factory=lambda: ["inference"]
    )
    models: Annotated[list[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(max_length=256)] = []
    """Names, aliases or tiers; empty = every model."""
    rate_per_minute: Annotated[float, Meta(gt=0, le=1_000_000)] | None = None
    concurrent: Annotated[int, Meta(ge=1, le=100_000)] | None = None
    priority: Literal["low", "normal", "high"] = "high"
    """The highest that its requests may ask for."""
    expires_seconds: Annotated[float, Meta(gt=0, le=3_200_000_000)] | None = None
    """From now on; None = never."""


class KeyInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A key, without the key."""

    name: str
    hint: str
    """The end of the key, by which a person knows it again."""
    scopes: list[KeyScope]
    models: list[str]
    rate_per_minute: float | None
    concurrent: int | None
    priority: str
    created_at: str | None
    expires_at: str | None
    expired: bool
    configured: bool
    """It stands in the configuration (`server.api_keys`)."""
    running: int
    """Requests at the moment."""
    requests: int
    """Since the daemon has started."""
    last_used_at: str | None


class KeyMade(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `POST /keys`: the one time that the key itself is told."""

    key: str
    info: KeyInfo


class KeysStatus(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /keys`."""

    object: Literal["list"] = "list"
    asked: bool
    """Whether the TCP port asks for a key."""
    problem: str | None
    """Why the keys that were made cannot be read: until they can, configured ones alone are taken."""
    data: list[KeyInfo]
