"""Regression: an exception in a callback of the loop was logged and forgotten, and left a daemon half alive."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.support.polling import eventually

from llmvisor.app import App
from llmvisor.clock import SystemClock
from llmvisor.config.source import ConfigSource
from llmvisor.log import configure_logging


async def test_error_in_a_callback_stops_the_daemon_loudly(tmp_path: Path) -> None:
    """1. A daemon serves. 2. A callback of its loop raises. Result: it drains and ends with that error."""
    config = tmp_path / "config.yaml"
    config.write_text("server: {port: auto}\nmodels: {mock: {backend: mock}}\nlogging: {main: {file: null}}\n")
    flags = {"config": str(config), "socket": str(tmp_path / "run" / "c.sock")}
    source = ConfigSource(flags=flags, environ={"HOME": str(tmp_path)}, cwd=tmp_path)
    loaded = source.load()
    logs = configure_logging(loaded.config.logging.main, clock=SystemClock())
    daemon = asyncio.create_task(App(loaded, source=source, logs=logs, clock=SystemClock()).run())
    try:
        await eventually((tmp_path / ".port").exists)
        asyncio.get_running_loop().call_soon(_fail)
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(daemon, 10)
        assert any("nobody caught" in record.message for record in logs.recent())
    finally:
        logs.close()


def _fail() -> None:
    raise ZeroDivisionError
