"""An upgrade in place: tried, begun once everything has come to rest, given up where that takes too long.

    checking ─▶ waiting ─▶ (executed anew)          nothing is lost on the way back from either
        └──────────┴─────▶ failed: the old program goes on

While it waits, streams go on. For half of the time everybody else is served as well: again and again new requests are
held back for a moment, and let in where the rest does not come in it. Then they wait, in the backlog and on connections
that are kept alive, and the next run answers them. The control socket is served until the last moment.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
from collections.abc import Callable
from contextlib import suppress

from llmvisor import limits
from llmvisor.config.source import Look
from llmvisor.control.api import UpgradeState, UpgradeStatus
from llmvisor.errors import Conflict, ShuttingDown
from llmvisor.log import get_logger
from llmvisor.signals import HeldSignals
from llmvisor.upgrade.fault import fail_on_purpose
from llmvisor.upgrade.house import House
from llmvisor.upgrade.memory_file import write_memory_file
from llmvisor.upgrade.preflight import preflight
from llmvisor.upgrade.reexec import STATE_VARIABLE, command, execute
from llmvisor.upgrade.state import Envelope, encode_envelope

_log = get_logger(__name__)


class UpgradeFailed(Exception):
    """The old program goes on, for this reason."""


class Upgrader:
    """`tell` is called with a line for people whenever something changes."""

    def __init__(
        self, house: House, *, upgrades: int = 0, problem: str | None = None, tell: Callable[[str], None]
    ) -> None:
        self._house = house
        self._tell = tell
        self._task: asyncio.Task[None] | None = None
        self._attempts = upgrades
        self._tried: Look = ()
        # The last run's upgrade came here, but for what it had left.
        self.status = UpgradeStatus("failed" if problem else "none", upgrades, upgrades, problem)

    @property
    def under_way(self) -> bool:
        return self._task is not None

    def request(self, *, timeout_seconds: float | None = None, force: bool = False) -> UpgradeStatus:
        """Begin one. It waits for so long until all has come to rest, then is given up, or ends what runs by force.

        Raises `Conflict` where one is under way.
        """
        if self._task is not None:
            raise Conflict("an upgrade is under way already", hint="`llmctl status` shows what it waits for")
        seconds = self._house.upgrade_timeout_seconds if timeout_seconds is None else timeout_seconds
        self._attempts += 1
        self._show("checking")
        # In a context of its own: what is logged of it is not the request's that asked for it.
        self._task = asyncio.get_running_loop().create_task(
            self._run(seconds, force=force), name="upgrade", context=contextvars.Context()
        )
        self._task.add_done_callback(self._ended)
        return self.status

    async def close(self) -> None:
        """The daemon ends, and that wins."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    # ------------------------------------------------------------------------------------------------ its course

    async def _run(self, seconds: float, *, force: bool) -> None:
        # Before the trial: `systemctl reload` waits for this, and then for `ready`, however it ends.
        self._house.notifier.reloading()
        try:
            await self._try_out()
            await self._exchange(seconds, force=force)
        except UpgradeFailed as failure:
            self._show("failed", str(failure))
            self._tell(f"upgrade failed: {failure}")

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if task.cancelled():
            return
        self._house.notifier.ready()
        if (error := task.exception()) is not None:
            _log.error("the upgrade failed by a bug of ours", exc_info=error)
            self._show("failed", f"a bug of ours: {error!r}")

    async def _try_out(self) -> None:
        """Raises `UpgradeFailed`."""
        self._tell("upgrade: trying the new program")
        self._tried = await asyncio.to_thread(self._house.look)
        fd = self._write(self._house.hand_over_trial(self.status.completed + 1))
        try:
            problem = await preflight(command(), os.environ, fd)
        finally:
            os.close(fd)
        if problem is not None:
            raise UpgradeFailed(problem)

    async def _exchange(self, seconds: float, *, force: bool) -> None:
        """Raises `UpgradeFailed`; does not come back otherwise."""
        house = self._house
        self._show("waiting", "everything to come to rest")
        try:
            await self._rest(seconds, force=force)
            with HeldSignals() as held:
                for _ in range(limits.idle_turns):
                    await asyncio.sleep(0)  # the loop takes in those that came before
                self._execute(held)
        except BaseException:
            await house.release()  # where the daemon ends, who waits is told so
            raise

    async def _rest(self, seconds: float, *, force: bool) -> None:
        """Wait until nothing is under way. Raises `UpgradeFailed`."""
        house, loop = self._house, asyncio.get_running_loop()
        ends_at = loop.time() + seconds
        try:
            async with asyncio.timeout_at(ends_at):
                await self._come_to_rest(serve_until=ends_at - seconds / 2)
        except TimeoutError:
            if not force and (unrest := house.unrest()) is not None:
                raise UpgradeFailed(f"after {seconds:g} s {unrest}") from None
            house.end_requests(ShuttingDown("the daemon is being upgraded"))
        try:
            async with asyncio.timeout_at(max(ends_at, loop.time() + limits.upgrade_last_seconds_max)):
                await house.hold()
                await self._wait(house.unrest)
                if await asyncio.to_thread(house.look) != self._tried:
                    await self._try_out()  # else the next run could be ended by what was written meanwhile
                await house.stop_the_rest()
                await self._wait(house.last_unrest)
        except TimeoutError:
            raise UpgradeFailed(f"at last {house.last_unrest() or 'the configuration is not read'}") from None

    async def _come_to_rest(self, *, serve_until: float) -> None:
        """Hold new requests back until nothing is under way; until `serve_until` for a moment at a time."""
        house, loop = self._house, asyncio.get_running_loop()
        while True:
            await house.hold()
            moment = limits.upgrade_hold_seconds if loop.time() < serve_until else None
            with suppress(TimeoutError):
                async with asyncio.timeout(moment):
                    await self._wait(house.unrest)
                    return
            await house.release()
            running, opens_until = house.running(), loop.time() + limits.upgrade_hold_seconds

            def serves(running: frozenset[object] = running, opens_until: float = opens_until) -> str | None:
                """What is under way, until all has ended that was when the moment was over."""
                now = loop.time()
                goes_on = now < serve_until and (now < opens_until or running & house.running())
                return house.unrest() if goes_on else None

            await self._wait(serves)

    async def _wait(self, unrest: Callable[[], str | None]) -> None:
        while (waits_for := unrest()) is not None:
            if waits_for != self.status.reason:
                self._show("waiting", waits_for)
            await asyncio.sleep(limits.upgrade_poll_seconds)

    def _execute(self, held: HeldSignals) -> None:
        """From here on nothing may be awaited: what is handed over is what there is."""
        house = self._house
        if (unrest := house.last_unrest()) is not None:
            raise UpgradeFailed(f"in the last moment {unrest}")
        self._tell("upgrade: executing the new program")
        envelope = house.hand_over(self.status.completed + 1)
        fd = self._write(envelope)
        house.logs.flush(seconds_max=limits.upgrade_log_flush_seconds_max)
        try:
            fail_on_purpose(os.environ, "exec", OSError("a fault on purpose"))
            execute(command(), {**self._environment(), STATE_VARIABLE: str(fd)}, [fd, *envelope.fds], held)
        except OSError as error:
            raise UpgradeFailed(f"the program could not be executed: {error}") from error
        finally:
            os.close(fd)

    # ------------------------------------------------------------------------------------------------ its parts

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self._house.notifier.variables}

    def _write(self, envelope: Envelope) -> int:
        """Raises `UpgradeFailed`."""
        try:
            return write_memory_file(encode_envelope(envelope))
        except OSError as error:
            raise UpgradeFailed(f"the state cannot be written: {error}") from error

    def _show(self, state: UpgradeState, reason: str | None = None) -> None:
        self.status = UpgradeStatus(state, self._attempts, self.status.completed, reason)
