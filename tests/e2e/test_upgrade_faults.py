"""Upgrades that go wrong: before the new program runs nothing has happened, after it somebody serves all the same."""

from __future__ import annotations

import http.client
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.support.daemon import Daemon, mock_model, stream
from tests.support.polling import eventually_sync
from tests.support.upgrades import (
    KeptAlive,
    await_upgrade_waits,
    begin_upgrade,
    descriptors,
    ended_upgrade,
    llmctl,
    more_descriptors,
    upgrade,
    upgrade_status,
)

from llmvisor.upgrade.fault import FAULT_VARIABLE

MODELS = {"one": mock_model(preload=True), "two": mock_model(preload=True, token_delay_ms=20)}


@pytest.fixture(scope="module")
def fault_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("upgrade") / "fault"


@pytest.fixture
def fault_file(fault_path: Path) -> Iterator[Path]:
    yield fault_path
    fault_path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def faulty(fault_path: Path) -> Iterator[Daemon]:
    """A daemon whose upgrades go wrong as the file says."""
    with Daemon({"models": MODELS}, env={FAULT_VARIABLE: str(fault_path)}) as daemon:
        for model in MODELS:
            daemon.worker_pid(model)
        yield daemon


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("preflight", "the new daemon cannot start (exit code 78): a fault on purpose"),
        ("exec", "the program could not be executed: a fault on purpose"),
    ],
)
def test_new_program_that_cannot_start_leaves_the_old_one_as_it_was(
    faulty: Daemon, fault_file: Path, fault: str, reason: str
) -> None:
    """Connections, workers, descriptors and what follows are as before; without the fault the next one succeeds."""
    pids, before = [faulty.worker_pid(model) for model in MODELS], descriptors(faulty)
    fault_file.write_text(fault)
    with KeptAlive(faulty) as held:
        assert held.ask("one")[0] == 200
        completed = begin_upgrade(faulty)
        status = ended_upgrade(faulty)
        assert (status["state"], status["completed"], status["reason"]) == ("failed", completed, reason)
        assert held.ask("one")[0] == 200
        assert faulty.complete("two")[0] == 200
        status, body = faulty.control("POST", "/jobs", {"type": "unload", "params": {"model": "two"}})
        assert status == 202, body
        faulty.wait_for_state("two", "not_loaded")
        assert faulty.complete("two")[0] == 200
        assert not more_descriptors(faulty, before + Counter({"socket": 1}))
        fault_file.unlink()
        upgrade(faulty)
        assert held.ask("one")[0] == 200
    assert faulty.worker_pid("one") == pids[0]


def test_state_that_cannot_be_read_leads_to_a_start_from_nothing(faulty: Daemon, fault_file: Path) -> None:
    """The workers that nobody can adopt are ended, the models are loaded anew, and the reason is told."""
    pids = [faulty.worker_pid(model) for model in MODELS]
    port = faulty.port
    fault_file.write_text("state")
    done = llmctl(faulty, "restart-daemon")
    told = "llmvisor runs its new program, and loads the models anew: a fault on purpose"
    assert (done.returncode, told in done.stderr) == (1, True), done
    for pid, model in zip(pids, MODELS, strict=True):
        assert faulty.worker_pid(model, other_than=pid) != pid
        assert not psutil.pid_exists(pid)
    status = upgrade_status(faulty)
    assert (status["state"], status["reason"]) == ("failed", "a fault on purpose")
    assert faulty.complete("one")[0] == 200
    assert faulty.port == port
    assert not zombies(faulty)


def test_workers_of_another_protocol_are_loaded_anew(faulty: Daemon, fault_file: Path) -> None:
    """A new program that cannot talk to them ends them, and starts its own, without waiting for a request."""
    pids = {model: faulty.worker_pid(model) for model in MODELS}
    fault_file.write_text("protocol")
    upgrade(faulty)
    for model, pid in pids.items():
        assert faulty.worker_pid(model, other_than=pid) != pid
        assert not psutil.pid_exists(pid)
        assert faulty.complete(model, max_tokens=3)[0] == 200
    assert not zombies(faulty)


def test_new_program_that_fails_with_what_it_was_left_starts_with_nothing(faulty: Daemon, fault_file: Path) -> None:
    """It is the same process and serves, with models that it has loaded anew, and tells why; the next one succeeds."""
    pids = {model: faulty.worker_pid(model) for model in MODELS}
    fault_file.write_text("start")
    begin_upgrade(faulty)
    eventually_sync(lambda: not any(map(psutil.pid_exists, pids.values())), 20, "the workers are ended")
    eventually_sync(lambda: answers(faulty), 30, "it starts again")
    for model, pid in pids.items():
        assert faulty.worker_pid(model, other_than=pid) != pid
        assert faulty.complete(model, max_tokens=3)[0] == 200
    status = upgrade_status(faulty)
    assert (status["state"], status["reason"]) == ("failed", "a bug of ours: RuntimeError('a fault on purpose')")
    assert not zombies(faulty)
    fault_file.unlink()
    upgrade(faulty)


def answers(daemon: Daemon) -> bool:
    """Whether it serves both sockets, with nothing that it was left."""
    try:
        return upgrade_status(daemon)["state"] == "failed" and daemon.request("GET", "/health")[0] == 200
    except (OSError, ValueError, http.client.HTTPException):
        return False


def zombies(daemon: Daemon) -> list[int]:
    return [child.pid for child in daemon.descendants() if child.status() == psutil.STATUS_ZOMBIE]


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon({"models": MODELS}) as daemon:
        for model in MODELS:
            daemon.worker_pid(model)
        yield daemon


def test_configuration_that_is_broken_while_an_upgrade_waits_leaves_the_old_program_serving(daemon: Daemon) -> None:
    """What was tried is not what would be executed: it is tried again."""
    with stream(daemon, "two", max_tokens=2000) as client:
        client.next_event()
        begin_upgrade(daemon)
        await_upgrade_waits(daemon, "1 request is under way")
        daemon.config_file.write_text("models:\n  one: {backend: mock, n_ctx: many}\n")
    status = ended_upgrade(daemon)
    assert (status["state"], status["completed"]) == ("failed", 0)
    assert "config.yaml:2" in status["reason"]
    assert daemon.complete("one")[0] == 200


def test_port_that_somebody_else_has_leaves_the_old_program_serving(daemon: Daemon) -> None:
    """A port that cannot be had is found out before; that which the daemon has itself is none."""
    pid, port = daemon.worker_pid("one"), daemon.port
    with socket.create_server(("127.0.0.1", 0)) as other:
        daemon.reconfigure({"server": {"port": other.getsockname()[1]}, "models": MODELS})
        begin_upgrade(daemon)
        status = ended_upgrade(daemon)
        assert (status["state"], status["completed"]) == ("failed", 0)
        assert f"port {other.getsockname()[1]} on 127.0.0.1 is taken" in status["reason"]
    daemon.reconfigure({"server": {"port": port}, "models": MODELS})
    with KeptAlive(daemon) as held:
        assert held.ask("one")[0] == 200
        upgrade(daemon)
        assert held.ask("one")[0] == 200
    assert (daemon.port, daemon.worker_pid("one")) == (port, pid)


def test_control_socket_that_was_moved_to_another_folder_outlasts_an_upgrade(daemon: Daemon) -> None:
    """It is the daemon's own that listens there: neither refused as somebody else's nor removed."""
    pid, before = daemon.worker_pid("one"), daemon.socket_path
    daemon.socket_path = daemon.folder / "else" / "control.sock"
    daemon.reconfigure({"server": {"port": daemon.port}, "models": MODELS})
    eventually_sync(lambda: daemon.socket_path.exists() and not before.exists(), 10, "the socket is moved")
    upgrade(daemon)
    assert daemon.worker_pid("one") == pid
    assert daemon.complete("one")[0] == 200
