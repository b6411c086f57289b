"""The composition root: builds every part from the configuration, runs them, and ends them in order."""

from __future__ import annotations

import asyncio
import functools
import os
import random
import secrets
import signal
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from aiohttp import web

from llmvisor import __version__, limits
from llmvisor.broadcast import Hub
from llmvisor.clock import Clock
from llmvisor.config.layers import LoadedConfig
from llmvisor.control.api import Event, Job, RuntimeStatus
from llmvisor.control.daemon import DaemonControl, Endpoints
from llmvisor.errors import ShuttingDown
from llmvisor.http.ids import Ids
from llmvisor.http.server import build_app
from llmvisor.http.server import runner as build_runner
from llmvisor.http.settings import HttpSettings
from llmvisor.jobs import Jobs
from llmvisor.listen import PortFile, address_of, open_tcp, open_unix
from llmvisor.lock import DaemonLock, remove_stale_socket
from llmvisor.log import LogHub, get_logger
from llmvisor.models.catalogue import Catalogue, file_signature
from llmvisor.models.gguf import GgufError
from llmvisor.routing.names import NamedModel, resolve
from llmvisor.services.local import LocalService
from llmvisor.supervision.memory import MemoryBudget, available_memory_bytes, machine_memory_bytes
from llmvisor.supervision.orphans import OrphanJournal, sweep
from llmvisor.supervision.runtime import Runtime
from llmvisor.supervision.setup import RuntimeSetup
from llmvisor.supervision.state import HAS_WORKER, State
from llmvisor.supervision.worker import start_worker

_log = get_logger(__name__)


class App:
    """The daemon: `run` lasts as long as it does."""

    def __init__(self, loaded: LoadedConfig, *, logs: LogHub, clock: Clock) -> None:
        config = loaded.config
        self._config = config
        self._clock = clock
        self._ids = Ids(clock, os.urandom)
        self._events: Hub[Event] = Hub(limits.subscriber_queue_events_max)
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None
        self._hurry = asyncio.Event()
        self._socket_path = Path(config.control.socket or "")
        self._journal = OrphanJournal(self._socket_path.parent)
        self._memory = MemoryBudget(
            config.memory.limit_bytes(machine_memory_bytes()), available=available_memory_bytes
        )
        self._catalogue = Catalogue(config.models)
        setup = RuntimeSetup(
            start_worker=functools.partial(
                start_worker, journal=self._journal, clock=clock, nonce_source=lambda: secrets.token_hex(16)
            ),
            admit=self._admit,
            file_signature=file_signature,
            publish=self._publish_runtime,
            clock=clock,
            random=random.random,
            python=self._python,
        )
        self._runtimes = {name: Runtime(name, model, setup) for name, model in config.models.items()}
        self._service = LocalService(self._runtimes, self._catalogue, clock)
        self._jobs = Jobs(
            runtime=self._service.runtime,
            publish=self._publish_job,
            new_id=lambda: self._ids.new("job_"),
            clock=clock,
        )
        self._endpoints = Endpoints(socket=str(self._socket_path))
        self._control = DaemonControl(
            loaded=loaded,
            runtimes=self._runtimes,
            jobs=self._jobs,
            events=self._events,
            logs=logs,
            memory=self._memory,
            endpoints=self._endpoints,
            clock=clock,
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
        async with AsyncExitStack() as stack:
            stack.enter_context(DaemonLock(self._socket_path.parent, socket_path=self._socket_path))
            self._sweep()
            tcp = open_tcp(config.server.host, config.server.port)
            stack.callback(tcp.close)
            unix = open_unix(self._socket_path, mode=config.control.mode_bits, group=config.control.group)
            stack.callback(remove_stale_socket, self._socket_path)
            stack.callback(unix.close)
            self._handle_signals()
            runner = build_runner(self._web_app(tcp.getsockname()[0]))
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            sites = [web.SockSite(runner, tcp), web.SockSite(runner, unix)]
            for site in sites:
                await site.start()
            port_file = Path(config.server.port_file) if config.server.port_file else None
            stack.enter_context(PortFile(port_file, tcp.getsockname()[1]))
            self._endpoints.address = address_of(tcp)
            self._announce()
            background = [
                asyncio.create_task(self._read_headers(), name="read headers"),
                asyncio.create_task(self._end_when_idle(), name="idle watch"),
            ]
            for task in background:
                task.add_done_callback(self._background_ended)
            for runtime in self._runtimes.values():
                if runtime.config.preload:
                    runtime.load()
            await self._stop.wait()
            await self._drain(sites, background)
        if self._failure is not None:
            raise self._failure

    def _sweep(self) -> None:
        swept = sweep(self._socket_path.parent)
        if swept.killed:
            _log.warning("killed workers of a daemon that is gone", models=[entry.model for entry in swept.killed])

    async def _drain(self, sites: list[web.SockSite], background: list[asyncio.Task[None]]) -> None:
        seconds = self._config.server.drain_timeout
        _log.info("stopping", drain_seconds=seconds, in_flight=self._service.in_flight)
        self._control.draining = True
        for task in background:
            task.cancel()
        await sites[0].stop()
        for runtime in self._runtimes.values():
            runtime.shutdown()
        closed = asyncio.gather(*(r.wait_while(*(set(State) - {State.CLOSED})) for r in self._runtimes.values()))
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait([closed, hurry], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not closed.done():
            _log.warning("ending what is still in flight", in_flight=self._service.in_flight)
            for runtime in self._runtimes.values():
                runtime.end_requests(ShuttingDown("the server is shutting down"))
                runtime.unload(force=True)
            await asyncio.wait([closed], timeout=limits.abort_grace_seconds + limits.kill_wait_seconds_max)
        hurry.cancel()
        closed.cancel()
        with suppress(asyncio.CancelledError):
            await closed
        await self._jobs.close()
        self._events.close()
        _log.info("stopped")

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(
            signal.SIGHUP, lambda: _log.warning("SIGHUP is ignored: restart the daemon to change its configuration")
        )

    def _announce(self) -> None:
        address = self._endpoints.address
        _log.info("ready", address=address, socket=str(self._socket_path), models=len(self._runtimes), pid=os.getpid())
        if sys.stdout.isatty() or self._config.models:
            first = next(iter(self._runtimes), "light")
            body = f'{{"model": "{first}", "messages": [{{"role": "user", "content": "Say hello."}}]}}'
            print(
                f"llmvisor {__version__} listens on {address}\n"
                f"try: curl {address}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'",
                flush=True,
            )

    # ------------------------------------------------------------------------------------------------ parts

    def _web_app(self, bound_host: str) -> web.Application:
        return build_app(
            service=self._service,
            control=self._control,
            settings=self._http_settings(bound_host),
            clock=self._clock,
            ids=self._ids,
            resolve=self._resolve,
        )

    def _http_settings(self, bound_host: str) -> HttpSettings:
        server = self._config.server
        return HttpSettings(
            host=bound_host,
            allowed_hosts=(server.host, *server.allowed_hosts),
            cors_origins=tuple(server.cors_origins),
            max_body_bytes=server.body_bytes_max,
        )

    def _resolve(self, requested: str | None) -> str:
        models = [
            NamedModel(
                name=name,
                tier=runtime.config.tier,
                aliases=runtime.config.aliases,
                loaded=runtime.state is State.READY,
            )
            for name, runtime in self._runtimes.items()
        ]
        return resolve(requested, models, fallback_to_loaded=self._config.llm.fallback_to_loaded).name

    def _python(self, backend: str) -> str:
        configured = self._config.backends.get(backend)
        return configured.python if configured and configured.python else sys.executable

    async def _admit(self, name: str) -> None:
        await self._catalogue.inspect(name)
        needed = self._catalogue.memory_estimated(name)
        if needed is not None:
            self._memory.reserve(name, needed)

    def _publish_runtime(self, status: RuntimeStatus) -> None:
        if self._runtimes[status.model].state not in HAS_WORKER:
            self._memory.release(status.model)
        self._jobs.on_runtime(status)
        self._events.publish(Event(self._clock.now().isoformat(), "runtime", runtime=status))

    def _publish_job(self, job: Job) -> None:
        self._events.publish(Event(self._clock.now().isoformat(), "job", job=job))

    # ------------------------------------------------------------------------------------------------ background

    async def _read_headers(self) -> None:
        """So that lists of models tell what they are before anything is loaded."""
        for name in self._runtimes:
            try:
                await self._catalogue.inspect(name)
            except GgufError as error:
                _log.warning("the model's file cannot be used", model=name, reason=str(error))

    async def _end_when_idle(self) -> None:
        seconds = self._config.server.shutdown_timeout
        while seconds:
            idle = self._clock.monotonic() - self._service.idle_since()
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
