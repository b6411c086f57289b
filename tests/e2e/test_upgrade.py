"""`llmctl restart-daemon`: the daemon runs its program anew in the same process, and nobody but it notices."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from tests.support.daemon import Daemon, alive, mock_model, stream, text_of
from tests.support.polling import eventually_sync
from tests.support.upgrades import (
    KeptAlive,
    await_upgrade_waits,
    begin_upgrade,
    completion_request,
    descriptors,
    ended_upgrade,
    more_descriptors,
    upgrade,
    upgrade_status,
)

from llmvisor.upgrade.fault import FAULT_VARIABLE

RESTARTS = {"max": 100, "backoff": [0.01, 0.1]}
MODELS = {
    "one": mock_model(preload=True, restart=RESTARTS),
    "two": mock_model(preload=True, token_delay_ms=20),
}


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon({"models": MODELS}) as daemon:
        for model in MODELS:
            daemon.worker_pid(model)
        yield daemon


def zombies(daemon: Daemon) -> list[int]:
    return [child.pid for child in daemon.descendants() if child.status() == psutil.STATUS_ZOMBIE]


def test_upgrade_keeps_every_worker_and_the_daemons_own_pid(daemon: Daemon) -> None:
    """The same process, the same workers, since the same time; both models answer at once."""
    before = {model: daemon.runtime(model) for model in MODELS}
    daemon.complete("two")
    status = daemon.control("GET", "/llm/status")[1]
    upgrade(daemon)
    after = daemon.control("GET", "/llm/status")[1]
    assert daemon.running
    assert (after["pid"], after["started_at"], after["address"]) == (
        status["pid"],
        status["started_at"],
        status["address"],
    )
    assert after["uptime_seconds"] > status["uptime_seconds"]
    for model in MODELS:
        runtime = daemon.runtime(model)
        assert (runtime["pid"], runtime["state"]) == (before[model]["pid"], "loaded")
        assert runtime["load_seconds"] == before[model]["load_seconds"]
        assert daemon.complete(model)[0] == 200
        assert daemon.runtime(model)["pid"] == before[model]["pid"]
    assert daemon.port_file.exists()


def test_no_request_fails_while_the_daemon_is_upgraded_again_and_again(daemon: Daemon) -> None:
    """Clients that connect anew, that keep their connection, and that stream: every answer is whole."""
    stop = threading.Event()

    def connects() -> int:
        count = 0
        while not stop.is_set():
            status, body = daemon.complete("one", max_tokens=5)
            assert status == 200, body
            count += 1
        return count

    def keeps_its_connection() -> int:
        count = 0
        with KeptAlive(daemon) as connection:
            while not stop.is_set():
                status, body = connection.ask("one", max_tokens=5)
                assert status == 200, body
                count += 1
        return count

    def streams() -> int:
        count = 0
        while not stop.is_set():
            with stream(daemon, "two", max_tokens=10) as client:
                events = list(client.events())
            assert events[-1] == "[DONE]", events
            assert len(text_of(events).split()) == 10
            count += 1
        return count

    with ThreadPoolExecutor(9) as pool:
        clients = [pool.submit(client) for client in (connects, keeps_its_connection, streams) for _ in range(3)]
        try:
            for _ in range(5):
                upgrade(daemon)
        finally:
            stop.set()
        counts = [client.result(60) for client in clients]
    assert all(counts)
    assert upgrade_status(daemon)["completed"] == 5


def test_stream_finishes_first_and_a_new_request_waits_for_the_new_program(daemon: Daemon) -> None:
    """Nothing breaks a stream; who asks meanwhile is answered right after."""
    with stream(daemon, "two", max_tokens=250) as client, ThreadPoolExecutor(1) as pool:
        first = client.next_event()
        begin_upgrade(daemon)
        await_upgrade_waits(daemon, "1 request is under way")
        asked = pool.submit(daemon.complete, "one")
        events = [first, *client.events()]
        assert events[-1] == "[DONE]"
        assert len(text_of(events).split()) == 250
        assert asked.result(30)[0] == 200
    assert ended_upgrade(daemon)["completed"] == 1


def test_upgrade_that_takes_too_long_is_given_up_and_nothing_has_happened(daemon: Daemon) -> None:
    """The stream goes on to its end, the same program serves, the reason is told; the next upgrade may succeed."""
    with KeptAlive(daemon) as held:
        assert held.ask("one")[0] == 200
        with stream(daemon, "two", max_tokens=150) as client:
            first = client.next_event()
            begin_upgrade(daemon, timeout_seconds=0.5)
            await_upgrade_waits(daemon, "under way")
            held.send(completion_request("one"))
            status = ended_upgrade(daemon)
            assert (status["state"], status["completed"]) == ("failed", 0)
            assert status["reason"] == "after 0.5 s 1 request is under way"
            assert held.answer()[0] == 200
            assert daemon.complete("one")[0] == 200
            events = [first, *client.events()]
        assert events[-1] == "[DONE]"
        upgrade(daemon)
        assert held.ask("one")[0] == 200


def test_upgrade_by_force_ends_what_still_runs_with_an_error(daemon: Daemon) -> None:
    """A stream that would go on for long gets an error event; the workers stay all the same."""
    pid = daemon.worker_pid("two")
    with stream(daemon, "two", max_tokens=5000) as client:
        client.next_event()
        begin_upgrade(daemon, timeout_seconds=0.3, force=True)
        events = list(client.events())
    assert "error" in json.loads(events[-1])
    assert ended_upgrade(daemon)["completed"] == 1
    assert daemon.worker_pid("two") == pid


def test_second_upgrade_at_once_is_refused(daemon: Daemon) -> None:
    with stream(daemon, "two", max_tokens=50) as client:
        client.next_event()
        begin_upgrade(daemon)
        status, body = daemon.control("POST", "/restart", {})
        assert (status, body["error"]["code"]) == (409, "conflict")
        assert list(client.events())[-1] == "[DONE]"
    assert ended_upgrade(daemon)["completed"] == 1


def test_configuration_that_cannot_be_used_leaves_the_old_program_serving(daemon: Daemon) -> None:
    """It is tried before anything is touched: no request has waited, and the reason names the line."""
    pid = daemon.worker_pid("one")
    daemon.config_file.write_text("models:\n  one: {backend: mock, n_ctx: many}\n")
    begin_upgrade(daemon)
    status = ended_upgrade(daemon)
    assert status["state"] == "failed"
    assert "config.yaml:2" in status["reason"]
    assert (daemon.complete("one")[0], daemon.worker_pid("one")) == (200, pid)


def test_twenty_upgrades_leave_nothing_behind(daemon: Daemon) -> None:
    """Neither a descriptor nor a process nor a file more than after the first."""
    with KeptAlive(daemon) as held:
        assert held.ask("one")[0] == 200
        upgrade(daemon)
        before, children = descriptors(daemon), len(daemon.descendants())
        files = sorted(path.name for path in daemon.socket_path.parent.iterdir())
        for _ in range(20):
            upgrade(daemon)
        assert held.ask("one")[0] == 200
        assert not more_descriptors(daemon, before)
    assert len(daemon.descendants()) == children
    assert sorted(path.name for path in daemon.socket_path.parent.iterdir()) == files
    assert zombies(daemon) == []


def test_worker_that_dies_after_an_upgrade_is_replaced(daemon: Daemon) -> None:
    """The new program waits for it as the old one did: no zombie, another worker, an answer."""
    upgrade(daemon)
    pid = daemon.worker_pid("one")
    os.kill(pid, signal.SIGKILL)
    assert daemon.worker_pid("one", other_than=pid) != pid
    assert daemon.complete("one")[0] == 200
    assert zombies(daemon) == []


def test_worker_may_die_at_any_moment_of_an_upgrade(daemon: Daemon) -> None:
    """Before, between and after the two programs: it is replaced, and nothing of it stays behind."""
    chance = random.Random(5)
    for _ in range(6):
        pid = daemon.worker_pid("one")
        begin_upgrade(daemon)
        time.sleep(chance.uniform(0, 1.2))  # the moment is what is tried out
        os.kill(pid, signal.SIGKILL)
        ended_upgrade(daemon)
        assert daemon.worker_pid("one", other_than=pid)
        assert daemon.complete("one")[0] == 200
        assert daemon.runtime("two")["restarts"] == 0
        assert not alive(pid)
        assert zombies(daemon) == []


def test_adopted_workers_die_with_a_daemon_that_is_killed(daemon: Daemon) -> None:
    upgrade(daemon)
    pids = [daemon.worker_pid(model) for model in MODELS]
    daemon.signal(signal.SIGKILL)
    daemon.wait()
    eventually_sync(lambda: not any(map(alive, pids)), 5, "no worker survives")


def test_sigterm_ends_a_daemon_that_waits_for_its_upgrade(daemon: Daemon) -> None:
    """Shutting down wins: the stream is drained, and nothing is executed any more."""
    with stream(daemon, "two", max_tokens=250) as client:
        client.next_event()
        begin_upgrade(daemon)
        await_upgrade_waits(daemon, "under way")
        daemon.signal(signal.SIGTERM)
        assert list(client.events())[-1] == "[DONE]"
    assert daemon.wait() == 0
    assert not daemon.port_file.exists()


def test_daemon_holds_its_lock_throughout(daemon: Daemon) -> None:
    """A second daemon is refused after an upgrade as before it, and leaves the socket alone."""
    upgrade(daemon)
    second = Daemon({"models": MODELS, "control": {"socket": str(daemon.socket_path)}})
    second.spawn()
    try:
        assert second.wait() == 1
        assert str(daemon.pid) in second.console()
    finally:
        second.__exit__(None)
    assert daemon.complete("one")[0] == 200


def test_load_that_is_under_way_is_waited_for() -> None:
    """A worker that still loads is kept too: nobody loads twice."""
    with Daemon({"models": {"slow": mock_model(load_seconds=4, preload=True)}}) as daemon:
        eventually_sync(lambda: daemon.runtime("slow")["pid"] is not None, 10, "the worker starts")
        pid = daemon.runtime("slow")["pid"]
        begin_upgrade(daemon)
        await_upgrade_waits(daemon, "slow is loading")
        assert ended_upgrade(daemon)["completed"] == 1
        runtime = daemon.runtime("slow")
        assert (runtime["pid"], runtime["state"], runtime["restarts"]) == (pid, "loaded", 0)


def test_half_a_request_is_answered_by_the_new_program(daemon: Daemon) -> None:
    """Headers that have come in part are handed over, and the rest of them is read then."""
    request = completion_request("one", max_tokens=3)
    with KeptAlive(daemon) as half:
        half.send(request[:30])
        assert daemon.complete("one")[0] == 200
        upgrade(daemon)
        half.send(request[30:])
        assert half.answer()[0] == 200


def test_changed_configuration_is_applied_by_an_upgrade(daemon: Daemon) -> None:
    """A model that is the same keeps its worker, one that changed gets another, one that is gone is ended."""
    pids = {model: daemon.worker_pid(model) for model in MODELS}
    third = mock_model(preload=True)
    daemon.reconfigure({"server": {"port": daemon.port}, "models": {"one": MODELS["one"], "three": third}})
    upgrade(daemon)
    assert daemon.worker_pid("one") == pids["one"]
    assert daemon.worker_pid("three")
    eventually_sync(lambda: not alive(pids["two"]), 10, "the removed model's worker ends")
    assert daemon.complete("two")[0] == 404
    changed = mock_model(preload=True, n_ctx=2048)
    daemon.reconfigure({"server": {"port": daemon.port}, "models": {"one": changed, "three": third}})
    upgrade(daemon)
    assert daemon.worker_pid("one", other_than=pids["one"]) != pids["one"]
    assert daemon.complete("one")[0] == 200
    assert zombies(daemon) == []


@pytest.fixture
def fault_file(tmp_path: Path) -> Path:
    return tmp_path / "fault"


@pytest.fixture
def faulty(fault_file: Path) -> Iterator[Daemon]:
    """A daemon whose upgrades go wrong as the file says."""
    with Daemon({"models": MODELS}, env={FAULT_VARIABLE: str(fault_file)}) as daemon:
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
        begin_upgrade(faulty)
        status = ended_upgrade(faulty)
        assert (status["state"], status["completed"], status["reason"]) == ("failed", 0, reason)
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
    faulty.reconfigure({"server": {"port": port}, "models": MODELS})
    fault_file.write_text("state")
    begin_upgrade(faulty)
    for pid, model in zip(pids, MODELS, strict=True):
        assert faulty.worker_pid(model, other_than=pid) != pid
        assert not psutil.pid_exists(pid)
    status = upgrade_status(faulty)
    assert (status["state"], status["reason"]) == ("failed", "a fault on purpose")
    assert faulty.complete("one")[0] == 200
    assert faulty.port == port
    assert zombies(faulty) == []


def test_workers_of_another_protocol_are_loaded_anew(faulty: Daemon, fault_file: Path) -> None:
    """A new program that cannot talk to them ends them, and starts its own, without waiting for a request."""
    pids = {model: faulty.worker_pid(model) for model in MODELS}
    fault_file.write_text("protocol")
    upgrade(faulty)
    for model, pid in pids.items():
        assert faulty.worker_pid(model, other_than=pid) != pid
        assert not psutil.pid_exists(pid)
        assert faulty.complete(model, max_tokens=3)[0] == 200
    assert zombies(faulty) == []


def test_signals_in_the_moment_of_execution_are_not_lost_and_kill_nobody(daemon: Daemon) -> None:
    """They are held back until the new program handles them: a storm of them upgrades again and again, no more."""
    pids = [daemon.worker_pid(model) for model in MODELS]
    stop = threading.Event()

    def storm() -> None:
        while not stop.wait(0.002):
            daemon.signal(signal.SIGUSR2)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(storm)
        try:
            eventually_sync(lambda: upgrade_status(daemon)["completed"] >= 4, 60, "upgrades follow each other")
        finally:
            stop.set()
    ended_upgrade(daemon)
    assert daemon.running
    assert [daemon.worker_pid(model) for model in MODELS] == pids
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
