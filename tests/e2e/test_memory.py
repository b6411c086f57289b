"""Models that do not fit into memory together: who makes room, who waits, who is told what."""

from __future__ import annotations

import http.client
import json
import re
import signal
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import pytest
from tests.support.daemon import Daemon, EventsClient, mock_model, stream
from tests.support.leaks import no_leaks
from tests.support.polling import eventually_sync

HALF = "60MiB"
"""Of the limit below: of two such models one fits."""


def configuration(*, models: dict[str, Any], **memory: object) -> dict[str, Any]:
    return {"models": models, "memory": {"limit": "100MiB", "min_residency": 1, **memory}}


def model(**settings: object) -> dict[str, Any]:
    return mock_model(**{"memory": HALF, "reply_tokens": 4, **settings})


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """Two models of which one fits."""
    with no_leaks(), Daemon(configuration(models={"a": model(), "b": model()})) as running:
        yield running


def served(daemon: Daemon, name: str, **fields: object) -> None:
    status, answer = daemon.complete(name, "hello", max_tokens=4, **fields)
    assert status == 200, answer


@contextmanager
def begun(daemon: Daemon, tokens: int) -> Generator[EventsClient]:
    """A stream of the model `a` that has brought its first token."""
    with stream(daemon, "a", max_tokens=tokens) as client:
        client.next_event()
        yield client


def load_stage(daemon: Daemon, name: str) -> str | None:
    progress: dict[str, str] | None = daemon.runtime(name)["progress"]
    return None if progress is None else progress["stage"]


def log_count(daemon: Daemon, text: str) -> int:
    return daemon.console().count(text)


def test_idle_model_makes_room(daemon: Daemon) -> None:
    """Either is served whenever it is asked for; the other one unloads for it."""
    for name, other in (("a", "b"), ("b", "a"), ("a", "b")):
        served(daemon, name)
        assert daemon.runtime(name)["state"] in {"loaded", "busy"}
        assert daemon.runtime(other)["state"] == "not_loaded"
    eventually_sync(lambda: log_count(daemon, "evicted, to make room") == 2, 5, "the log says so")


def test_busy_model_finishes_what_runs_before_it_makes_room() -> None:
    """1. A stream runs. 2. Another model is asked for. Result: both are answered whole, one after the other."""
    models = {"a": model(token_delay_ms=20, reply_tokens=None), "b": model()}
    with Daemon(configuration(models=models)) as daemon, ThreadPoolExecutor(1) as pool, begun(daemon, 60) as client:
        waiting = pool.submit(daemon.complete, "b", "hello", max_tokens=2)
        events = [json.loads(event) for event in client.events() if event != "[DONE]"]
        assert events[-1]["choices"][0]["finish_reason"] == "length"
        status, answer = waiting.result(30)
        assert status == 200, answer
        assert daemon.runtime("a")["restarts"] == 0


def test_pinned_model_keeps_its_memory() -> None:
    """Who cannot have it is told at once what it needs, what is left, and who holds it."""
    models = {"a": model(pinned=True), "b": model()}
    with Daemon(configuration(models=models)) as daemon:
        served(daemon, "a")
        began = time.monotonic()
        status, answer = daemon.complete("b", "hello")
        assert time.monotonic() - began < 10
        assert (status, answer["error"]["code"]) == (503, "insufficient_memory")
        parts = r"b: it needs about 60 MiB; 40 MiB is left of the limit of 100 MiB, .+ held by a \(60 MiB\) \(unload a"
        assert re.search(parts, answer["error"]["message"]), answer
        assert daemon.runtime("a")["state"] == "loaded"


def test_load_that_waits_too_long_is_refused_and_says_why() -> None:
    """A model that is busy all the time, and no time to wait for it: 503 with a `Retry-After`, the stream unharmed."""
    models = {"a": model(token_delay_ms=20, reply_tokens=None), "b": model()}
    short = configuration(models=models, wait_timeout=0.5, min_residency=60)
    with Daemon(short) as daemon, begun(daemon, 100) as client:
        status, answer = daemon.complete("b", "hello")
        assert (status, answer["error"]["code"]) == (503, "insufficient_memory")
        said = r"held by a \(60 MiB\); nothing made room for it within [01] s: a has 1 request in flight"
        assert re.search(said, answer["error"]["message"])
        assert sum(1 for _ in client.events()) > 90


def test_model_that_is_never_idle_yields() -> None:
    """Requests without end for one model, and one for another: it has its turn, and none of the others fails."""
    models = {"a": model(token_delay_ms=5, reply_tokens=None), "b": model()}
    with Daemon(configuration(models=models)) as daemon, ThreadPoolExecutor(6) as pool:
        stop = threading.Event()

        def ask(tokens: int) -> list[int]:
            statuses: list[int] = []
            while not stop.is_set():
                statuses.append(daemon.complete("a", "hello", max_tokens=tokens)[0])
            return statuses

        asking = [pool.submit(ask, 20 + 7 * number) for number in range(6)]
        daemon.wait_for_state("a", "busy")
        served(daemon, "b")
        stop.set()
        assert all(status == 200 for client in asking for status in client.result(30))
        eventually_sync(lambda: log_count(daemon, "yields: what runs finishes") == 1, 5, "the log says so")
        assert log_count(daemon, "evicted, to make room") <= 1


def test_model_that_yields_serves_on_when_nobody_waits_for_it_any_more() -> None:
    """1. A stream runs. 2. Another model is asked for, so the first one yields. 3. That client leaves. Result: the
    first model's next request is answered beside the stream, not after it."""
    models = {"a": model(token_delay_ms=20, reply_tokens=None), "b": model()}
    with Daemon(configuration(models=models)) as daemon, begun(daemon, 600) as client:
        pid = daemon.worker_pid("a")
        with closing(http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=10)) as connection:
            body = json.dumps({"model": "b", "prompt": "x"})
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            daemon.wait_for_state("a", "draining")
        eventually_sync(lambda: log_count(daemon, "yields: what runs finishes") == 1, 5, "the log says so")
        served(daemon, "a")
        assert daemon.runtime("a")["slots_busy"] == 1, "the stream"
        client.close()
        assert daemon.worker_pid("a") == pid


def test_loads_of_one_model_are_one_load_and_share_one_eviction(daemon: Daemon) -> None:
    """Eight clients at once."""
    served(daemon, "a")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(served, [daemon] * 8, ["b"] * 8))
    eventually_sync(lambda: log_count(daemon, "evicted, to make room") == 1, 5, "the log says so")
    eventually_sync(lambda: log_count(daemon, "worker started") == 2, 5, "the log says so")


def test_client_that_leaves_while_its_model_waits_for_memory_evicts_nobody() -> None:
    """1. A stream runs. 2. Another model is asked for, and the client goes. 3. The stream ends. Result: the first model
    stays loaded."""
    models = {"a": model(token_delay_ms=20, reply_tokens=None), "b": model()}
    with Daemon(configuration(models=models, min_residency=60)) as daemon, begun(daemon, 80) as client:
        connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=10)
        body = json.dumps({"model": "b", "prompt": "x"})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        daemon.wait_for_state("b", "loading")
        assert connection.sock is not None
        connection.sock.close()
        connection.close()
        daemon.wait_for_state("b", "not_loaded")
        assert sum(1 for _ in client.events()) > 70
        served(daemon, "a")
        assert log_count(daemon, "to make room") == 0
        assert daemon.runtime("b")["error"] is None


def test_unload_ends_a_wait_for_memory() -> None:
    """A person wins at once: the model that waits for memory is unloaded, and nobody is evicted for it any more."""
    models = {"a": model(token_delay_ms=20, reply_tokens=None), "b": model()}
    with Daemon(configuration(models=models, min_residency=60)) as daemon, begun(daemon, 80) as client:
        daemon.control("POST", "/jobs", {"type": "load", "params": {"model": "b"}})
        daemon.wait_for_state("b", "loading")
        eventually_sync(lambda: load_stage(daemon, "b") == "memory", 5)
        daemon.control("POST", "/jobs", {"type": "unload", "params": {"model": "b", "force": True}})
        daemon.wait_for_state("b", "not_loaded", seconds=2)
        assert sum(1 for _ in client.events()) > 70
        assert log_count(daemon, "to make room") == 0


def test_preloaded_models_that_do_not_fit_together_do_not_push_each_other_out() -> None:
    """One is there, the other is told why not, and comes when it is asked for."""
    models = {"a": model(preload=True), "b": model(preload=True)}
    with no_leaks(), Daemon(configuration(models=models, wait_timeout=1)) as daemon:
        eventually_sync(lambda: any(daemon.runtime(name)["error"] for name in models), 10)
        left = next(name for name in models if daemon.runtime(name)["error"])
        assert log_count(daemon, "to make room") == 0
        assert "it needs about 60 MiB" in daemon.request("GET", "/health")[1]["reasons"][0]
        served(daemon, left)
        eventually_sync(lambda: log_count(daemon, "evicted, to make room") == 1, 5, "the log says so")


def test_daemon_ends_while_a_load_waits_for_memory() -> None:
    """SIGTERM: the request that waits is refused, what runs finishes, and nothing is left."""
    models = {"a": model(token_delay_ms=20, reply_tokens=None), "b": model()}
    with no_leaks(), Daemon(configuration(models=models, min_residency=60)) as daemon, ThreadPoolExecutor(1) as pool:
        with begun(daemon, 60) as client:
            waiting = pool.submit(daemon.complete, "b", "hello")
            daemon.wait_for_state("b", "loading")
            daemon.signal(signal.SIGTERM)
            assert waiting.result(10)[0] == 503
            assert sum(1 for _ in client.events()) > 50
        assert daemon.wait() == 0


def test_alternating_requests_are_all_answered_in_bounded_time(daemon: Daemon) -> None:
    """Eight clients ask for the two models in turns: nobody gets an error, nobody starves, and a swap serves many."""
    seconds, stop = 8.0, threading.Event()
    waits: list[float] = []
    errors: list[Any] = []

    def ask(number: int) -> None:
        turn = number
        while not stop.is_set():
            began = time.monotonic()
            status, answer = daemon.complete("ab"[turn % 2], "hello", max_tokens=4)
            waits.append(time.monotonic() - began)
            if status != 200:
                errors.append(answer)
            turn += 1

    with ThreadPoolExecutor(8) as pool:
        for number in range(8):
            pool.submit(ask, number)
        stop.wait(seconds)
        stop.set()
    swaps = log_count(daemon, "to make room")
    print(f"{len(waits)} requests, {swaps} swaps, worst wait {max(waits):.2f} s")
    assert errors == []
    assert swaps >= 2
    assert len(waits) >= swaps * 2
    assert max(waits) < 15
