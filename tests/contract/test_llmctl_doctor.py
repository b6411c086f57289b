"""`llmctl doctor`: what it finds, and that each problem comes with its fix."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import fake_daemon as fake
from tests.support.fake_daemon import FakeDaemon
from tests.support.llmctl_process import llmctl

from llmctl import doctor, doctor_daemon
from llmctl.client import Client
from llmctl.doctor import Finding, Place
from llmvisor.control.paths import starter_model_path
from llmvisor_runtimes.probe import probe


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def daemon(run_dir: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(run_dir / "s") as daemon:
        daemon.socket_path.chmod(0o600)
        daemon.answer("GET", "/llm/status", fake.daemon_status())
        yield daemon


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction] - pytest calls it
    """A folder without a `.port` or `config.yaml` of somebody."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LLMVISOR_CONFIG", raising=False)
    monkeypatch.setenv("PORT", "auto")


def daemon_findings(socket_path: Path) -> dict[str, Finding]:
    """By subject; of several on one subject the worst."""
    place = Place(environ={}, client=Client(socket_path, timeout_seconds=10))
    findings = sorted(doctor_daemon.daemon_checks(place), key=lambda finding: finding.level == "problem")
    return {finding.subject: finding for finding in findings}


def free_port() -> int:
    with socket.socket() as probe_socket:
        probe_socket.bind(("127.0.0.1", 0))
        return probe_socket.getsockname()[1]


def test_doctor_reports_every_part(daemon: FakeDaemon, tmp_path: Path) -> None:
    """The whole run: every subject has a line, and the exit code is 1 as long as there is a problem."""
    environ = {"LLMVISOR_DATA_DIR": str(tmp_path / "data")}
    ended = llmctl(daemon.socket_path, "doctor", "--json", env=environ, cwd=tmp_path / "cwd")
    report = json.loads(ended.stdout)
    subjects = {finding["subject"] for finding in report["data"]}
    assert {"Python", "backend mock", "compiler", "GPU", "memory", "disk", "starter model", "run folder"} <= subjects
    assert {"daemon", "port"} <= subjects
    problems = [finding for finding in report["data"] if finding["level"] == "problem"]
    assert "starter model" in [finding["subject"] for finding in problems]
    assert all(finding["fix"] for finding in problems)
    assert ended.code == 1
    shown = llmctl(daemon.socket_path, "doctor", env=environ, cwd=tmp_path / "cwd")
    assert shown.code == 1
    assert "fix: make model" in shown.stdout


def test_a_daemon_that_is_well_gives_no_problem(daemon: FakeDaemon) -> None:
    """Folder, socket, daemon, port and health are all said to be fine."""
    findings = daemon_findings(daemon.socket_path)
    assert {finding.level for finding in findings.values()} == {"ok"}
    assert "pid 4200" in findings["daemon"].text
    assert findings["port"].text == "http://127.0.0.1:8000"


def test_no_daemon_is_worth_a_note(run_dir: Path) -> None:
    """Before the first start nothing is wrong."""
    findings = daemon_findings(run_dir / "absent")
    assert findings["daemon"].level == "note"
    assert [finding for finding in findings.values() if finding.level == "problem"] == []


def test_a_stale_socket_is_a_problem(run_dir: Path) -> None:
    """A socket file on which nobody listens."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(run_dir / "s"))
    (run_dir / "s").chmod(0o600)
    assert daemon_findings(run_dir / "s")["daemon"].level == "problem"


def test_something_else_on_the_socket_is_a_problem(daemon: FakeDaemon) -> None:
    """A socket that does not speak llmvisor's HTTP."""
    daemon.raw("GET", "/llm/status", b"SSH-2.0\r\n")
    finding = daemon_findings(daemon.socket_path)["daemon"]
    assert finding.level == "problem"
    assert "does not speak HTTP" in finding.text


@pytest.mark.parametrize(("mode", "fix"), [(0o755, "chmod 700"), (0o777, "a folder of its own")])
def test_an_open_run_folder_is_a_problem(run_dir: Path, mode: int, fix: str) -> None:
    """A shared folder is never to be closed to others: the socket has to go elsewhere."""
    run_dir.chmod(mode)
    finding = daemon_findings(run_dir / "s")["run folder"]
    assert finding.level == "problem"
    assert finding.fix is not None
    assert fix in finding.fix


def test_an_open_socket_is_a_problem(daemon: FakeDaemon) -> None:
    """Everybody's socket is a way in for everybody."""
    daemon.socket_path.chmod(0o666)
    assert daemon_findings(daemon.socket_path)["socket"].fix == f"chmod 600 {daemon.socket_path}"


def test_a_lock_that_is_held_while_nobody_answers_is_a_problem(run_dir: Path) -> None:
    """A daemon that hangs or starts; without the lock held, a lock file is nothing."""
    lock = os.open(run_dir / "daemon.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        assert "lock" not in daemon_findings(run_dir / "s")
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert daemon_findings(run_dir / "s")["lock"].level == "problem"
    finally:
        os.close(lock)


def test_a_port_that_is_taken_names_its_holder(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By pid, as far as we may see it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("PORT", str(port))
        finding = daemon_findings(run_dir / "s")["port"]
    assert finding.level == "problem"
    assert f"{port} is taken by pid {os.getpid()}" in finding.text


def test_a_port_that_is_free_is_fine(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that the configuration file names."""
    port = free_port()
    monkeypatch.delenv("PORT")
    Path("config.yaml").write_text(f"server: {{port: {port}}}\n")
    findings = daemon_findings(run_dir / "s")
    assert findings["port"] == Finding("port", "ok", f"{port} is free")
    assert "config.yaml" in findings["configuration"].text


def test_a_configuration_that_cannot_be_used_is_a_problem(run_dir: Path) -> None:
    """The mistake itself is told."""
    Path("config.yaml").write_text("server: {prot: 1}\n")
    finding = daemon_findings(run_dir / "s")["configuration"]
    assert finding.level == "problem"
    assert "prot" in finding.text


def test_a_socket_that_is_configured_elsewhere_is_a_problem(run_dir: Path) -> None:
    """llmctl looks in one place, the daemon would listen in another."""
    Path("config.yaml").write_text(f"control: {{socket: {run_dir / 'other'}}}\n")
    finding = daemon_findings(run_dir / "s")["socket"]
    assert finding.fix == f'export LLMVISOR_SOCKET="{run_dir / "other"}"'


def test_a_port_file_of_a_daemon_that_is_gone_is_a_problem(run_dir: Path) -> None:
    """`.port` in this folder, and nobody listens there."""
    Path(".port").write_text(f"{free_port()}\n")
    finding = daemon_findings(run_dir / "s")["port file"]
    assert finding.level == "problem"
    assert finding.fix == f"rm {Path('.port').absolute()}"


def test_a_port_file_is_held_against_the_daemon(daemon: FakeDaemon) -> None:
    """The port that it has is fine, another one is not."""
    Path(".port").write_text("8000\n")
    assert daemon_findings(daemon.socket_path)["port file"].level == "ok"
    Path(".port").write_text("8001\n")
    assert daemon_findings(daemon.socket_path)["port file"].level == "problem"


def test_what_the_daemon_finds_wrong_is_a_problem(daemon: FakeDaemon) -> None:
    """Its reasons, and models that are down."""
    down = fake.runtime("m", state="unavailable", error="it crashed")
    status = fake.daemon_status(health="degraded", reasons=["m is unavailable"], runtimes=[down])
    daemon.answer("GET", "/llm/status", status)
    findings = daemon_findings(daemon.socket_path)
    assert findings["health"].text == "m is unavailable"
    assert "it crashed" in findings["model"].text


def test_starter_model_has_to_be_a_gguf(tmp_path: Path) -> None:
    """Absent, of another kind, and right."""
    environ = {"LLMVISOR_DATA_DIR": str(tmp_path), "HOME": str(tmp_path)}
    path = starter_model_path(environ)
    assert doctor.starter_model(environ).level == "problem"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"<html>not found</html>")
    assert "is no GGUF file" in doctor.starter_model(environ).text
    path.write_bytes(b"GGUF" + bytes(100))
    assert doctor.starter_model(environ).level == "ok"


def test_starter_model_is_not_needed_with_a_configuration(tmp_path: Path) -> None:
    """Then its absence is a note."""
    config = tmp_path / "config.yaml"
    config.write_text("models: {}\n")
    environ = {"LLMVISOR_DATA_DIR": str(tmp_path / "data"), "LLMVISOR_CONFIG": str(config)}
    assert doctor.starter_model(environ).level == "note"


def test_a_data_folder_that_cannot_be_made_is_looked_at_from_above(tmp_path: Path) -> None:
    """The disk is that of the nearest folder that exists."""
    environ = {"LLMVISOR_DATA_DIR": str(tmp_path / "not" / "yet")}
    assert doctor.nearest_existing(tmp_path / "not" / "yet") == tmp_path
    assert "free at" in doctor.disk(environ).text


@pytest.mark.parametrize(("text", "limit"), [("1073741824\n", 1073741824), ("max\n", None)])
def test_cgroup_limit_is_read(tmp_path: Path, text: str, limit: int | None) -> None:
    """In a container it is the memory that counts."""
    (tmp_path / "memory.max").write_text(text)
    assert doctor.cgroup_memory_max(tmp_path / "memory.max") == limit
    assert doctor.cgroup_memory_max(tmp_path / "absent") is None


def test_probe_of_an_unknown_backend_is_an_error() -> None:
    """Not registered is told, not raised."""
    assert probe("nope").error == "not registered"


def test_a_backend_that_crashes_on_import_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An engine that takes its process with it takes only the probe's."""
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'illegal instruction' >&2\nkill -9 $$\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    finding = doctor.backend("llamacpp")
    assert finding.level == "problem"
    assert "illegal instruction" in finding.text
    assert finding.fix is not None
    assert "llmvisor[llamacpp]" in finding.fix


def test_gpu_whose_driver_program_fails_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """nvidia-smi that cannot reach its driver; then one that can."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'no driver'; exit 9\n")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    findings = [finding for finding in doctor.gpus() if "nvidia" in finding.text]
    assert [finding.level for finding in findings] == ["problem"]
    program.write_text("#!/bin/sh\necho 'GPU X, 24564 MiB, 550.1'\n")
    assert next(doctor.gpus()).text == "GPU X, 24564 MiB, 550.1"


def test_sandbox_that_lacks_something_is_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is in force, what is missing and why, and what to do; a probe that says nothing is a problem."""
    program = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(program))
    for answer, level, said in (
        ('{"in_force":["no_new_privs","seccomp"],"missing":["landlock: this kernel has none"]}', "note", "landlock"),
        ('{"in_force":["no_new_privs","landlock 7","seccomp"]}', "ok", "landlock 7"),
        ("Killed", "problem", "cannot be tried"),
    ):
        program.write_text(f"#!/bin/sh\necho '{answer}'\n")
        program.chmod(0o700)
        finding = doctor.sandbox()
        assert (finding.level, said in finding.text) == (level, True), finding
        assert (finding.fix is None) == (level == "ok")


def test_model_without_a_sandbox_is_a_note(daemon: FakeDaemon) -> None:
    """Somebody turned it off: told with how to turn it on again."""
    free = fake.runtime("free", sandbox=None)
    daemon.answer("GET", "/llm/status", fake.daemon_status(runtimes=[free]))
    finding = daemon_findings(daemon.socket_path)["sandbox"]
    assert finding.level == "note"
    assert finding.fix == "llmctl config set models.free.sandbox auto"
