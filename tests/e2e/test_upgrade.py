"""`llmctl restart-daemon`: the daemon runs its program anew in the same process, and nobody but it notices."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

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
    succeeded_upgrade,
    upgrade,
    upgrade_status,
)

RESTARTS = {"max": 100, "backoff": [0.01, 0.1]}
MODELS = {
    "one": mock_model(preload=True, restart=RESTARTS),
    "two": mock_model(preload=True, token_delay_ms=20),
}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One for all that leave it as it was."""
    with started() as daemon:
        yield daemon


@pytest.fixture
def own() -> Iterator[Daemon]:
    """One to end, or to configure anew."""
    with started() as daemon:
        yield daemon


@contextmanager
def started() -> Generator[Daemon]:
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
            for _ in range(3):
                upgrade(daemon)
        finally:
            stop.set()
        counts = [client.result(60) for client in clients]
    assert all(counts)


def test_stream_finishes_first_and_a_new_request_waits_for_the_new_program(daemon: Daemon) -> None:
    """Nothing breaks a stream; who asks meanwhile, when half of the time is over, is answered right after."""
    with stream(daemon, "two", max_tokens=250) as client, ThreadPoolExecutor(1) as pool:
        first = client.next_event()
        before = begin_upgrade(daemon, timeout_seconds=5)
        await_upgrade_waits(daemon, "1 request is under way")
        time.sleep(2.7)  # half of the time is over
        asked = pool.submit(daemon.complete, "one")
        events = [first, *client.events()]
        assert not asked.done()
        assert events[-1] == "[DONE]"
        assert len(text_of(events).split()) == 250
        assert asked.result(30)[0] == 200
    succeeded_upgrade(daemon, before)


def test_others_are_served_while_an_upgrade_waits_for_a_long_stream(daemon: Daemon) -> None:
    """Also who asks whether the daemon is well; each waits for a moment at most, and the stream's end for nobody."""
    with stream(daemon, "two", max_tokens=2000) as client:
        client.next_event()
        before = begin_upgrade(daemon)
        await_upgrade_waits(daemon, "1 request is under way")
        assert daemon.complete("one")[0] == 200
        assert daemon.request("GET", "/health")[0] == 200
        assert upgrade_status(daemon)["reason"] == "1 request is under way"
        assert upgrade_status(daemon)["completed"] == before
        assert json.loads(client.next_event())["choices"]
    succeeded_upgrade(daemon, before)


def test_upgrade_that_takes_too_long_is_given_up_and_nothing_has_happened(daemon: Daemon) -> None:
    """The stream goes on, the same program serves, the reason is told; the next upgrade may succeed."""
    with KeptAlive(daemon) as held:
        assert held.ask("one")[0] == 200
        with stream(daemon, "two", max_tokens=5000) as client:
            client.next_event()
            before = begin_upgrade(daemon, timeout_seconds=0.5)
            await_upgrade_waits(daemon, "under way")
            held.send(completion_request("one"))
            status = ended_upgrade(daemon)
            assert (status["state"], status["completed"]) == ("failed", before)
            assert status["reason"] == "after 0.5 s 1 request is under way"
            assert held.answer()[0] == 200
            assert daemon.complete("one")[0] == 200
            assert json.loads(client.next_event())["choices"]
        upgrade(daemon)
        assert held.ask("one")[0] == 200


def test_upgrade_by_force_ends_what_still_runs_with_an_error(daemon: Daemon) -> None:
    """A stream that would go on for long gets an error event; the workers stay all the same."""
    pid = daemon.worker_pid("two")
    with stream(daemon, "two", max_tokens=5000) as client:
        client.next_event()
        before = begin_upgrade(daemon, timeout_seconds=0.3, force=True)
        events = list(client.events())
    assert "error" in json.loads(events[-1])
    succeeded_upgrade(daemon, before)
    assert daemon.worker_pid("two") == pid


def test_second_upgrade_at_once_is_refused(daemon: Daemon) -> None:
    with stream(daemon, "two", max_tokens=50) as client:
        client.next_event()
        before = begin_upgrade(daemon)
        status, body = daemon.control("POST", "/restart", {})
        assert (status, body["error"]["code"]) == (409, "conflict")
        assert list(client.events())[-1] == "[DONE]"
    succeeded_upgrade(daemon, before)


def test_configuration_that_cannot_be_used_leaves_the_old_program_serving(own: Daemon) -> None:
    """It is tried before anything is touched: no request has waited, and the reason names the line."""
    pid = own.worker_pid("one")
    own.config_file.write_text("models:\n  one: {backend: mock, n_ctx: many}\n")
    begin_upgrade(own)
    status = ended_upgrade(own)
    assert status["state"] == "failed"
    assert "config.yaml:2" in status["reason"]
    assert (own.complete("one")[0], own.worker_pid("one")) == (200, pid)


def test_many_upgrades_leave_nothing_behind(daemon: Daemon) -> None:
    """Neither a descriptor nor a process nor a file more than after the first."""
    with KeptAlive(daemon) as held:
        assert held.ask("one")[0] == 200
        upgrade(daemon)
        before, children = descriptors(daemon), len(daemon.descendants())
        files = sorted(path.name for path in daemon.socket_path.parent.iterdir())
        for _ in range(7):
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
    chance, restarts = random.Random(5), daemon.runtime("two")["restarts"]
    for _ in range(3):
        pid = daemon.worker_pid("one")
        begin_upgrade(daemon)
        time.sleep(chance.uniform(0, 1.2))  # the moment is what is tried out
        os.kill(pid, signal.SIGKILL)
        ended_upgrade(daemon)
        assert daemon.worker_pid("one", other_than=pid)
        assert daemon.complete("one")[0] == 200
        assert daemon.runtime("two")["restarts"] == restarts
        assert not alive(pid)
        assert zombies(daemon) == []


def test_adopted_workers_die_with_a_daemon_that_is_killed(own: Daemon) -> None:
    upgrade(own)
    pids = [own.worker_pid(model) for model in MODELS]
    own.signal(signal.SIGKILL)
    own.wait()
    eventually_sync(lambda: not any(map(alive, pids)), 5, "no worker survives")


def test_sigterm_ends_a_daemon_that_waits_for_its_upgrade(own: Daemon) -> None:
    """Shutting down wins: the stream is drained, and nothing is executed any more."""
    with stream(own, "two", max_tokens=200) as client:
        client.next_event()
        begin_upgrade(own)
        await_upgrade_waits(own, "under way")
        own.signal(signal.SIGTERM)
        assert list(client.events())[-1] == "[DONE]"
    assert own.wait() == 0
    assert not own.port_file.exists()


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
    with Daemon({"models": {"slow": mock_model(load_seconds=2, preload=True)}}) as daemon:
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


def test_changed_configuration_is_applied_by_an_upgrade(own: Daemon) -> None:
    """A model that is the same keeps its worker, one that changed gets another, one that is gone is ended."""
    pids = {model: own.worker_pid(model) for model in MODELS}
    third = mock_model(preload=True)
    own.reconfigure({"server": {"port": own.port}, "models": {"one": MODELS["one"], "three": third}})
    upgrade(own)
    assert own.worker_pid("one") == pids["one"]
    assert own.worker_pid("three")
    eventually_sync(lambda: not alive(pids["two"]), 10, "the removed model's worker ends")
    assert own.complete("two")[0] == 404
    changed = mock_model(preload=True, n_ctx=2048)
    own.reconfigure({"server": {"port": own.port}, "models": {"one": changed, "three": third}})
    upgrade(own)
    assert own.worker_pid("one", other_than=pids["one"]) != pids["one"]
    assert own.complete("one")[0] == 200
    assert zombies(own) == []


def test_signals_in_the_moment_of_execution_are_not_lost_and_kill_nobody(own: Daemon) -> None:
    """They are held back until the new program handles them: a storm of them upgrades again and again, no more."""
    pids = [own.worker_pid(model) for model in MODELS]
    stop = threading.Event()

    def storm() -> None:
        while not stop.wait(0.002):
            own.signal(signal.SIGUSR2)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(storm)
        try:
            eventually_sync(lambda: upgrade_status(own)["completed"] >= 2, 60, "upgrades follow each other")
        finally:
            stop.set()
    ended_upgrade(own)
    assert own.running
    assert [own.worker_pid(model) for model in MODELS] == pids
    own.signal(signal.SIGTERM)
    assert own.wait() == 0
