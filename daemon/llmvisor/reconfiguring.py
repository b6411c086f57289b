"""Makes another configuration hold in the parts that run: each step can be taken back by taking it the other way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from llmvisor.config.layers import LoadedConfig
from llmvisor.config.reload import ReloadPlan
from llmvisor.config.tree import Config
from llmvisor.control.api import ConfigWait
from llmvisor.log import LogHub, get_logger
from llmvisor.parts import Parts
from llmvisor.rebind import Rebinder

Step = Callable[[LoadedConfig], Awaitable[None]]
_log = get_logger(__name__)


class Reconfigurer:
    """`http` makes the HTTP front's settings those of a configuration, once its sockets are."""

    def __init__(self, parts: Parts, *, logs: LogHub, rebinder: Rebinder, http: Callable[[LoadedConfig], None]) -> None:
        self._parts = parts
        self._logs = logs
        self._rebinder = rebinder
        self._http = http
        self._anew: frozenset[str] = frozenset()

    def running(self) -> Config:
        """What holds now: models that could not be loaded as they were configured as they are instead."""
        config, supervisor = self._parts.config, self._parts.supervisor
        models = {name: supervisor.replacing.wanted(name) for name in config.models if name in supervisor.configs}
        return msgspec.structs.replace(config, models=models)

    def waits(self, first: Config, config: Config) -> list[ConfigWait]:
        """What of the sockets cannot change before the next start, with this configuration rather than the first."""
        reason = "the socket is the service manager's"
        same_port = (first.server.host, first.server.port) == (config.server.host, config.server.port)
        changed = {"server.port": not same_port, "control.socket": first.control != config.control}
        return [ConfigWait(path, reason) for path in self._rebinder.fixed if changed[path]]

    async def apply(self, new: LoadedConfig, found: ReloadPlan) -> None:
        """Make it hold, in this order. Raises whatever goes wrong, and then all is as it was before."""
        before = self._parts.loaded
        # Another interpreter is nothing that a model's own configuration tells.
        replaced = found.models_replaced
        self._anew = frozenset(
            each.name for each in replaced if any(key.startswith("backends.") for key in each.reasons)
        )
        # Nobody finds an address open to others that asks for no key: keys come first, and go last.
        keys: tuple[bool, Step] = (True, self._keys)
        wanted: list[tuple[bool, Step]] = [
            *([keys] if new.api_keys else []),
            (bool(found.logging), self._logging),
            (bool(found.cache), self._cache),
            (True, self._limits),
            (bool(found.routing), self._routing),
            (bool(found.http_listener), self._http_listener),
            (bool(found.control_listener), self._control_listener),
            *([] if new.api_keys else [keys]),
            (True, self._models),
        ]
        taken: list[Step] = []
        try:
            for is_wanted, step in wanted:
                if is_wanted:
                    taken.append(step)
                    await step(new)
        except BaseException:
            for step in reversed(taken):
                await self._take_back(step, before)
            raise

    async def _take_back(self, step: Step, before: LoadedConfig) -> None:
        try:
            await step(before)
        except Exception as error:  # noqa: BLE001 - the others are taken back all the same
            _log.error("a part of a configuration could not be taken back", part=step.__name__, exc_info=error)

    # ------------------------------------------------------------------------------------------------ the steps

    async def _logging(self, loaded: LoadedConfig) -> None:
        self._logs.configure(loaded.config.logging.main)

    async def _cache(self, loaded: LoadedConfig) -> None:
        await self._parts.configure_cache(loaded.config.cache)

    async def _limits(self, loaded: LoadedConfig) -> None:
        parts, config = self._parts, loaded.config
        parts.jobs.configure(fetches_max=config.downloads.jobs)
        parts.registry.configure(config.registries)
        self._http(loaded)

    async def _keys(self, loaded: LoadedConfig) -> None:
        self._parts.gate.configure(loaded.api_keys)

    async def _routing(self, loaded: LoadedConfig) -> None:
        self._parts.library.configure(loaded.config.llm)

    async def _http_listener(self, loaded: LoadedConfig) -> None:
        await self._rebinder.move_tcp(loaded.config.server)
        self._http(loaded)

    async def _control_listener(self, loaded: LoadedConfig) -> None:
        await self._rebinder.move_unix(loaded.config.control)
        self._http(loaded)

    async def _models(self, loaded: LoadedConfig) -> None:
        self._parts.loaded = loaded
        self._parts.supervisor.configure(loaded.config, anew=self._anew)
