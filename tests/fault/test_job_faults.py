"""Jobs that are cancelled, that fail, or whose fetch process dies: nothing half is left of them.

A cancelled job leaves no file and no process, a failed one says what it is, and a file that was to be imported stays
where it was. The daemon holds nothing of jobs that are over.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path

import psutil
import pytest
from tests.support.daemon import Daemon, mock_model
from tests.support.http_double import Fault
from tests.support.installs import (
    SOURCE,
    SlowHub,
    at_stage,
    check_installed,
    events,
    fetchers,
    hub_settings,
    staged,
    submit,
    visible_models,
    wait_for,
)
from tests.support.leaks import no_leaks
from tests.support.polling import eventually_sync
from tests.support.tiny_gguf import write_tiny_gguf

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="prlimit(2) stands in for a full disk")


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


@pytest.fixture
def hub(content: bytes) -> Generator[SlowHub]:
    with no_leaks(), SlowHub(content) as double:
        yield double


@pytest.fixture
def daemon(hub: SlowHub) -> Generator[Daemon]:
    """With a mock model, and one download at a time."""
    with Daemon({"models": {"quick": mock_model()}, **hub_settings(hub, jobs=1)}) as one:
        yield one


@pytest.mark.parametrize("stage", ["queued", "resolving", "downloading", "waiting to try again"])
def test_cancel_at_each_stage_leaves_nothing(daemon: Daemon, hub: SlowHub, stage: str) -> None:
    """Result: no file, no process, and the same model can be installed afterwards."""
    hub.chunk_seconds, hub.answer_seconds = 0.05, 0.3
    ahead = submit(daemon, "install", source="hf:org/more", name="more") if stage == "queued" else None
    if stage == "waiting to try again":
        hub.faults["/api/models"] = [Fault(status=503, headers={"Retry-After": "3000"})] * 50
    job = submit(daemon, "install", source=SOURCE, name="tiny")
    at_stage(daemon, job, stage)
    assert daemon.control("POST", f"/jobs/{job['id']}/cancel")[0] == 202
    assert wait_for(daemon, job)["state"] == "cancelled"
    assert job["id"] not in staged(daemon)
    if ahead is not None:
        assert wait_for(daemon, ahead)["state"] == "succeeded"
        assert visible_models(daemon) == ["more"]
    else:
        assert visible_models(daemon) == []
    assert fetchers(daemon) == []
    hub.faults.clear()
    hub.chunk_seconds = hub.answer_seconds = 0.0
    assert wait_for(daemon, submit(daemon, "install", source=SOURCE, name="tiny"))["state"] == "succeeded"
    assert "tiny" in visible_models(daemon)


def test_fetch_process_that_is_killed_is_started_again(daemon: Daemon, hub: SlowHub, content: bytes) -> None:
    """1. It dies at half, of SIGKILL. Result: the job tries again and goes on."""
    hub.hold_after_bytes = len(content) // 2
    job = submit(daemon, "install", source=SOURCE, name="tiny")
    eventually_sync(lambda: hub.sent_bytes >= len(content) // 2, 30)
    (fetcher,) = fetchers(daemon)
    fetcher.kill()
    hub.hold_after_bytes = None
    after = wait_for(daemon, job)
    assert (after["state"], after["attempts"]) == ("succeeded", 2)
    check_installed(daemon)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"/api/models/org/tiny": Fault(status=404)}, "not_found"),
        ({"/cdn": Fault(content=b"x" * 5000)}, None),
    ],
)
def test_failure_says_what_it_is_and_leaves_nothing(
    daemon: Daemon, hub: SlowHub, fault: dict[str, Fault], code: str | None
) -> None:
    """The reason has a code and a next step."""
    for path, one in fault.items():
        hub.faults[path] = [one] * 50
    job = submit(daemon, "install", source=SOURCE, name="tiny")
    after = wait_for(daemon, job, "failed", "queued") if code is None else wait_for(daemon, job)
    if code is not None:
        assert (after["state"], after["error_code"]) == ("failed", code)
        assert after["hint"]
        assert staged(daemon) == []
    assert visible_models(daemon) == []


def test_import_that_fails_leaves_the_file_where_it_was(daemon: Daemon, content: bytes, tmp_path: Path) -> None:
    """1. Moves of a file that is no model, and of one that is cancelled. Result: both files are there, whole."""
    for name, data in (("mine.gguf", content), ("bad.gguf", b"GGUF" + b"x" * 1000)):
        (tmp_path / name).write_bytes(data)
    bad = wait_for(daemon, submit(daemon, "import", path=str(tmp_path / "bad.gguf"), name="bad", mode="move"))
    assert bad["state"] == "failed"
    good = submit(daemon, "import", path=str(tmp_path / "mine.gguf"), name="good", mode="move")
    if daemon.control("POST", f"/jobs/{good['id']}/cancel")[0] == 202:
        assert wait_for(daemon, good)["state"] == "cancelled"
        assert (tmp_path / "mine.gguf").read_bytes() == content
    assert (tmp_path / "bad.gguf").exists()
    assert (staged(daemon), "bad" in visible_models(daemon)) == ([], False)


@on_linux
def test_daemon_holds_nothing_of_jobs_that_are_over(daemon: Daemon, hub: SlowHub) -> None:
    """1. Jobs succeed, fail, are cancelled, are watched. Result: no descriptor, child or thread more than before."""

    def round_of_jobs() -> None:
        job = submit(daemon, "install", source=SOURCE, name="tiny")
        assert [*events(daemon, job)][-1][1]["state"] == "succeeded"
        wait_for(daemon, submit(daemon, "delete", model="tiny"))
        assert wait_for(daemon, submit(daemon, "install", source="hf:org/nobody"))["state"] == "failed"
        cancelled = submit(daemon, "install", source="hf:org/more")
        daemon.control("POST", f"/jobs/{cancelled['id']}/cancel")
        assert wait_for(daemon, cancelled)["state"] == "cancelled"

    round_of_jobs()
    process = psutil.Process(daemon.pid)
    before = process.num_fds()
    for _ in range(3):
        round_of_jobs()
    eventually_sync(lambda: process.num_fds() <= before, 10, "no descriptor is left")
    assert [one.name() for one in process.children(recursive=True)] == []
    assert [path.name for path in (daemon.folder / "run").glob("worker-*")] == []
