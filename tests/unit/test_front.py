"""How a handler finds its model in the moments after a start, when installed models are not known yet."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any, cast

import pytest
from msgspec.structs import replace
from tests.support.fake_service import FakeService
from tests.support.polling import eventually

from llmvisor.control.api import InstalledModel
from llmvisor.errors import ModelNotFound
from llmvisor.http.front import Front
from llmvisor.keys.key import ApiKey
from llmvisor.routing.names import NamedModel, NameIndex, Purpose


class Shelf:
    """Opens when the test says so; one installed model is known from then on."""

    def __init__(self) -> None:
        self.is_open = False
        self.opened = asyncio.Event()
        self.waits = 0
        self.names = NameIndex()
        self.names.put(NamedModel("mine", "medium"))

    def open(self) -> None:
        self.names.put(NamedModel("qwen-7b", "heavy", installed=True))
        self.is_open = True
        self.opened.set()

    async def wait_open(self) -> bool:
        self.waits += 1
        await self.opened.wait()
        return True

    def installed(self, name: str) -> InstalledModel | None:
        """None: the tests here delete nothing."""

    def resolve(self, requested: str | None, purpose: Purpose = "name") -> str:
        return self.names.resolve(requested, purpose=purpose).name


def front_of(shelf: Shelf) -> Front:
    unused = cast("Any", None)
    return Front(
        service=FakeService(),
        control=unused,
        settings=unused,
        clock=unused,
        ids=unused,
        resolve=shelf.resolve,
        media=unused,
        record=unused,
        installed=shelf,
        gate=unused,
    )


@pytest.mark.parametrize("requested", [None, "default", "mine", "medium/mine", "medium"])
async def test_configured_model_waits_for_nothing(requested: str | None) -> None:
    """A disk that does not answer holds up only those who ask for what lies on it."""
    shelf = Shelf()
    assert await front_of(shelf).find(requested, "text") == "mine"
    assert shelf.waits == 0


@pytest.mark.parametrize("requested", ["qwen-7b", "heavy/qwen-7b", "heavy"])
async def test_request_for_an_installed_model_waits_until_it_is_known(requested: str) -> None:
    """Also where the name looks like a size, which would stand for a configured model if nobody had that name."""
    shelf = Shelf()
    found = asyncio.create_task(front_of(shelf).find(requested, "text"))
    await eventually(lambda: shelf.waits == 1)
    assert not found.done()
    shelf.open()
    assert await found == "qwen-7b"


async def test_name_that_is_none_is_told_once_all_are_known() -> None:
    """Not before, and without a wait from then on."""
    shelf = Shelf()
    found = asyncio.create_task(front_of(shelf).find("nobody", "name"))
    await eventually(lambda: shelf.waits == 1)
    shelf.open()
    with pytest.raises(ModelNotFound):
        await found
    with pytest.raises(ModelNotFound):
        await front_of(shelf).find("nobody", "name")
    assert shelf.waits == 1


def key_for(*models: str) -> ContextVar[ApiKey | None]:
    variable = ContextVar[ApiKey | None]("key")
    variable.set(ApiKey("app", "", ["inference"], models=[*models]))
    return variable


async def test_key_for_some_models_is_told_of_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is none: what it may have meant is nobody's business but theirs who may have it."""
    shelf = Shelf()
    shelf.open()
    monkeypatch.setattr("llmvisor.http.front.KEY", key_for("mine", "gone-since"))
    for requested in ("qwen-7", "qwen-7b"):
        with pytest.raises(ModelNotFound) as refused:
            await front_of(shelf).find(requested)
        assert str(refused.value) == f"the model '{requested}' is not one that this API key is for"


def test_models_of_a_key_are_found_by_looking_up_its_own_few_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many models there are: thousands may be installed, and the loop serves everybody."""
    shelf, asked = Shelf(), list[str | None]()
    shelf.open()
    resolve = shelf.resolve

    def counted(requested: str | None, purpose: Purpose = "name") -> str:
        asked.append(requested)
        return resolve(requested, purpose)

    monkeypatch.setattr(shelf, "resolve", counted)
    front = front_of(shelf)
    status = FakeService().statuses[0]
    monkeypatch.setattr(
        front.service, "models", lambda: [replace(status, name=name) for name in ("qwen-7b", "mine", "other")]
    )
    monkeypatch.setattr("llmvisor.http.front.KEY", key_for("medium", "gone-since"))
    assert [model.name for model in front.models()] == ["mine"]
    assert len(asked) == 2
