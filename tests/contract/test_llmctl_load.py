"""`llmctl load`, `unload` and `restart`: jobs, their progress, and how waiting for them ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.support import fake_daemon as fake
from tests.support.fake_daemon import FakeDaemon, as_object
from tests.support.llmctl_process import TerminalRun, llmctl

from llmvisor.control.api import JobParams

EVENTS = "/jobs/job_01/events"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path / "s") as daemon:
        daemon.answer("POST", "/jobs", fake.job(done=0, progress=0.0), status=202)
        daemon.stream("GET", EVENTS, [("job", fake.job()), ("job", fake.ended_job())])
        yield daemon


def test_load_waits_and_tells_progress_in_plain_lines(daemon: FakeDaemon) -> None:
    """In a pipe progress goes to stderr, the result to stdout."""
    ended = llmctl(daemon.socket_path, "load", "light")
    assert ended.code == 0
    assert ended.stdout == "light is loaded (2.5s)\n"
    assert "loading light: weights  0 B of 100 MiB" in ended.stderr
    assert "\x1b" not in ended.stderr


def test_load_asks_for_a_load_job(daemon: FakeDaemon) -> None:
    """The request is one that the daemon's guard lets through: JSON, said so."""
    llmctl(daemon.socket_path, "load", "light")
    (request,) = daemon.asked("POST", "/jobs")
    assert request.content_type == "application/json"
    assert as_object(request)["type"] == "load"
    assert msgspec.convert(as_object(request)["params"], JobParams) == JobParams(model="light")


def test_load_draws_a_bar_on_a_terminal(daemon: FakeDaemon) -> None:
    """The bar tells how much is done, within 80 columns, and gives way to the result."""
    daemon.stream("GET", EVENTS, [("job", fake.job(done=n * 2**20)) for n in range(60)], hold_open=True)
    with TerminalRun(daemon.socket_path, "load", "light") as run:
        run.expect("loading light")
        run.expect("59 of 100 MiB")
        daemon.answer("GET", "/jobs/job_01", fake.ended_job())
        daemon.released.set()
        run.expect("light is loaded (2.5s)")
        assert run.wait() == 0


def test_load_without_waiting_prints_the_job(daemon: FakeDaemon) -> None:
    """`--no-wait` prints the id alone, and follows nothing."""
    ended = llmctl(daemon.socket_path, "load", "light", "--no-wait")
    assert (ended.code, ended.stdout) == (0, "job_01\n")
    assert daemon.asked("GET", EVENTS) == []


def test_load_json_prints_the_ended_job(daemon: FakeDaemon) -> None:
    """The job as it ended, and nothing else on stdout."""
    ended = llmctl(daemon.socket_path, "load", "light", "--json")
    assert json.loads(ended.stdout)["state"] == "succeeded"


def test_load_of_a_loaded_model_follows_nothing(daemon: FakeDaemon) -> None:
    """A job that has ended when it is answered needs no events."""
    daemon.answer("POST", "/jobs", fake.ended_job())
    assert llmctl(daemon.socket_path, "load", "light").code == 0
    assert daemon.asked("GET", EVENTS) == []


def test_load_that_fails_tells_the_daemons_reason(daemon: FakeDaemon) -> None:
    """Exit code 1, and the runtime's own words on stderr."""
    failed = fake.ended_job("failed", error="tensor blk.1 is missing", error_code="model_load_failed")
    daemon.stream("GET", EVENTS, [("job", failed)])
    ended = llmctl(daemon.socket_path, "load", "light")
    assert ended.code == 1
    assert "llmctl: tensor blk.1 is missing" in ended.stderr
    assert ended.stdout == ""


@pytest.mark.parametrize(("code", "exit_code"), [("model_not_found", 4), ("timeout", 5), (None, 1)])
def test_load_that_fails_has_an_exit_code_for_its_reason(daemon: FakeDaemon, code: str | None, exit_code: int) -> None:
    """A job that fails for want of a model, or of time, ends as a request would."""
    daemon.stream("GET", EVENTS, [("job", fake.ended_job("failed", error="no", error_code=code))])
    assert llmctl(daemon.socket_path, "load", "light").code == exit_code


def test_load_asks_once_more_when_the_stream_breaks_off(daemon: FakeDaemon) -> None:
    """A stream that ends before the job does is no failure as long as the job has ended since."""
    daemon.stream("GET", EVENTS, [("job", fake.job())])
    daemon.answer("GET", "/jobs/job_01", fake.ended_job())
    assert llmctl(daemon.socket_path, "load", "light").code == 0


def test_load_fails_when_the_daemon_stops_telling(daemon: FakeDaemon) -> None:
    """A stream that ends while the job runs is an error that tells how to go on."""
    daemon.stream("GET", EVENTS, [("job", fake.job())])
    daemon.answer("GET", "/jobs/job_01", fake.job())
    ended = llmctl(daemon.socket_path, "load", "light")
    assert ended.code == 1
    assert "llmctl jobs watch job_01" in ended.stderr


def test_load_takes_a_broken_stream_up_again(daemon: FakeDaemon) -> None:
    """1. The stream breaks off. 2. The job runs on. 3. A second stream tells its end. Result: it is done."""
    daemon.answer("GET", "/jobs/job_01", fake.job())
    whole = daemon.answers["GET", EVENTS]
    daemon.stream("GET", EVENTS, [("job", fake.job())])
    daemon.answer_in_turn("GET", EVENTS, [daemon.answers["GET", EVENTS], whole])
    assert llmctl(daemon.socket_path, "load", "light").code == 0
    assert len(daemon.asked("GET", EVENTS)) == 2


def test_load_gives_up_after_its_timeout(daemon: FakeDaemon) -> None:
    """Exit code 5, and the job is said to go on."""
    daemon.stream("GET", EVENTS, [("job", fake.job())], hold_open=True)
    ended = llmctl(daemon.socket_path, "load", "light", "--timeout", "0.3")
    assert ended.code == 5
    assert "job_01 is not done after 0.3 s" in ended.stderr
    assert daemon.asked("POST", "/jobs/job_01/cancel") == []


def test_load_interrupted_leaves_the_job_alone(daemon: FakeDaemon) -> None:
    """1. Ctrl-C while it loads. Result: exit code 130, the job goes on, and is named."""
    daemon.stream("GET", EVENTS, [("job", fake.job())], hold_open=True)
    with TerminalRun(daemon.socket_path, "load", "light") as run:
        run.expect("25 of 100 MiB")
        run.interrupt(until="the job job_01 goes on")
        run.expect("the job job_01 goes on")
        assert run.wait() == 130
    assert daemon.asked("POST", "/jobs/job_01/cancel") == []


def test_load_interrupted_cancels_the_job_when_told_to(daemon: FakeDaemon) -> None:
    """With `--cancel-on-interrupt` Ctrl-C cancels the job as well."""
    daemon.stream("GET", EVENTS, [("job", fake.job())], hold_open=True)
    daemon.answer("POST", "/jobs/job_01/cancel", fake.job(state="cancelling"))
    with TerminalRun(daemon.socket_path, "load", "light", "--cancel-on-interrupt") as run:
        run.expect("25 of 100 MiB")
        run.interrupt()
        assert run.wait() == 130
    assert len(daemon.asked("POST", "/jobs/job_01/cancel")) == 1


def test_unload_hands_force_on(daemon: FakeDaemon) -> None:
    """`unload --force` is a job of its own type, with force."""
    ended = llmctl(daemon.socket_path, "unload", "light", "--force")
    assert ended.stdout.startswith("light is unloaded")
    (request,) = daemon.asked("POST", "/jobs")
    assert as_object(request)["type"] == "unload"
    assert as_object(request)["params"]["force"] is True


def test_restart_is_a_load_that_forgets_crashes(daemon: FakeDaemon) -> None:
    """`restart` asks for a load with `restart`."""
    ended = llmctl(daemon.socket_path, "restart", "light")
    assert ended.stdout.startswith("light has a new worker")
    assert as_object(daemon.asked("POST", "/jobs")[0])["params"]["restart"] is True


def test_jobs_watch_follows_a_job_to_its_end(daemon: FakeDaemon) -> None:
    """What `load` left behind can be taken up again."""
    daemon.answer("GET", "/jobs/job_01", fake.job())
    ended = llmctl(daemon.socket_path, "jobs", "watch", "job_01")
    assert ended.code == 0
    assert "succeeded" in ended.stdout
