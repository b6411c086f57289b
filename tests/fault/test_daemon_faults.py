"""The daemon itself: killed, started twice, stopped in the middle of things."""

from __future__ import annotations

import json
import os
import signal
import socket

import psutil
import pytest
from tests.support.daemon import Daemon, alive, mock_model, stream, text_of
from tests.support.leaks import no_leaks
from tests.support.polling import eventually_sync

MODELS = {"slow": mock_model(token_delay_ms=20), "other": mock_model(token_delay_ms=20)}


@pytest.mark.parametrize("fault", ["", "spin", "stop", "hang"])
def test_no_survivors_after_sigkill_of_the_daemon(fault: str) -> None:
    """1. Two workers run, one of them healthy, spinning with the GIL held, stopped or asleep. 2. The daemon gets
    SIGKILL. Result: no process of it is left within seconds, and the next start serves, its leftovers cleared."""
    with no_leaks(), Daemon({"models": MODELS}) as daemon:
        assert daemon.complete("other", max_tokens=1)[0] == 200
        prompt = f"[[failpoint: generate=2*token->{fault}]]" if fault else "hello"
        with stream(daemon, "slow", prompt, max_tokens=1000) as client:
            client.next_event()
            family = daemon.descendants()
            assert len(family) == 2
            daemon.signal(signal.SIGKILL)
            daemon.wait()
            eventually_sync(lambda: not [p for p in family if alive(p.pid)], 5)
        assert daemon.socket_path.exists()
        daemon.port_file.unlink()
        daemon.start()
        assert daemon.complete("slow", max_tokens=1)[0] == 200


def test_second_daemon_names_the_first_and_leaves_it_alone() -> None:
    """Started twice on one control socket: the second says who holds it and exits 1; the first serves on."""
    with no_leaks(), Daemon({"models": MODELS}) as daemon:
        first = daemon.process
        daemon.spawn()
        assert daemon.wait() == 1
        assert f"pid {first.pid}" in daemon.console()  # pyright: ignore[reportOptionalMemberAccess]
        assert str(daemon.socket_path) in daemon.console()
        daemon.process = first
        assert daemon.complete("slow", max_tokens=1)[0] == 200
        assert daemon.control("GET", "/llm/status")[0] == 200


def test_taken_port_is_told_with_its_holder() -> None:
    """The message names the port, who has it and what to do; nothing is left behind."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with no_leaks():
            daemon = Daemon({"models": MODELS, "server": {"port": port}})
            daemon.spawn()
            assert daemon.wait() == 1
            assert f"port {port} on 127.0.0.1 is taken" in daemon.console()
            assert f"pid {os.getpid()}" in daemon.console()
            assert not daemon.socket_path.exists()
            daemon.__exit__()


def test_socket_path_that_is_too_long_is_refused() -> None:
    """A wrong configuration exits 78 and says where."""
    daemon = Daemon({"models": MODELS, "control": {"socket": "/tmp/" + "x" * 120}})
    daemon.spawn()
    assert daemon.wait() == 78
    assert "control.socket" in daemon.console()
    daemon.__exit__()


def test_sigterm_lets_streams_finish_and_then_exits() -> None:
    """1. A request streams. 2. SIGTERM. Result: new connections are refused, the stream ends whole, exit 0; the port
    file, the socket and the workers are gone."""
    with no_leaks(), Daemon({"models": MODELS}) as daemon:
        with stream(daemon, "slow", max_tokens=60) as client:
            client.next_event()
            port, family = daemon.port, daemon.descendants()
            daemon.signal(signal.SIGTERM)
            eventually_sync(lambda: _refused(port), 5)
            assert list(client.events())[-1] == "[DONE]"
        assert daemon.wait() == 0
        assert not daemon.port_file.exists()
        assert not daemon.socket_path.exists()
        assert not [p for p in family if alive(p.pid)]


def test_worker_that_is_killed_while_the_daemon_drains_is_a_pause() -> None:
    """1. A request streams. 2. SIGTERM. 3. Its worker gets SIGKILL, twice. Result: the stream ends whole within
    `drain_timeout`, and the daemon with exit 0, nothing left behind."""
    with no_leaks(), Daemon({"models": MODELS}) as daemon:
        alone = daemon.complete("slow", max_tokens=60)[1]["choices"][0]["text"]
        with stream(daemon, "slow", max_tokens=60) as client:
            events = [client.next_event()]
            pids = [daemon.worker_pid("slow")]
            daemon.signal(signal.SIGTERM)
            eventually_sync(lambda: daemon.runtime("slow")["state"] == "draining", 5)
            os.kill(pids[0], signal.SIGKILL)
            eventually_sync(lambda: daemon.runtime("slow")["pid"] not in {None, *pids}, 10)
            pids.append(daemon.runtime("slow")["pid"])
            events += [client.next_event() for _ in range(20)]
            os.kill(pids[1], signal.SIGKILL)
            events += list(client.events())
        assert events[-1] == "[DONE]"
        assert text_of(events) == alone
        assert daemon.wait() == 0


def test_drain_is_bounded_and_ends_streams_with_an_error_event() -> None:
    """What is still in flight after `drain_timeout` gets an error event."""
    with no_leaks(), Daemon({"models": MODELS, "server": {"drain_timeout": 0.3}}) as daemon:
        with stream(daemon, "slow", max_tokens=5000) as client:
            client.next_event()
            daemon.signal(signal.SIGTERM)
            assert json.loads(list(client.events())[-1])["error"]["code"] == "shutting_down"
        assert daemon.wait() == 0


def test_second_sigterm_is_fast() -> None:
    """A drain of 600 s is cut short by asking again."""
    with no_leaks(), Daemon({"models": MODELS, "server": {"drain_timeout": 600}}) as daemon:
        with stream(daemon, "slow", "[[failpoint: generate=2*token->hang]]", max_tokens=5000) as client:
            client.next_event()
            daemon.signal(signal.SIGTERM)
            eventually_sync(lambda: "stopping" in daemon.console(), 5)
            daemon.signal(signal.SIGTERM)
            assert json.loads(list(client.events())[-1])["error"]["code"] == "shutting_down"
        assert daemon.wait(15) == 0


def test_shutdown_during_a_failing_restart_loop_wins() -> None:
    """A model that crashes at each start does not keep the daemon from ending."""
    models = {"looping": mock_model(failpoints="load=exit(1)", preload=True, restart={"max": 1000, "backoff": [0, 0]})}
    with no_leaks(), Daemon({"models": models}) as daemon:
        eventually_sync(lambda: daemon.runtime("looping")["restarts"] > 2, 20)
        daemon.signal(signal.SIGTERM)
        assert daemon.wait(10) == 0


def test_sigterm_during_the_start_ends_in_order() -> None:
    """1. The daemon starts. 2. SIGTERM as soon as its socket is there. Result: exit 0, and nothing is left."""
    models = {"slow": mock_model(load_seconds=60, preload=True)}
    with no_leaks(), Daemon({"models": models}) as daemon:
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        daemon.spawn()
        eventually_sync(lambda: daemon.socket_path.exists() or not daemon.running, 20)
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert not daemon.port_file.exists()
        assert not daemon.socket_path.exists()


@pytest.mark.parametrize("path", ["/events", "/logs?follow=true"])
def test_followers_are_told_the_end(path: str) -> None:
    """Who follows events or the log gets an answer that ends whole; it had been cut off after a wait of seconds."""
    with no_leaks(), Daemon({"models": MODELS}) as daemon:
        connection = daemon.control_connection()
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.readline() == b": open\n"
        daemon.signal(signal.SIGTERM)
        answer.read()  # raises where the end is missing
        connection.close()
        assert daemon.wait() == 0


def test_sighup_without_a_change_says_so() -> None:
    """It does not end the daemon, as it would by default."""
    with no_leaks(), Daemon({"models": MODELS}) as daemon:
        daemon.signal(signal.SIGHUP)
        eventually_sync(lambda: "nothing changed" in daemon.console(), 5)
        assert daemon.request("GET", "/livez")[0] == 200


def test_daemon_without_requests_ends_by_itself() -> None:
    """`shutdown_timeout` counts requests alone: status and health keep nothing alive."""
    with no_leaks(), Daemon({"models": MODELS, "server": {"shutdown_timeout": 0.5}}) as daemon:
        assert daemon.wait(15) == 0
        assert "no request" in daemon.console()


def test_daemon_holds_no_inference_library_and_workers_no_web_server() -> None:
    """Its memory map shows no llama.cpp, torch or MLX, also while a worker has one."""
    with no_leaks(), Daemon({"models": MODELS}) as daemon:
        assert daemon.complete("slow", max_tokens=1)[0] == 200
        daemon_maps = " ".join(m.path for m in psutil.Process(daemon.pid).memory_maps())
        worker_maps = " ".join(m.path for m in psutil.Process(daemon.worker_pid("slow")).memory_maps())
        assert not [name for name in ("llama", "ggml", "torch", "mlx", "numpy") if name in daemon_maps]
        assert "uvloop" in daemon_maps
        assert not [name for name in ("aiohttp", "uvloop") if name in worker_maps]


def _refused(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex(("127.0.0.1", port)) != 0
