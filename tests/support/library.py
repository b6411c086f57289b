"""A library of installed models in a folder of the test's own, with rows and runtimes that keep what they are told."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.support.fake_worker import FakeClock
from tests.support.tiny_gguf import write_tiny_gguf

from llmvisor.config.tree import Llm, ModelConfig
from llmvisor.errors import StoreUnavailable
from llmvisor.fetch.protocol import Fetched, FetchedFile
from llmvisor.models.installed import Installed
from llmvisor.models.library import Library
from llmvisor.models.shelf import Shelf


class FakeRows:
    """The store's rows, in memory; `broken` makes the store one that cannot be used."""

    def __init__(self) -> None:
        self.rows: dict[str, Installed] = {}
        self.broken = False

    async def all(self) -> list[Installed]:
        self._check()
        return list(self.rows.values())

    async def put(self, models: Sequence[Installed]) -> None:
        self._check()
        self.rows |= {each.model.name: each for each in models}

    async def remove(self, names: Sequence[str]) -> None:
        self._check()
        for name in names:
            self.rows.pop(name, None)

    def _check(self) -> None:
        if self.broken:
            raise StoreUnavailable("the disk is full")


class FakeRuntimes:
    """Keeps the configurations that it is given, and every call."""

    def __init__(self) -> None:
        self.configs: dict[str, ModelConfig] = {}
        self.calls: list[tuple[str, str]] = []
        self.user: str | None = None

    def add(self, name: str, config: ModelConfig, *, type: str) -> None:
        self.calls.append(("add", name))
        self.configs[name] = config

    def replace(self, name: str, config: ModelConfig, *, type: str) -> None:
        self.calls.append(("replace", name))
        self.configs[name] = config

    def put_installed(self, name: str, config: ModelConfig, *, type: str) -> None:
        self.calls.append(("put_installed", name))
        self.configs[name] = config

    async def remove(self, name: str) -> None:
        self.calls.append(("remove", name))
        del self.configs[name]

    def in_use(self, name: str, folder: str) -> str | None:
        return self.user

    def configured_in(self, folder: str) -> str | None:
        return self.user


class Shelved:
    """A library with all that it needs."""

    def __init__(self, folder: Path, rows: FakeRows | None = None) -> None:
        self.folder = folder
        self.rows = rows or FakeRows()
        self.runtimes = FakeRuntimes()
        self.clock = FakeClock()
        self.shelf = Shelf(folder)
        self.library = Library(self.shelf, self.rows, self.runtimes, llm=Llm(), clock=self.clock)

    def again(self) -> Shelved:
        """What the next daemon finds; this one is gone."""
        self.shelf.release()
        after = Shelved(self.folder, self.rows)
        after.clock.at = self.clock.at + 1
        return after

    def fetched(self, job_id: str = "job_1", *, seed: int = 1, revision: str | None = None) -> tuple[Fetched, Path]:
        """What a fetch has brought, and where it lies."""
        staging = self.library.staging(job_id)
        return bring(staging, seed=seed, revision=revision), staging

    async def install(self, name: str = "tiny", *, seed: int = 1, replace: bool = False) -> str:
        """Install a revision; gives which."""
        self.clock.at += 1
        fetched, staging = self.fetched(f"job_{seed}", seed=seed)
        return (await self.library.publish(fetched, staging, name=name, tier=None, replace=replace)).revision

    async def load(self, name: str = "tiny") -> None:
        """As when a worker has loaded the model."""
        self.library.on_loaded(name, self.runtimes.configs[name].path, ["completions"])
        await self.library.settled()


async def opened(folder: Path) -> Shelved:
    """A library in this folder, ready for use."""
    shelved = Shelved(folder)
    await shelved.library.open()
    return shelved


def visible(shelved: Shelved) -> list[str]:
    """What lies under the models' names."""
    return sorted(path.relative_to(shelved.folder).as_posix() for path in shelved.folder.glob("[!.]*/*"))


def bring(staging: Path, *, seed: int = 1, revision: str | None = None) -> Fetched:
    """A tiny model in a staging folder."""
    data = tiny_bytes(seed)
    (staging / "tiny.gguf").write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    return Fetched(
        source="file:/somewhere/tiny.gguf",
        revision=sha256[:12] if revision is None else revision,
        files=[FetchedFile("tiny.gguf", len(data), sha256)],
        main="tiny.gguf",
        name="tiny",
    )


@functools.cache
def tiny_bytes(seed: int) -> bytes:
    """A tiny model's file."""
    with tempfile.TemporaryDirectory() as folder:
        return write_tiny_gguf(Path(folder) / "tiny.gguf", seed=seed, layers=1, dims=16).read_bytes()
