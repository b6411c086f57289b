"""The local service's models: configured and installed ones, at rest and in use."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tests.support.fake_worker import FakeClock
from tests.support.library import FakeRows, bring

from llmvisor.config.tree import Config, Llm, ModelConfig
from llmvisor.control.api import InstalledModel, ModelStatus
from llmvisor.errors import ModelNotFound
from llmvisor.models.library import Library
from llmvisor.models.shelf import Shelf
from llmvisor.services import model_status
from llmvisor.services.local import LocalService
from llmvisor.supervision.supervisor import Supervisor


class World:
    """A supervisor with one configured model, a library, and the service over both."""

    def __init__(self, folder: Path, config: ModelConfig | None = None) -> None:
        models = {"mine": config or ModelConfig(backend="mock")}
        self.supervisor = Supervisor(Config(models=models), run_dir=folder, clock=FakeClock(), publish=lambda _: None)
        self.library = Library(Shelf(folder / "models"), FakeRows(), self.supervisor, llm=Llm(), clock=FakeClock())
        self.service = LocalService(self.supervisor, self.library)

    async def install(self, name: str, *, seed: int = 1, replace: bool = False, tier: str | None = None) -> str:
        staging = self.library.staging(f"job_{seed}")
        fetched = bring(staging, seed=seed)
        return (await self.library.publish(fetched, staging, name=name, tier=tier, replace=replace)).revision

    def names(self) -> list[str]:
        return [status.name for status in self.service.models()]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_list_follows_every_change(world: World) -> None:
    """The configured models first, then the installed ones; a runtime's state over what the installation says."""
    assert world.names() == ["mine"]
    await world.install("one", tier="heavy")
    first = await world.install("two", seed=2)
    assert world.names() == ["mine", "one", "two"]
    assert [status.id for status in world.service.models()] == ["mine", "heavy/one", "two"]
    await world.install("two", seed=3, replace=True)
    assert world.service.models()[2].revision != first
    world.service.runtime("one")
    assert world.service.models()[1].state == "not_loaded"
    await world.library.delete("one")
    assert world.names() == ["mine", "two"]
    with pytest.raises(ModelNotFound):
        world.service.model("one")


async def test_list_of_models_at_rest_is_made_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of them are listed with every request."""
    for seed in range(1, 4):
        await world.install(f"model-{seed}", seed=seed)
    made: list[str] = []
    real = model_status.resting_status

    def counted(config: ModelConfig, installed: InstalledModel, *rest: object, gone: bool) -> ModelStatus:
        made.append(installed.name)
        return real(config, installed, *rest, gone=gone)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr("llmvisor.services.local.resting_status", counted)
    lists = [world.service.models() for _ in range(5)]
    assert made == ["model-1", "model-2", "model-3"]
    assert all(each == lists[0] for each in lists)


async def test_model_at_rest_shows_what_the_installation_knows(world: World) -> None:
    """Without a look at its file, and without a runtime."""
    await world.install("one")
    status = world.service.model("one")
    assert (status.architecture, status.context_length, status.source) == ("llama", 1024, "file:/somewhere/tiny.gguf")
    assert (status.capabilities, status.capabilities_expected[0]) == ([], "chat")
    assert list(world.supervisor.runtimes) == ["mine"]
    await world.supervisor.read_header("one")
    assert world.service.model("one").memory_estimated


async def test_answers_are_kept_by_revision(world: World) -> None:
    """The moment a model has another revision, answers of the old one are nobody's."""
    await world.install("one")
    before = world.service.identity("one")
    assert world.service.identity("one") == before
    await world.install("one", seed=2, replace=True)
    after = world.service.identity("one")
    assert after.fingerprint not in {before.fingerprint, ""}
    await world.library.rollback("one")
    assert world.service.identity("one").fingerprint == before.fingerprint


async def test_configured_model_with_the_file_of_an_installed_one_shows_where_it_came_from(tmp_path: Path) -> None:
    """As the starter model, which the built-in configuration names; one with another file shows its own."""
    path = tmp_path / "models" / "mine"
    world = World(tmp_path, ModelConfig(backend="llamacpp", path="/elsewhere.gguf"))
    revision = await world.install("mine")
    assert world.service.model("mine").source is None
    world = World(tmp_path, ModelConfig(backend="llamacpp", path=f"{path}/{revision}/tiny.gguf"))
    await world.library.open()
    status = world.service.model("mine")
    assert (status.source, status.revision) == ("file:/somewhere/tiny.gguf", revision)


async def test_linked_model_is_looked_at_where_it_is(world: World, tmp_path: Path) -> None:
    """Its file may change under the same revision, and answers with it."""
    staging = world.library.staging("job_1")
    fetched = bring(staging)
    away = (staging / "tiny.gguf").rename(tmp_path / "tiny.gguf")
    linked = msgspec.structs.replace(fetched, linked_to=str(away))
    await world.library.publish(linked, staging, name="one")
    before = world.service.identity("one").fingerprint
    away.write_bytes(away.read_bytes() + b"more")
    assert world.service.identity("one").fingerprint != before
