"""Jobs through real daemons and workers."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Generator
from typing import Any

import pytest
from tests.support.daemon import Daemon, Json, alive, mock_model, stream
from tests.support.leaks import no_leaks
from tests.support.polling import eventually_sync

ENDED = {"succeeded", "failed", "cancelled"}


@pytest.fixture(scope="module")
def daemon() -> Generator[Daemon]:
    models = {
        "quick": mock_model(token_delay_ms=20),
        "slow": mock_model(load_seconds=1.5),
        "endless": mock_model(load_seconds=60),
        "broken": mock_model(failpoints="load=error(no such luck)", restart={"max": 0}),
    }
    with no_leaks(), Daemon({"models": models}) as one:
        yield one


def submit(daemon: Daemon, type: str, model: str, key: str | None = None, **params: object) -> Json:
    body: dict[str, Any] = {"type": type, "params": {"model": model, **params}}
    status, job = daemon.control("POST", "/jobs", body | ({"idempotency_key": key} if key else {}))
    assert status == 202, job
    return job


def wait_for(daemon: Daemon, job: Json) -> Json:
    found: list[Json] = []

    def ended() -> bool:
        found[:] = [daemon.control("GET", f"/jobs/{job['id']}")[1]]
        return found[0]["state"] in ENDED

    eventually_sync(ended, 30, f"the job {job['id']} ends")
    return found[0]


def unload(daemon: Daemon, model: str) -> None:
    assert wait_for(daemon, submit(daemon, "unload", model, force=True))["state"] == "succeeded"
    daemon.wait_for_state(model, "not_loaded")


def events(daemon: Daemon, job: Json) -> list[Json]:
    """Every event of a job up to its end."""
    connection = daemon.control_connection()
    try:
        connection.request("GET", f"/jobs/{job['id']}/events")
        lines = connection.getresponse().read().decode().splitlines()
    finally:
        connection.close()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


def test_load_tells_how_far_it_is_and_ends_with_the_model_loaded(daemon: Daemon) -> None:
    """1. A load is watched. Result: its states come one by one, progress only grows, the last one has succeeded, and
    the events end with it."""
    unload(daemon, "slow")
    seen = events(daemon, submit(daemon, "load", "slow"))
    progress = [job["progress"] for job in seen]
    assert progress == sorted(progress)
    assert any(0 < share < 1 for share in progress)
    assert all(first != second for first, second in itertools.pairwise(seen))
    assert (seen[-1]["state"], seen[-1]["progress"]) == ("succeeded", 1.0)
    assert daemon.runtime("slow")["state"] == "loaded"


def test_load_of_a_loaded_model_succeeds_at_once(daemon: Daemon) -> None:
    """There is nothing to do, and that is no error."""
    assert wait_for(daemon, submit(daemon, "load", "quick"))["state"] == "succeeded"
    pid = daemon.worker_pid("quick")
    assert wait_for(daemon, submit(daemon, "load", "quick"))["state"] == "succeeded"
    assert daemon.worker_pid("quick") == pid


def test_cancelling_a_load_unloads(daemon: Daemon) -> None:
    """1. A load runs. 2. It is cancelled. Result: its worker is gone, the model is not loaded."""
    job = submit(daemon, "load", "endless")
    pid = eventually_sync(lambda: daemon.runtime("endless")["pid"], 20)
    assert daemon.control("POST", f"/jobs/{job['id']}/cancel")[0] == 202
    assert wait_for(daemon, job)["state"] == "cancelled"
    daemon.wait_for_state("endless", "not_loaded")
    assert not alive(pid)
    assert daemon.control("POST", f"/jobs/{job['id']}/cancel")[0] == 409


def test_cancelling_a_load_leaves_it_to_a_request_that_waits(daemon: Daemon) -> None:
    """The request is served by the very load that was cancelled."""
    unload(daemon, "slow")
    job = submit(daemon, "load", "slow")
    answers: list[int] = []
    asking = threading.Thread(target=lambda: answers.append(daemon.complete("slow", max_tokens=1)[0]))
    asking.start()
    eventually_sync(lambda: daemon.runtime("slow")["queued"] == 2, 10)
    daemon.control("POST", f"/jobs/{job['id']}/cancel")
    asking.join(30)
    assert answers == [200]
    assert wait_for(daemon, job)["state"] == "cancelled"


def test_unload_ends_a_load_under_way(daemon: Daemon) -> None:
    """The load went on waiting behind the unload, and the model came back."""
    load = submit(daemon, "load", "endless")
    eventually_sync(lambda: daemon.runtime("endless")["pid"], 20)
    unload(daemon, "endless")
    assert wait_for(daemon, load)["state"] == "cancelled"
    assert daemon.runtime("endless")["state"] == "not_loaded"


def test_same_work_gives_the_same_job(daemon: Daemon) -> None:
    """While it runs; afterwards it is a new one."""
    first = submit(daemon, "load", "endless")
    assert submit(daemon, "load", "endless")["id"] == first["id"]
    assert submit(daemon, "load", "endless", restart=True)["id"] != first["id"]
    unload(daemon, "endless")
    wait_for(daemon, first)
    again = submit(daemon, "load", "endless")
    assert again["id"] != first["id"]
    unload(daemon, "endless")


def test_idempotency_key_gives_the_same_job_after_its_end(daemon: Daemon) -> None:
    """A client that tries again does no work twice."""
    first = submit(daemon, "load", "quick", key="one")
    wait_for(daemon, first)
    assert submit(daemon, "load", "quick", key="one")["id"] == first["id"]
    assert submit(daemon, "load", "quick", key="two")["id"] != first["id"]


def test_failed_load_tells_the_backends_reason_and_a_restart_tries_again(daemon: Daemon) -> None:
    """1. The only try fails: the model is unavailable, and further loads say so. 2. A restart. Result: tried again."""
    job = wait_for(daemon, submit(daemon, "load", "broken"))
    assert (job["state"], job["error_code"]) == ("failed", "model_load_failed")
    assert "no such luck" in job["error"]
    daemon.wait_for_state("broken", "unavailable")
    assert wait_for(daemon, submit(daemon, "load", "broken"))["error_code"] == "model_unavailable"
    status, restart = daemon.control("POST", "/llm/runtimes/broken/restart", {})
    assert status == 202
    assert wait_for(daemon, restart)["error_code"] == "model_load_failed"


def test_restart_of_a_loaded_model_gives_a_new_worker(daemon: Daemon) -> None:
    """Once what runs has finished."""
    wait_for(daemon, submit(daemon, "load", "quick"))
    pid = daemon.worker_pid("quick")
    with stream(daemon, "quick", max_tokens=40) as client:
        client.next_event()
        job = submit(daemon, "load", "quick", restart=True)
        assert list(client.events())[-1] == "[DONE]"
    assert wait_for(daemon, job)["state"] == "succeeded"
    assert daemon.worker_pid("quick") != pid


def test_unload_waits_for_what_runs_and_force_does_not(daemon: Daemon) -> None:
    """1. A request streams. 2. An unload drains. 3. A forced one ends it. Result: both jobs succeed, and
    the stream ends with an error event."""
    with stream(daemon, "quick", max_tokens=5000) as client:
        client.next_event()
        polite = submit(daemon, "unload", "quick")
        assert polite["state"] == "running"
        assert daemon.wait_for_state("quick", "draining")["slots_busy"] == 1
        assert daemon.control("POST", f"/jobs/{polite['id']}/cancel")[0] == 409
        unload(daemon, "quick")
        assert json.loads(list(client.events())[-1])["error"]["code"] == "model_unloaded"
    assert wait_for(daemon, polite)["state"] == "succeeded"


def test_ended_job_can_be_forgotten_and_a_running_one_not(daemon: Daemon) -> None:
    """204, then 404; 409 while it runs."""
    job = submit(daemon, "load", "endless")
    assert daemon.control("DELETE", f"/jobs/{job['id']}")[0] == 409
    unload(daemon, "endless")
    wait_for(daemon, job)
    assert daemon.control("DELETE", f"/jobs/{job['id']}")[0] == 204
    for path in (f"/jobs/{job['id']}", f"/jobs/{job['id']}/events"):
        assert daemon.control("GET", path)[0] == 404
    assert job["id"] not in [one["id"] for one in daemon.control("GET", "/jobs")[1]["data"]]


def test_watch_of_an_ended_job_gives_it_once(daemon: Daemon) -> None:
    """As it ended, and the events are over."""
    job = wait_for(daemon, submit(daemon, "load", "quick"))
    assert events(daemon, job) == [job]


def test_job_for_an_unknown_model_is_a_404(daemon: Daemon) -> None:
    """And leaves no job behind."""
    count = len(daemon.control("GET", "/jobs")[1]["data"])
    status, answer = daemon.control("POST", "/jobs", {"type": "load", "params": {"model": "nobody"}})
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    assert len(daemon.control("GET", "/jobs")[1]["data"]) == count
