"""How a runtime is configured: for the worker that there is, for the next one, and what to go back to. Pure."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from llmvisor.config.tree import ModelConfig


class Trial(msgspec.Struct, frozen=True):
    """A configuration that has to prove itself: the model runs with `before` again where it cannot be loaded so.

    `told` is called once: with None when the model has loaded, else with why it could not be.
    """

    before: ModelConfig
    told: Callable[[str | None], None]


class Configured:
    """`now` is what the worker runs with. One that is `planned` takes its place with the next worker."""

    def __init__(self, config: ModelConfig) -> None:
        self.now = config
        self.sampling = config.sampling_defaults()
        self.proven: ModelConfig | None = None
        """What the model was last loaded with."""
        self.returns = False
        """It was loaded until its configuration changed, and has not been since."""
        self._next: ModelConfig | None = None
        self._trial: Trial | None = None

    @property
    def latest(self) -> ModelConfig:
        """What the next worker is started with."""
        return self._next or self.now

    def plan(self, config: ModelConfig, trial: Trial | None) -> None:
        """The next worker runs like this."""
        self._next, self._trial = config, trial
        self.returns = trial is not None

    def update(self, config: ModelConfig) -> bool:
        """The same worker, with other sampling, limits and timeouts; whether they hold at once."""
        if self._next is not None:
            self._next = config
            return False
        if self.proven is self.now:
            self.proven = config
        self._take(config)
        return True

    def adopt(self) -> bool:
        """The worker has gone: what was planned holds now; whether there was anything."""
        config, self._next = self._next, None
        if config is not None:
            self._take(config)
        return config is not None

    def loaded(self) -> None:
        """A worker has loaded the model: what was on trial stays."""
        self.proven = self.now
        if self._next is None:
            self.returns = False
            trial, self._trial = self._trial, None
            if trial is not None:
                trial.told(None)

    def fall_back(self, reason: str) -> bool:
        """The model cannot be loaded as it is now; whether there is something to go back to, which is planned then."""
        trial = self._trial if self._next is None else None
        if trial is None:
            self.returns = self.returns and self._next is not None
            return False
        self._trial = None
        self._next = trial.before
        trial.told(reason)
        return True

    def _take(self, config: ModelConfig) -> None:
        self.now, self.sampling = config, config.sampling_defaults()
