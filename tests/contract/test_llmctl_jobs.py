"""`llmctl jobs`: several watched at once, filters, forgetting."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support import fake_daemon as fake
from tests.support.fake_daemon import FakeDaemon
from tests.support.llmctl_process import TerminalRun, llmctl
from tests.support.polling import eventually_sync

from llmctl import limits
from llmctl.client import Client
from llmctl.session import Session
from llmctl.terminal import Terminal
from llmctl.watch_jobs import watch_jobs
from llmvisor.control.api import Job


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path / "s") as daemon:
        yield daemon


def changed(job: dict[str, Any]) -> tuple[str, object]:
    """The event of a job's change."""
    return "job", {"time": fake.START, "kind": "job", "job": job}


def other(**changes: Any) -> dict[str, Any]:
    """A second job, beside `fake.install_job`."""
    return {**fake.job(), "id": "job_02", "params": {"model": "heavy"}, **changes}


def ended(job: dict[str, Any], state: str = "succeeded", **changes: Any) -> dict[str, Any]:
    return {**job, "state": state, "ended_at": "2026-08-01T12:00:02.500Z", "progress": 1.0, **changes}


def test_watch_follows_every_running_job_to_its_end(daemon: FakeDaemon) -> None:
    """1. Two jobs run. 2. A third begins. 3. All end. Result: each is told as it goes, and as it ended."""
    third = {**other(), "id": "job_03", "params": {"model": "medium"}}
    daemon.items("/jobs", [fake.install_job(), other(), ended(other(id="job_00"))])
    changes = [changed(third), changed(ended(fake.install_job())), changed(ended(third)), changed(ended(other()))]
    daemon.stream("GET", "/events", [*changes, changed(other(id="job_late"))], hold_open=True)
    run = llmctl(daemon.socket_path, "jobs", "watch")
    assert run.code == 0
    assert "install hf:org/repo: downloading  50 of 100 MiB  25 MiB/s  2.0s left" in run.stderr
    assert "load heavy: weights" in run.stderr
    rows = [line.split()[:4] for line in run.stdout.splitlines()[1:]]
    assert rows == [
        ["job_01", "install", "hf:org/repo", "succeeded"],
        ["job_02", "load", "heavy", "succeeded"],
        ["job_03", "load", "medium", "succeeded"],
    ]


def test_watch_draws_a_bar_for_each_job(daemon: FakeDaemon) -> None:
    """On a terminal of 100 columns: both jobs at once, with rate and time left; then what became of them."""
    daemon.items("/jobs", [fake.install_job(), other()])
    daemon.stream("GET", "/events", [changed(fake.install_job(done=75 * 2**20))], hold_open=True)
    with TerminalRun(daemon.socket_path, "jobs", "watch", columns=100) as run:
        run.expect("75 of 100 MiB  25 MiB/s  1.0s left")
        run.expect("load heavy")
        daemon.released.set()
        run.expect("the daemon went away")
        assert run.wait() == 1


def test_watch_of_named_jobs_leaves_others_out(daemon: FakeDaemon) -> None:
    """Two ids: the third job's changes are not shown, and a failure is exit code 1 with its reason and hint."""
    daemon.answer("GET", "/jobs/job_01", fake.install_job())
    daemon.answer("GET", "/jobs/job_02", other())
    failed = ended(other(), "failed", error="the disk is full", hint="free 3 GiB")
    changes = [changed(other(id="job_03")), changed(ended(fake.install_job())), changed(failed)]
    daemon.stream("GET", "/events", changes, hold_open=True)
    run = llmctl(daemon.socket_path, "jobs", "watch", "job_01", "job_02")
    assert run.code == 1
    assert "job_03" not in run.stdout
    assert run.stdout.endswith("job_02 failed\n  the disk is full\n  free 3 GiB\n")


def test_watch_without_running_jobs_ends_at_once(daemon: FakeDaemon) -> None:
    """Nothing to wait for is no failure."""
    daemon.items("/jobs", [ended(other())])
    daemon.stream("GET", "/events", [], hold_open=True)
    run = llmctl(daemon.socket_path, "jobs", "watch")
    assert (run.code, run.stdout, run.stderr) == (0, "", "no job is running\n")


def test_watch_misses_no_end_that_it_was_not_told(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """The events of both ends are lost; both are seen to have ended when it next looks, whether named or not."""
    monkeypatch.setattr(limits, "watch_window_seconds", 0.2)
    daemon.stream("GET", "/events", [], hold_open=True)
    for ids in (["job_01", "job_02"], None):
        daemon.items("/jobs", [fake.install_job(), other()])
        daemon.answer("GET", "/jobs/job_01", fake.install_job())
        daemon.answer("GET", "/jobs/job_02", other())
        out = Terminal(io.StringIO(), io.StringIO(), {})
        session = Session(Client(daemon.socket_path), out, argparse.Namespace(), json=True)
        jobs = [msgspec.convert(job, Job) for job in (fake.install_job(), other())] if ids else None
        asked = len(daemon.requests)
        with ThreadPoolExecutor(1) as pool:
            watching = pool.submit(watch_jobs, session, jobs, cancel_on_interrupt=False)
            eventually_sync(lambda: len(daemon.requests) > asked + 4, 20, "it looks again")  # noqa: B023
            daemon.answer("GET", "/jobs/job_01", ended(fake.install_job()))
            daemon.answer("GET", "/jobs/job_02", ended(other()))
            daemon.items("/jobs", [ended(fake.install_job())])
            assert watching.result(20) == 0


def test_watch_gives_up_after_its_timeout(daemon: FakeDaemon) -> None:
    """Exit code 5; the jobs are left alone."""
    daemon.items("/jobs", [fake.install_job(), other()])
    daemon.stream("GET", "/events", [], hold_open=True)
    run = llmctl(daemon.socket_path, "jobs", "watch", "--timeout", "0.3")
    assert run.code == 5
    assert "2 jobs are not done after 0.3 s" in run.stderr


def test_watch_interrupted_cancels_only_when_told_to(daemon: FakeDaemon) -> None:
    """Ctrl-C leaves the jobs going; with `--cancel-on-interrupt` those that run are cancelled. Both are 130."""
    daemon.items("/jobs", [fake.install_job(), other()])
    daemon.stream("GET", "/events", [changed(ended(other()))], hold_open=True)
    daemon.answer("POST", "/jobs/job_01/cancel", fake.install_job(state="cancelling"))
    with TerminalRun(daemon.socket_path, "jobs", "watch") as run:
        run.expect("succeeded")
        run.interrupt(until="the jobs go on")
        assert run.wait() == 130
    assert daemon.asked("POST", "/jobs/job_01/cancel") == []
    with TerminalRun(daemon.socket_path, "jobs", "watch", "--cancel-on-interrupt") as run:
        run.expect("succeeded")
        run.interrupt(until="job_01 is cancelled")
        assert run.wait() == 130
    assert len(daemon.asked("POST", "/jobs/job_01/cancel")) == 1


def test_a_job_that_waits_says_for_what(daemon: FakeDaemon) -> None:
    """Its turn, the job before it, or the next try after an error that may pass."""
    waiting = fake.install_job(state="queued", stage="queued")
    behind = waiting | {"stage": "queued after an update, job_07"}
    again = {"retry_at": "2026-08-01T12:00:09.000Z", "attempts": 2, "error": "the connection was cut"}
    daemon.answer("GET", "/jobs/job_01", waiting)
    daemon.stream(
        "GET",
        "/jobs/job_01/events",
        [("job", behind), ("job", waiting | again), ("job", fake.ended_job(type="install"))],
    )
    said = llmctl(daemon.socket_path, "jobs", "watch", "job_01").stderr
    assert "waits for its turn" in said
    assert ": queued after an update, job_07\n" in said
    assert "tried twice, again at 12:00:09  the connection was cut" in said


def test_list_hands_its_filters_to_the_daemon(daemon: FakeDaemon) -> None:
    """`--state`, `--type` and `--model` become parts of the query."""
    daemon.items("/jobs", [])
    run = llmctl(daemon.socket_path, "jobs", "--state", "failed", "--type", "install", "--model", "light")
    assert daemon.requests[0].query == {"state": "failed", "type": "install", "model": "light"}
    assert (run.code, run.stderr) == (0, "no such jobs\n")


def test_show_tells_where_it_comes_from_and_what_came_of_it(daemon: FakeDaemon) -> None:
    """Source, tries, result."""
    daemon.answer("GET", "/jobs/job_01", ended(fake.install_job(attempts=3)))
    shown = llmctl(daemon.socket_path, "jobs", "show", "job_01").stdout
    assert "source   hf:org/repo" in shown
    assert "tries    3" in shown


def test_prune_forgets_what_somebody_else_forgets_too(daemon: FakeDaemon) -> None:
    """A job that has gone meanwhile is no failure, and one that is listed all the same is not asked for for ever."""
    daemon.items("/jobs", [fake.ended_job()])
    assert llmctl(daemon.socket_path, "jobs", "prune") == (0, "1 job forgotten\n", "")


def test_forget_and_prune_forget_ended_jobs_alone(daemon: FakeDaemon) -> None:
    """`forget ID` is one; `prune` is every one that has ended, and counts them."""
    daemon.job_list(
        [fake.install_job(), ended(other()), ended(other(id="job_03"), "failed"), ended(other(id="job_04"))]
    )
    assert llmctl(daemon.socket_path, "jobs", "forget", "job_04").code == 0
    assert llmctl(daemon.socket_path, "jobs", "prune").stdout == "2 jobs forgotten\n"
    forgotten = [request.path for request in daemon.requests if request.method == "DELETE"]
    assert forgotten == ["/jobs/job_04", "/jobs/job_02", "/jobs/job_03"]
    assert llmctl(daemon.socket_path, "jobs", "forget", "job_09").code == 4


def test_several_are_cancelled_though_one_is_missing(daemon: FakeDaemon) -> None:
    """What is wrong with one is told, the others are cancelled, and the exit code is 1."""
    daemon.answer("POST", "/jobs/job_02/cancel", other(state="cancelling"))
    run = llmctl(daemon.socket_path, "jobs", "cancel", "job_09", "job_02")
    assert run.code == 1
    assert run.stderr.endswith("job_02 is cancelled\n")


def test_the_end_of_a_long_id_is_enough(daemon: FakeDaemon) -> None:
    """A terminal shows no more of it; where two jobs end alike it is exit code 2, where none does 4."""
    first, second = "job_01a1f912c3c14503fdbb8b2bbd498761", "job_01a1f912c3c14503fdbb8b2bcc498762"
    daemon.items("/jobs", [fake.install_job(id=first), other(id=second)])
    daemon.answer("GET", f"/jobs/{first}", fake.install_job(id=first))
    with TerminalRun(daemon.socket_path, "jobs") as run:
        run.expect("bd498761  install")
        assert run.wait() == 0
    assert max(map(len, run.text.splitlines())) <= 80
    assert first in llmctl(daemon.socket_path, "jobs").stdout
    assert first in llmctl(daemon.socket_path, "jobs", "show", "bd498761").stdout
    assert llmctl(daemon.socket_path, "jobs", "show", "76").code == 4
    daemon.items("/jobs", [fake.install_job(id=first), other(id=second + "1")])
    assert llmctl(daemon.socket_path, "jobs", "show", "1").code == 2


def test_watch_as_json_gives_the_jobs_as_they_ended(daemon: FakeDaemon) -> None:
    """Nothing but the API's own objects on stdout."""
    daemon.items("/jobs", [fake.install_job(), other()])
    daemon.stream("GET", "/events", [changed(ended(fake.install_job())), changed(ended(other()))], hold_open=True)
    shown = json.loads(llmctl(daemon.socket_path, "jobs", "watch", "--json").stdout)
    assert [job["state"] for job in shown["data"]] == ["succeeded", "succeeded"]
