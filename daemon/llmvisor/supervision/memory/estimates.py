"""What loads of models will take, guessed from what they took before, else from their files. Touches no disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from llmvisor import limits
from llmvisor.config.tree import ModelConfig
from llmvisor.models.catalogue import Catalogue
from llmvisor.store.measures import LoadKey, LoadMeasure
from llmvisor.supervision.memory.measured import LoadHistory, options_sha256


class LoadEstimates:
    """By model: of its configuration as it is now, with its file as it was last read."""

    def __init__(
        self,
        models: Mapping[str, ModelConfig],
        catalogue: Catalogue,
        history: LoadHistory,
        *,
        total_bytes: Callable[[], int],
    ) -> None:
        self._models = models
        self._catalogue = catalogue
        self._history = history
        self._total_bytes = total_bytes
        self._keys: dict[str, tuple[ModelConfig, LoadKey]] = {}
        """Every request asks for its model's."""

    def predicted_bytes(self, model: str) -> int | None:
        """Memory that the next load will take: as configured, else by earlier loads, else by arithmetic on its file's
        header. None where nothing is known."""
        config = self._models[model]
        if config.memory is not None:
            return config.memory_bytes(self._total_bytes())
        if (measured := self.measured_bytes(model)) is not None:
            return int(measured * limits.memory_measured_margin)
        return self._catalogue.memory_estimated(model)

    def least_bytes(self, model: str) -> int | None:
        """What the next load can do with where there is no more: what earlier ones took. None = all that is
        predicted."""
        return None if self._models[model].memory is not None else self.measured_bytes(model)

    def measured_bytes(self, model: str) -> int | None:
        """The most that workers with these options have taken; None where none has been measured."""
        measure = self._measure(model)
        return measure.rss_bytes_peak if measure is not None and measure.rss_bytes_peak else None

    def reload_seconds(self, model: str) -> float:
        """What a load takes: as the last one, else by what a disk gives."""
        measure = self._measure(model)
        if measure is not None:
            return measure.load_seconds
        return limits.load_seconds_guess + (self.predicted_bytes(model) or 0) / limits.load_bytes_per_second_guess

    def _measure(self, model: str) -> LoadMeasure | None:
        if not self._history.knows(model):
            return None
        measure = self._history.find(self._key(model))
        signature = self._catalogue.signature(model)
        if measure is None or signature is None:
            return measure
        # Another file in the same place is another model.
        return measure if _nanoseconds(measure.measured_at) >= signature.modified_ns else None

    def _key(self, model: str) -> LoadKey:
        config = self._models[model]
        known = self._keys.get(model)
        if known is None or known[0] is not config:
            key = LoadKey(model, config.backend or "", options_sha256(config))
            known = self._keys[model] = (config, key)
        return known[1]


def _nanoseconds(time: str) -> int:
    try:
        return int(datetime.fromisoformat(time).timestamp() * 10**9)
    except ValueError:
        return 0
