"""What lies around an upgrade in place: installed models, jobs, those who follow, signals, llmctl, other versions."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from tests.support.daemon import Daemon, alive, mock_model, stream
from tests.support.installed import publish_by_hand
from tests.support.installs import SOURCE, SlowHub, at_stage, hub_settings, submit, visible_models, wait_for
from tests.support.polling import eventually_sync
from tests.support.tiny_gguf import write_tiny_gguf
from tests.support.upgrades import (
    await_upgrade_waits,
    begin_upgrade,
    llmctl,
    succeeded_upgrade,
    upgrade,
    upgrade_status,
)

RESTARTS = {"max": 100, "backoff": [0.01, 0.1]}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One for all that leave it as it was."""
    with Daemon({"models": {"one": mock_model(preload=True, token_delay_ms=20, restart=RESTARTS)}}) as daemon:
        daemon.worker_pid("one")
        yield daemon


def test_llmctl_upgrades_and_says_so(daemon: Daemon) -> None:
    """Once the new program serves: exit code 0, the worker as before, and JSON where it is asked for."""
    pid, before = daemon.worker_pid("one"), upgrade_status(daemon)["completed"]
    done = llmctl(daemon, "restart-daemon")
    assert (done.returncode, done.stdout) == (0, "llmvisor runs its program anew; the models stayed loaded\n"), done
    done = llmctl(daemon, "restart-daemon", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["completed"] == before + 2
    assert daemon.worker_pid("one") == pid


def test_llmctl_tells_what_an_upgrade_waits_for_and_why_it_failed(daemon: Daemon) -> None:
    """What is waited for goes to stderr; an upgrade that is given up is exit code 1, with the reason."""
    with stream(daemon, "one", max_tokens=200) as client:
        client.next_event()
        failed = llmctl(daemon, "restart-daemon", "--within", "0.5")
    assert failed.returncode == 1
    assert "waiting: 1 request is under way" in failed.stderr
    assert "goes on with its old program: after 0.5 s 1 request is under way" in failed.stderr


def test_sigusr2_upgrades(daemon: Daemon) -> None:
    pid, before = daemon.worker_pid("one"), upgrade_status(daemon)["completed"]
    daemon.signal(signal.SIGUSR2)
    eventually_sync(lambda: upgrade_status(daemon)["completed"] > before, 30, "the signal upgrades")
    assert daemon.worker_pid("one") == pid


def test_sighup_upgrades_where_the_configuration_says_so() -> None:
    """`systemctl reload` then brings a new program, and the configuration with it."""
    models = {"one": mock_model(preload=True)}
    with Daemon({"models": models, "server": {"upgrade": True}}) as daemon:
        pid = daemon.worker_pid("one")
        daemon.signal(signal.SIGHUP)
        eventually_sync(lambda: upgrade_status(daemon)["completed"] == 1, 30, "SIGHUP upgrades")
        assert daemon.worker_pid("one") == pid


def test_installed_model_keeps_its_worker() -> None:
    """Its name is known a moment later than the configuration's, once the library is open."""
    daemon = Daemon({"models": {"mock": mock_model()}})
    publish_by_hand(daemon.models_folder, "tiny", tier="heavy")
    with daemon:
        assert daemon.complete("tiny", max_tokens=2)[0] == 200
        pid = daemon.worker_pid("heavy/tiny")
        upgrade(daemon)
        assert daemon.complete("tiny", max_tokens=2)[0] == 200
        assert daemon.worker_pid("heavy/tiny") == pid
        assert daemon.worker_pid("heavy/tiny") == pid


@pytest.fixture
def hub(tmp_path: Path) -> Generator[SlowHub]:
    with SlowHub(write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes()) as double:
        yield double


def test_installation_goes_on_after_an_upgrade(hub: SlowHub) -> None:
    """It is stopped where it is, and the new program goes on with what has come; no process of it stays behind."""
    with Daemon({"models": {"quick": mock_model()}, **hub_settings(hub, jobs=1)}) as daemon:
        hub.hold_after_bytes = 1
        job = submit(daemon, "install", source=SOURCE, name="tiny")
        at_stage(daemon, job, "downloading")
        fetchers = [one.pid for one in daemon.descendants() if "llmvisor.fetch" in " ".join(one.cmdline())]
        assert fetchers
        upgrade(daemon)
        assert not any(map(alive, fetchers))
        hub.hold_after_bytes = None
        assert wait_for(daemon, job, "succeeded")["attempts"] == 2
        assert visible_models(daemon) == ["tiny"]


def test_job_that_is_not_kept_is_waited_for() -> None:
    """A load that somebody asked for ends as it would have: it is not cut off."""
    with Daemon({"models": {"slow": mock_model(load_seconds=2)}}) as daemon:
        status, job = daemon.control("POST", "/jobs", {"type": "load", "params": {"model": "slow"}})
        assert status == 202, job
        before = begin_upgrade(daemon)
        await_upgrade_waits(daemon, "slow is loading")
        succeeded_upgrade(daemon, before)
        pid = daemon.worker_pid("slow")
        assert daemon.complete("slow")[0] == 200
        assert daemon.runtime("slow")["pid"] == pid


def test_those_who_follow_the_log_do_not_hold_up_an_upgrade(daemon: Daemon) -> None:
    """Their answers end, and they come back: `llmctl logs -f` shows the new program's lines too."""
    command = [sys.executable, "-m", "llmctl", "--socket", str(daemon.socket_path), "logs", "-f"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as follower:
        try:
            assert follower.stdout is not None
            assert follower.stdout.readline()
            upgrade(daemon)
            lines = iter(follower.stdout.readline, "")
            assert any("upgraded: kept the workers of one" in line for line in lines)
        finally:
            follower.kill()


def test_restarts_and_crashes_of_a_worker_are_kept(daemon: Daemon) -> None:
    """What the status showed before it shows after, so do the postmortems, and poison ends no other worker."""
    poison, pid = "[[failpoint: generate=2*token->kill(11)]]", daemon.worker_pid("one")
    assert daemon.complete("one", poison)[0] == 422
    daemon.worker_pid("one", other_than=pid)
    before, postmortems = daemon.runtime("one"), daemon.control("GET", "/llm/postmortems")[1]
    assert pid in [one["pid"] for one in postmortems["data"]]
    upgrade(daemon)
    after = daemon.runtime("one")
    assert after["restarts"] == before["restarts"] > 0
    assert (after["pid"], after["slots"]) == (before["pid"], before["slots"])
    assert daemon.complete("one", poison)[0] == 422
    assert daemon.control("GET", "/llm/postmortems")[1] == postmortems


def test_idle_model_is_unloaded_when_it_would_have_been() -> None:
    """An upgrade is no use of a model: its idle time goes on."""
    with Daemon({"models": {"one": mock_model(idle_timeout=3)}}) as daemon:
        assert daemon.complete("one")[0] == 200
        left = daemon.runtime("one")["idle_left_seconds"]
        upgrade(daemon)
        again = daemon.runtime("one")["idle_left_seconds"]
        assert again is not None
        assert again < left
        daemon.wait_for_state("one", "not_loaded", seconds=10)
