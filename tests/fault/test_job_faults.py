"""Installations that are killed, cancelled, cut off and starved at each of their stages: nothing half is ever seen."""

from __future__ import annotations

import resource
import signal
import sys
import time
from collections.abc import Generator
from pathlib import Path

import psutil
import pytest
from tests.support.daemon import Daemon, Json, alive, mock_model
from tests.support.http_double import Fault
from tests.support.hub_double import Repository
from tests.support.installs import (
    SOURCE,
    SlowHub,
    at_stage,
    events,
    hub_settings,
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

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="prlimit(2) stands in for a full disk")
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


def fetchers(daemon: Daemon) -> list[psutil.Process]:
    return [one for one in daemon.descendants() if "llmvisor.fetch" in " ".join(one.cmdline())]


def kill_and_restart(daemon: Daemon) -> None:
    """SIGKILL to the daemon alone: what it has started has to see to its own end."""
    children = daemon.descendants()
    daemon.signal(signal.SIGKILL)
    daemon.wait()
    visible_models(daemon)
    eventually_sync(lambda: not any(alive(one.pid) for one in children), 10, "nothing survives its daemon")
    daemon.port_file.unlink(missing_ok=True)
    daemon.start()


def check_installed(daemon: Daemon) -> None:
    assert visible_models(daemon) == ["tiny"]
    assert [(one["name"], one["source"].partition(":")[0]) for one in listed(daemon)] == [("tiny", "hf")]
    eventually_sync(lambda: staged(daemon) == [], 10, "nothing is left in staging")
    assert [job["state"] for job in daemon.control("GET", "/jobs?type=install")[1]["data"]] == ["succeeded"]
    assert fetchers(daemon) == []


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


def test_two_installs_of_one_model_are_one_job(daemon: Daemon, hub: SlowHub) -> None:
    """And the same key gives the same job also after its end and a restart."""
    hub.answer_seconds = 0.3
    first = submit(daemon, "install", source=SOURCE, name="tiny", key="k")
    assert submit(daemon, "install", source=SOURCE, name="tiny")["id"] == first["id"]
    assert wait_for(daemon, first)["state"] == "succeeded"
    kill_and_restart(daemon)
    assert submit(daemon, "install", source=SOURCE, name="tiny", key="k")["id"] == first["id"]
    status, answer = daemon.control("POST", "/jobs", {"type": "install", "params": {"source": SOURCE, "name": "tiny"}})
    assert (status, answer["error"]["code"]) == (409, "conflict")
    check_installed(daemon)


def test_installed_model_is_loaded_updated_and_deleted(daemon: Daemon, hub: SlowHub, content: bytes) -> None:
    """The whole of its life through jobs, one after another: the update waits for the install, the delete for it."""
    hub.answer_seconds = 0.1
    installs = submit(daemon, "install", source=SOURCE, name="tiny")
    assert wait_for(daemon, installs)["result"].startswith("tiny is installed, revision ")
    assert "newest revision already" in wait_for(daemon, submit(daemon, "update", model="tiny"))["result"]
    deletes = wait_for(daemon, submit(daemon, "delete", model="tiny"))
    assert deletes["state"] == "succeeded"
    assert len(content) <= deletes["done"] < len(content) + 10_000
    assert visible_models(daemon) == []
    assert listed(daemon) == []
    status, answer = daemon.control("POST", "/jobs", {"type": "delete", "params": {"model": "tiny"}})
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


def test_events_are_replayed_after_the_last_one_that_was_seen(daemon: Daemon, hub: SlowHub) -> None:
    """1. A client reads some events and leaves. 2. It comes back with the number of the last. Result: it gets what came
    after, each once, over a restart of the daemon as well."""
    hub.chunk_seconds = 0.05
    job = submit(daemon, "install", source=SOURCE, name="tiny")
    seen: list[tuple[int, Json]] = []
    for event in events(daemon, job):
        seen.append(event)
        if event[1]["stage"] == "downloading":
            break
    wait_for(daemon, job)
    seen += events(daemon, job, after=seen[-1][0])
    numbers = [number for number, _ in seen]
    assert numbers == sorted(set(numbers))
    states = [one["state"] for _, one in seen]
    assert states[-1] == "succeeded"
    assert states.count("succeeded") == 1
    kill_and_restart(daemon)
    ((number, last),) = events(daemon, job, after=numbers[-2])
    assert (number > numbers[-2], last["state"]) == (True, "succeeded")


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


def limit_files(process: psutil.Process, size_bytes: int) -> None:
    """Let no file of a process grow over this: what it is told then is what a full disk tells."""
    process.rlimit(resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


@on_linux
def test_model_that_is_too_large_for_the_disk_is_not_begun(daemon: Daemon, hub: SlowHub) -> None:
    """The space is looked at before anything is fetched."""
    hub.repositories["org/tiny"].sizes_told["tiny.Q4_K_M.gguf"] = 2**42
    after = wait_for(daemon, submit(daemon, "install", source=SOURCE, name="tiny"))
    assert (after["state"], after["error_code"]) == ("failed", "no_space")
    assert after["hint"]
    assert (hub.sent_bytes, staged(daemon), visible_models(daemon)) == (0, [], [])


@on_linux
def test_disk_that_fills_during_the_download_fails_the_job(daemon: Daemon, hub: SlowHub, content: bytes) -> None:
    """1. The disk is full at some byte. Result: the job says so and what to do, its bytes are gone, the next install
    works once there is room."""
    hub.answer_seconds = 0.5
    job = submit(daemon, "install", source=SOURCE, name="tiny")
    (fetcher,) = eventually_sync(lambda: fetchers(daemon), 20)
    limit_files(fetcher, len(content) // 2)
    after = wait_for(daemon, job)
    assert (after["state"], after["error_code"]) == ("failed", "no_space")
    assert "space" in after["hint"]
    assert (staged(daemon), visible_models(daemon)) == ([], [])
    assert wait_for(daemon, submit(daemon, "install", source=SOURCE, name="tiny"))["state"] == "succeeded"


@on_linux
def test_disk_that_is_full_for_the_daemon_stops_nothing_that_needs_no_write(
    daemon: Daemon, hub: SlowHub, content: bytes
) -> None:
    """1. A download runs, and the disk fills. Result: a new install is refused and says why, a load works, the download
    waits at its last step and ends well once there is room."""
    hub.hold_after_bytes = len(content) // 2
    job = submit(daemon, "install", source=SOURCE, name="tiny")
    eventually_sync(lambda: hub.sent_bytes >= len(content) // 2, 30)
    limit_files(psutil.Process(daemon.pid), 1)
    status, answer = daemon.control("POST", "/jobs", {"type": "install", "params": {"source": "hf:org/more"}})
    assert (status, answer["error"]["code"]) == (503, "store_unavailable")
    assert wait_for(daemon, submit(daemon, "load", model="quick"))["state"] == "succeeded"
    hub.hold_after_bytes = None
    waiting = wait_for(daemon, job, "queued")
    assert waiting["error_code"] == "store_unavailable"
    assert visible_models(daemon) == []
    limit_files(psutil.Process(daemon.pid), resource.RLIM_INFINITY)
    assert wait_for(daemon, job)["state"] == "succeeded"
    check_installed(daemon)


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


def test_forced_delete_ends_what_uses_the_model(daemon: Daemon, tmp_path: Path) -> None:
    """1. A model is loaded. 2. A delete is refused. 3. A forced one unloads it. Result: worker and files are gone."""
    wait_for(daemon, submit(daemon, "install", source=SOURCE, name="tiny"))
    assert wait_for(daemon, submit(daemon, "load", model="tiny"))["state"] == "succeeded"
    refused = wait_for(daemon, submit(daemon, "delete", model="tiny"))
    assert (refused["state"], refused["error_code"]) == ("failed", "conflict")
    assert refused["hint"]
    pid = daemon.runtime("tiny")["pid"]
    assert wait_for(daemon, submit(daemon, "delete", model="tiny", force=True))["state"] == "succeeded"
    assert not alive(pid)
    assert visible_models(daemon) == []


def test_daemon_does_not_end_for_idleness_while_it_downloads(hub: SlowHub, content: bytes) -> None:
    """It does afterwards."""
    settings = {"server": {"shutdown_timeout": 1}, "models": {"quick": mock_model()}, **hub_settings(hub)}
    with Daemon(settings) as daemon:
        hub.chunk_seconds = 3.0 / (len(content) / 65536)
        job = submit(daemon, "install", source=SOURCE, name="tiny")
        last = list(events(daemon, job))[-1][1]
        assert last["state"] == "succeeded"
        assert daemon.wait(20) == 0
        assert visible_models(daemon) == ["tiny"]


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
