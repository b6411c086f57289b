"""What a load is taken to need: as configured, as measured, or by arithmetic on the model's file."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from tests.support.tiny_gguf import write_tiny_gguf

from llmvisor import limits
from llmvisor.config.tree import ModelConfig
from llmvisor.models.catalogue import Catalogue
from llmvisor.store.measures import LoadKey
from llmvisor.supervision.memory.estimates import LoadEstimates
from llmvisor.supervision.memory.machine_memory import MachineMemory
from llmvisor.supervision.memory.measured import LoadHistory, options_sha256

GIB = 2**30
NOW = datetime.now(UTC) + timedelta(hours=1)


class World:
    """One model `m` on a machine of 10 GiB."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.path = write_tiny_gguf(folder / "tiny.gguf")
        config = ModelConfig(backend="llamacpp", path=str(self.path), **settings)  # pyright: ignore[reportArgumentType]
        self.models = {"m": config}
        self.catalogue = Catalogue(self.models)
        self.history = LoadHistory()
        self.estimates = LoadEstimates(self.models, self.catalogue, self.history, total_bytes=lambda: 10 * GIB)

    def loaded(self, rss: int, *, seconds: float = 2.0, now: datetime = NOW) -> None:
        config = self.models["m"]
        key = LoadKey("m", config.backend or "", options_sha256(config))
        self.history.loaded(key, load_seconds=seconds, rss_bytes=rss, now=now)


async def test_file_is_believed_until_a_load_was_measured(tmp_path: Path) -> None:
    """Then the most that a worker has taken counts, whichever of the two is more, and a little beside it."""
    world = World(tmp_path)
    assert world.estimates.predicted_bytes("m") is None
    await world.catalogue.inspect("m")
    assert world.estimates.predicted_bytes("m") == world.catalogue.memory_estimated("m") is not None
    world.loaded(5 * GIB)
    assert world.estimates.predicted_bytes("m") == int(5 * GIB * limits.memory_measured_margin)
    assert world.estimates.measured_bytes("m") == 5 * GIB


async def test_load_whose_memory_is_unknown_changes_nothing(tmp_path: Path) -> None:
    """It ended before it was looked at."""
    world = World(tmp_path)
    await world.catalogue.inspect("m")
    before = world.estimates.predicted_bytes("m")
    world.loaded(0)
    assert (world.estimates.predicted_bytes("m"), world.estimates.measured_bytes("m")) == (before, None)
    assert world.estimates.reload_seconds("m") == 2.0


async def test_measures_are_of_these_options_alone(tmp_path: Path) -> None:
    """A larger context takes more than was ever measured."""
    world = World(tmp_path)
    await world.catalogue.inspect("m")
    world.loaded(5 * GIB)
    world.models["m"] = msgspec.structs.replace(world.models["m"], n_ctx=123)
    assert world.estimates.measured_bytes("m") is None


async def test_another_file_in_the_same_place_is_another_model(tmp_path: Path) -> None:
    """What its predecessor took says nothing."""
    world = World(tmp_path)
    world.loaded(5 * GIB, now=NOW)
    os.utime(world.path, (NOW.timestamp() + 60, NOW.timestamp() + 60))
    await world.catalogue.inspect("m")
    assert world.estimates.measured_bytes("m") is None
    assert world.estimates.predicted_bytes("m") == world.catalogue.memory_estimated("m")


@pytest.mark.parametrize(("said", "expected"), [("3GiB", 3 * GIB), ("50%", 5 * GIB)])
async def test_person_knows_better(tmp_path: Path, said: str, expected: int) -> None:
    """`memory` of the model stands above all that is measured."""
    world = World(tmp_path, memory=said)
    world.loaded(1 * GIB)
    assert world.estimates.predicted_bytes("m") == expected


async def test_reload_that_was_never_measured_is_guessed_from_its_size(tmp_path: Path) -> None:
    """A large model takes longer than a small one."""
    small, large = World(tmp_path, memory="1GiB"), World(tmp_path, memory="9GiB")
    assert limits.load_seconds_guess < small.estimates.reload_seconds("m") < large.estimates.reload_seconds("m")


def test_apparent_memory_is_what_a_file_says_at_each_look(tmp_path: Path) -> None:
    """For tests alone; what it does not say, or says wrongly, is as it is."""
    file = tmp_path / "memory"
    machine = MachineMemory({"LLMVISOR_FAULT_MEMORY_FILE": str(file)})
    real = MachineMemory({})
    assert machine.total() == real.total()
    file.write_text("total 2GiB\navailable 500MiB\n")
    assert (machine.total(), machine.available()) == (2 * GIB, 500 * 2**20)
    file.write_text("available 50%\ntotal nothing\n")
    assert machine.total() == real.total()
    assert machine.available() > 2**20


def test_machine_has_no_more_free_than_it_has() -> None:
    """Whatever the cgroups say."""
    machine = MachineMemory({})
    assert 0 < machine.available() <= machine.total()
