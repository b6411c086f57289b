"""A model's configuration: for the worker that there is, for the next one, and back again."""

from __future__ import annotations

import msgspec

from llmvisor.config.tree import ModelConfig
from llmvisor.supervision.configured import Configured, Trial

OLD = ModelConfig(backend="mock", n_ctx=1, temperature=0.1)
NEW = ModelConfig(backend="mock", n_ctx=2, temperature=0.2)


def on_trial() -> tuple[Configured, list[str | None]]:
    """A configuration that a worker has been started with, and whose predecessor had loaded."""
    told: list[str | None] = []
    configured = Configured(OLD)
    configured.loaded()
    configured.plan(NEW, Trial(OLD, told.append))
    return configured, told


def test_planned_configuration_holds_when_the_worker_has_gone() -> None:
    """Until then requests are sampled as before."""
    configured, told = on_trial()
    assert (configured.now, configured.latest) == (OLD, NEW)
    assert configured.sampling.temperature == 0.1
    configured.loaded()
    assert told == []
    assert configured.adopt()
    assert (configured.now, configured.sampling.temperature) == (NEW, 0.2)
    assert not configured.adopt()


def test_trial_that_loads_is_told_once() -> None:
    """And there is no way back any more."""
    configured, told = on_trial()
    configured.adopt()
    configured.loaded()
    configured.loaded()
    assert told == [None]
    assert not configured.fall_back("later")
    assert configured.proven is NEW


def test_trial_that_fails_goes_back_once() -> None:
    """What it goes back to is on no trial: where that fails too, it has failed."""
    configured, told = on_trial()
    assert not configured.fall_back("the old one, which still runs, is not on trial")
    configured.adopt()
    assert configured.fall_back("no memory")
    assert told == ["no memory"]
    assert configured.latest is OLD
    configured.adopt()
    assert configured.now is OLD
    assert not configured.fall_back("the old one fails as well")
    assert told == ["no memory"]


def test_model_returns_until_it_is_loaded_again_or_cannot_be() -> None:
    """As it is configured now, or as it was before."""
    configured, _ = on_trial()
    configured.loaded()
    assert configured.returns, "the old worker, which had just begun to load"
    configured.adopt()
    configured.loaded()
    assert not configured.returns
    configured, _ = on_trial()
    configured.adopt()
    assert configured.fall_back("no memory")
    assert configured.returns
    configured.adopt()
    assert not configured.fall_back("the old one fails as well")
    assert not configured.returns


def test_update_goes_to_what_is_planned() -> None:
    """It holds at once only where nothing else is about to."""
    configured, _ = on_trial()
    changed = msgspec.structs.replace(NEW, temperature=0.3)
    assert not configured.update(changed)
    assert configured.sampling.temperature == 0.1
    configured.adopt()
    assert configured.sampling.temperature == 0.3
    assert configured.update(msgspec.structs.replace(changed, temperature=0.4))
    assert configured.sampling.temperature == 0.4


def test_update_of_what_has_loaded_has_loaded_too() -> None:
    """A later replacement that fails goes back to it as it was at last."""
    configured = Configured(OLD)
    configured.loaded()
    changed = msgspec.structs.replace(OLD, temperature=0.9)
    configured.update(changed)
    assert configured.proven is changed
