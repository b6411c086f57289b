"""The real `llmctl` against the real daemon: what a person types, and what then stands there."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
from tests.support.daemon import Daemon, alive, mock_model, stream
from tests.support.leaks import no_leaks
from tests.support.llmctl_process import Ended, TerminalRun, command, environment, llmctl
from tests.support.polling import eventually_sync

MODELS = {
    "mock": mock_model(token_delay_ms=5, reply_tokens=20, tier="light", aliases=["parrot"]),
    "slow": mock_model(load_seconds=1, tier="heavy"),
    "endless": mock_model(token_delay_ms=20),
    "broken": mock_model(failpoints="load=exit(78)"),
}


@pytest.fixture(scope="module")
def daemon() -> Generator[Daemon]:
    with no_leaks(), Daemon({"models": MODELS}) as one:
        yield one


def ctl(daemon: Daemon, *arguments: str, stdin: bytes | None = None) -> Ended:
    return llmctl(daemon.socket_path, *arguments, stdin=stdin, cwd=daemon.folder)


def done(daemon: Daemon, *arguments: str, stdin: bytes | None = None) -> str:
    """What a command that succeeds prints."""
    ended = ctl(daemon, *arguments, stdin=stdin)
    assert ended.code == 0, ended
    return ended.stdout


# --------------------------------------------------------------------------------------------------------------- see


def test_status_shows_the_daemon_and_every_model(daemon: Daemon) -> None:
    """A table that fits 80 columns, by tier, and the address to paste."""
    done(daemon, "load", "mock")
    shown = done(daemon, "status")
    assert f"pid {daemon.pid}" in shown
    assert daemon.url in shown
    assert str(daemon.config_file) in shown
    rows = {line.split()[0]: line for line in shown.splitlines() if line and line[0].isalpha()}
    assert list(rows)[-4:][0] == "light/mock"
    assert re.search(rf"loaded +mock +{daemon.worker_pid('mock')} ", rows["light/mock"])
    assert "not loaded" in rows["heavy/slow"]
    assert max(map(len, shown.splitlines())) <= 120


def test_status_json_is_the_status_itself(daemon: Daemon) -> None:
    """For programs: the numbers as the daemon has them."""
    status = json.loads(done(daemon, "status", "--json"))
    assert (status["pid"], status["address"]) == (daemon.pid, daemon.url)
    assert {runtime["model"] for runtime in status["runtimes"]} == set(MODELS)
    one = json.loads(done(daemon, "status", "light", "--json"))
    assert one["model"] == "mock"


def test_status_tells_why_a_model_is_unavailable(daemon: Daemon) -> None:
    """The reason, and the command that tries again; the model's own page as well."""
    assert ctl(daemon, "load", "broken").code == 1
    for arguments in (("status",), ("status", "broken")):
        shown = done(daemon, *arguments)
        assert "broken: unavailable" in shown
        assert "exited with code 78" in shown
        assert "llmctl restart broken" in shown


def test_status_watch_follows_a_load(daemon: Daemon) -> None:
    """1. A model is unloaded and somebody watches. 2. It is loaded. Result: the screen says so by itself."""
    done(daemon, "unload", "slow")
    with TerminalRun(daemon.socket_path, "status", "--watch", columns=100) as run:
        run.expect("heavy/slow")
        done(daemon, "load", "slow", "--no-wait")
        run.expect("loading")
        run.expect("loaded")
        run.interrupt()
        assert run.wait() in {0, 130}
    assert "Traceback" not in run.text


def test_models_and_show_tell_what_there_is(daemon: Daemon) -> None:
    """The list with filters, one model by its alias, and exit code 4 with near names for one that is not there."""
    done(daemon, "load", "mock")
    shown = done(daemon, "models")
    assert {"light/mock", "heavy/slow", "endless", "broken"} <= {line.split()[0] for line in shown.splitlines()}
    loaded = json.loads(done(daemon, "models", "--state", "loaded", "--tier", "light", "--json"))
    assert [model["id"] for model in loaded["data"]] == ["light/mock"]
    assert "light/mock" in done(daemon, "show", "parrot")
    ended = ctl(daemon, "show", "mok")
    assert (ended.code, ended.stdout) == (4, "")
    assert "light/mock" in ended.stderr


# ------------------------------------------------------------------------------------------------------------ models


def test_load_draws_a_bar_and_says_when_it_is_done(daemon: Daemon) -> None:
    """On a terminal the bar moves; what is left on the screen is one line."""
    done(daemon, "unload", "slow")
    with TerminalRun(daemon.socket_path, "load", "heavy") as run:
        assert run.wait() == 0
    assert "━" in run.raw
    assert "of 10 steps" in run.text
    assert re.search(r"is loaded \(\d+\.\d+s\)\s*$", run.text)
    assert "\x1b[?25h" in run.raw, "the cursor stays hidden"
    assert daemon.runtime("slow")["state"] == "loaded"


def test_load_in_a_pipe_says_the_same_in_lines(daemon: Daemon) -> None:
    """Progress goes to stderr, the outcome to stdout."""
    done(daemon, "unload", "slow")
    ended = ctl(daemon, "load", "heavy")
    assert ended.code == 0
    assert "is loaded" in ended.stdout
    assert "of 10 steps" in ended.stderr
    assert "\x1b" not in ended.stdout + ended.stderr


def test_load_that_fails_is_exit_code_1_with_the_reason(daemon: Daemon) -> None:
    """And one of no known model is exit code 4."""
    ended = ctl(daemon, "load", "broken")
    assert (ended.code, ended.stdout) == (1, "")
    assert "exited with code 78" in ended.stderr
    assert ctl(daemon, "load", "nothing").code == 4


def test_unload_waits_for_what_runs_unless_forced(daemon: Daemon) -> None:
    """1. A stream runs. 2. Its model is unloaded by force. Result: the stream ends with an error."""
    with stream(daemon, "endless", max_tokens=5000) as client:
        client.next_event()
        pid = daemon.worker_pid("endless")
        assert ctl(daemon, "unload", "endless", "--timeout", "0.5").code == 5
        assert alive(pid)
        assert "is unloaded" in done(daemon, "unload", "endless", "--force")
        assert "unloaded by force" in list(client.events())[-1]
    eventually_sync(lambda: not alive(pid), 10)
    assert daemon.runtime("endless")["state"] == "not_loaded"


def test_restart_gives_another_worker(daemon: Daemon) -> None:
    """The same model, a new process."""
    done(daemon, "load", "mock")
    pid = daemon.worker_pid("mock")
    assert "has a new worker" in done(daemon, "restart", "light")
    assert daemon.worker_pid("mock") != pid
    assert not alive(pid)


def test_jobs_lists_what_was_done(daemon: Daemon) -> None:
    """Loads and failures, newest first."""
    done(daemon, "load", "mock")
    ctl(daemon, "load", "broken")
    shown = done(daemon, "jobs")
    assert re.search(r"job_\w+ +load +broken +failed", shown.splitlines()[1])
    job = shown.splitlines()[1].split()[0]
    assert json.loads(done(daemon, "jobs", "show", job, "--json"))["error"]
    assert ctl(daemon, "jobs", "show", "job_0").code == 4


# -------------------------------------------------------------------------------------------------------------- talk


def test_run_prints_the_answer_alone(daemon: Daemon) -> None:
    """The same text as over HTTP, from words or from a pipe."""
    body = {"model": "light", "messages": [{"role": "user", "content": "hello there"}]}
    _, answer = daemon.request("POST", "/v1/chat/completions", body)
    text = answer["choices"][0]["message"]["content"]
    assert done(daemon, "run", "light", "hello", "there").rstrip("\n") == text
    assert done(daemon, "run", "light", stdin=b"hello there").rstrip("\n") == text
    ended = ctl(daemon, "run", "parrot", "hi", "--max-tokens", "3", "--stats")
    assert len(ended.stdout.split()) == 3
    assert ended.stderr.startswith("3 tokens")


def test_run_of_a_model_that_crashes_is_exit_code_1(daemon: Daemon) -> None:
    """What came of two workers stands on stdout, and why it ended on stderr; the crashes can be looked at."""
    ended = ctl(daemon, "run", "endless", "[[failpoint: generate=4*token->kill(11)]]")
    assert (ended.code, len(ended.stdout.split())) == (1, 8)
    assert "SIGSEGV" in ended.stderr
    assert "llmctl postmortem endless" in ended.stderr
    shown = done(daemon, "postmortem", "endless")
    assert "killed by SIGSEGV" in shown
    assert "refused as the cause" in shown
    listed = done(daemon, "postmortem").splitlines()
    assert len([line for line in listed if " endless " in line]) == 2


def test_chat_holds_a_conversation(daemon: Daemon) -> None:
    """Scripted as a person would type: a question, a setting, statistics, a command that is none, another one, the end.
    The daemon sees the whole conversation each time."""
    state = {"XDG_STATE_HOME": str(daemon.folder / "state")}
    with TerminalRun(daemon.socket_path, "chat", "light", env=state) as run:
        run.expect("light/mock")
        run.expect(">>> ")
        run.send("hello\n")
        first = run.expect(">>> ").removeprefix("hello\n").strip()
        assert len(first.split()) == 20
        run.send("/stats on\n")
        run.expect("stats are on")
        run.expect(">>> ")
        run.send("/set max_tokens 4\n")
        run.expect("max_tokens 4")
        run.expect(">>> ")
        run.send("and then?\n")
        second = run.expect("4 tokens").removeprefix("and then?\n").strip()
        run.expect(">>> ")
        run.send("/what\n")
        run.expect("no command /what")
        run.expect(">>> ")
        run.send("/save talk.md\n")
        run.expect("saved as")
        run.expect(">>> ")
        run.send("\x04")
        assert run.wait() == 0
    saved = Path("talk.md")
    try:
        text = saved.read_text()
    finally:
        saved.unlink()
    assert first in text
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": " " + first},
        {"role": "user", "content": "and then?"},
    ]
    _, answer = daemon.request("POST", "/v1/chat/completions", {"model": "mock", "messages": messages, "max_tokens": 4})
    assert answer["choices"][0]["message"]["content"].strip() == second


def test_chat_interrupted_stops_the_answer_in_the_worker(daemon: Daemon) -> None:
    """Ctrl-C in an answer: the prompt is back, and the sequence is free."""
    state = {"XDG_STATE_HOME": str(daemon.folder / "state")}
    with TerminalRun(daemon.socket_path, "chat", "endless", env=state) as run:
        run.expect(">>> ")
        run.send("hello\n")
        eventually_sync(lambda: daemon.runtime("endless")["slots_busy"] == 1, 10)
        run.interrupt(until="(stopped)")
        run.expect("(stopped)")
        eventually_sync(lambda: daemon.runtime("endless")["slots_busy"] == 0, 10)
        run.expect(">>> ")
        run.send("/exit\n")
        assert run.wait() == 0


# --------------------------------------------------------------------------------------------------- logs and events


def test_logs_follow_a_model(daemon: Daemon) -> None:
    """What is said of it comes as it happens, what is said of others does not."""
    done(daemon, "unload", "mock")
    with TerminalRun(daemon.socket_path, "logs", "-f", "--model", "light", columns=200) as run:
        time_limit = time.monotonic() + 30
        while "worker started" not in run.text[-2000:] and time.monotonic() < time_limit:
            done(daemon, "restart", "mock")
            run.expect("worker started")
            run.expect("loaded")
        run.interrupt()
        assert run.wait() in {0, 130}
    assert "[slow]" not in run.text
    lines = done(daemon, "logs", "--level", "warning").splitlines()
    assert all(re.search(r" (warning|error|critical) ", line) for line in lines if line[:2] == "20")


def test_events_tell_every_change_of_state(daemon: Daemon) -> None:
    """One JSON object a line for programs: a load from its beginning to its end, in order, its job as well."""
    done(daemon, "unload", "slow")
    with subprocess.Popen(
        command("events", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(daemon.socket_path),
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            events = _events_of_a_load(daemon, process.stdout)
        finally:
            process.kill()
    states = [event["runtime"]["state"] for event in events if event["kind"] == "runtime"]
    assert states == sorted(states, key=["loading", "loaded"].index)
    assert set(states) == {"loading", "loaded"}
    jobs = [event["job"] for event in events if event["kind"] == "job"]
    assert [job["done"] for job in jobs] == sorted(job["done"] for job in jobs)
    assert (jobs[-1]["state"], jobs[-1]["done"], jobs[-1]["total"]) == ("succeeded", 10, 10)


def _events_of_a_load(daemon: Daemon, lines: IO[str]) -> list[Any]:
    """The events of one load of `slow`, runtime and job, up to when it is loaded."""
    # Another model changes again and again until the first event shows that somebody listens.
    stop = threading.Event()

    def stir() -> None:
        while not stop.wait(0.2):
            ctl(daemon, "unload", "mock")
            ctl(daemon, "load", "mock")

    stirrer = threading.Thread(target=stir)
    stirrer.start()
    try:
        lines.readline()
    finally:
        stop.set()
        stirrer.join()
    done(daemon, "load", "slow", "--no-wait")
    found: list[Any] = []
    for line in lines:
        event = json.loads(line)
        about = (event.get("runtime") or {"model": event["job"]["params"]["model"]})["model"]
        found += [event] if about == "slow" else []
        if found and {one["kind"] for one in found} == {"job", "runtime"} and _is_over(found):
            break
    return found


def _is_over(events: list[Any]) -> bool:
    runtimes = [event["runtime"] for event in events if event["kind"] == "runtime"]
    jobs = [event["job"] for event in events if event["kind"] == "job"]
    return runtimes[-1]["state"] == "loaded" and jobs[-1]["ended_at"] is not None


# ------------------------------------------------------------------------------------------------------------ daemon


def test_port_and_health_are_for_scripts(daemon: Daemon) -> None:
    """A number alone, a word alone."""
    assert done(daemon, "port") == f"{daemon.port}\n"
    assert done(daemon, "health") == "healthy\n"
    assert json.loads(done(daemon, "health", "--json"))["status"] == "healthy"


def test_config_shows_who_set_what(daemon: Daemon) -> None:
    """The line of the file, or the default; and the file is correct in the eyes of `check`."""
    shown = {line.split()[0]: line for line in done(daemon, "config", "show", "--origin").splitlines()}
    number = 1 + daemon.config_file.read_text().splitlines().index("  port_file: " + str(daemon.port_file))
    assert f"config.yaml:{number}" in shown["server.port_file"]
    assert shown["server.drain_timeout"].split()[-2:] == ["default", "default"]
    plain = done(daemon, "config", "show")
    assert "models.mock.options.token_delay_ms: 5\n" in plain
    assert "correct" in done(daemon, "config", "check", str(daemon.config_file))
    wrong = daemon.folder / "wrong.yaml"
    wrong.write_text("server:\n  prot: 80\n")
    ended = ctl(daemon, "config", "check", str(wrong))
    assert ended.code != 0
    assert re.search(r"wrong\.yaml:2.*prot.*port", ended.stdout + ended.stderr)


def test_doctor_finds_the_broken_model_and_what_to_do(daemon: Daemon) -> None:
    """Exit code 1 with the finding; everything else is well."""
    ctl(daemon, "load", "broken")
    ended = ctl(daemon, "doctor")
    assert ended.code == 1
    assert "broken is unavailable: exited with code 78" in ended.stdout
    assert "llmctl restart broken" in ended.stdout
    assert f"pid {daemon.pid}" in ended.stdout
    findings = json.loads(ctl(daemon, "doctor", "--json").stdout)["data"]
    assert [finding["subject"] for finding in findings if finding["level"] == "problem"] == ["model"]


def test_shutdown_ends_the_daemon_and_every_command_says_so_then(tmp_path: Path) -> None:
    """1. `shutdown --wait`. Result: it is gone when the command returns; from then on exit code 3, and how to start
    it."""
    with Daemon({"models": {"mock": mock_model()}}) as daemon:
        assert daemon.complete("mock", max_tokens=1)[0] == 200
        family = daemon.descendants()
        # As a shell or an init system does: else its entry stays in the process table.
        reaper = threading.Thread(target=daemon.wait)
        reaper.start()
        assert "has stopped" in done(daemon, "shutdown", "--wait", "--timeout", "20")
        assert not alive(daemon.pid)
        assert not [process for process in family if alive(process.pid)]
        reaper.join()
        assert daemon.wait() == 0
        for arguments in (("status",), ("load", "mock"), ("run", "mock", "hi"), ("logs", "-f"), ("health",), ("port",)):
            ended = ctl(daemon, *arguments)
            assert (ended.code, ended.stdout) == (3, ""), arguments
            assert "llmvisor" in ended.stderr
        assert ctl(daemon, "doctor").stdout.count("daemon") >= 1


def test_shutdown_waits_for_no_zombie() -> None:
    """A daemon that has ended is gone, whether or not its parent asked for its exit code (many containers never do)."""
    with Daemon({"models": {"mock": mock_model()}}) as daemon:
        assert "has stopped" in done(daemon, "shutdown", "--wait", "--timeout", "10")


def test_llmctl_is_small_and_leaves_the_daemon_as_it_was(daemon: Daemon) -> None:
    """A hundred commands later it holds no more descriptors than before."""
    before = psutil.Process(daemon.pid).num_fds()
    for _ in range(10):
        done(daemon, "status")
        ctl(daemon, "show", "nothing")
    eventually_sync(lambda: psutil.Process(daemon.pid).num_fds() <= before, 20)
