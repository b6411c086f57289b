"""Workers that an earlier run of this process left, until their models' runtimes go on with them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Protocol

import msgspec

from llmvisor.config.tree import ModelConfig
from llmvisor.log import get_logger
from llmvisor.supervision.handover import RuntimeHandover
from llmvisor.supervision.memory.budget import MemoryBudget
from llmvisor.supervision.runtime import Runtime
from llmvisor.supervision.workers.adopt import end_children, is_child
from llmvisor.supervision.workers.confinement import remove_scratch
from llmvisor.supervision.workers.orphans import OrphanJournal
from llmvisor_runtimes.protocol import PROTOCOL_VERSION

_log = get_logger(__name__)


class Replaces(Protocol):
    """The part of `replacing.Replacing` that is asked for here."""

    def change(self, name: str, config: ModelConfig) -> None: ...


class Fleet(Protocol):
    """The part of `supervisor.Supervisor` that is asked for here."""

    memory: MemoryBudget
    configs: dict[str, ModelConfig]
    runtimes: dict[str, Runtime]

    @property
    def replacing(self) -> Replaces: ...

    def runtime(self, name: str) -> Runtime: ...

    def make(self, name: str, config: ModelConfig, *, key: str) -> Runtime: ...


class Adoption:
    """`adopt` gives each worker to its model; what no model wants is ended at last by `end_rest`.

    A model that is configured in another way now goes on as it was, and is replaced then as by a reload. One whose
    worker cannot be adopted is loaded again.
    """

    def __init__(
        self,
        given: Iterable[RuntimeHandover] = (),
        histories: Mapping[str, bytes] | None = None,
        *,
        fleet: Fleet,
        journal: OrphanJournal,
        protocol_version: int = PROTOCOL_VERSION,
    ) -> None:
        self._fleet = fleet
        self._journal = journal
        self._protocol_version = protocol_version
        self._histories = dict(histories or {})
        self._waiting = {runtime.model: runtime for runtime in given}

    @property
    def nonces(self) -> set[str]:
        """Of the workers that wait."""
        return {runtime.worker.nonce for runtime in self._waiting.values()}

    def adopt(self) -> list[str]:
        """Give all that there are models for to these; gives their names."""
        configs = self._fleet.configs
        adopted = [model for model in list(self._waiting) if model in configs and self._adopt(model)]
        for model in [model for model in self._histories if model in configs]:
            self._fleet.runtime(model).remember(self._histories.pop(model))
        return adopted

    def end_rest(self) -> None:
        """End the workers that nobody wants."""
        for model in list(self._waiting):
            _log.info("the model has gone with the upgrade: its worker is ended", model=model)
            self._end(self._waiting.pop(model))

    def _adopt(self, model: str) -> bool:
        given, fleet = self._waiting.pop(model), self._fleet
        wanted = fleet.configs[model]
        before = fleet.runtimes.get(model)
        try:
            config = self._config(given)
            runtime = fleet.make(model, config, key=model)
            fleet.runtimes[model], fleet.configs[model] = runtime, config
            fleet.memory.reserve(model, given.reserved_bytes)
            runtime.take_over(given)
        except OSError as error:
            _log.warning("the worker is not kept over the upgrade", model=model, reason=str(error))
            self._end(given)
            fleet.memory.release(model)
            fleet.configs[model] = wanted
            fleet.runtimes[model] = before or fleet.make(model, wanted, key=model)
            fleet.runtimes[model].load()
            return False
        if config != wanted:
            fleet.replacing.change(model, wanted)
        return True

    def _config(self, given: RuntimeHandover) -> ModelConfig:
        """What the worker runs with. Raises OSError where nobody can go on with it."""
        if self._protocol_version != PROTOCOL_VERSION:
            raise OSError(f"it speaks protocol version {self._protocol_version}, this daemon {PROTOCOL_VERSION}")
        if not is_child(given.worker.pid):
            raise OSError(f"its process {given.worker.pid} is gone")
        try:
            return msgspec.msgpack.decode(given.config, type=ModelConfig)
        except msgspec.MsgspecError as error:
            raise OSError(f"its configuration is of another version: {error}") from error

    def _end(self, given: RuntimeHandover) -> None:
        worker = given.worker
        for fd in worker.fds:
            with suppress(OSError):
                os.close(fd)
        if is_child(worker.pid):
            end_children([worker.pid])
        self._journal.remove(worker.nonce)
        remove_scratch(self._journal.run_dir, worker.nonce)
