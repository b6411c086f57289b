"""The life of a model through jobs: installed, loaded, updated, deleted, each once, whoever asks how often.

One model's install is one job, and a key finds it again. Its events are replayed after the last one that was seen. A
forced delete ends what uses the model, and a daemon that downloads is not idle.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest
from tests.support.daemon import Daemon, Json, alive, mock_model
from tests.support.installs import (
    SOURCE,
    SlowHub,
    check_installed,
    events,
    hub_settings,
    kill_and_restart,
    listed,
    submit,
    visible_models,
    wait_for,
)
from tests.support.leaks import no_leaks
from tests.support.tiny_gguf import write_tiny_gguf


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
