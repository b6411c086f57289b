"""The daemon's life: what starts in which order, and how it ends."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack

from aiohttp import web

from llmvisor import __version__, limits
from llmvisor.background import Background
from llmvisor.clock import Clock
from llmvisor.config.layers import LoadedConfig
from llmvisor.config.source import ConfigSource
from llmvisor.config.tree import Config
from llmvisor.config.watcher import ConfigWatcher
from llmvisor.control.api import Event, UpgradeRequest
from llmvisor.control.daemon import DaemonControl, Endpoints
from llmvisor.errors import Conflict
from llmvisor.heartbeat import Heartbeat, describe
from llmvisor.http.configured import http_settings
from llmvisor.http.server import build_app, configure, runner
from llmvisor.http.settings import HttpSettings
from llmvisor.idle import end_when_idle
from llmvisor.listeners import Listeners
from llmvisor.lock import DaemonLock
from llmvisor.log import LogHub, get_logger
from llmvisor.parts import Parts
from llmvisor.process import protect_daemon
from llmvisor.rebind import Rebinder
from llmvisor.reconfiguring import Reconfigurer
from llmvisor.reloading import Reloader
from llmvisor.service_manager import ServiceManager
from llmvisor.signals import handle_signals
from llmvisor.upgrade.fault import fail_on_purpose
from llmvisor.upgrade.house import House, adoption
from llmvisor.upgrade.inherit import Inheritance
from llmvisor.upgrade.upgrader import Upgrader

_log = get_logger(__name__)


class App:
    """The daemon: `run` lasts as long as it does."""

    def __init__(
        self,
        loaded: LoadedConfig,
        *,
        source: ConfigSource,
        logs: LogHub,
        clock: Clock,
        manager: ServiceManager | None = None,
        inherited: Inheritance | None = None,
    ) -> None:
        manager = manager or ServiceManager()
        self._inherited = inherited or Inheritance()
        self.was_ready = False
        self._source = source
        self._parts = Parts(loaded, clock=clock)
        self._clock = clock
        self._logs = logs
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._background = Background(self.stop)
        self._listeners = Listeners(loaded.config.server, loaded.config.control)
        self._listeners.take(manager.sockets)
        self._listeners.take_over(self._inherited.listeners)
        self._endpoints = Endpoints(socket=str(self._listeners.socket_path))
        parts = self._parts
        self._control = DaemonControl(
            loaded=lambda: parts.loaded,
            supervisor=parts.supervisor,
            jobs=parts.jobs,
            events=parts.events,
            logs=logs,
            endpoints=self._endpoints,
            cache=parts.cache,
            store=parts.store,
            usage=parts.usage,
            registry=parts.registry,
            gate=parts.gate,
            clock=clock,
            check=source.check,
            stop=self.stop,
        )
        self._adoption = adoption(self._inherited, parts.supervisor)
        self._notifier = manager.notifier
        self._heartbeat = Heartbeat(
            self._notifier,
            problem=parts.supervisor.unsupervised,
            describe=lambda: describe(self._endpoints.address, self._control.runtimes()),
        )

    # ------------------------------------------------------------------------------------------------ life

    def stop(self) -> None:
        """Drain and end; asked again, end now."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def run(self) -> None:
        """Serve until told to stop. Raises `StartError`."""
        protect_daemon()
        handle_signals(stop=self.stop, reload=self._reload, upgrade=self._upgrade)
        asyncio.get_running_loop().set_exception_handler(self._background.on_loop_error)
        async with AsyncExitStack() as stack:
            lock = stack.enter_context(self._lock())
            self._parts.supervisor.sweep(spared=self._adoption.nonces)
            kept = self._adopt()
            await self._open_parts(stack)
            self._make_upgrader(lock, stack)
            await self._open_listeners(stack)
            self._announce(kept)
            self._start_background()
            stack.callback(self._heartbeat.close)
            self._heartbeat.start()
            self._notifier.ready()
            self.was_ready = True
            self._parts.supervisor.preload()
            await self._stop.wait()
            await self._drain()
        if self._background.failure is not None:
            raise self._background.failure

    def _lock(self) -> DaemonLock:
        return DaemonLock(
            self._parts.run_dir,
            socket_path=self._listeners.socket_path,
            socket_is_ours=self._listeners.unix is None,
            held_fd=self._inherited.lock_fd,
        )

    def _make_upgrader(self, lock: DaemonLock, stack: AsyncExitStack) -> None:
        started, started_at = self._control.since
        house = House(
            self._parts,
            self._listeners,
            lock,
            logs=self._logs,
            notifier=self._notifier,
            look=self._source.look,
            reloads=lambda: self._control.reloader is not None and self._control.reloader.under_way,
            started=started,
            started_at=started_at,
        )
        inherited = self._inherited
        upgrader = Upgrader(house, upgrades=inherited.upgrades, problem=inherited.problem, tell=self._tell)
        self._control.upgrader = upgrader
        stack.push_async_callback(upgrader.close)

    async def _open_parts(self, stack: AsyncExitStack) -> None:
        parts = self._parts
        for part in (parts.store, parts.usage, parts.measurer, parts.library, parts.registry):
            stack.push_async_callback(part.close)
        await parts.gate.open()
        await parts.cache.open()
        stack.push_async_callback(parts.cache.close)

    async def _open_listeners(self, stack: AsyncExitStack) -> None:
        listeners = self._listeners
        stack.push_async_callback(listeners.close)
        listeners.bind()
        app = self._web_app()
        server = runner(app)
        await server.setup()
        stack.push_async_callback(server.cleanup)
        stack.callback(listeners.remove_port_file)
        await listeners.accept(server)
        for connection in self._inherited.connections:
            await listeners.connections.adopt(connection)
        self._endpoints.address = listeners.address
        self._control.reloader = self._make_reloader(app, stack)

    def _make_reloader(self, app: web.Application, stack: AsyncExitStack) -> Reloader:
        rebinder = Rebinder(self._listeners, run_dir=self._parts.run_dir)
        stack.callback(rebinder.close)

        def take(loaded: LoadedConfig) -> None:
            configure(app, self._http_settings(loaded.config))
            self._endpoints.address = self._listeners.address
            self._endpoints.socket = str(self._listeners.socket_path)

        return Reloader(
            self._source,
            self._parts,
            Reconfigurer(self._parts, logs=self._logs, rebinder=rebinder, http=take),
            notifier=self._notifier,
            clock=self._clock,
        )

    def _start_background(self) -> None:
        self._background.start(self._watch_files(), "watch the configuration")
        self._background.start(self._parts.open_stored(self._adopt_installed), "open the store")
        self._background.start(self._parts.supervisor.read_headers(), "read headers")
        self._background.start(self._parts.supervisor.residency.watch(self._parts.cache.clear), "memory watch")
        idle_watch = end_when_idle(self._parts, self._listeners, self.stop, under_way=self._under_way)
        self._background.start(idle_watch, "idle watch")

    def _under_way(self) -> bool:
        """Whether it changes itself just now."""
        parts = (self._control.upgrader, self._control.reloader)
        return any(part is not None and part.under_way for part in parts)

    async def _drain(self) -> None:
        parts = self._parts
        seconds = self._config.server.drain_timeout
        _log.info("stopping", drain_seconds=seconds, in_flight=parts.supervisor.in_flight)
        self._notifier.stopping(seconds=seconds + limits.end_seconds_max)
        self._control.draining = True
        if self._control.upgrader is not None:
            await self._control.upgrader.close()
        self._background.cancel()
        if self._control.reloader is not None:
            await self._control.reloader.close()
        await self._listeners.close_tcp()
        await parts.supervisor.drain(seconds=seconds, hurry=self._hurry)
        await parts.jobs.close()
        _log.info("stopped")
        # Else those who follow would hold up the end of the server.
        parts.events.close()
        self._logs.hub.close()

    def _reload(self) -> None:
        if self._config.server.upgrade:
            self._upgrade()
        elif self._control.reloader is not None:
            self._control.reloader.begin("signal")

    async def _watch_files(self) -> None:
        reloader = self._control.reloader
        assert reloader is not None
        watcher = ConfigWatcher(self._source, lambda: reloader.begin("watch"), clock=self._clock)
        await watcher.run()

    def _upgrade(self) -> None:
        """As `llmctl restart-daemon`, by a signal."""
        try:
            self._control.restart(UpgradeRequest())
        except Conflict as error:
            _log.warning("no upgrade begins", reason=str(error))

    def _adopt(self) -> list[str]:
        """Go on with the workers of an earlier run; gives the names of their models."""
        if (state := self._inherited.state) is not None:
            self._control.goes_on(state.started, state.started_at)
            self._parts.supervisor.residency.arrivals.restore(state.arrivals)
            self._parts.measurer.kept = {runtime.worker.pid for runtime in state.runtimes}
        adopted = self._adoption.adopt()
        if self._inherited.state is not None:
            fail_on_purpose(os.environ, "start", RuntimeError("a fault on purpose"))
        return adopted

    def _adopt_installed(self) -> None:
        self._adoption.adopt()
        self._adoption.end_rest()

    def _tell(self, message: str) -> None:
        """One line for the log, and for those who follow the events."""
        _log.info(message)
        self._parts.events.publish(Event(self._clock.now().isoformat(), "daemon", message=message))

    def _announce(self, kept: list[str]) -> None:
        if self._inherited.state is not None:
            self._tell(f"upgraded: kept the workers of {', '.join(kept) or 'no model'}")
        elif self._inherited.problem is not None:
            _log.error("upgraded, but the workers could not be kept", reason=self._inherited.problem)
        address, models = self._endpoints.address, self._config.models
        _log.info("ready", address=address, socket=self._endpoints.socket, models=len(models), pid=os.getpid())
        first = next(iter(models))
        body = f'{{"model": "{first}", "messages": [{{"role": "user", "content": "Say hello."}}]}}'
        curl = f"curl {address}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'"
        print(f"llmvisor {__version__} listens on {address}\ntry: {curl}", flush=True)

    # ------------------------------------------------------------------------------------------------ parts

    @property
    def _config(self) -> Config:
        return self._parts.config

    def _http_settings(self, config: Config) -> HttpSettings:
        listeners = self._listeners
        return http_settings(config, bound_host=listeners.host, socket_handed_over=listeners.unix_handed_over)

    def _web_app(self) -> web.Application:
        parts = self._parts
        return build_app(
            service=parts.service,
            control=self._control,
            settings=self._http_settings(self._config),
            clock=self._clock,
            ids=parts.ids,
            resolve=parts.resolve,
            installed=parts.library,
            record=parts.usage.record,
            gate=parts.gate,
        )
