"""The log: its lines, its bounds, and what happens when nobody reads it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import msgspec
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from llmvisor import limits
from llmvisor.clock import SystemClock
from llmvisor.control.api import LogLevel, LogRecord
from llmvisor.log import LogHub, configure_logging, get_logger
from llmvisor.logfile import RotatingFile
from llmvisor.logline import json_line, make_record, text_line

NOW = datetime(2026, 3, 4, 5, 6, 7, 89_000, tzinfo=UTC)


class Settings(msgspec.Struct):
    """`logging.main`, as the configuration gives it."""

    console_level: LogLevel = "info"
    file_level: LogLevel = "debug"
    file: str | None = None
    format: Literal["text", "json"] = "text"
    max_size_mb: float = 1000
    max_backups: int = 3
    max_age_days: float = 28


class ManualClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self.seconds - 1000)


@pytest.fixture(autouse=True)
def _restore_logging() -> Generator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


@contextmanager
def logging_to(path: Path, settings: Settings | None = None) -> Generator[LogHub]:
    """A hub whose console is a file."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    hub = configure_logging(settings or Settings(), clock=SystemClock(), console_fd=fd)
    try:
        yield hub
    finally:
        assert hub.close()
        os.close(fd)


def lines_of(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.005)


def record(message: str = "hello", **values: object) -> LogRecord:
    return make_record(time=NOW, level="info", module="llmvisor.app", message=message, values=values)


# ------------------------------------------------------------------------------------------------------- the line


def test_text_line_is_timestamp_module_level_message() -> None:
    """The text format is exactly `timestamp - module - level - message`."""
    assert text_line(record()) == b"2026-03-04T05:06:07.089Z - llmvisor.app - info - hello\n"


def test_text_line_appends_fields_as_key_value() -> None:
    """Fields follow the message, quoted where a space or an equals sign would make them two."""
    line = text_line(record(model="light", request_id="r1", count=3, path="a b", empty="")).decode()
    assert line.endswith(' - hello model=light request_id=r1 count=3 path="a b" empty=""\n')


def test_json_line_is_the_record_itself() -> None:
    """With `format: json` each line is one object with the names that `/logs` answers."""
    answer = json.loads(json_line(record("two\nlines", model="light", n=1)))
    expected = {
        "time": "2026-03-04T05:06:07.089Z",
        "level": "info",
        "module": "llmvisor.app",
        "message": "two\nlines",
        "model": "light",
        "fields": {"n": "1"},
    }
    assert answer == expected


@pytest.mark.parametrize(
    "name", ["api_key", "OPENAI_API_KEY", "access_token", "client_secret", "password", "Authorization"]
)
def test_secret_fields_are_masked(name: str) -> None:
    """The value of a field that is named like a secret never reaches a line, nested or not."""
    made = record("hello", **{name: "hunter2"}, headers={name: "hunter2", "accept": "json"})
    for line in (text_line(made), json_line(made)):
        assert b"hunter2" not in line
        assert b"****" in line
        assert b"accept" in line


def test_counts_are_not_masked() -> None:
    """`tokens=12` is a number and no credential."""
    assert b"tokens=12 tokens_per_second=3.5" in text_line(record(tokens=12, tokens_per_second=3.5))


@pytest.mark.parametrize(
    "text", ["Authorization: Bearer abcdefgh12345678", "key sk-abcdefgh12345678", "hf_abcdefgh12345678"]
)
def test_credentials_inside_text_are_masked(text: str) -> None:
    """What looks like a credential is masked in a message and in any field."""
    line = text_line(record(text, note=text))
    assert b"abcdefgh12345678" not in line


@given(st.text(), st.text())
def test_no_text_forges_a_line(message: str, value: str) -> None:
    """Whatever a message or a field holds, control characters and surrogates included, it stays one line."""
    line = text_line(record(message, field=value))
    assert line.count(b"\n") == 1
    assert len(line.decode().splitlines()) == 1
    assert json.loads(json_line(record(message, field=value)))["module"] == "llmvisor.app"


def test_lone_surrogate_can_be_logged_as_json() -> None:
    """Text that UTF-8 cannot carry is escaped instead of raising in the writer."""
    assert "\\ud800" in json.loads(json_line(record("a\ud800b")))["message"]


def test_exception_lines_are_indented() -> None:
    """The lines of an exception follow theirs, indented, so none passes for a line of its own."""
    made = record("failed", exception="Traceback\nValueError: 2026 - forged - info - line")
    assert text_line(made).decode().splitlines()[1:] == ["    Traceback", "    ValueError: 2026 - forged - info - line"]


@pytest.mark.parametrize("extra", [0, 1])
def test_long_message_is_cut_at_the_bound(extra: int) -> None:
    """A message of `log_line_bytes_max` characters stands whole; one more is cut and says so."""
    made = record("x" * (limits.log_line_bytes_max + extra))
    assert ("characters)" in made.message) == bool(extra)
    assert made.message.count("x") == limits.log_line_bytes_max


# -------------------------------------------------------------------------------------------------------- the hub


def test_logged_lines_reach_console_and_file(tmp_path: Path) -> None:
    """Each sink takes its own level and above."""
    file = tmp_path / "deep" / "main.log"
    with logging_to(tmp_path / "console", Settings(file=str(file))):
        get_logger("llmvisor.x").debug("quiet")
        get_logger("llmvisor.x").warning("loud", model="light")
    assert (tmp_path / "console").read_text().count("\n") == 1
    assert " - llmvisor.x - warning - loud model=light\n" in (tmp_path / "console").read_text()
    assert [line.split(" - ")[2] for line in file.read_text().splitlines()] == ["debug", "warning"]
    assert file.stat().st_mode & 0o777 == 0o600


def test_libraries_log_the_same_way(tmp_path: Path) -> None:
    """The standard library's logging goes through the hub, tracebacks and bad arguments included."""
    with logging_to(tmp_path / "console"):
        try:
            int("boom")
        except ValueError:
            logging.getLogger("aiohttp.server").exception("handling %s", "x")
        logging.getLogger("aiohttp.server").error("%d", "no number")
    text = (tmp_path / "console").read_text()
    assert " - aiohttp.server - error - handling x\n" in text
    assert "    ValueError: invalid literal" in text
    assert " - aiohttp.server - error - %d\n" in text


def test_structlog_exception_keeps_its_traceback(tmp_path: Path) -> None:
    """`log.exception` logs an error with the lines of the exception under it."""
    with logging_to(tmp_path / "console"):
        try:
            int("boom")
        except ValueError:
            get_logger("llmvisor.x").exception("failed")
    text = (tmp_path / "console").read_text()
    assert " - llmvisor.x - error - failed\n" in text
    assert "    ValueError: invalid literal" in text


def test_recent_filters_by_model_and_level(tmp_path: Path) -> None:
    """`recent` gives what is kept, of one model and from a level on."""
    with logging_to(tmp_path / "console", Settings(console_level="debug")) as hub:
        log = get_logger("llmvisor.x")
        log.debug("a", model="light")
        log.error("b", model="light")
        log.error("c", model="heavy")
    assert [r.message for r in hub.recent()] == ["a", "b", "c"]
    assert [r.message for r in hub.recent("light")] == ["a", "b"]
    assert [r.message for r in hub.recent("light", "warning")] == ["b"]


def test_recent_is_bounded(tmp_path: Path) -> None:
    """Only the last `log_recent_records_max` records are kept."""
    with logging_to(tmp_path / "console") as hub:
        for number in range(limits.log_recent_records_max + 1):
            get_logger("llmvisor.x").info(str(number))
        kept = hub.recent()
    assert len(kept) == limits.log_recent_records_max
    assert kept[0].message == "1"


async def test_subscribers_get_records_of_every_thread(tmp_path: Path) -> None:
    """A follower on the loop gets what the loop logs at once, and what other threads log a moment later."""
    with logging_to(tmp_path / "console") as hub, hub.hub.subscribe() as subscription:
        get_logger("llmvisor.x").info("loop")
        await asyncio.to_thread(get_logger("llmvisor.x").info, "thread")
        iterator = aiter(subscription)
        async with asyncio.timeout(10):
            assert [(await anext(iterator)).message for _ in range(2)] == ["loop", "thread"]


async def test_blocked_console_does_not_stall_the_loop(tmp_path: Path) -> None:
    """1. The console is a full pipe that nobody reads. 2. More is logged than the queue holds.

    Result: logging never waits, the file has every line, the rest is counted as dropped, and closing is bounded.
    """
    reader, writer = os.pipe()
    file = tmp_path / "main.log"
    hub = configure_logging(Settings(file=str(file)), clock=SystemClock(), console_fd=writer)
    longest = 0.0
    total = limits.log_queue_records_max + 3000
    try:
        for number in range(total):
            before = time.monotonic()
            get_logger("llmvisor.x").info("x" * 100, number=number)
            longest = max(longest, time.monotonic() - before)
            if number % 1000 == 999:  # the disk keeps up; the reader of the console never does
                await asyncio.to_thread(wait_until, lambda lines=number + 1: lines_of(file) == lines)
        assert longest < 1.0
        assert 0 < hub.dropped <= 3000
        assert not hub.close(seconds_max=0.2)
    finally:
        os.close(reader)  # the thread that is stuck gets EPIPE
        wait_until(lambda: not any(thread.name == "log-console" for thread in threading.enumerate()))
        os.close(writer)


def test_close_writes_what_is_queued(tmp_path: Path) -> None:
    """Nothing that was logged before `close` is lost."""
    with logging_to(tmp_path / "console"):
        for number in range(2000):
            get_logger("llmvisor.x").info("line", number=number)
    assert (tmp_path / "console").read_text().count("\n") == 2000


def test_file_that_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    """A full disk is said once on the console; the daemon goes on, and the lost lines are counted."""
    settings = Settings(file="/dev/full")
    with logging_to(tmp_path / "console", settings) as hub:
        for number in range(50):
            get_logger("llmvisor.x").info("line", number=number)
            wait_until(lambda: hub.dropped > 0)
    text = (tmp_path / "console").read_text()
    assert text.count("/dev/full cannot be written: No space left on device") == 1
    assert text.count(" - line number=") == 50


def test_file_whose_folder_cannot_be_made_is_told_once(tmp_path: Path) -> None:
    """A path below a regular file is no reason to stop either."""
    (tmp_path / "blocker").write_text("")
    with logging_to(tmp_path / "console", Settings(file=str(tmp_path / "blocker" / "main.log"))) as hub:
        get_logger("llmvisor.x").info("line")
        wait_until(lambda: hub.dropped > 0)
    assert "cannot be written: " in (tmp_path / "console").read_text()


# ------------------------------------------------------------------------------------------------------- the file


def rotating(path: Path, clock: ManualClock, problems: list[OSError | None], **changes: int) -> RotatingFile:
    bounds = {"bytes_max": 100, "backups_max": 2, "age_days_max": 28} | changes
    return RotatingFile(
        path,
        bytes_max=bounds["bytes_max"],
        backups_max=bounds["backups_max"],
        age_days_max=bounds["age_days_max"],
        clock=clock,
        on_problem=problems.append,
    )


def test_file_rotates_by_size_and_keeps_the_backups(tmp_path: Path) -> None:
    """A file is never longer than its bound, and the oldest backup goes when there are too many."""
    file = rotating(tmp_path / "main.log", ManualClock(), [])
    assert file.write([b"%d" % digit * 49 + b"\n" for digit in range(8)]) == 0
    file.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["main.log", "main.log.1", "main.log.2"]
    firsts = [(tmp_path / name).read_bytes()[:1] for name in ("main.log", "main.log.1", "main.log.2")]
    assert firsts == [b"6", b"4", b"2"]
    assert all(path.stat().st_size == 100 for path in tmp_path.iterdir())


def test_file_without_backups_starts_anew(tmp_path: Path) -> None:
    """`max_backups: 0` keeps the current file alone."""
    file = rotating(tmp_path / "main.log", ManualClock(), [], backups_max=0)
    file.write([b"a" * 90 + b"\n"])
    file.write([b"b" * 90 + b"\n"])
    file.close()
    assert [path.name for path in tmp_path.iterdir()] == ["main.log"]
    assert (tmp_path / "main.log").read_bytes() == b"b" * 90 + b"\n"


def test_file_goes_on_where_it_was(tmp_path: Path) -> None:
    """A restart appends, and counts what is there already towards the bound."""
    (tmp_path / "main.log").write_bytes(b"a" * 90)
    file = rotating(tmp_path / "main.log", ManualClock(), [])
    file.write([b"b" * 20])
    file.close()
    assert (tmp_path / "main.log.1").read_bytes() == b"a" * 90
    assert (tmp_path / "main.log").read_bytes() == b"b" * 20


def test_old_backups_are_removed(tmp_path: Path) -> None:
    """Backups older than the age go, at the start and then each hour; other files stay."""
    clock = ManualClock()
    for name in ("main.log.1", "main.log.2", "main.log.old", "other.log.1"):
        (tmp_path / name).write_text("x")
    os.utime(tmp_path / "main.log.2", (0, 0))
    os.utime(tmp_path / "main.log.old", (0, 0))
    os.utime(tmp_path / "other.log.1", (0, 0))
    file = rotating(tmp_path / "main.log", clock, [])
    file.write([b"x\n"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["main.log", "main.log.1", "main.log.old", "other.log.1"]
    clock.seconds += 29 * 86_400
    file.write([b"x\n"])
    file.close()
    assert not (tmp_path / "main.log.1").exists()


def test_file_is_tried_again_after_a_while(tmp_path: Path) -> None:
    """1. The folder is in the way. 2. It is cleared. Result: told once, tried again later, told that it works."""
    clock = ManualClock()
    problems: list[OSError | None] = []
    blocker = tmp_path / "logs"
    blocker.write_text("")
    file = rotating(blocker / "main.log", clock, problems)
    assert file.write([b"a\n"]) == 1
    blocker.unlink()
    assert file.write([b"b\n"]) == 1
    clock.seconds += limits.log_file_retry_seconds
    assert file.write([b"c\n"]) == 0
    file.close()
    assert [problem is None for problem in problems] == [False, True]
    assert (blocker / "main.log").read_bytes() == b"c\n"
