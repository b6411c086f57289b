"""A daemon that is absent, refuses, or talks nonsense: llmctl gives a clear message and the right exit code."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import fake_daemon as fake
from tests.support.fake_daemon import FakeDaemon
from tests.support.llmctl_process import command, environment, llmctl

from llmctl.client import Client
from llmctl.errors import CtlError, NotRunning

COMMANDS = (
    ("status",),
    ("models",),
    ("load", "light"),
    ("run", "light", "hi"),
    ("chat",),
    ("logs",),
    ("logs", "-f"),
    ("events",),
    ("jobs",),
    ("jobs", "watch"),
    ("jobs", "prune"),
    ("install", "starter"),
    ("import", "."),
    ("update", "light"),
    ("update", "--all"),
    ("delete", "light", "--yes"),
    ("models", "rollback", "light"),
    ("search", "qwen"),
    ("usage",),
    ("cache",),
    ("cache", "clear"),
    ("bench", "light"),
    ("port",),
    ("health",),
    ("config", "show"),
    ("shutdown",),
)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path / "s") as daemon:
        yield daemon


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_no_daemon_gives_the_command_that_starts_it(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Exit code 3, and how to go on."""
    ended = llmctl(tmp_path / "absent", *arguments)
    assert ended.code == 3
    assert "the daemon is not running" in ended.stderr
    assert "start it with: llmctl start" in ended.stderr


def test_a_socket_that_was_left_over_counts_as_no_daemon(tmp_path: Path) -> None:
    """A socket file on which nobody listens."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "s"))
    assert llmctl(tmp_path / "s", "status").code == 3


def test_socket_option_wins_over_the_environment(daemon: FakeDaemon, tmp_path: Path) -> None:
    """`--socket` before or after the command, then $LLMVISOR_SOCKET."""
    daemon.answer("GET", "/llm/status", fake.daemon_status())
    chosen = ("--socket", str(daemon.socket_path))
    assert llmctl(tmp_path / "absent", "status", *chosen).code == 0
    assert llmctl(tmp_path / "absent", *chosen, "status").code == 0


def test_a_path_too_long_for_a_socket_is_told(tmp_path: Path) -> None:
    """The platform's limit is an error of one line."""
    ended = llmctl(tmp_path / ("x" * 200), "status")
    assert ended.code == 1
    assert "too long" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_an_unknown_model_is_exit_code_4(daemon: FakeDaemon) -> None:
    """The daemon's message, which lists the nearest names, on stderr."""
    message = "no model named 'lihgt'; did you mean: light?"
    daemon.error("POST", "/jobs", message, status=404, code="model_not_found")
    ended = llmctl(daemon.socket_path, "load", "lihgt")
    assert (ended.code, ended.stdout, ended.stderr) == (4, "", f"llmctl: {message}\n")


@pytest.mark.parametrize(("status", "exit_code"), [(400, 1), (409, 1), (500, 1), (503, 1), (504, 5)])
def test_a_refusal_is_told_in_the_daemons_words(daemon: FakeDaemon, status: int, exit_code: int) -> None:
    """Whatever the status, its message is what a person reads."""
    daemon.error("POST", "/jobs", "not now, because of this", status=status, code="x")
    ended = llmctl(daemon.socket_path, "load", "light")
    assert (ended.code, ended.stderr) == (exit_code, "llmctl: not now, because of this\n")


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x00\xff\xfe garbage \x80" * 40 + b"\r\n", id="binary"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="another-protocol"),
        pytest.param(b"HTTP/1.1 200 OK\r\n", id="cut-in-the-head"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{", id="cut-in-the-body"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n<html/>", id="no-json"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", id="wrong-type"),
        pytest.param(b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"a": "\xff\xfe"}  ', id="no-utf8"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000, id="deep"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nx", id="bad-chunk"),
        pytest.param(b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\nOops", id="error-without-json"),
        pytest.param(b"HTTP/1.1 200 " + b"x" * 100_000, id="endless-status"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 500, id="endless-head"),
    ],
)
@pytest.mark.parametrize("arguments", [("status",), ("run", "light", "hi"), ("events",)], ids=" ".join)
def test_nonsense_from_the_socket_is_one_clear_error(
    daemon: FakeDaemon, arguments: tuple[str, ...], answer: bytes
) -> None:
    """Exit code 1, a message, no traceback, and no hang."""
    daemon.raw("GET", "/llm/status", answer)
    daemon.raw("GET", "/events", answer)
    daemon.raw("POST", "/v1/chat/completions", answer)
    ended = llmctl(daemon.socket_path, *arguments)
    assert ended.code == 1
    assert ended.stderr.startswith("llmctl: ")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("data", ["{", '{"kind": 5}', "\x00", "[" * 5000])
def test_nonsense_inside_a_stream_is_one_clear_error(daemon: FakeDaemon, data: str) -> None:
    """As above, for events that are none."""
    daemon.stream("GET", "/events", [("runtime", data)])
    ended = llmctl(daemon.socket_path, "events")
    assert ended.code == 1
    assert "makes no sense" in ended.stderr


def test_a_daemon_that_does_not_answer_is_exit_code_5(daemon: FakeDaemon) -> None:
    """`--timeout` bounds the wait."""
    daemon.silent("GET", "/llm/status")
    ended = llmctl(daemon.socket_path, "status", "--timeout", "0.2")
    assert ended.code == 5
    assert "no answer" in ended.stderr


def test_an_interrupt_is_exit_code_130(daemon: FakeDaemon) -> None:
    """SIGINT while it waits: no traceback."""
    daemon.stream(
        "GET", "/events", [("daemon", {"time": fake.START, "kind": "daemon", "message": "up"})], hold_open=True
    )
    with subprocess.Popen(
        command("events"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(daemon.socket_path)
    ) as process:
        assert process.stdout is not None
        assert b"up" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr.strip() == b""


@pytest.mark.parametrize("arguments", [("logs", "-f"), ("models",)], ids=" ".join)
def test_a_reader_that_leaves_is_no_error(daemon: FakeDaemon, arguments: tuple[str, ...]) -> None:
    """`llmctl logs -f | head -1`: quiet, exit code 0."""
    record = {"time": fake.START, "level": "info", "module": "app", "message": "x" * 200}
    daemon.stream("GET", "/logs", [("log", record)] * 5000)
    daemon.items("/llm/models", [fake.model(f"m{number}") for number in range(5000)])
    reader, writer = os.pipe()
    with subprocess.Popen(
        command(*arguments), stdout=writer, stderr=subprocess.PIPE, env=environment(daemon.socket_path)
    ) as process:
        os.close(writer)
        assert os.read(reader, 10)
        os.close(reader)
        _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (0, b"")


def test_closed_output_is_no_error(daemon: FakeDaemon) -> None:
    """`llmctl status >&-`: done as asked, with nobody to tell."""
    daemon.answer("GET", "/llm/status", fake.daemon_status())
    script = f"{' '.join(command('status'))} >&- 2>&- <&-"
    ended = subprocess.run(["/bin/sh", "-c", script], env=environment(daemon.socket_path), check=False, timeout=30)
    assert ended.returncode == 0
    assert len(daemon.requests) == 1


def test_faulty_answers_leave_no_file_descriptor_open(daemon: FakeDaemon) -> None:
    """Every way out of a call and of a stream closes its connection."""
    daemon.raw("GET", "/llm/status", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{")
    daemon.stream("GET", "/events", [("runtime", "{}")] * 3, hold_open=True)
    client = Client(daemon.socket_path, timeout_seconds=10)
    before = len(os.listdir("/dev/fd"))
    for _ in range(20):
        with pytest.raises(CtlError):
            client.get("/llm/status")
        with client.stream("GET", "/events") as events:
            assert next(events).data == b"{}"
        with pytest.raises(CtlError):
            client.get("/nowhere")
    daemon.close()
    with pytest.raises(NotRunning):
        client.get("/llm/status")
    assert len(os.listdir("/dev/fd")) <= before


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nope",),
        ("load",),
        ("load", "a", "b"),
        ("logs", "--level", "loud"),
        ("status", "--timeout", "-1"),
        ("jobs", "cancel"),
        ("jobs", "list", "job_01"),
        ("models", "rollback"),
        ("models", "list", "light"),
        ("models", "--limit", "0"),
        ("install",),
        ("update",),
        ("bench", "light", "-c", "none"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """On stderr, with where help is; nothing on stdout."""
    ended = llmctl(tmp_path / "absent", *arguments)
    assert (ended.code, ended.stdout) == (2, "")
    assert "llmctl" in ended.stderr


def test_an_argument_that_is_no_text_is_wrong_usage(daemon: FakeDaemon) -> None:
    """Bytes that are not UTF-8 cannot be a model's name."""
    ended = subprocess.run(
        [*command("load"), b"\xff\xfe"],
        capture_output=True,
        env=environment(daemon.socket_path),
        check=False,
        timeout=30,
    )
    assert ended.returncode == 2
    assert b"Traceback" not in ended.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's file that is always full")
def test_a_full_disk_is_told_and_changes_no_exit_code(daemon: FakeDaemon) -> None:
    """`llmctl models > list`: a message, and no traceback. Where the message is lost, the exit code says the same."""
    daemon.items("/llm/models", [fake.model()])
    env = environment(daemon.socket_path)
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(command("models"), env=env, check=False, stdout=full, stderr=subprocess.PIPE)
        silent = subprocess.run(command("show", "absent"), env=env, check=False, stderr=full)
    assert ended.returncode == 1
    assert ended.stderr.decode() == "llmctl: what was asked for cannot be written: No space left on device\n"
    assert silent.returncode == 4
