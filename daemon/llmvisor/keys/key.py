"""What a key is, and what it may do. Pure."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Iterable

import msgspec

from llmvisor.control.api import KeyScope
from llmvisor.supervision.scheduling.effects import Priority

PREFIX = "llmv-"
_KEY_BYTES = 32
_SHOWN_CHARS = 4
_RANKS: dict[Priority, int] = {"low": 0, "normal": 1, "high": 2}


class ApiKey(msgspec.Struct, frozen=True, omit_defaults=True):
    """A key without the key: what is kept of it."""

    name: str
    sha256: str
    """Hexadecimal."""
    scopes: list[KeyScope]
    models: list[str] = []
    """Names, aliases or tiers; empty = every model."""
    rate_per_minute: float | None = None
    """Inference requests; None = as many as there are."""
    concurrent: int | None = None
    """Inference requests at the same time."""
    priority: Priority = "high"
    """The highest that its requests may ask for."""
    hint: str = ""
    """The end of the key, by which a person knows it again."""
    created_at: str = ""
    expires_at: float | None = None
    """Unix seconds."""
    configured: bool = False
    """It stands in the configuration, and goes with it."""

    def allows(self, scope: KeyScope) -> bool:
        return scope in self.scopes

    def capped(self, priority: Priority) -> Priority:
        """What the request gets of what it asked for."""
        return min(priority, self.priority, key=_RANKS.__getitem__)

    def expired(self, now: float) -> bool:
        """`now` in Unix seconds."""
        return self.expires_at is not None and now >= self.expires_at


class KeyRing:
    """Keys by their hashes."""

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self._by_hash = {key.sha256: key for key in keys}

    def __len__(self) -> int:
        return len(self._by_hash)

    def find(self, text: str) -> ApiKey | None:
        """The key that was presented; None where it is none of these.

        How long this takes tells nothing: what is looked up is a hash, of which nobody can choose the beginning, and
        the hash that is found is compared in constant time.
        """
        sha256 = sha256_of(text)
        key = self._by_hash.get(sha256)
        return key if key is not None and hmac.compare_digest(key.sha256, sha256) else None


def new_key(random: Callable[[int], bytes]) -> str:
    """A key that nobody has seen: 256 bits that a cryptographic source gives."""
    return PREFIX + base64.urlsafe_b64encode(random(_KEY_BYTES)).rstrip(b"=").decode()


def sha256_of(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def hint_of(text: str) -> str:
    """The end of a key, where it is long enough to be none the weaker for it."""
    return f"…{text[-_SHOWN_CHARS:]}" if len(text) >= 8 * _SHOWN_CHARS else ""


def configured_key(name: str, text: str) -> ApiKey:
    """A key of the configuration, which is the owner's own: it may do everything."""
    return ApiKey(name, sha256_of(text), ["inference", "management"], hint=hint_of(text), configured=True)
