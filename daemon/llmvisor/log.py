"""The log: structlog and the standard library's logging, through bounded queues, so that no reader stalls the loop.

A record is made where it is logged, kept among the recent ones, handed to whoever follows `/logs`, and queued for two
threads, one for the console and one for the file. A queue that is full loses the record and counts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, cast

from llmvisor import limits
from llmvisor.broadcast import Hub
from llmvisor.clock import Clock
from llmvisor.control.api import LogLevel, LogRecord
from llmvisor.lean_structlog import structlog
from llmvisor.logfile import RotatingFile, write_all
from llmvisor.logline import json_line, make_record, text_line

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger

CONSOLE_FD = 2
LEVELS: dict[LogLevel, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_BYTES_PER_MB = 1024 * 1024
_LEVEL_OF_METHOD: dict[str, LogLevel] = {"warn": "warning", "exception": "error", "fatal": "critical"}


class LogSettings(Protocol):
    """What of the configuration's `logging.main` is asked for."""

    @property
    def console_level(self) -> LogLevel: ...
    @property
    def file_level(self) -> LogLevel: ...
    @property
    def file(self) -> str | None: ...
    @property
    def format(self) -> Literal["text", "json"]: ...
    @property
    def max_size_mb(self) -> int | float: ...
    @property
    def max_backups(self) -> int: ...
    @property
    def max_age_days(self) -> int | float: ...


def get_logger(name: str, **fields: object) -> FilteringBoundLogger:
    """The logger of a module: `log = get_logger(__name__)`; keyword arguments become fields of the line.

    `fields` are of every line. Unlike one that `bind` gives, it takes part when levels change later.
    """
    return cast("FilteringBoundLogger", structlog.get_logger(name, **fields))


def configure_logging(settings: LogSettings, *, clock: Clock, console_fd: int = CONSOLE_FD) -> LogHub:
    """Send structlog and the standard library's logging through a new hub, which the caller closes at the end."""
    hub = LogHub(settings, clock=clock, console_fd=console_fd)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.format_exc_info,
            structlog.processors.UnicodeDecoder(),
            hub.process,
        ],
        logger_factory=lambda *names: _NamedLogger(str(names[0]) if names else "llmvisor", hub),
        cache_logger_on_first_use=False,
    )
    logging.getLogger().handlers = [_ForwardHandler(hub)]
    _filter_below(hub.level)
    return hub


def _filter_below(level: LogLevel) -> None:
    """What nobody takes is not even made."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]))
    # The libraries' debug lines are theirs, not ours.
    logging.getLogger().setLevel(max(LEVELS[level], logging.INFO))
    # One for every change in a folder that it watches, whatever the file.
    logging.getLogger("watchfiles").setLevel(logging.WARNING)


class LogHub:
    """Every record passes here.

    `hub` is what `/logs?follow` subscribes to, on the daemon's own loop; `recent` is what came before.
    """

    def __init__(self, settings: LogSettings, *, clock: Clock, console_fd: int) -> None:
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._recent: deque[LogRecord] = deque(maxlen=limits.log_recent_records_max)
        self._recent_lock = threading.Lock()
        self.hub: Hub[LogRecord] = Hub(limits.subscriber_queue_events_max)
        self._path = None if settings.file is None else Path(settings.file)
        self._dropped_before = 0
        self._format = json_line if settings.format == "json" else text_line

        def write_console(lines: list[bytes]) -> int:
            write_all(console_fd, b"".join(lines))
            return 0

        self._writers = [_Writer("log-console", LEVELS[settings.console_level], write_console)]
        if settings.file is not None:
            self._writers.append(self._file_writer(settings))

    def _file_writer(self, settings: LogSettings) -> _Writer:
        path = Path(settings.file or "")
        file = RotatingFile(
            path,
            bytes_max=int(settings.max_size_mb * _BYTES_PER_MB),
            backups_max=settings.max_backups,
            age_days_max=settings.max_age_days,
            clock=self._clock,
            on_problem=lambda error: self._tell_file_problem(path, error),
        )
        return _Writer("log-file", LEVELS[settings.file_level], file.write, close=file.close)

    def configure(self, settings: LogSettings) -> None:
        """Other levels, another format or another file hold from now on. Raises OSError where it cannot be written."""
        path = None if settings.file is None else Path(settings.file)
        if path is not None and path != self._path:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600))
        console, *files = self._writers
        self._writers = [console] if path is None else [console, self._file_writer(settings)]
        for writer in files:  # it writes what it has, and ends
            writer.stop()
            self._dropped_before += writer.dropped
        self._path = path
        self._format = json_line if settings.format == "json" else text_line
        console.level = LEVELS[settings.console_level]
        _filter_below(self.level)

    @property
    def level(self) -> LogLevel:
        """The lowest level that anyone takes."""
        lowest = min(writer.level for writer in self._writers)
        return next(name for name, number in LEVELS.items() if number == lowest)

    @property
    def dropped(self) -> int:
        """Records that the console or the file has lost since the start."""
        return self._dropped_before + sum(writer.dropped for writer in self._writers)

    def recent(self, model: str | None = None, level: LogLevel = "debug") -> list[LogRecord]:
        """The records kept in memory, oldest first, of one model (or all) and of this level or above."""
        with self._recent_lock:
            records = list(self._recent)
        lowest = LEVELS[level]
        return [r for r in records if LEVELS[r.level] >= lowest and (model is None or r.model == model)]

    def submit(self, record: LogRecord) -> None:
        """Take a record in, from any thread, without ever waiting."""
        with self._recent_lock:
            self._recent.append(record)
        level = LEVELS[record.level]
        line = _Line(record, self._format)
        for writer in self._writers:
            if level >= writer.level:
                writer.put(line)
        self._publish(record)

    def emit(self, *, level: LogLevel, module: str, message: str, values: dict[str, object]) -> None:
        """Make a record of what was logged, and take it in."""
        self.submit(make_record(time=self._clock.now(), level=level, module=module, message=message, values=values))

    def process(
        self, logger: _NamedLogger, method: str, event: EventDict
    ) -> tuple[tuple[LogRecord], dict[str, object]]:
        """The last of structlog's processors: what the logger's method is called with."""
        values = cast("dict[str, object]", event)
        message = str(values.pop("event", ""))
        level = _LEVEL_OF_METHOD.get(method, cast("LogLevel", method))
        level = level if level in LEVELS else "info"
        now = self._clock.now()
        return (make_record(time=now, level=level, module=logger.name, message=message, values=values),), {}

    def close(self, *, seconds_max: float = limits.log_close_seconds_max) -> bool:
        """Write what is queued and stop; False where a writer was still stuck after the time allowed for all."""
        self.hub.close()
        deadline = self._clock.monotonic() + seconds_max
        for writer in self._writers:
            writer.stop()
        stuck = False
        for writer in self._writers:
            stuck |= not writer.join(max(0.0, deadline - self._clock.monotonic()))
        return not stuck

    def flush(self, *, seconds_max: float) -> bool:
        """Wait until what is queued is written, for no longer than this; False where something was left."""
        deadline = self._clock.monotonic() + seconds_max
        flushed = [writer.flush(deadline - self._clock.monotonic()) for writer in self._writers]
        return all(flushed)

    def _publish(self, record: LogRecord) -> None:
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            # Another thread: subscribers belong to the loop. A loop that is closed has none.
            if self._loop is not None:
                with contextlib.suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self.hub.publish, record)
        else:
            self.hub.publish(record)

    def _tell_file_problem(self, path: Path, error: OSError | None) -> None:
        if error is None:
            self.emit(level="warning", module=__name__, message=f"the log file {path} can be written again", values={})
            return
        reason = f"the log file {path} cannot be written: {error.strerror}; the console goes on"
        self.emit(level="error", module=__name__, message=reason, values={})


class _Line:
    """A record as bytes, formatted once for all writers, in the thread of the first that wants it."""

    __slots__ = ("_data", "_format", "_record")

    def __init__(self, record: LogRecord, format: Callable[[LogRecord], bytes]) -> None:
        self._record = record
        self._format = format
        self._data: bytes | None = None

    def data(self) -> bytes:
        if self._data is None:
            self._data = self._format(self._record)
        return self._data


class _Writer:
    """A bounded queue and the thread that empties it. Only this thread waits for the reader on the other side."""

    def __init__(
        self,
        name: str,
        level: int,
        write: Callable[[list[bytes]], int],
        close: Callable[[], None] | None = None,
    ) -> None:
        self.level = level
        self.dropped = 0
        self._write = write
        self._close = close
        self._queue: deque[_Line] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._hurried = False
        self._writing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, line: _Line) -> None:
        with self._changed:
            if len(self._queue) >= limits.log_queue_records_max or self._stopping:
                self.dropped += 1
                return
            self._queue.append(line)
            if len(self._queue) == 1:
                self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def flush(self, seconds_max: float) -> bool:
        """Wait until nothing is queued; whether that came to be."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: not self._queue and not self._writing, max(0.0, seconds_max))
            self._hurried = False
        return done

    def join(self, seconds_max: float) -> bool:
        self._thread.join(seconds_max)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while batch := self._take():
            try:
                lost = self._write([line.data() for line in batch])
            except OSError:  # nobody reads the console any more
                lost = len(batch)
            with self._changed:
                self.dropped += lost
                self._writing = False
                if self._hurried:
                    self._changed.notify_all()
        if self._close is not None:
            self._close()

    def _take(self) -> list[_Line]:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._stopping)
            # One wake-up for all that comes within a moment: each costs the loop its turn at the interpreter.
            self._changed.wait_for(lambda: self._stopping or self._hurried, limits.log_linger_seconds)
            self._writing = True
            return [self._queue.popleft() for _ in range(min(len(self._queue), limits.log_batch_records_max))]


class _NamedLogger:
    """What structlog's bound loggers write to."""

    def __init__(self, name: str, hub: LogHub) -> None:
        self.name = name
        self._hub = hub

    def msg(self, record: LogRecord) -> None:
        self._hub.submit(record)

    debug = info = warn = warning = error = exception = critical = fatal = msg


class _ForwardHandler(logging.Handler):
    """Sends what aiohttp, asyncio and others log the same way."""

    def __init__(self, hub: LogHub) -> None:
        super().__init__()
        self._hub = hub
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        """Never raises: a message that does not go with its arguments is logged as it stands."""
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            message = str(record.msg)
        values: dict[str, object] = {}
        if record.exc_info:
            values["exception"] = self._formatter.formatException(record.exc_info)
        self._hub.emit(level=_level_of(record.levelno), module=record.name, message=message, values=values)


def _level_of(number: int) -> LogLevel:
    at_or_below: list[LogLevel] = [name for name, lowest in LEVELS.items() if lowest <= number]
    return at_or_below[-1] if at_or_below else "debug"
