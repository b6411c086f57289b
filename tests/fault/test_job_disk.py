"""A disk that is full before a download, in it, or for the daemon: the job says so and what to do, the rest goes on."""

from __future__ import annotations

import resource
import sys
from collections.abc import Generator

import psutil
import pytest
from tests.support.daemon import Daemon, mock_model
from tests.support.installs import (
    SOURCE,
    SlowHub,
    check_installed,
    fetchers,
    hub_settings,
    staged,
    submit,
    visible_models,
    wait_for,
)
from tests.support.leaks import no_leaks
from tests.support.polling import eventually_sync
from tests.support.tiny_gguf import write_tiny_gguf

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="prlimit(2) stands in for a full disk")


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
