"""The composition root: builds every part from the configuration, runs them, and ends them in order."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from aiohttp import web

from llmvisor import __version__, limits
from llmvisor.broadcast import Hub
from llmvisor.cache.store import make_cache
from llmvisor.clock import Clock
from llmvisor.config.layers import LoadedConfig, check_text
from llmvisor.config.tree import ModelConfig
from llmvisor.control.api import Event, Job, RuntimeStatus
from llmvisor.control.daemon import DaemonControl, Endpoints
from llmvisor.http.ids import Ids
from llmvisor.http.server import build_app, runner
from llmvisor.http.settings import HttpSettings
from llmvisor.jobs.setup import make_fetch_runner, make_jobs
from llmvisor.listen import PortFile, address_of, open_tcp, open_unix
from llmvisor.lock import DaemonLock, remove_stale_socket
from llmvisor.log import LogHub, get_logger
from llmvisor.models.library import Library
from llmvisor.models.registry import Registry
from llmvisor.models.shelf import Shelf
from llmvisor.process import connections_max, protect_daemon
from llmvisor.routing.names import Purpose
from llmvisor.services.cached import CachedService
from llmvisor.services.local import LocalService
from llmvisor.services.metered import MeteredService
from llmvisor.services.service import Service
from llmvisor.store.jobs import JobRows
from llmvisor.store.measures import MeasureRows
from llmvisor.store.models import ModelRows
from llmvisor.store.registry import RegistryRows
from llmvisor.store.store import Store
from llmvisor.store.usage import UsageRows
from llmvisor.supervision.measured import LoadMeasurer
from llmvisor.supervision.state import State
from llmvisor.supervision.supervisor import Supervisor
from llmvisor.usage import UsageRecorder

_log = get_logger(__name__)


class App:
    """The daemon: `run` lasts as long as it does."""

    def __init__(self, loaded: LoadedConfig, *, logs: LogHub, clock: Clock) -> None:
        self._config = loaded.config
        self._clock = clock
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._failure: BaseException | None = None
        self._socket_path = Path(self._config.control.socket or "")
        self._ids = Ids(clock, os.urandom)
        self._events: Hub[Event] = Hub(limits.subscriber_queue_events_max)
        self._supervisor = Supervisor(
            self._config, run_dir=self._socket_path.parent, clock=clock, publish=self._publish_runtime
        )
        self._logs = logs
        storage = Path(self._config.storage.dir or "")
        self._store = Store(storage / "llmvisor.db", clock)
        self._library = Library(
            Shelf(storage / "models"), ModelRows(self._store), self._supervisor, llm=self._config.llm, clock=clock
        )
        local = LocalService(self._supervisor, self._library, cache_always=self._config.cache.always)
        self._cache = make_cache(self._config.cache, clock)
        cached = CachedService(local, self._cache, touch=self._supervisor.touch)
        self._service: Service = MeteredService(cached if self._config.cache.enabled else local, clock=clock)
        self._usage = UsageRecorder(UsageRows(self._store))
        self._measurer = LoadMeasurer(MeasureRows(self._store), config=self._config_of, clock=clock)
        self._fetcher = make_fetch_runner(run_dir=self._socket_path.parent, clock=clock)
        self._jobs = make_jobs(
            self._config,
            runtime=local.runtime,
            library=self._library,
            fetcher=self._fetcher,
            records=JobRows(self._store),
            publish=self._publish_job,
            new_id=lambda: self._ids.new("job_"),
            clock=clock,
        )
        self._registry = Registry(
            self._fetcher,
            RegistryRows(self._store),
            registries=self._config.registries,
            memory_bytes=lambda: self._supervisor.memory.limit_bytes,
            clock=clock,
        )
        self._endpoints = Endpoints(socket=str(self._socket_path))
        self._control = DaemonControl(
            loaded=loaded,
            supervisor=self._supervisor,
            jobs=self._jobs,
            events=self._events,
            logs=logs,
            endpoints=self._endpoints,
            cache=self._cache,
            store=self._store,
            usage=self._usage,
            registry=self._registry,
            clock=clock,
            check=functools.partial(check_text, environ=os.environ, cwd=Path.cwd()),
            stop=self.stop,
        )

    # ------------------------------------------------------------------------------------------------ life

    def stop(self) -> None:
        """Drain and end; asked again, end now."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def run(self) -> None:
        """Serve until told to stop. Raises `StartError`."""
        config = self._config
        protect_daemon()
        self._handle_signals()
        asyncio.get_running_loop().set_exception_handler(self._on_loop_error)
        async with AsyncExitStack() as stack:
            stack.enter_context(DaemonLock(self._socket_path.parent, socket_path=self._socket_path))
            self._supervisor.sweep()
            stack.push_async_callback(self._store.close)
            stack.push_async_callback(self._usage.close)
            stack.push_async_callback(self._measurer.close)
            stack.push_async_callback(self._library.close)
            stack.push_async_callback(self._registry.close)
            await self._cache.open()
            stack.push_async_callback(self._cache.close)
            tcp = open_tcp(config.server.host, config.server.port)
            stack.callback(tcp.close)
            unix = open_unix(self._socket_path, mode=config.control.mode_bits, group=config.control.group)
            stack.callback(remove_stale_socket, self._socket_path)
            stack.callback(unix.close)
            server = runner(self._web_app(tcp.getsockname()[0]))
            await server.setup()
            stack.push_async_callback(server.cleanup)
            sites = [web.SockSite(server, tcp), web.SockSite(server, unix)]
            for site in sites:
                await site.start()
            port_file = Path(config.server.port_file) if config.server.port_file else None
            stack.enter_context(PortFile(port_file, tcp.getsockname()[1]))
            self._endpoints.address = address_of(tcp)
            self._announce()
            background = [
                asyncio.create_task(self._open_stored(), name="open the store"),
                asyncio.create_task(self._supervisor.read_headers(), name="read headers"),
                asyncio.create_task(self._end_when_idle(), name="idle watch"),
            ]
            for task in background:
                task.add_done_callback(self._background_ended)
            self._supervisor.preload()
            await self._stop.wait()
            await self._drain(sites, background)
        if self._failure is not None:
            raise self._failure

    async def _drain(self, sites: list[web.SockSite], background: list[asyncio.Task[None]]) -> None:
        seconds = self._config.server.drain_timeout
        _log.info("stopping", drain_seconds=seconds, in_flight=self._supervisor.in_flight)
        self._control.draining = True
        for task in background:
            task.cancel()
        await sites[0].stop()
        await self._supervisor.drain(seconds=seconds, hurry=self._hurry)
        await self._jobs.close()
        _log.info("stopped")
        # Else those who follow would hold up the end of the server.
        self._events.close()
        self._logs.hub.close()

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(
            signal.SIGHUP, lambda: _log.warning("SIGHUP is ignored: restart the daemon to change its configuration")
        )

    def _announce(self) -> None:
        address = self._endpoints.address
        _log.info(
            "ready", address=address, socket=str(self._socket_path), models=len(self._config.models), pid=os.getpid()
        )
        first = next(iter(self._config.models))
        body = f'{{"model": "{first}", "messages": [{{"role": "user", "content": "Say hello."}}]}}'
        curl = f"curl {address}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'"
        print(f"llmvisor {__version__} listens on {address}\ntry: {curl}", flush=True)

    # ------------------------------------------------------------------------------------------------ parts

    def _web_app(self, bound_host: str) -> web.Application:
        return build_app(
            service=self._service,
            control=self._control,
            settings=self._http_settings(bound_host),
            clock=self._clock,
            ids=self._ids,
            resolve=self._resolve,
            installed=self._library,
            record=self._usage.record,
        )

    def _http_settings(self, bound_host: str) -> HttpSettings:
        server = self._config.server
        return HttpSettings(
            host=bound_host,
            allowed_hosts=(server.host, *server.allowed_hosts),
            cors_origins=tuple(server.cors_origins),
            max_body_bytes=server.body_bytes_max,
            media_hosts=tuple(server.media_hosts),
            connections_max=connections_max(),
        )

    def _resolve(self, requested: str | None, purpose: Purpose = "name") -> str:
        fallback = self._config.llm.fallback_to_loaded
        runtimes = self._supervisor.runtimes if fallback else {}
        loaded = (name for name, runtime in runtimes.items() if runtime.state is State.READY)
        return self._supervisor.names.resolve(requested, purpose=purpose, loaded=loaded).name

    def _config_of(self, model: str) -> ModelConfig | None:
        """What a model's runtime runs with."""
        runtime = self._supervisor.runtimes.get(model)
        return None if runtime is None else runtime.config

    def _publish_runtime(self, status: RuntimeStatus) -> None:
        self._jobs.on_runtime(status)
        self._measurer.observe(status)
        runtime = self._supervisor.runtimes.get(status.model)
        if runtime is not None and runtime.info is not None and status.state in {"loaded", "busy"}:
            self._library.on_loaded(runtime.name, runtime.config.path, runtime.info.capabilities)
        self._events.publish(Event(self._clock.now().isoformat(), "runtime", runtime=status))

    def _publish_job(self, job: Job) -> None:
        self._events.publish(Event(self._clock.now().isoformat(), "job", job=job))

    # ------------------------------------------------------------------------------------------------ background

    async def _open_stored(self) -> None:
        """What is installed and under way, while the port is open already: a slow disk holds up nothing else."""
        await self._store.open()
        await self._library.open()
        await self._jobs.open()

    async def _end_when_idle(self) -> None:
        seconds = self._config.server.shutdown_timeout
        while seconds:
            if self._jobs.busy:
                self._supervisor.touch()
            idle = self._clock.monotonic() - self._supervisor.idle_since
            if idle >= seconds:
                _log.info("no request for a while: stopping", seconds=seconds)
                self.stop()
                return
            await asyncio.sleep(min(seconds - idle, limits.idle_check_seconds))

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.critical("a part of the daemon has died; stopping", part=task.get_name(), exc_info=error)
            self._failure = error
            self.stop()

    def _on_loop_error(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What nobody caught. Of a callback of ours it is a bug that leaves the state unsure: the daemon ends."""
        error: BaseException | None = context.get("exception")
        _log.error("an error that nobody caught", what=str(context.get("message")), exc_info=error)
        if error is not None and "handle" in context:
            self._failure = error
            self.stop()
