"""What HTTP says of the response cache: `Cache-Control` on the way in, `X-LLMVISOR-Cache` on the way out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from llmvisor.services.service import CacheState, CacheUse

CACHE_HEADER = "X-LLMVISOR-Cache"
_LEAST_CACHED_FIRST: tuple[CacheState, ...] = ("off", "miss", "coalesced", "hit")


def cache_use(headers: Mapping[str, str]) -> CacheUse:
    """`no-store` keeps nothing and takes nothing, `no-cache` (or `max-age=0`) takes nothing; others are for proxies."""
    said = {directive.strip().lower() for directive in headers.get("Cache-Control", "").split(",")}
    if "no-store" in said:
        return "no-store"
    return "no-cache" if said & {"no-cache", "max-age=0"} else "use"


def cache_state(states: Iterable[CacheState]) -> CacheState:
    """The state of an answer made of several: that of its least cached part."""
    found = set(states)
    for state in _LEAST_CACHED_FIRST:
        if state in found:
            return state
    return "off"
