"""What goes wrong under chaos: one coroutine for each fault, done to a real daemon."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from tests.support.daemon import Daemon
from tests.support.small_disk import SmallDisk

Json = dict[str, Any]

SETTLE_SECONDS_MAX = 30.0


class Faults:
    """A random choice of faults, by weight, from a seed."""

    def __init__(self, daemon: Daemon, config: Json, seed: int, *, memory_file: Path) -> None:
        self._daemon = daemon
        self._memory_file = memory_file
        self._config = config
        self._random = random.Random(seed)
        self._n_ctx = 4096
        self.happened: Counter[str] = Counter()
        self._table: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (8, self.sigkill),
            (3, self.sigstop),
            (3, self.garbage_on_the_port),
            (3, self.unload),
            (2, self.reload_context),
            (2, self.reload_limits),
            (2, self.broken_configuration),
            (2, self.memory_pressure),
            (1, self.upgrade),
            *([(2, self.full_disk)] if isinstance(daemon, SmallDisk) else []),
        ]

    async def one(self) -> None:
        """Let one thing go wrong."""
        weights = [weight for weight, _ in self._table]
        (fault,) = self._random.choices([fault for _, fault in self._table], weights)
        self.happened[fault.__name__] += 1
        await fault()

    # ------------------------------------------------------------------------------------------------- of workers

    async def sigkill(self) -> None:
        if (worker := self._worker()) is not None:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)

    async def sigstop(self) -> None:
        if (worker := self._worker()) is not None:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGSTOP)

    def _worker(self) -> int | None:
        """A worker of the daemon's: what has a session of its own, and is no fetch process."""
        with suppress(psutil.NoSuchProcess):
            workers = [child.pid for child in psutil.Process(self._daemon.pid).children() if is_worker(child)]
            return self._random.choice(workers) if workers else None
        return None

    async def unload(self) -> None:
        model = self._random.choice(["mock", "llama", "mlx"])
        await self._control("POST", "/jobs", {"type": "unload", "params": {"model": model}})

    # ---------------------------------------------------------------------------------------- of the configuration

    async def reload_context(self) -> None:
        """The mock needs a new worker."""
        self._n_ctx = 4096 if self._n_ctx != 4096 else 8192
        self._config["models"]["mock"]["n_ctx"] = self._n_ctx
        self._daemon.reconfigure(self._config)

    async def reload_limits(self) -> None:
        self._config["models"]["llama"]["idle_timeout"] = self._random.randint(100, 300)
        self._daemon.reconfigure(self._config)
        if self._random.random() < 0.5:
            self._daemon.signal(signal.SIGHUP)

    async def broken_configuration(self) -> None:
        """Cut off in the middle of something, then whole again."""
        whole = self._daemon.config_file.read_text()
        self._daemon.config_file.write_text(whole[: self._random.randint(0, len(whole) // 2)] + "\n[")
        await asyncio.sleep(self._random.random())
        self._daemon.config_file.write_text(whole)

    # ----------------------------------------------------------------------------------------- of the machine

    async def memory_pressure(self) -> None:
        """Little memory seems to be free, for a moment."""
        self._memory_file.write_text(f"available {self._random.randint(10, 400)}MiB\n")
        await asyncio.sleep(1 + 3 * self._random.random())
        self._memory_file.unlink()

    async def full_disk(self) -> None:
        disk = self._daemon
        assert isinstance(disk, SmallDisk)
        await asyncio.to_thread(disk.fill)
        await asyncio.sleep(1 + self._random.random())
        with suppress(OSError):
            disk.ballast.unlink()

    # -------------------------------------------------------------------------------------------- of the daemon

    async def garbage_on_the_port(self) -> None:
        """Bytes that are no HTTP, and a client that sends its headers drop by drop and leaves."""
        with suppress(OSError):
            with socket.create_connection(("127.0.0.1", self._daemon.port), timeout=2) as connection:
                connection.sendall(self._random.randbytes(self._random.randint(1, 5000)))
            with socket.create_connection(("127.0.0.1", self._daemon.port), timeout=2) as connection:
                connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: 127")
                await asyncio.sleep(0.5)

    async def upgrade(self) -> None:
        """The daemon becomes a new one, with the same workers."""
        await self._control("POST", "/restart", {})

    async def _control(self, method: str, path: str, body: Json) -> tuple[int, Any]:
        return await asyncio.to_thread(self._daemon.control, method, path, body)


def is_worker(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return "llmvisor_runtimes" in process.cmdline()
    return False
