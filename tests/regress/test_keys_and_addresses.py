"""A reload that changes both the address and whether a key is asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from llmvisor.config.layers import LoadedConfig
from llmvisor.config.reload import plan
from llmvisor.config.tree import Config, Server
from llmvisor.errors import StartError
from llmvisor.reconfiguring import Reconfigurer

OPEN, CLOSED = "0.0.0.0", "127.0.0.1"
KEY: Any = SimpleNamespace(name="key")
_Wish = tuple[str, list[Any]]
BECOMES_CLOSED: tuple[_Wish, _Wish] = (OPEN, [KEY]), (CLOSED, [])
BECOMES_OPEN: tuple[_Wish, _Wish] = (CLOSED, []), (OPEN, [KEY])


class House:
    """What the address and the keys were after each step."""

    def __init__(self, host: str, keys: list[Any], *, fails: bool = False) -> None:
        self.seen = [(host, bool(keys))]
        self._fails = fails

    def configure(self, keys: list[Any]) -> None:
        self.seen.append((self.seen[-1][0], bool(keys)))

    async def move_tcp(self, server: Server) -> None:
        self.seen.append((server.host, self.seen[-1][1]))
        if self._fails:
            self._fails = False
            raise StartError("it is taken")


def loaded(host: str, keys: list[Any]) -> LoadedConfig:
    config = Config(server=Server(host=host, api_keys=[key.name for key in keys]))
    return LoadedConfig(config, {}, None, None, [], [], keys)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(("before", "after"), [BECOMES_CLOSED, BECOMES_OPEN], ids=["closed", "opened"])
async def test_address_open_to_others_asks_for_its_key_at_every_moment(
    before: _Wish, after: _Wish, *, fails: bool
) -> None:
    """Keys come before the address that needs them, and go after it; also where it is all taken back."""
    house = House(*before, fails=fails)
    rest = SimpleNamespace(configure=lambda *_, **__: None)  # pyright: ignore[reportUnknownLambdaType]
    parts: Any = SimpleNamespace(loaded=loaded(*before), gate=house, jobs=rest, registry=rest, supervisor=rest)
    rebinder: Any = house
    logs: Any = None
    new = loaded(*after)
    reconfigurer = Reconfigurer(parts, logs=logs, rebinder=rebinder, http=lambda _: None)
    applied = reconfigurer.apply(new, plan(parts.loaded.config, new.config))
    if fails:
        with pytest.raises(StartError):
            await applied
    else:
        await applied
    assert house.seen[-1] == ((before if fails else after)[0], bool((before if fails else after)[1]))
    assert (OPEN, False) not in house.seen
