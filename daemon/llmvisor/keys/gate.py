"""The gate of the TCP port: whose a request is, whether it may, and whether it is too much."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from pathlib import Path

from llmvisor import limits
from llmvisor.clock import Clock
from llmvisor.control.api import KeyInfo, KeyMade, KeyRequest, KeysStatus
from llmvisor.errors import Conflict, InvalidApiKey, NotFound, RateLimited, StoreUnavailable
from llmvisor.keys.aside import aside
from llmvisor.keys.bucket import Rate, Usage
from llmvisor.keys.file import KeyFile, KeyList
from llmvisor.keys.key import ApiKey, KeyRing, hint_of, new_key, sha256_of
from llmvisor.log import get_logger
from llmvisor.store import limits as store_limits

KEY: ContextVar[ApiKey | None] = ContextVar("key", default=None)
"""Of the request that is served: each runs in a task of its own, and hands it on to the tasks that it starts."""

_log = get_logger(__name__)


class Gate:
    """Every key, and what is used of each."""

    def __init__(
        self,
        folder: Path,
        configured: Sequence[ApiKey] = (),
        *,
        clock: Clock,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._file = KeyFile(folder)
        self._configured = list(configured)
        self._made = KeyList()
        self._ring = KeyRing(configured)
        self._clock = clock
        self._random = random
        self._usage: dict[str, Usage] = {}
        self._retry_at = 0.0
        self._writing = asyncio.Lock()
        self.problem: str | None = None
        """Why the keys that were made are not known; then those of the configuration alone are taken."""

    async def open(self) -> None:
        """Read the keys that were made. What goes wrong is told by `problem`, and tried again later."""
        try:
            self._take(await aside(self._file.read, seconds_max=limits.keys_read_seconds_max))
            self.problem = None
        except TimeoutError:
            self._broken(f"the API keys in {self._file.path} cannot be read: the disk does not answer")
        except StoreUnavailable as error:
            self._broken(str(error))

    def configure(self, configured: Sequence[ApiKey]) -> None:
        """The configuration has these keys from now on."""
        self._configured = list(configured)
        self._take(self._made)

    # ------------------------------------------------------------------------------------------------ requests

    @property
    def asked(self) -> bool:
        """Whether the TCP port asks for a key: once there is one, or where nobody can tell."""
        return bool(self._configured) or self._made.asked or self.problem is not None

    async def check(self, presented: str | None) -> ApiKey:
        """The key that a request presents. Raises `InvalidApiKey`; `StoreUnavailable` where nobody can tell."""
        if presented is None:
            raise InvalidApiKey("this needs an API key", hint="send the header Authorization: Bearer KEY")
        key = self._ring.find(presented)
        if key is None and self.problem is not None:
            async with self._writing:
                await self._retry()
            key = self._ring.find(presented)
        if key is None:
            if (problem := self.problem) is not None:
                raise StoreUnavailable(problem)
            raise InvalidApiKey("this API key is not known here", hint="`llmctl keys list` names those that are")
        if key.expired(self._clock.now().timestamp()):
            raise InvalidApiKey(f"the API key '{key.name}' has expired", hint="`llmctl keys add` makes a new one")
        return key

    def enter(self, key: ApiKey) -> Usage:
        """A request of this key begins, and takes one of its rate; what is given has one less `running` when it ends.

        Raises `RateLimited`; then nothing is taken.
        """
        usage, now = self._usage_of(key), self._clock.monotonic()
        if key.concurrent is not None and usage.running >= key.concurrent:
            raise RateLimited(
                f"{usage.running} requests of the API key '{key.name}' run already, allowed: {key.concurrent}",
                retry_after_seconds=limits.retry_after_seconds,
            )
        bucket = usage.bucket(key.rate_per_minute)
        if bucket is not None and (wait := bucket.take(now)) > 0:
            raise RateLimited(
                f"the API key '{key.name}' allows {key.rate_per_minute:g} requests per minute",
                retry_after_seconds=wait,
            )
        usage.running += 1
        usage.requests += 1
        usage.last_used = self._clock.now().timestamp()
        return usage

    def rate(self, key: ApiKey) -> Rate | None:
        """What the key's rate leaves now."""
        bucket = self._usage_of(key).bucket(key.rate_per_minute)
        return None if bucket is None else bucket.left(self._clock.monotonic())

    # ------------------------------------------------------------------------------------------------ management

    def status(self) -> KeysStatus:
        keys = [self._info(key) for key in [*self._configured, *self._made.keys]]
        return KeysStatus(asked=self.asked, problem=self.problem, data=keys)

    async def add(self, request: KeyRequest) -> KeyMade:
        """A new key, told this once. Raises `Conflict`, `StoreUnavailable`."""
        async with self._writing:
            await self._known()
            if any(key.name == request.name for key in [*self._configured, *self._made.keys]):
                raise Conflict(f"there is a key '{request.name}' already", hint=f"llmctl keys revoke {request.name}")
            if len(self._made.keys) >= limits.keys_max:
                raise Conflict(f"there are {limits.keys_max} keys already", hint="llmctl keys revoke NAME")
            text = new_key(self._random)
            key = self._key(request, text)
            await self._write(KeyList(asked=True, keys=[*self._made.keys, key]))
        _log.info("an API key was added", name=key.name, scopes=key.scopes)
        return KeyMade(key=text, info=self._info(key))

    async def revoke(self, name: str, *, ask_no_more: bool = False) -> KeyInfo:
        """The key is good for nothing from now on, at once and also where the disk is full.

        With `ask_no_more` the port asks for no key any more if this was the last. Raises `NotFound`, `Conflict` for a
        key of the configuration, and `StoreUnavailable` where the key would be back after a restart.
        """
        async with self._writing:
            await self._known()
            if any(key.name == name for key in self._configured):
                raise Conflict(f"the key '{name}' stands in the configuration", hint="take it from server.api_keys")
            found = next((key for key in self._made.keys if key.name == name), None)
            if found is None:
                raise NotFound(f"there is no key '{name}'", hint="see: llmctl keys list")
            left = [key for key in self._made.keys if key is not found]
            keys = KeyList(asked=bool(left) or not ask_no_more, keys=left)
            self._take(keys)
            info = self._info(found)
            self._usage.pop(f"made {name}", None)
            _log.info("an API key was revoked", name=name)
            await self._write(keys)
        return info

    # ------------------------------------------------------------------------------------------------ how

    async def _retry(self) -> None:
        """Read again what could not be read, every now and then."""
        if self.problem is not None and self._clock.monotonic() >= self._retry_at:
            await self.open()

    async def _known(self) -> None:
        if self.problem is not None:
            await self.open()
        if self.problem is not None:
            raise StoreUnavailable(self.problem)

    async def _write(self, keys: KeyList) -> None:
        try:
            await aside(functools.partial(self._file.write, keys), seconds_max=store_limits.store_answer_seconds_max)
        except TimeoutError:
            raise StoreUnavailable(f"{self._file.path} cannot be written: the disk does not answer") from None
        self._take(keys)

    def _take(self, keys: KeyList) -> None:
        self._made = keys
        self._ring = KeyRing([*keys.keys, *self._configured])

    def _broken(self, problem: str) -> None:
        if self.problem != problem:
            _log.error("API keys that were made are not taken", reason=problem)
        self.problem = problem
        self._retry_at = self._clock.monotonic() + limits.keys_retry_seconds

    def _usage_of(self, key: ApiKey) -> Usage:
        return self._usage.setdefault(_usage_name(key), Usage())

    def _key(self, request: KeyRequest, text: str) -> ApiKey:
        now = self._clock.now()
        seconds = request.expires_seconds
        return ApiKey(
            request.name,
            sha256_of(text),
            sorted(set(request.scopes)),
            models=list(dict.fromkeys(request.models)),
            rate_per_minute=request.rate_per_minute,
            concurrent=request.concurrent,
            priority=request.priority,
            hint=hint_of(text),
            created_at=now.isoformat(),
            expires_at=None if seconds is None else (now + timedelta(seconds=seconds)).timestamp(),
        )

    def _info(self, key: ApiKey) -> KeyInfo:
        usage = self._usage.get(_usage_name(key)) or Usage()
        return KeyInfo(
            name=key.name,
            hint=key.hint,
            scopes=key.scopes,
            models=key.models,
            rate_per_minute=key.rate_per_minute,
            concurrent=key.concurrent,
            priority=key.priority,
            created_at=key.created_at or None,
            expires_at=_iso(key.expires_at),
            expired=key.expired(self._clock.now().timestamp()),
            configured=key.configured,
            running=usage.running,
            requests=usage.requests,
            last_used_at=_iso(usage.last_used),
        )


def _usage_name(key: ApiKey) -> str:
    return f"configured {key.name}" if key.configured else f"made {key.name}"


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()
