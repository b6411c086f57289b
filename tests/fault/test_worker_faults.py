"""Workers that die, hang, lie or never start: what the daemon makes of it, on real processes.

Each test has a victim and a monitor: the monitor is a stream of another model that must not notice anything.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

import pytest
from tests.support.daemon import Daemon, Json, alive, mock_model, stream, text_of
from tests.support.leaks import no_leaks
from tests.support.polling import eventually_sync

QUICK_RESTARTS = {"max": 5, "window": 60, "backoff": [0.05, 0.2]}


@pytest.fixture(scope="module")
def daemon() -> Generator[Daemon]:
    models = {
        "victim": mock_model(token_delay_ms=20, restart={**QUICK_RESTARTS, "max": 1000}, stall_timeout=3),
        "monitor": mock_model(token_delay_ms=20),
        "looping": mock_model(failpoints="load=panic", restart=QUICK_RESTARTS),
        "hopeless": mock_model(failpoints="load=exit(78)", restart=QUICK_RESTARTS),
    }
    with no_leaks(), Daemon({"models": models}) as one:
        yield one


@contextmanager
def monitored(daemon: Daemon) -> Generator[None]:
    """A stream of another model runs all along, and is whole at the end."""
    events: list[str] = []

    def read() -> None:
        with stream(daemon, "monitor", max_tokens=150) as client:
            events.extend(client.events())

    thread = threading.Thread(target=read)
    thread.start()
    eventually_sync(lambda: events, 10)
    yield
    thread.join(30)
    assert events[-1] == "[DONE]"
    _, alone = daemon.complete("monitor", max_tokens=150)
    assert text_of(events) == alone["choices"][0]["text"]


def test_sigkill_mid_stream_ends_with_an_error_event_and_others_go_on(daemon: Daemon) -> None:
    """1. Two models stream. 2. One worker gets SIGKILL. Result: its stream ends with an error event and no [DONE],
    the other's goes on untouched, and the next request is served by a new worker."""
    with monitored(daemon), stream(daemon, "victim", max_tokens=1000) as client:
        first = client.next_event()
        pid = daemon.worker_pid("victim")
        os.kill(pid, signal.SIGKILL)
        rest = list(client.events())
        assert "error" not in first
        assert json.loads(rest[-1])["error"]["code"] == "runtime_crashed"
        assert "SIGKILL" in json.loads(rest[-1])["error"]["message"]
        eventually_sync(lambda: "error=runtime_crashed" in daemon.console(), 5)
        status, answer = daemon.complete("victim", max_tokens=3)
        assert status == 200, answer
        assert daemon.worker_pid("victim") != pid
        assert not alive(pid)


def test_sigkill_before_the_first_byte_is_a_503(daemon: Daemon) -> None:
    """A request whose worker dies before it answered gets a status, and when to come again."""
    status, answer = daemon.complete("victim", "[[failpoint: generate=kill(9)]]")
    assert (status, answer["error"]["code"]) == (503, "runtime_crashed")
    status, _ = daemon.complete("victim", max_tokens=1)
    assert status == 200


def test_idle_worker_that_is_killed_is_started_again(daemon: Daemon) -> None:
    """A loaded model comes back although nobody asks for it."""
    daemon.complete("victim", max_tokens=1)
    pid = daemon.worker_pid("victim")
    os.kill(pid, signal.SIGKILL)
    assert alive(daemon.worker_pid("victim", other_than=pid))


def test_queued_requests_survive_a_crash(daemon: Daemon) -> None:
    """Only what was inside the worker is lost: who waits is served by the next one."""
    answers: list[int] = []

    def ask() -> None:
        answers.append(daemon.complete("victim", max_tokens=20)[0])

    daemon.complete("victim", max_tokens=1)
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    eventually_sync(lambda: daemon.runtime("victim")["queued"] == 4, 10)
    os.kill(daemon.worker_pid("victim"), signal.SIGKILL)
    for thread in threads:
        thread.join(30)
    assert sorted(answers) == [200] * 4 + [503] * 4


def test_stopped_worker_is_replaced_and_the_daemon_stays_responsive(daemon: Daemon) -> None:
    """1. A worker gets SIGSTOP while it streams. Result: lack of progress is noticed within `stall_timeout`, the stream
    ends with an error event, a new worker serves, and /health answers quickly all along."""
    with monitored(daemon), stream(daemon, "victim", max_tokens=1000) as client:
        client.next_event()
        pid = daemon.worker_pid("victim")
        os.kill(pid, signal.SIGSTOP)
        slowest = 0.0
        while alive(pid):
            begun = time.monotonic()
            assert daemon.request("GET", "/health")[0] == 200
            slowest = max(slowest, time.monotonic() - begun)
        rest = list(client.events())
        assert "no progress for 3 s" in json.loads(rest[-1])["error"]["message"]
        # A bound that a blocked loop would miss by seconds; `benchmarks/` measures the latency itself.
        assert slowest < 1.0
        assert alive(daemon.worker_pid("victim", other_than=pid))


def test_engine_that_hangs_in_native_code_is_replaced(daemon: Daemon) -> None:
    """A worker that holds the GIL, and one that sleeps in its engine, tick or do not tick: neither makes progress."""
    for how in ("spin", "hang"):
        status, answer = daemon.complete("victim", f"[[failpoint: generate=2*token->{how}]]")
        assert (status, answer["error"]["code"]) == (503, "runtime_crashed"), how
        assert daemon.complete("victim", max_tokens=1)[0] == 200


@pytest.mark.parametrize("fault", ["garbage(ffffffff00)", "garbage(05000000c1c1c1c1c1)", "badid", "dupready"])
def test_worker_that_breaks_the_protocol_is_replaced(daemon: Daemon, fault: str) -> None:
    """Oversized, undecodable, for unknown requests or out of order: the worker is replaced, nobody else notices."""
    with monitored(daemon):
        status, answer = daemon.complete("victim", f"[[failpoint: generate=2*token->{fault}]]")
        assert (status, answer["error"]["code"]) == (503, "runtime_crashed"), answer
        assert daemon.complete("victim", max_tokens=1)[0] == 200


def test_crash_loop_ends_unavailable_with_the_last_lines(daemon: Daemon) -> None:
    """A model that crashes at each load is given up after its budget; requests then fail at once and say why, and a
    restart by a person gives it the whole budget again."""
    answer: Json = {}
    for _ in range(20):
        status, answer = daemon.complete("looping")
        assert status == 503
        if answer["error"]["code"] == "model_unavailable":
            break
        assert answer["error"]["code"] == "model_load_failed"
        eventually_sync(lambda: daemon.runtime("looping")["state"] != "error", 10)
    runtime = daemon.runtime("looping")
    assert (runtime["state"], runtime["restarts"]) == ("unavailable", 5)
    assert "exited with code 70" in runtime["error"]
    assert "RuntimeError: injected panic" in runtime["last_lines"]
    assert "llmctl restart looping" in answer["error"]["message"]


def test_permanent_failure_is_not_tried_again(daemon: Daemon) -> None:
    """A worker that exits with 78 says that another try is of no use."""
    assert daemon.complete("hopeless")[1]["error"]["code"] == "model_load_failed"
    runtime = daemon.wait_for_state("hopeless", "unavailable")
    assert runtime["restarts"] == 0


def test_client_that_leaves_frees_its_place(daemon: Daemon) -> None:
    """Queued, or streaming: the slot comes free and the count returns to zero."""
    with stream(daemon, "victim", max_tokens=5000) as client:
        client.next_event()
        assert daemon.runtime("victim")["slots_busy"] == 1
    eventually_sync(lambda: daemon.runtime("victim")["slots_busy"] == 0, 5)
