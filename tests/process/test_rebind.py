"""Listeners that move while the daemon serves."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from llmvisor.config.tree import Control, Server
from llmvisor.listeners import Listeners
from llmvisor.rebind import Rebinder


@asynccontextmanager
async def serving(folder: Path) -> AsyncGenerator[tuple[Rebinder, Listeners]]:
    """A server without any answers, whose control socket is `folder / "run" / "control.sock"`."""
    (folder / "run").mkdir(mode=0o700)
    listeners = Listeners(
        Server(port=0, port_file=str(folder / "port")), Control(socket=str(folder / "run" / "control.sock"))
    )
    listeners.bind()
    runner = web.AppRunner(web.Application())
    await runner.setup()
    await listeners.accept(runner)
    rebinder = Rebinder(listeners, run_dir=folder / "run")
    try:
        yield rebinder, listeners
    finally:
        rebinder.close()
        await listeners.close()
        await runner.cleanup()


def sockets(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*/*.sock") if path.is_socket()]


async def test_control_socket_moves_about_in_another_folder(tmp_path: Path) -> None:
    """Its lock is the daemon's own, and stays taken until the socket is somewhere else again."""
    async with serving(tmp_path) as (rebinder, _):
        for place in ("else/a.sock", "else/b.sock", "else/b.sock", "run/c.sock", "else/d.sock"):
            await rebinder.move_unix(Control(socket=str(tmp_path / place)))
            assert sockets(tmp_path) == [tmp_path / place]


async def test_name_that_takes_long_to_find_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams go on while the new host's name is asked for."""
    ask = socket.getaddrinfo

    def slowly(*args: object, **kwargs: object) -> object:
        time.sleep(0.5)
        return ask(*args, **kwargs)  # pyright: ignore[reportArgumentType, reportCallIssue]

    async with serving(tmp_path) as (rebinder, listeners):
        monkeypatch.setattr(socket, "getaddrinfo", slowly)
        moving = asyncio.create_task(rebinder.move_tcp(Server(host="localhost", port=0, port_file=None)))
        turns = 0
        while not moving.done():
            await asyncio.sleep(0.01)
            turns += 1
        await moving
        assert listeners.server.host == "localhost"
        assert turns > 20
