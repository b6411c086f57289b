"""`llmctl logs`, `events`, `health`, `port`, `config` and `shutdown`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import fake_daemon as fake
from tests.support.fake_daemon import FakeDaemon
from tests.support.llmctl_process import TerminalRun, command, environment, llmctl

RECORD = {"time": fake.START, "level": "warning", "module": "runtime", "message": "slow", "model": "light"}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path / "s") as daemon:
        yield daemon


def test_logs_prints_recent_lines(daemon: FakeDaemon) -> None:
    """Each line with moment, level, who said it, and its fields; filters go to the daemon."""
    daemon.items("/logs", [{**RECORD, "fields": {"queue": "3"}}])
    ended = llmctl(daemon.socket_path, "logs", "--model", "light", "--level", "warning")
    assert ended.stdout == "2026-08-01T12:00:00.000Z warning  runtime[light] slow queue=3\n"
    assert daemon.requests[0].query == {"model": "light", "level": "warning"}


def test_logs_follow_prints_lines_as_they_come(daemon: FakeDaemon) -> None:
    """A line is out before the next one comes, in a pipe too."""
    daemon.stream("GET", "/logs", [("log", RECORD)], hold_open=True)
    with subprocess.Popen(
        command("logs", "-f"), stdout=subprocess.PIPE, env=environment(daemon.socket_path)
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().endswith(b"slow\n")
        process.kill()
    assert daemon.requests[0].query == {"follow": "true"}


def test_logs_json_is_one_object_a_line(daemon: FakeDaemon) -> None:
    """With and without `-f`: the same objects, for the same programs."""
    daemon.items("/logs", [RECORD, RECORD])
    lines = llmctl(daemon.socket_path, "logs", "--json").stdout.splitlines()
    assert [json.loads(line) for line in lines] == [RECORD, RECORD]
    daemon.stream("GET", "/logs", [("log", RECORD)])
    assert json.loads(llmctl(daemon.socket_path, "logs", "-f", "--json").stdout) == RECORD


def test_logs_cannot_steer_the_terminal(daemon: FakeDaemon) -> None:
    """What a worker wrote is shown without its control characters, in colours of ours."""
    daemon.items("/logs", [{**RECORD, "message": "\x1b[2Jgone", "level": "error"}])
    with TerminalRun(daemon.socket_path, "logs") as run:
        assert run.wait() == 0
    assert "\x1b[2J" not in run.raw
    assert "\x1b[31merror" in run.raw


def test_events_prints_one_line_for_each_change(daemon: FakeDaemon) -> None:
    """Models, jobs and the daemon itself; the end of the stream is told."""
    sent = [
        ("runtime", {"time": fake.START, "kind": "runtime", "runtime": fake.runtime("m", state="error", error="bad")}),
        ("job", {"time": fake.START, "kind": "job", "job": fake.job()}),
        ("daemon", {"time": fake.START, "kind": "daemon", "message": "draining"}),
    ]
    daemon.stream("GET", "/events", sent)
    ended = llmctl(daemon.socket_path, "events")
    assert ended.stdout.splitlines() == [
        "12:00:00.000  runtime  light/m  error  bad",
        "12:00:00.000  job      job_01  load  light  running  25%",
        "12:00:00.000  daemon   draining",
    ]
    assert ended.code == 1
    assert "ended the stream" in ended.stderr


@pytest.mark.parametrize(
    ("health", "status", "exit_code"), [("healthy", 200, 0), ("degraded", 200, 0), ("unhealthy", 503, 1)]
)
def test_health_exit_code(daemon: FakeDaemon, health: str, status: int, exit_code: int) -> None:
    """Only unhealthy is a failure, and its 503 is an answer like the others."""
    answer = {"status": health, "timestamp": fake.START, "reasons": ["because"]}
    daemon.answer("GET", "/health", answer, status=status)
    ended = llmctl(daemon.socket_path, "health")
    assert (ended.code, ended.stdout) == (exit_code, f"{health}\n  because\n")
    ended = llmctl(daemon.socket_path, "health", "--json")
    assert (ended.code, json.loads(ended.stdout)) == (exit_code, answer)


@pytest.mark.parametrize(("address", "port"), [("http://127.0.0.1:8123", "8123"), ("http://[::1]:9", "9")])
def test_port_prints_the_number_alone(daemon: FakeDaemon, address: str, port: str) -> None:
    """For `$(llmctl port)`."""
    daemon.answer("GET", "/llm/status", fake.daemon_status(address=address))
    assert llmctl(daemon.socket_path, "port").stdout == f"{port}\n"


def test_port_fails_while_none_is_bound(daemon: FakeDaemon) -> None:
    """Nothing on stdout that a script could take for a port."""
    daemon.answer("GET", "/llm/status", fake.daemon_status(address=""))
    ended = llmctl(daemon.socket_path, "port")
    assert (ended.code, ended.stdout) == (1, "")


VALUES = [
    {"path": "server.port", "value": 8080, "layer": "environment", "origin": "PORT"},
    {"path": "models.light.path", "value": "/models/a b.gguf", "layer": "file", "origin": "config.yaml:14"},
    {"path": "server.host", "value": "127.0.0.1", "layer": "default", "origin": "default"},
]


def test_config_show_prints_values(daemon: FakeDaemon) -> None:
    """A value on each line; with `--origin` who set it."""
    daemon.items("/config", VALUES)
    assert llmctl(daemon.socket_path, "config", "show").stdout.splitlines()[:2] == [
        "server.port: 8080",
        'models.light.path: "/models/a b.gguf"',
    ]
    rows = llmctl(daemon.socket_path, "config", "show", "--origin").stdout.splitlines()
    assert rows[1].split() == ["server.port", "8080", "environment", "PORT"]
    assert rows[2].endswith("config.yaml:14")


@pytest.mark.parametrize("action", [("check", "some.yaml"), ("path",), ("init", "new.yaml")], ids=" ".join)
def test_config_without_a_daemon_runs_llmvisor_itself(tmp_path: Path, action: tuple[str, ...]) -> None:
    """`check`, `path` and `init` are `python -m llmvisor config …`: its output, and its exit code."""
    package = tmp_path / "stand-in" / "llmvisor"
    package.mkdir(parents=True)
    # Put before the real one, whose modules stay within reach; only the program is another.
    (package / "__init__.py").write_text(
        "import pkgutil\n__path__ = pkgutil.extend_path(__path__, __name__)\n__version__ = '0'\n"
    )
    (package / "__main__.py").write_text(
        "import sys\nprint(*sys.argv[1:])\nprint('a.yaml:3: no', file=sys.stderr)\nsys.exit(1)\n"
    )
    ended = llmctl(tmp_path / "absent", "config", *action, env={"PYTHONPATH": str(package.parent)})
    assert ended.code == 1
    assert ended.stdout == f"config {' '.join(action)}\n"
    assert "a.yaml:3: no" in ended.stderr


def test_shutdown_asks_and_returns(daemon: FakeDaemon) -> None:
    """Without `--wait` it is enough that the daemon was asked."""
    daemon.answer("GET", "/llm/status", fake.daemon_status())
    daemon.answer("POST", "/shutdown", {}, status=202)
    ended = llmctl(daemon.socket_path, "shutdown")
    assert (ended.code, ended.stdout) == (0, "llmvisor (pid 4200) is stopping\n")
    assert daemon.asked("POST", "/shutdown")[0].content_type == "application/json"


def test_shutdown_waits_until_the_process_is_gone(daemon: FakeDaemon) -> None:
    """1. It is asked to stop. 2. Its socket goes, its process lives on. 3. It ends. Result: then it is done."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        daemon.answer("GET", "/llm/status", fake.daemon_status(pid=other.pid))
        daemon.answer("POST", "/shutdown", {})
        with subprocess.Popen(
            command("shutdown", "--wait"), stdout=subprocess.PIPE, env=environment(daemon.socket_path)
        ) as process:
            while not daemon.asked("POST", "/shutdown"):
                assert process.poll() is None
            daemon.close()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)
            assert other.stdin is not None
            other.stdin.close()
            other.wait(timeout=30)
            stdout, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert stdout.endswith(b"has stopped\n")


def test_shutdown_gives_up_after_its_timeout(daemon: FakeDaemon) -> None:
    """A daemon that does not end is exit code 5."""
    daemon.answer("GET", "/llm/status", fake.daemon_status())
    daemon.answer("GET", "/health", {"status": "unhealthy", "timestamp": fake.START}, status=503)
    daemon.answer("POST", "/shutdown", {})
    ended = llmctl(daemon.socket_path, "shutdown", "--wait", "--timeout", "0.3")
    assert ended.code == 5
    assert "still runs" in ended.stderr


def upgrade(state: str, completed: int = 0, reason: str | None = None) -> dict[str, object]:
    """An UpgradeStatus of the first attempt."""
    return {"state": state, "attempts": 1, "completed": completed, "reason": reason}


def test_restart_daemon_waits_until_the_new_program_serves(daemon: FakeDaemon) -> None:
    """It asks with its bound, and says that it is done."""
    daemon.answer("POST", "/restart", upgrade("checking"), status=202)
    daemon.answer("GET", "/llm/status", fake.daemon_status(upgrade=upgrade("none", 1)))
    ended = llmctl(daemon.socket_path, "restart-daemon", "--within", "5", "--force")
    assert (ended.code, ended.stdout) == (0, "llmvisor runs its program anew; the models stayed loaded\n")
    assert json.loads(daemon.asked("POST", "/restart")[0].body) == {"timeout_seconds": 5.0, "force": True}


def test_restart_daemon_tells_why_the_old_program_goes_on(daemon: FakeDaemon) -> None:
    """Exit code 1, whatever the reason holds."""
    daemon.answer("POST", "/restart", upgrade("checking"), status=202)
    daemon.answer("GET", "/llm/status", fake.daemon_status(upgrade=upgrade("failed", 0, "no\x1b[31m way")))
    ended = llmctl(daemon.socket_path, "restart-daemon")
    assert (ended.code, ended.stdout) == (1, "")
    assert "goes on with its old program: no[31m way" in ended.stderr


def test_restart_daemon_gives_up_waiting_after_its_timeout(daemon: FakeDaemon) -> None:
    """Exit code 5, after it has told what is waited for; the upgrade goes on. With `--no-wait` it does not wait."""
    daemon.answer("POST", "/restart", upgrade("checking"), status=202)
    daemon.answer("GET", "/llm/status", fake.daemon_status(upgrade=upgrade("waiting", 0, "light is loading")))
    ended = llmctl(daemon.socket_path, "restart-daemon", "--timeout", "0.3")
    assert ended.code == 5
    assert ended.stderr.count("waiting: light is loading") == 1
    assert llmctl(daemon.socket_path, "restart-daemon", "--no-wait").code == 0
    assert "upgrading: light is loading" in llmctl(daemon.socket_path, "status").stdout
