"""The daemon is killed, or ended, at each stage of its jobs: nothing half is ever seen, and the jobs go on.

Installs, imports, updates and deletes end well under the next daemon, once and whole, and a download goes on from
where it was. A load cannot go on, and says so. No process of the old daemon writes on.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Generator
from pathlib import Path

import pytest
from tests.support.daemon import Daemon, alive, mock_model
from tests.support.hub_double import Repository
from tests.support.installs import (
    SOURCE,
    SlowHub,
    at_stage,
    check_installed,
    fetchers,
    hub_settings,
    kill_and_restart,
    listed,
    staged,
    staged_bytes,
    submit,
    visible_models,
    wait_for,
)
from tests.support.leaks import no_leaks
from tests.support.polling import eventually_sync
from tests.support.tiny_gguf import write_tiny_gguf

STAGES = ("starting", "resolving", "downloading", "putting in place", "done")


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


@pytest.mark.parametrize("stage", STAGES)
def test_install_survives_kill_nine_at_each_stage(daemon: Daemon, hub: SlowHub, stage: str) -> None:
    """1. An install comes to this stage. 2. The daemon is killed. 3. It starts again. Result: the same job goes on and
    ends well, the model is there once and whole."""
    hub.chunk_seconds, hub.answer_seconds = 0.02, 0.1
    job = submit(daemon, "install", source=SOURCE, name="tiny")
    at_stage(daemon, job, stage)
    kill_and_restart(daemon)
    assert wait_for(daemon, job)["state"] == "succeeded"
    check_installed(daemon)


def test_install_survives_kill_after_kill_and_fetches_few_bytes_twice(
    daemon: Daemon, hub: SlowHub, tmp_path: Path
) -> None:
    """1. The hub stops at a third, at two thirds. 2. Each time the daemon is killed. Result: the download goes on from
    where it was."""
    content = write_tiny_gguf(tmp_path / "large.gguf", dims=512, layers=2).read_bytes()
    hub.repositories["org/tiny"].files["tiny.Q4_K_M.gguf"] = content
    job = submit(daemon, "install", source=SOURCE, name="tiny")
    for share in (1 / 3, 2 / 3):
        hub.hold_after_bytes = int(len(content) * share)
        eventually_sync(lambda: hub.sent_bytes >= (hub.hold_after_bytes or 0), 30)
        eventually_sync(lambda share=share: staged_bytes(daemon) > len(content) * share / 2, 30)
        kill_and_restart(daemon)
        assert wait_for(daemon, job, "running")["attempts"] > 1
    hub.hold_after_bytes = None
    assert wait_for(daemon, job)["state"] == "succeeded"
    check_installed(daemon)
    assert len(content) <= hub.sent_bytes < 1.6 * len(content)


def test_queued_install_goes_on_after_a_kill(daemon: Daemon, hub: SlowHub) -> None:
    """1. One install runs, a second waits for its place. 2. The daemon is killed. Result: both end well."""
    hub.hold_after_bytes = 0
    first = submit(daemon, "install", source=SOURCE, name="tiny")
    second = submit(daemon, "install", source="hf:org/more", name="more")
    assert (wait_for(daemon, first, "running")["state"], second["state"]) == ("running", "queued")
    kill_and_restart(daemon)
    assert wait_for(daemon, second, "queued")["id"] == second["id"]
    hub.hold_after_bytes = None
    assert [wait_for(daemon, job)["state"] for job in (first, second)] == ["succeeded", "succeeded"]
    assert sorted(visible_models(daemon)) == ["more", "tiny"]


def test_installs_survive_kills_at_many_moments_of_their_last_step(daemon: Daemon, hub: SlowHub) -> None:
    """1. Installs are put in place, and the daemon is killed some milliseconds into that. Result: each ends well, and
    each model is there once and whole."""
    names = [f"tiny-{milliseconds}" for milliseconds in (1, 5, 12, 25)]
    for name in names:
        job = submit(daemon, "install", source=SOURCE, name=name)
        at_stage(daemon, job, "putting in place")
        until = time.monotonic() + int(name.removeprefix("tiny-")) / 1000
        eventually_sync(lambda until=until: time.monotonic() >= until)
        kill_and_restart(daemon)
        assert wait_for(daemon, job)["state"] == "succeeded"
    assert sorted(visible_models(daemon)) == sorted(names) == sorted(one["name"] for one in listed(daemon))
    assert staged(daemon) == []


@pytest.mark.parametrize(
    ("mode", "stage"),
    [
        ("copy", "copying"),
        ("copy", "putting in place"),
        ("move", "starting"),
        ("move", "copying"),
        ("move", "putting in place"),
        ("move", "done"),
        ("link", "putting in place"),
    ],
)
def test_import_survives_kill_nine_at_each_stage(
    daemon: Daemon, content: bytes, tmp_path: Path, mode: str, stage: str
) -> None:
    """From a file of this machine, which is never lost: a move removes it once the model is in place, and no sooner."""
    path = tmp_path / "mine.gguf"
    path.write_bytes(content)
    job = submit(daemon, "import", path=str(path), name="tiny", mode=mode)
    at_stage(daemon, job, stage)
    kill_and_restart(daemon)
    assert wait_for(daemon, job)["state"] == "succeeded"
    (model,) = listed(daemon)
    assert Path(model["path"]).read_bytes() == content
    assert path.exists() == (mode != "move")
    assert staged(daemon) == []


@pytest.mark.parametrize("stage", ["starting", "downloading", "putting in place", "done"])
def test_update_survives_kill_nine_at_each_stage(
    daemon: Daemon, hub: SlowHub, content: bytes, tmp_path: Path, stage: str
) -> None:
    """The model is served from the old revision or the new one, never from something between."""
    installs = wait_for(daemon, submit(daemon, "install", source=SOURCE, name="tiny"))
    newer = write_tiny_gguf(tmp_path / "newer.gguf", seed=2).read_bytes()
    hub.repositories["org/tiny"] = Repository({"tiny.Q4_K_M.gguf": newer}, commit="f" * 40)
    hub.chunk_seconds, hub.answer_seconds = 0.02, 0.1
    job = submit(daemon, "update", model="tiny")
    at_stage(daemon, job, stage)
    kill_and_restart(daemon)
    after = wait_for(daemon, job)
    assert after["state"] == "succeeded"
    assert after["result"] != installs["result"]
    (model,) = listed(daemon)
    assert Path(model["path"]).read_bytes() == newer
    assert set(visible_models(daemon)) == {"tiny"}
    back = wait_for(daemon, submit(daemon, "update", model="tiny", rollback=True))
    assert (back["state"], Path(listed(daemon)[0]["path"]).read_bytes() == content) == ("succeeded", True)


@pytest.mark.parametrize("stage", ["queued", "deleting", "done"])
def test_delete_survives_kill_nine_at_each_stage(daemon: Daemon, stage: str) -> None:
    """The model is gone in the end, and its bytes with it."""
    wait_for(daemon, submit(daemon, "install", source=SOURCE, name="tiny"))
    job = submit(daemon, "delete", model="tiny")
    at_stage(daemon, job, stage)
    kill_and_restart(daemon)
    assert wait_for(daemon, job)["state"] == "succeeded"
    assert (visible_models(daemon), listed(daemon)) == ([], [])
    eventually_sync(lambda: staged(daemon) == [], 10)


def test_load_that_runs_when_the_daemon_is_killed_says_so(hub: SlowHub) -> None:
    """It cannot go on: its worker is gone. The idempotency key still finds it."""
    with Daemon({"models": {"endless": mock_model(load_seconds=60)}, **hub_settings(hub)}) as daemon:
        job = submit(daemon, "load", model="endless", key="one")
        wait_for(daemon, job, "running")
        eventually_sync(lambda: daemon.runtime("endless")["pid"], 20)
        kill_and_restart(daemon)
        after = wait_for(daemon, job)
        assert (after["state"], after["error"]) == ("failed", "the daemon was restarted")
        assert "llmctl load endless" in after["hint"]
        assert submit(daemon, "load", model="endless", key="one")["id"] == job["id"]


def test_sigterm_leaves_the_download_to_the_next_daemon(daemon: Daemon, hub: SlowHub, content: bytes) -> None:
    """The daemon ends in time and takes the fetch with it; the next one goes on."""
    hub.hold_after_bytes = len(content) // 2
    job = submit(daemon, "install", source=SOURCE, name="tiny")
    eventually_sync(lambda: hub.sent_bytes >= len(content) // 2, 30)
    processes = fetchers(daemon)
    daemon.signal(signal.SIGTERM)
    assert daemon.wait(20) == 0
    assert not any(alive(one.pid) for one in processes)
    hub.hold_after_bytes = None
    daemon.start()
    assert wait_for(daemon, job)["state"] == "succeeded"
    check_installed(daemon)


def test_fetch_process_that_cannot_end_is_swept_by_the_next_daemon(
    daemon: Daemon, hub: SlowHub, content: bytes
) -> None:
    """1. The fetch process is stopped and its daemon killed: it does not notice. 2. The next daemon starts. Result: it
    is gone before another one writes to the same files."""
    hub.hold_after_bytes = len(content) // 2
    job = submit(daemon, "install", source=SOURCE, name="tiny")
    eventually_sync(lambda: hub.sent_bytes >= len(content) // 2, 30)
    (fetcher,) = fetchers(daemon)
    fetcher.suspend()
    daemon.signal(signal.SIGKILL)
    daemon.wait()
    assert alive(fetcher.pid)
    daemon.port_file.unlink(missing_ok=True)
    hub.hold_after_bytes = None
    daemon.start()
    assert not alive(fetcher.pid)
    assert wait_for(daemon, job)["state"] == "succeeded"
    check_installed(daemon)
