"""Models that get another configuration while they serve, and nobody notices.

Where memory allows, the new worker loads beside the old one: a second runtime, under a key of its own (`light#2`).
Once it has loaded it takes the name, and the old one finishes what it has. Where memory does not allow, the old worker
finishes first, and new requests wait for the next. A model that cannot be loaded so goes on as it was.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from llmvisor.config.reload import worker_changes
from llmvisor.config.tree import ModelConfig
from llmvisor.log import get_logger
from llmvisor.models.gguf import GgufError
from llmvisor.supervision.configured import Trial
from llmvisor.supervision.runtime import Runtime
from llmvisor.supervision.scheduling.state import State

_log = get_logger(__name__)
_TRIED = frozenset({State.LOADING, State.READY, State.DRAINING, State.BACKOFF})
"""States in which somebody may wait for the model: a new configuration has to prove itself first."""
_PASSING = {State.LOADING, State.DRAINING, State.STOPPING, State.BACKOFF}
"""States that lead to a worker by themselves."""


class Fleet(Protocol):
    """The part of `supervisor.Supervisor` that is asked for here."""

    configs: dict[str, ModelConfig]
    runtimes: dict[str, Runtime]

    def make(self, name: str, config: ModelConfig, *, key: str) -> Runtime:
        """One more runtime of a model, under this key."""
        ...

    async def inspect(self, key: str) -> None:
        """Look into the model's file. Raises `GgufError`."""
        ...

    def fits(self, key: str) -> bool:
        """Whether there is memory for it beside all the others."""
        ...

    def exchange(self, runtime: Runtime, other: str) -> None:
        """Give a runtime this key, and whoever has it that of the runtime: with all that is known under them."""
        ...

    def forget(self, key: str) -> None:
        """Nothing runs under this key any more."""
        ...

    def replaced(self, name: str) -> None:
        """The model is served by another worker, or in another way, than before."""
        ...


class Replacing:
    """What is being replaced, and what still finishes. `told` hears how each replacement ended: None is well."""

    def __init__(self, fleet: Fleet, told: Callable[[str, str | None], None]) -> None:
        self._fleet = fleet
        self._told = told
        self._steps: dict[str, _Step] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._on_trial: set[str] = set()
        """Models that were loaded, and whose next worker has to prove itself."""
        self.beside: dict[str, Runtime] = {}
        """By key: runtimes that do not serve their model yet, or finish what they have."""
        self.configs: dict[str, ModelConfig] = {}
        """Of these."""

    @property
    def names(self) -> list[str]:
        """Models that are being replaced side by side."""
        return list(self._steps)

    @property
    def pending(self) -> list[str]:
        """Models whose next worker, another one than before, is yet to load: beside the old one or after it."""
        runtimes = self._fleet.runtimes
        after = [name for name in self._on_trial if name in runtimes and runtimes[name].state in _PASSING]
        return [*self._steps, *after]

    def wanted(self, name: str) -> ModelConfig:
        """How a model is to run, once all that is under way has succeeded."""
        step = self._steps.get(name)
        return self._fleet.configs[name] if step is None else step.config

    def change(self, name: str, config: ModelConfig, *, forced: bool = False) -> None:
        """A model is to run like this; `forced` with a new worker in any case."""
        step = self._steps.get(name)
        if step is not None and not forced and not worker_changes(step.config, config):
            step.update(config)
            return
        self._abandon(name)
        runtime = self._fleet.runtimes.get(name)
        if runtime is None:
            self._fleet.configs[name] = config
        elif not forced and not worker_changes(runtime.latest_config, config):
            self._fleet.configs[name] = config
            runtime.update(config)
        elif runtime.state is State.READY and not self._closing:
            self._begin(name, config)
        else:
            self._in_place(runtime, config)

    def leave(self, runtime: Runtime) -> None:
        """A runtime whose model is served by another one, or by none: it finishes what it has, and goes."""
        if runtime.key not in self.beside:
            config = runtime.config
            if runtime.key == runtime.name:
                self._fleet.exchange(runtime, self._free_key(runtime.name))
            self.beside[runtime.key] = runtime
            self.configs[runtime.key] = config
        self._start(self._finish(runtime), f"finish {runtime.key}")

    def abandon(self, name: str) -> None:
        """What replaces a model is wanted no more."""
        self._abandon(name)

    def close(self) -> None:
        """The daemon ends: nothing is replaced any more. What still finishes is the caller's."""
        self._closing = True
        for name in list(self._steps):
            self._abandon(name)

    # ------------------------------------------------------------------------------------------------ side by side

    def _begin(self, name: str, config: ModelConfig) -> None:
        step = _Step(name, self._free_key(name), config)
        self._steps[name] = step
        self.configs[step.key] = config
        self._start(self._replace(step), f"replace {name}")

    async def _replace(self, step: _Step) -> None:
        try:
            await self._load_beside(step)
        except Exception as error:  # noqa: BLE001 - no threads or descriptors left, or a bug: the model goes on
            _log.error("a model could not be replaced", model=step.name, exc_info=error)
            self._stays(step, f"it could not be replaced: {error!r}")

    async def _load_beside(self, step: _Step) -> None:
        try:
            await self._fleet.inspect(step.key)
        except GgufError as error:
            if not step.abandoned:
                self._stays(step, str(error))
            return
        if step.abandoned:
            return
        if not self._fleet.fits(step.key):
            self._drain_first(step)
            return
        candidate = step.candidate = self._fleet.make(step.name, step.config, key=step.key)
        self.beside[step.key] = candidate
        candidate.load()
        state = await candidate.wait_while(State.LOADING)
        if step.abandoned:
            return
        if state is State.READY:
            self._take_over(step, candidate)
        elif state is State.STOPPED:
            self._drain_first(step)  # the memory that there was is gone
        else:
            self._stays(step, candidate.status().error or "its worker ended")

    def _take_over(self, step: _Step, candidate: Runtime) -> None:
        """From here on the new worker serves the model."""
        fleet, name = self._fleet, step.name
        old = fleet.runtimes[name]
        del self._steps[name]
        fleet.exchange(old, step.key)
        candidate.succeed(old)
        fleet.runtimes[name] = candidate
        fleet.configs[name] = candidate.config
        self.beside[old.key], self.configs[old.key] = old, old.config
        fleet.replaced(name)
        _log.info("replaced: the new worker serves, the old one finishes", model=name, in_flight=old.in_flight)
        self.leave(old)
        self._told(name, None)

    def _drain_first(self, step: _Step) -> None:
        config, name = step.config, step.name
        self._abandon(name)
        _log.info("no memory for two workers: the old one finishes first, new requests wait", model=name)
        self._in_place(self._fleet.runtimes[name], config)

    def _stays(self, step: _Step, reason: str) -> None:
        if step.candidate is not None and (runtime := self._fleet.runtimes.get(step.name)) is not None:
            runtime.postmortems.take(step.candidate.postmortems.all())
        self._abandon(step.name)
        self._stayed(step.name, reason)

    def _abandon(self, name: str) -> None:
        step = self._steps.pop(name, None)
        if step is None:
            return
        step.abandoned = True
        if step.candidate is None:
            self.configs.pop(step.key, None)
            self._fleet.forget(step.key)
        else:
            step.candidate.shutdown()
            step.candidate.unload(force=True)
            self.leave(step.candidate)

    # ------------------------------------------------------------------------------------------------ in place

    def _in_place(self, runtime: Runtime, config: ModelConfig) -> None:
        """The next worker is another one; the one that there is finishes what it has."""
        name, before = runtime.name, runtime.proven_config
        trial = None
        if before is not None and runtime.state in _TRIED:
            trial = Trial(before, lambda reason: self._tried(name, before, reason))
            self._on_trial.add(name)
        self._fleet.configs[name] = config
        self._fleet.replaced(name)
        runtime.reconfigure(config, trial)
        if trial is None:
            self._told(name, None)

    def _tried(self, name: str, before: ModelConfig, reason: str | None) -> None:
        self._on_trial.discard(name)
        if reason is None:
            self._told(name, None)
            return
        if name in self._fleet.configs:
            self._fleet.configs[name] = before
            self._fleet.replaced(name)
        self._stayed(name, reason)

    def _stayed(self, name: str, reason: str) -> None:
        _log.error("the model cannot be loaded as it is configured now: it stays as it was", model=name, reason=reason)
        self._told(name, reason)

    # ------------------------------------------------------------------------------------------------ how

    async def _finish(self, runtime: Runtime) -> None:
        await runtime.wait_unused()
        runtime.shutdown()
        await runtime.wait_while(*(set(State) - {State.CLOSED}))
        if self.beside.get(runtime.key) is runtime:
            del self.beside[runtime.key]
            self.configs.pop(runtime.key, None)
            self._fleet.forget(runtime.key)

    def _free_key(self, name: str) -> str:
        number = 2
        while (key := f"{name}#{number}") in self.beside or key in self.configs or key in self._fleet.configs:
            number += 1
        return key

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Step:
    """A model that is being replaced side by side."""

    def __init__(self, name: str, key: str, config: ModelConfig) -> None:
        self.name = name
        self.key = key
        self.config = config
        self.candidate: Runtime | None = None
        self.abandoned = False

    def update(self, config: ModelConfig) -> None:
        self.config = config
        if self.candidate is not None:
            self.candidate.update(config)
