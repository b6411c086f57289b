"""What requests took, asked of a real daemon: over its end, and whatever became of the request."""

from __future__ import annotations

import re
import signal
from contextlib import closing
from pathlib import Path
from sqlite3 import connect

import pytest
from tests.support.daemon import Daemon, Json, mock_model, stream
from tests.support.polling import eventually_sync

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at the daemon's memory")


def rows(daemon: Daemon, query: str = "group_by=model") -> list[Json]:
    status, answer = daemon.control("GET", f"/usage?{query}")
    assert status == 200, answer
    return answer["data"]


def requests(daemon: Daemon) -> int:
    return sum(row["requests"] for row in rows(daemon))


def test_usage_has_every_request_and_survives_the_daemon() -> None:
    """1. A request is answered, one is left by its client, one fails. 2. The daemon is ended. 3. It starts again.

    Result: each is one row, before and after; the load of each worker is noted with its time and memory.
    """
    dies = mock_model(failpoints="step=3*off->exit(1)", token_delay_ms=1, restart={"max": 0})
    with Daemon({"models": {"smol": mock_model(tier="light", token_delay_ms=1), "dies": dies}}) as daemon:
        assert daemon.complete("light", max_tokens=7)[0] == 200
        with stream(daemon, "smol", max_tokens=4000) as left:
            left.next_event()
        failure = daemon.complete("dies", max_tokens=50)[1]["error"]["code"]
        eventually_sync(lambda: requests(daemon) == 3, 10, "three requests are written down")
        by_model = {row["model"]: row for row in rows(daemon, "group_by=model,day,service,tier")}
        assert by_model["smol"]["requests"] == 2
        assert by_model["smol"]["errors"] == 0
        assert 7 < by_model["smol"]["completion_tokens"] < 4000
        assert (by_model["smol"]["service"], by_model["smol"]["tier"]) == ("local", "light")
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", by_model["smol"]["day"])
        assert (by_model["dies"]["requests"], by_model["dies"]["errors"]) == (1, 1)
        eventually_sync(lambda: daemon.runtime("smol")["memory"], 10, "the worker has told its memory")
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        daemon.start()
        assert requests(daemon) == 3
        statuses, loads = stored(daemon.folder / "data" / "llmvisor.db")
    assert statuses == sorted(["cancelled", failure, "succeeded"])
    assert [model for model, _, rss in loads if rss > 1_000_000] == ["smol"]
    assert all(seconds > 0 for _, seconds, _ in loads)


def stored(file: Path) -> tuple[list[str], list[tuple[str, float, int]]]:
    """Every request's status, and every load's model, seconds and memory."""
    with closing(connect(file)) as database:
        statuses = [str(row[0]) for row in database.execute("SELECT status FROM usage ORDER BY status")]
        loads = database.execute("SELECT model, load_seconds, rss_bytes_peak FROM load_measures").fetchall()
    return statuses, loads


def test_answers_from_the_cache_are_usage_too() -> None:
    """What is answered without the model counts as asked for."""
    with Daemon({"models": {"smol": mock_model()}, "cache": {"enabled": True}}) as daemon:
        for _ in range(2):
            assert daemon.complete("smol", max_tokens=5, temperature=0)[0] == 200
        eventually_sync(lambda: requests(daemon) == 2, 10)
        assert daemon.control("GET", "/internal/cache/stats")[1]["hits"] == 1


def test_store_brings_no_library_for_numbers_into_the_daemon() -> None:
    """With the store open and used, numpy is in no part of the daemon's memory."""
    with Daemon({"models": {"smol": mock_model()}}) as daemon:
        assert daemon.complete("smol", max_tokens=5)[0] == 200
        eventually_sync(lambda: requests(daemon) == 1, 10)
        mapped = Path(f"/proc/{daemon.pid}/maps").read_text()
    assert "sqlite3" in mapped
    assert "numpy" not in mapped
    assert "pandas" not in mapped
