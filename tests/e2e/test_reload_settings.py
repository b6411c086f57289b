"""What is no model's: sockets, the log, the cache, allowed hosts and the like, changed while the daemon serves."""

from __future__ import annotations

import http.client
import json
import os
import socket
import stat
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.support.daemon import Daemon, EventsClient, mock_model, text_of
from tests.support.polling import eventually_sync

Json = dict[str, Any]

MODELS: Json = {"mock": mock_model(token_delay_ms=20, reply_tokens=40), "other": mock_model(reply_tokens=3)}


@pytest.fixture
def daemon() -> Generator[Daemon]:
    with Daemon({"models": MODELS}) as running:
        yield running


def reload(daemon: Daemon, **sections: Json) -> Json:
    daemon.reconfigure({"models": MODELS, **sections})
    status, report = daemon.control("POST", "/config/reload")
    assert status == 200, report
    return report


def eventually(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    eventually_sync(lambda: bool(condition()), seconds, what)


def connects(port: int, host: str = "127.0.0.1") -> bool:
    try:
        socket.create_connection((host, port), 2).close()
    except OSError:
        return False
    return True


# ------------------------------------------------------------------------------------------------ sockets


def test_port_moves_while_a_stream_and_a_kept_connection_go_on(daemon: Daemon, unused_tcp_port: int) -> None:
    """The stream ends well, the connection takes another request, and new ones go to the new port alone."""
    old_port = daemon.port
    kept = http.client.HTTPConnection("127.0.0.1", old_port, timeout=30)
    kept.request("GET", "/livez")
    assert kept.getresponse().read()
    running = EventsClient(daemon, "/v1/completions", {"model": "mock", "prompt": "x", "max_tokens": 40})
    events = [running.next_event()]
    report = reload(daemon, server={"port": unused_tcp_port})
    assert [change["path"] for change in report["changed"]] == ["server.port"]
    assert daemon.port == unused_tcp_port
    assert daemon.complete("other")[0] == 200
    assert not connects(old_port)
    kept.request("GET", "/livez")
    assert kept.getresponse().status == 200
    events += running.events()
    assert len(text_of(events).split()) == 40
    running.close()
    kept.close()
    status = daemon.control("GET", "/llm/status")[1]
    assert status["address"] == f"http://127.0.0.1:{unused_tcp_port}"


def test_host_changes_on_the_same_port(unused_tcp_port: int) -> None:
    """Both sockets want the same port for a moment; a request that comes meanwhile is answered by one of them."""
    daemon = Daemon({"models": MODELS, "server": {"port": unused_tcp_port}})
    try:
        daemon.start("--insecure-no-auth")
        for host, address in (("0.0.0.0", "0.0.0.0"), ("127.0.0.1", "127.0.0.1"), ("localhost", "127.0.0.1")):
            reload(daemon, server={"port": unused_tcp_port, "host": host})
            bound = [each.laddr.ip for each in psutil.Process(daemon.pid).net_connections() if each.status == "LISTEN"]
            assert bound == [address]
            assert daemon.complete("other")[0] == 200
    finally:
        daemon.__exit__()


def test_public_address_without_a_key_is_refused(daemon: Daemon) -> None:
    """As at the start."""
    daemon.reconfigure({"models": MODELS, "server": {"host": "0.0.0.0"}})
    status, body = daemon.control("POST", "/config/reload")
    assert status == 400
    assert "server.host" in body["error"]["message"]


def test_port_file_moves(daemon: Daemon) -> None:
    """The new one is written, the old one is gone."""
    port, moved = daemon.port, daemon.folder / "somewhere" / "port"
    reload(daemon, server={"port_file": str(moved)})
    assert int(moved.read_text()) == port
    assert not daemon.port_file.exists()


def test_control_socket_moves_within_its_folder(daemon: Daemon) -> None:
    """The request that moved it is answered; the old path is gone; another daemon still finds the lock taken."""
    old = daemon.socket_path
    moved = old.with_name("moved.sock")
    reload(daemon, control={"socket": str(moved), "mode": "0660"})
    assert not old.exists()
    assert stat.S_IMODE(moved.stat().st_mode) == 0o660
    daemon.socket_path = moved
    assert daemon.control("GET", "/llm/status")[1]["socket"] == str(moved)
    daemon.control("POST", "/shutdown")
    assert daemon.wait(20) == 0
    assert not moved.exists()


def test_control_socket_moves_to_another_folder_unless_a_daemon_is_there(daemon: Daemon, tmp_path: Path) -> None:
    """That other daemon's socket is not touched."""
    folder = Path(os.path.relpath(daemon.folder / "else"))
    moved = daemon.folder / "else" / "control.sock"
    with Daemon({"models": MODELS}) as other:
        daemon.reconfigure({"models": MODELS, "control": {"socket": str(other.socket_path)}})
        status, body = daemon.control("POST", "/config/reload")
        assert (status, body["error"]["code"]) == (500, "reload_failed")
        assert "already running" in body["error"]["message"]
        assert other.control("GET", "/livez")[0] == 200
        assert daemon.control("GET", "/livez")[0] == 200
    report = reload(daemon, control={"socket": str(moved)})
    assert [wait["path"] for wait in report["waits"]] == ["control.socket"]
    daemon.socket_path = moved
    assert daemon.control("GET", "/livez")[0] == 200
    assert folder.is_dir()


def test_mode_of_the_control_socket_changes_in_place(daemon: Daemon) -> None:
    """The same socket, open to a group."""
    reload(daemon, control={"mode": "0660"})
    assert stat.S_IMODE(daemon.socket_path.stat().st_mode) == 0o660


# ------------------------------------------------------------------------------------------------ the rest


def test_log_moves_and_changes_its_level_and_form(daemon: Daemon) -> None:
    """Lines go to the new file from then on, of the new level and form, and no more to the old one."""
    moved = daemon.folder / "logs" / "new.log"
    eventually(daemon.log_file.exists, "what was logged at the start is written")
    reload(
        daemon, logging={"main": {"file": str(moved), "file_level": "info", "console_level": "error", "format": "json"}}
    )
    eventually(moved.exists, "the new file is there")
    size = daemon.log_file.stat().st_size
    daemon.complete("other")
    eventually(lambda: "loading" in moved.read_text(), "the model's lines are in it")
    assert {json.loads(line)["level"] for line in moved.read_text().splitlines()} <= {"info", "warning"}
    reload(
        daemon,
        logging={"main": {"file": str(moved), "file_level": "debug", "console_level": "error", "format": "json"}},
    )
    daemon.request("GET", "/v1/models")
    eventually(lambda: '"debug"' in moved.read_text(), "debug lines come, of what logged before as well")
    assert daemon.log_file.stat().st_size == size


def test_log_file_that_cannot_be_written_leaves_the_log_as_it_was(daemon: Daemon) -> None:
    """The reload fails, and says why."""
    daemon.reconfigure({"models": MODELS, "logging": {"main": {"file": "/proc/nowhere/main.log"}}})
    status, body = daemon.control("POST", "/config/reload")
    assert (status, body["error"]["code"]) == (500, "reload_failed")
    # The log is written a moment later, its first line too.
    eventually(lambda: daemon.log_file.exists() and "not reloaded" in daemon.log_file.read_text(), "the old log has it")


def test_allowed_hosts_and_body_size_change(daemon: Daemon) -> None:
    """For connections that are open already as well."""
    kept = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)

    def ask(body: bytes = b"{}") -> int:
        kept.request("POST", "/tokenize", body, {"Host": "name.example", "Content-Type": "application/json"})
        answer = kept.getresponse()
        answer.read()
        return answer.status

    assert ask() == 403
    reload(daemon, server={"allowed_hosts": ["name.example"], "max_body_mb": 1})
    assert ask() == 400
    assert ask(b" " * (1024 * 1024 + 1)) == 413
    reload(daemon)
    assert ask() == 403
    kept.close()


def test_response_cache_is_switched_on_and_off(daemon: Daemon) -> None:
    """The same question is answered from it, and not any more."""

    def asked() -> str | None:
        connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
        body = json.dumps({"model": "other", "prompt": "same", "temperature": 0})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.headers.get("X-LLMVISOR-Cache")

    assert asked() != "hit"
    assert asked() != "hit"
    reload(daemon, cache={"enabled": True, "persist_to_disk": True, "dir": str(daemon.folder / "answers")})
    assert [asked(), asked()] == ["miss", "hit"]
    eventually(lambda: list((daemon.folder / "answers").glob("*")), "it is on disk as well")
    reload(daemon, cache={"enabled": False})
    assert asked() != "hit"
    reload(daemon, cache={"enabled": True, "persist_to_disk": True, "dir": str(daemon.folder / "answers")})
    assert asked() == "hit", "what is on disk is there again"


def test_memory_limit_and_general_sampling_change(daemon: Daemon) -> None:
    """The bound is the new one; models that set no `max_tokens` of their own have the general one."""
    reload(daemon, memory={"limit": "512MiB"}, llm={"max_tokens": 5})
    assert daemon.control("GET", "/llm/status")[1]["memory_limit"] == 512 * 1024**2
    body = {"model": "mock", "messages": [{"role": "user", "content": "x"}]}
    assert daemon.request("POST", "/v1/chat/completions", body)[1]["usage"]["completion_tokens"] == 5


def test_what_waits_for_a_restart_is_told_as_long_as_it_does(daemon: Daemon) -> None:
    """In the answer, and in the status after later reloads."""
    elsewhere = {"dir": str(daemon.folder / "elsewhere")}
    assert [wait["path"] for wait in reload(daemon, storage=elsewhere)["waits"]] == ["storage.dir"]
    reload(daemon, storage=elsewhere, llm={"max_tokens": 5})
    status = daemon.control("GET", "/llm/status")[1]["config"]
    assert [wait["path"] for wait in status["waits"]] == ["storage.dir"]
    reload(daemon)
    assert "waits" not in daemon.control("GET", "/llm/status")[1]["config"]


def test_each_reload_is_one_event(daemon: Daemon) -> None:
    """Of the kind `config`, with what changed; a refused one too."""
    connection = daemon.control_connection()
    connection.request("GET", "/events")
    answer = connection.getresponse()
    reload(daemon, llm={"max_tokens": 5})
    daemon.config_file.write_text("nonsense")
    assert daemon.control("POST", "/config/reload")[0] == 400
    found: list[Json] = []
    while len(found) < 2:
        line = answer.readline()
        if line.startswith(b"data: ") and (event := json.loads(line[6:])).get("kind") == "config":
            found.append(event["config"])
    connection.close()
    assert [event["outcome"] for event in found] == ["applied", "refused"]
    assert "llm.max_tokens" in found[0]["summary"]
    assert found[1]["problems"]
