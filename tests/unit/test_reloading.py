"""A configuration file that is put while the daemon ends."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.fake_worker import FakeClock

from llmvisor.errors import ShuttingDown
from llmvisor.reloading import Reloader


async def test_file_is_as_it_was_where_the_daemon_ends_before_it_holds(tmp_path: Path) -> None:
    """The shutdown begins while the new text is looked at: it is refused, and not what the next start reads."""
    file = tmp_path / "config.yaml"
    file.write_text("before")
    loop = asyncio.get_running_loop()

    def check(text: str, name: str) -> list[str]:
        asyncio.run_coroutine_threadsafe(reloader.close(), loop).result(5)
        return []

    source: Any = SimpleNamespace(check=check)
    parts: Any = SimpleNamespace(loaded=SimpleNamespace(file=file))
    nobody: Any = None
    reloader = Reloader(source, parts, nobody, notifier=nobody, clock=FakeClock())
    with pytest.raises(ShuttingDown):
        await reloader.put("after")
    assert file.read_text() == "before"
    assert os.listdir(tmp_path) == [file.name]
