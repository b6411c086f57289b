"""The supervisor's models: those of the configuration, and installed ones that come, change and go."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.fake_worker import FakeClock

from llmvisor.config.tree import Config, ModelConfig
from llmvisor.control.api import RuntimeStatus
from llmvisor.errors import ModelNotFound
from llmvisor.supervision.scheduling.state import State
from llmvisor.supervision.supervisor import Supervisor

MOCK = ModelConfig(backend="mock")


@pytest.fixture
def supervisor(tmp_path: Path) -> Supervisor:
    config = Config(models={"mine": ModelConfig(backend="mock", tier="light")})
    published: list[RuntimeStatus] = []
    return Supervisor(config, run_dir=tmp_path, clock=FakeClock(), publish=published.append)


def resolved(supervisor: Supervisor, name: str) -> str:
    return supervisor.names.resolve(name).name


def test_installed_model_has_a_name_at_once_and_a_runtime_when_it_is_wanted(supervisor: Supervisor) -> None:
    """Ten thousand of them cost little."""
    supervisor.add("other", ModelConfig(backend="mock", tier="heavy"), type="llm")
    assert resolved(supervisor, "heavy") == "other"
    assert list(supervisor.runtimes) == ["mine"]
    assert supervisor.runtime("other") is supervisor.runtime("other")
    assert list(supervisor.runtimes) == ["mine", "other"]


def test_configuration_wins_over_an_installed_model(supervisor: Supervisor) -> None:
    """Neither its coming nor its change nor its end touches the configured one."""
    before = supervisor.runtime("mine")
    supervisor.add("mine", MOCK, type="embeddings")
    supervisor.replace("mine", MOCK, type="embeddings")
    asyncio.run(supervisor.remove("mine"))
    assert supervisor.runtime("mine") is before
    assert before.config.tier == "light"
    assert supervisor.type("mine") == "llm"


async def test_new_revision_wins_over_a_replacement_under_way(supervisor: Supervisor) -> None:
    """Else the model would come back to the revision before when that has loaded."""
    revision = ModelConfig(backend="mock", n_ctx=3)
    supervisor.add("other", MOCK, type="llm")
    given: list[ModelConfig] = []
    ready: Any = SimpleNamespace(state=State.READY, key="other", latest_config=MOCK, reconfigure=given.append)
    supervisor.runtimes["other"] = ready
    supervisor.replacing.change("other", ModelConfig(backend="mock", n_ctx=2))
    assert supervisor.replacing.names == ["other"]
    supervisor.replace("other", revision, type="llm")
    assert supervisor.replacing.names == []
    assert supervisor.configs["other"] is given[0] is revision


async def test_removed_model_is_nobodys(supervisor: Supervisor) -> None:
    """Neither its name nor its runtime is found."""
    supervisor.add("other", MOCK, type="llm")
    runtime = supervisor.runtime("other")
    await supervisor.remove("other")
    assert runtime.state is State.CLOSED
    assert list(supervisor.runtimes) == ["mine"]
    with pytest.raises(ModelNotFound):
        supervisor.runtime("other")
    with pytest.raises(ModelNotFound):
        resolved(supervisor, "other")


def test_model_that_is_wanted_while_the_daemon_ends_is_not_started(supervisor: Supervisor) -> None:
    """Its runtime is made closed."""

    async def end() -> None:
        await supervisor.drain(seconds=1, hurry=asyncio.Event())
        supervisor.add("other", MOCK, type="llm")
        assert supervisor.runtime("other").state is State.CLOSED

    asyncio.run(end())


def test_type_that_was_told_at_installation_finds_the_default(supervisor: Supervisor) -> None:
    """The only model of vectors is the one that embeddings without a model mean."""
    supervisor.add("other", MOCK, type="embeddings")
    assert supervisor.names.resolve(None, purpose="embedding").name == "other"
    assert supervisor.names.resolve(None, purpose="text").name == "mine"


def test_model_in_whose_folder_a_configured_file_lies_is_in_use(tmp_path: Path) -> None:
    """Or else the configured model would lose its file."""
    config = Config(models={"mine": ModelConfig(backend="mock", path=str(tmp_path / "other" / "rev" / "a.gguf"))})
    supervisor = Supervisor(config, run_dir=tmp_path, clock=FakeClock(), publish=lambda _: None)
    assert supervisor.in_use("other", str(tmp_path / "other")) is not None
    assert supervisor.configured_in(str(tmp_path / "other" / "rev")) == "mine"
    assert supervisor.configured_in(str(tmp_path / "other" / "rev2")) is None
    assert supervisor.in_use("othe", str(tmp_path / "othe")) is None


# ------------------------------------------------------------------------------------------------ another configuration


async def test_installed_model_serves_again_once_the_configuration_has_none_of_its_name(supervisor: Supervisor) -> None:
    """And gives way to one that comes."""
    installed = ModelConfig(backend="mock", n_ctx=77, tier="heavy")
    supervisor.add("mine", installed, type="embeddings")
    supervisor.configure(Config(models={"other": MOCK}))
    assert supervisor.configs == {"other": MOCK, "mine": installed}
    assert supervisor.runtime("mine").config == installed
    assert resolved(supervisor, "heavy") == "mine"
    again = ModelConfig(backend="mock", n_ctx=99, tier="light")
    supervisor.configure(Config(models={"mine": again}))
    assert supervisor.configs == {"mine": again}
    assert supervisor.runtime("mine").config == again
    assert resolved(supervisor, "light") == "mine"
    with pytest.raises(ModelNotFound):
        supervisor.runtime("other")


async def test_order_of_models_is_the_configurations(supervisor: Supervisor) -> None:
    """Of two models of a tier the first is meant, also where it came later."""
    supervisor.add("late", ModelConfig(backend="mock", tier="light"), type="llm")
    light = ModelConfig(backend="mock", tier="light")
    supervisor.configure(Config(models={"first": light, "mine": light}))
    assert resolved(supervisor, "light") == "first"
    assert list(supervisor.runtimes) == ["first", "mine"]
    assert list(supervisor.configs) == ["first", "mine", "late"]
    supervisor.configure(Config(models={"mine": light, "first": light}))
    assert resolved(supervisor, "light") == "mine"


async def test_configuration_that_says_the_same_touches_nothing(supervisor: Supervisor) -> None:
    """Not even an idle timer."""
    before = supervisor.runtime("mine")
    config = before.config
    supervisor.configure(Config(models={"mine": ModelConfig(backend="mock", tier="light")}))
    assert supervisor.runtime("mine") is before
    assert before.config is config


async def test_general_sampling_reaches_installed_models(supervisor: Supervisor) -> None:
    """The library tells first, the next configuration makes it hold."""
    supervisor.add("other", MOCK, type="llm")
    runtime = supervisor.runtime("other")
    changed = ModelConfig(backend="mock", temperature=1.5)
    supervisor.put_installed("other", changed, type="llm")
    supervisor.configure(Config(models={"mine": ModelConfig(backend="mock", tier="light")}))
    assert runtime.config == changed
    assert supervisor.runtime("other") is runtime
