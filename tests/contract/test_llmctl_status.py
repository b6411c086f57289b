"""`llmctl status`, `models`, `show` and `jobs` against canned answers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import fake_daemon as fake
from tests.support.fake_daemon import FakeDaemon
from tests.support.llmctl_process import TerminalRun, llmctl

DOWN = fake.runtime(
    "big",
    tier="heavy",
    state="unavailable",
    pid=None,
    memory=None,
    idle_left_seconds=None,
    restarts=5,
    error="the worker crashed 5 times within 60 s (SIGSEGV)",
    last_lines=["loading tensors", "\x1b[31mout of memory\x1b[0m", "Segmentation fault"],
)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path / "s") as daemon:
        yield daemon


def test_status_shows_daemon_and_models_by_tier(daemon: FakeDaemon) -> None:
    """The daemon's line comes first, then the models in the order of their tiers."""
    runtimes = [DOWN, fake.runtime("zeta", tier=None), fake.runtime("small", tier="light", slots_busy=1, queued=2)]
    daemon.answer("GET", "/llm/status", fake.daemon_status(runtimes=runtimes))
    ended = llmctl(daemon.socket_path, "status")
    assert ended.code == 0
    assert "llmvisor 0.1.0  healthy, up 3h 12m, pid 4200" in ended.stdout
    assert "http://127.0.0.1:8000" in ended.stdout
    rows = [line.split() for line in ended.stdout.partition("MODEL")[2].splitlines()[1:4]]
    assert [row[0] for row in rows] == ["light/small", "heavy/big", "zeta"]
    assert rows[0] == ["light/small", "loaded", "llamacpp", "4242", "312M", "1/4", "2", "0", "4m", "0"]


def test_status_tells_why_a_model_is_down(daemon: FakeDaemon) -> None:
    """An unavailable model shows its reason, its worker's last lines, and the command that starts it again."""
    daemon.answer("GET", "/llm/status", fake.daemon_status(runtimes=[DOWN]))
    shown = llmctl(daemon.socket_path, "status").stdout
    assert "the worker crashed 5 times within 60 s (SIGSEGV)" in shown
    assert "Segmentation fault" in shown
    assert "llmctl restart heavy/big" in shown


def test_status_shows_reasons_and_running_jobs_only(daemon: FakeDaemon) -> None:
    """What degrades the daemon is told, and a job that has ended is not."""
    jobs = [fake.job(id="job_run"), fake.ended_job(id="job_old")]
    status = fake.daemon_status(health="degraded", reasons=["big is unavailable"], jobs=jobs)
    daemon.answer("GET", "/llm/status", status)
    shown = llmctl(daemon.socket_path, "status").stdout
    assert "degraded: big is unavailable" in shown
    assert "job_run" in shown
    assert "job_old" not in shown


def test_status_json_is_the_apis_own_object(daemon: FakeDaemon) -> None:
    """`--json` gives the daemon's answer, with fields that this llmctl does not know."""
    status = {**fake.daemon_status(), "from_the_future": 1}
    daemon.answer("GET", "/llm/status", status)
    for arguments in (("status", "--json"), ("--json", "status")):
        assert json.loads(llmctl(daemon.socket_path, *arguments).stdout) == status


def test_status_of_one_model_quotes_its_name(daemon: FakeDaemon) -> None:
    """`tier/name` is one segment of the path, and the model is shown in full."""
    daemon.answer("GET", "/llm/runtimes/heavy/big", DOWN)
    shown = llmctl(daemon.socket_path, "status", "heavy/big").stdout
    assert [request.raw_path for request in daemon.requests] == ["/llm/runtimes/heavy%2Fbig"]
    assert "restarts   5 after a crash" in shown
    assert "loading tensors" in shown


def test_status_in_a_pipe_has_no_colours_and_no_bound_on_width(daemon: FakeDaemon) -> None:
    """Piped output is plain and whole, whatever COLUMNS says."""
    daemon.answer("GET", "/llm/status", fake.daemon_status(runtimes=[fake.runtime("a" * 90), DOWN]))
    shown = llmctl(daemon.socket_path, "status", env={"COLUMNS": "40"}).stdout
    assert f"light/{'a' * 90}  loaded" in shown
    assert "\x1b" not in shown


def test_status_fits_a_terminal_of_80_columns(daemon: FakeDaemon) -> None:
    """With long names and every column in use no line is longer than the terminal, and states have colours."""
    runtimes = [fake.runtime("qwen2.5-coder-0.5b-instruct", queued=12, restarts=3, slots=16, slots_busy=16), DOWN]
    daemon.answer("GET", "/llm/status", fake.daemon_status(runtimes=runtimes, jobs=[fake.job()]))
    with TerminalRun(daemon.socket_path, "status") as run:
        assert run.wait() == 0
    assert max(map(len, run.text.splitlines())) <= 80
    assert "\x1b[32mloaded" in run.raw
    assert "\x1b[31mout of memory" not in run.raw


def test_status_has_no_colours_with_no_color(daemon: FakeDaemon) -> None:
    """NO_COLOR holds on a terminal too."""
    daemon.answer("GET", "/llm/status", fake.daemon_status())
    with TerminalRun(daemon.socket_path, "status", env={"NO_COLOR": "1"}) as run:
        assert run.wait() == 0
    assert "loaded" in run.text
    assert "\x1b[" not in run.raw


def test_watch_draws_again_after_an_event(daemon: FakeDaemon) -> None:
    """1. The status is drawn. 2. The model's state changes. 3. The new state is drawn. 4. Ctrl-C ends with 130."""
    daemon.answer("GET", "/llm/status", fake.daemon_status(runtimes=[fake.runtime("m", state="loading")]))
    daemon.stream("GET", "/events", [], hold_open=True)
    with TerminalRun(daemon.socket_path, "status", "--watch") as run:
        run.expect("loading")
        daemon.answer("GET", "/llm/status", fake.daemon_status(runtimes=[fake.runtime("m", state="draining")]))
        run.expect("draining")
        run.interrupt()
        assert run.wait() == 130


def test_watch_waits_for_a_daemon_that_stopped(daemon: FakeDaemon) -> None:
    """A daemon that goes away is told, and its return is shown."""
    daemon.answer("GET", "/llm/status", fake.daemon_status())
    daemon.stream("GET", "/events", [], hold_open=True)
    with TerminalRun(daemon.socket_path, "status", "--watch") as run:
        run.expect("pid 4200")
        daemon.close()
        run.expect("waiting for it")
        with FakeDaemon(daemon.socket_path) as second:
            second.answer("GET", "/llm/status", fake.daemon_status(pid=5300))
            second.stream("GET", "/events", [], hold_open=True)
            run.expect("pid 5300")
            run.interrupt()
            assert run.wait() == 130


def test_watch_in_a_pipe_prints_one_object_for_each_change(daemon: FakeDaemon) -> None:
    """`--watch --json` gives JSON lines, and fails once the daemon ends its stream."""
    daemon.answer("GET", "/llm/status", fake.daemon_status())
    event = {"time": fake.START, "kind": "runtime", "runtime": fake.runtime()}
    daemon.stream("GET", "/events", [("runtime", event)])
    ended = llmctl(daemon.socket_path, "status", "--watch", "--json")
    assert ended.code == 1
    assert [json.loads(line)["pid"] for line in ended.stdout.splitlines()] == [4200]
    assert "the daemon ended the stream" in ended.stderr


def test_models_hands_its_filters_to_the_daemon(daemon: FakeDaemon) -> None:
    """Each filter becomes a part of the query; those that are not given are left out."""
    daemon.items("/llm/models", [fake.model()])
    ended = llmctl(daemon.socket_path, "models", "--type", "llm", "--state", "loaded", "--search", "smol lm")
    assert daemon.requests[0].query == {"type": "llm", "state": "loaded", "q": "smol lm"}
    assert ended.stdout.splitlines()[1].split()[:6] == [
        "light/smollm2-135m-instruct",
        "llm",
        "loaded",
        "98M",
        "135M",
        "Q4_1",
    ]


def test_models_reads_every_page(daemon: FakeDaemon) -> None:
    """A list that comes in pages is shown whole, as JSON too."""
    daemon.pages("/llm/models", [[fake.model("a")], [fake.model("b")], [fake.model("c")]])
    shown = json.loads(llmctl(daemon.socket_path, "models", "--json", "--tier", "light").stdout)
    assert [item["name"] for item in shown["data"]] == ["a", "b", "c"]
    assert [request.query.get("tier") for request in daemon.requests] == ["light"] * 3


def test_models_says_when_there_is_none(daemon: FakeDaemon) -> None:
    """An empty list is no error, and prints nothing that a program would take for a model."""
    daemon.items("/llm/models", [])
    ended = llmctl(daemon.socket_path, "models")
    assert (ended.code, ended.stdout, ended.stderr) == (0, "", "no such models\n")


def test_show_tells_what_is_known_of_a_model(daemon: FakeDaemon) -> None:
    """Metadata, capabilities and the memory that it will take."""
    daemon.answer("GET", "/llm/models/light", fake.model())
    shown = llmctl(daemon.socket_path, "show", "light").stdout
    assert "capabilities  chat, completion" in shown
    assert "context       4096 of 8192 as trained" in shown
    assert "memory        about 350 MiB predicted, at most 312 MiB measured" in shown


def test_jobs_lists_running_and_ended(daemon: FakeDaemon) -> None:
    """The newest first, as the daemon orders them, with the reason of those that failed."""
    daemon.items("/jobs", [fake.job(), fake.ended_job("failed", id="job_00", error="the file is cut")])
    rows = llmctl(daemon.socket_path, "jobs").stdout.splitlines()[1:]
    assert rows[0].split()[:5] == ["job_01", "load", "light", "running", "25%"]
    assert "job_00 failed" in rows
    assert rows[-1].strip() == "the file is cut"


def test_jobs_shows_and_cancels_one(daemon: FakeDaemon) -> None:
    """`show` and `cancel` take an id, and miss it with exit code 2."""
    daemon.answer("GET", "/jobs/job_01", fake.job())
    daemon.answer("POST", "/jobs/job_01/cancel", fake.job(state="cancelling"))
    assert "25%  weights" in llmctl(daemon.socket_path, "jobs", "show", "job_01").stdout
    assert "cancelling" in llmctl(daemon.socket_path, "jobs", "cancel", "job_01").stdout
    assert llmctl(daemon.socket_path, "jobs", "cancel").code == 2


def test_models_on_a_terminal_shows_a_first_page(daemon: FakeDaemon) -> None:
    """Of many: fifty are asked for, and how to get the others is said; `--all` and pipes have every one."""
    pages: list[list[object]] = [[fake.model(f"m{page}-{place}") for place in range(50)] for page in range(3)]
    daemon.pages("/llm/models", pages)
    with TerminalRun(daemon.socket_path, "models") as run:
        run.expect("light/m0-49")
        run.expect("the first 50; all: llmctl models --all")
        assert run.wait() == 0
    assert [request.query for request in daemon.requests] == [{"limit": "50"}]
    with TerminalRun(daemon.socket_path, "models", "--all") as run:
        run.expect("light/m2-49")
        assert run.wait() == 0
    assert len(llmctl(daemon.socket_path, "models").stdout.splitlines()) == 151
    assert len(llmctl(daemon.socket_path, "models", "--limit", "60").stdout.splitlines()) == 61
    shown = json.loads(llmctl(daemon.socket_path, "models", "--limit", "60", "--json").stdout)
    assert len(shown["data"]) == 60


def test_models_with_ten_thousand_is_no_slower_than_it_reads(daemon: FakeDaemon) -> None:
    """Every one in a pipe, whole and aligned, in a few seconds at the most on a busy machine."""
    daemon.pages(
        "/llm/models", [[fake.model(f"model-{page}{place:03}") for place in range(1000)] for page in range(10)]
    )
    began = time.monotonic()
    lines = llmctl(daemon.socket_path, "models").stdout.splitlines()
    assert time.monotonic() - began < 10
    assert len(lines) == 10_001
    assert len({line.index("llamacpp") for line in lines[1:]}) == 1
    assert len(set(lines)) == 10_001
