"""A daemon whose store is damaged, newer, locked or not to be had: it serves, says what is wrong, and recovers."""

from __future__ import annotations

import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.daemon import Daemon, Json, mock_model
from tests.support.polling import eventually_sync
from tests.support.small_disk import SmallDisk, has_own_mounts

RECOVER_SECONDS_MAX = 30.0


def new_daemon() -> Daemon:
    return Daemon({"models": {"smol": mock_model()}})


def store_file(daemon: Daemon) -> Path:
    return daemon.folder / "data" / "llmvisor.db"


def health(daemon: Daemon) -> Json:
    status, answer = daemon.request("GET", "/health")
    assert status == 200, answer
    return answer


def wait_degraded(daemon: Daemon, reason: str) -> None:
    """Until the daemon's health names this."""
    eventually_sync(lambda: reason in " ".join(health(daemon).get("reasons", [])), 10, f"health says: {reason}")
    assert health(daemon)["status"] == "degraded"
    assert reason in " ".join(daemon.control("GET", "/llm/status")[1]["reasons"])


def wait_healthy(daemon: Daemon) -> None:
    eventually_sync(lambda: health(daemon)["status"] == "healthy", RECOVER_SECONDS_MAX, "the daemon is healthy")


def requests(daemon: Daemon) -> int:
    status, answer = daemon.control("GET", "/usage")
    assert status == 200, answer
    return sum(row["requests"] for row in answer["data"])


def begin_and_end(daemon: Daemon) -> None:
    """So that there is a store."""
    assert requests(daemon) == 0
    end(daemon)


def end(daemon: Daemon) -> None:
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0


def test_newer_store_costs_the_daemon_nothing_but_the_store() -> None:
    """1. A store of a newer version lies there. 2. The daemon starts. 3. The file is moved away.

    Result: it serves and says what to do, the file is not touched, and it goes on with a new one by itself.
    """
    with new_daemon() as daemon:
        begin_and_end(daemon)
        file = store_file(daemon)
        with closing(sqlite3.connect(file)) as database:
            database.execute("PRAGMA user_version = 99")
        before = file.read_bytes()
        daemon.start()
        assert daemon.complete("smol", max_tokens=3)[0] == 200
        wait_degraded(daemon, "made by a newer llmvisor")
        status, answer = daemon.control("GET", "/usage")
        assert (status, answer["error"]["code"]) == (503, "store_unavailable")
        assert "move llmvisor.db away" in answer["error"]["message"]
        eventually_sync(lambda: "made by a newer llmvisor" in daemon.console(), 5)
        file.rename(file.with_name("newer.db"))
        wait_healthy(daemon)
        assert requests(daemon) == 1
        assert file.with_name("newer.db").read_bytes() == before


def test_damaged_store_is_set_aside_by_the_daemon() -> None:
    """A damaged file delays nothing: the daemon starts with a new one, and the log tells where the old one is."""
    with new_daemon() as daemon:
        begin_and_end(daemon)
        store_file(daemon).write_bytes(b"\0" * 5000)
        daemon.start()
        assert daemon.complete("smol", max_tokens=3)[0] == 200
        eventually_sync(lambda: requests(daemon) == 1, 10)
        wait_healthy(daemon)
        (kept,) = store_file(daemon).parent.glob("llmvisor.damaged-*.db")
        assert kept.read_bytes() == b"\0" * 5000
        eventually_sync(lambda: kept.name in daemon.console(), 5)


def test_locked_store_holds_up_no_answer() -> None:
    """1. Another process locks the store. 2. Requests are served, and health tells it. 3. The lock is let go.

    Result: what ended meanwhile is written down after all.
    """
    with new_daemon() as daemon:
        eventually_sync(lambda: requests(daemon) == 0, 10)
        with closing(sqlite3.connect(store_file(daemon), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for _ in range(5):
                assert daemon.complete("smol", max_tokens=3)[0] == 200
            wait_degraded(daemon, "locked by another process")
            assert daemon.complete("smol", max_tokens=3)[0] == 200
            other.execute("ROLLBACK")
        wait_healthy(daemon)
        eventually_sync(lambda: requests(daemon) == 6, 10)


@pytest.mark.skipif(
    not has_own_mounts(),
    reason="no mounts of one's own here",
)
def test_full_disk_stops_no_answer() -> None:
    """1. The disk of the store is full. 2. Models are loaded, used and unloaded. 3. Something makes room.

    Result: everything is served and health names the disk all along; then what ended is written down after all.
    """
    with SmallDisk({"models": {"smol": mock_model(), "other": mock_model()}}) as daemon:
        assert daemon.complete("smol", max_tokens=3)[0] == 200
        eventually_sync(lambda: requests(daemon) == 1, 10)
        daemon.fill()
        for _ in range(3):
            assert daemon.complete("other", max_tokens=3)[0] == 200
        wait_degraded(daemon, "is full")
        assert daemon.complete("smol", max_tokens=3)[0] == 200
        assert "free some space" in " ".join(health(daemon)["reasons"])
        status, answer = daemon.control("GET", "/usage")
        assert (status, answer["error"]["code"]) == (503, "store_unavailable")
        daemon.ballast.unlink()
        wait_healthy(daemon)
        eventually_sync(lambda: requests(daemon) == 5, 10)


def test_folder_that_is_none_costs_the_daemon_nothing_but_the_store() -> None:
    """A storage folder that cannot be made is told, and taken when it can be."""
    with new_daemon() as daemon:
        data = daemon.folder / "data"
        begin_and_end(daemon)
        kept = daemon.folder / "kept"
        data.rename(kept)
        data.write_text("no folder")
        daemon.start()
        assert daemon.complete("smol", max_tokens=3)[0] == 200
        wait_degraded(daemon, "cannot be opened")
        data.unlink()
        kept.rename(data)
        wait_healthy(daemon)
        assert requests(daemon) == 1


def test_disk_that_never_answers_holds_up_neither_start_nor_end() -> None:
    """1. Opening the store's file blocks for ever. 2. The daemon starts, serves, and is ended.

    Result: nothing but the store is missed, and the end comes within its bounds.
    """
    with new_daemon() as daemon:
        begin_and_end(daemon)
        store_file(daemon).unlink()
        os.mkfifo(store_file(daemon))
        daemon.start()
        for _ in range(3):
            assert daemon.complete("smol", max_tokens=3)[0] == 200
        daemon.signal(signal.SIGTERM)
        assert daemon.wait(40) == 0


def test_second_daemon_with_the_same_folder_serves_without_it() -> None:
    """Two daemons that share a storage folder do not share its file; the second says so, and serves."""
    with new_daemon() as first:
        eventually_sync(lambda: requests(first) == 0, 10)
        shared = {"models": {"smol": mock_model()}, "storage": {"dir": str(first.folder / "data")}}
        with Daemon(shared) as second:
            assert second.complete("smol", max_tokens=3)[0] == 200
            wait_degraded(second, "another llmvisor uses the store")
            assert health(first)["status"] == "healthy"
            end(second)
        assert requests(first) == 0


def test_rows_of_a_killed_daemon_are_there_again() -> None:
    """What was written down before the daemon was killed with SIGKILL is there when it starts again."""
    with new_daemon() as daemon:
        assert daemon.complete("smol", max_tokens=3)[0] == 200
        eventually_sync(lambda: requests(daemon) == 1, 10)
        daemon.kill()
        daemon.port_file.unlink()
        daemon.start()
        assert requests(daemon) == 1
        wait_healthy(daemon)
