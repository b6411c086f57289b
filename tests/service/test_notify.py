"""What the service manager is told, and when its watchdog is fed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Generator
from pathlib import Path

import psutil
import pytest
from tests.support.daemon import Daemon, mock_model, stream
from tests.support.leaks import no_leaks
from tests.support.polling import eventually, eventually_sync
from tests.support.service_manager import Activated, NotifySocket, short_folder

from llmvisor.clock import SystemClock
from llmvisor.heartbeat import Heartbeat
from llmvisor.notify import Notifier, take_notifier

MODELS = {"slow": mock_model(token_delay_ms=20)}


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest) -> Generator[NotifySocket]:
    """systemd uses either kind of address."""
    folder = short_folder()
    address = str(folder / "notify") if request.param == "path" else f"@{folder.name}"
    with NotifySocket(address) as notify:
        yield notify
    (folder / "notify").unlink(missing_ok=True)
    folder.rmdir()


# ------------------------------------------------------------------------------------------------------ the daemon


def test_sd_notify_sequence(manager: NotifySocket) -> None:
    """READY once it accepts, a status that names what is loaded, the watchdog fed throughout also while it drains,
    STOPPING before anything ends, and nothing after that but the watchdog."""
    env = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "400000"}
    with no_leaks(), Daemon({"models": MODELS}, env=env) as daemon:
        eventually_sync(lambda: "READY" in manager.kinds)
        with stream(daemon, "slow", max_tokens=60) as client:
            client.next_event()
            status = f"STATUS={daemon.url}: slow busy (1 running)"
            eventually_sync(lambda: status in manager.messages)
            daemon.signal(signal.SIGTERM)
            eventually_sync(lambda: "STOPPING" in manager.kinds)
            fed = manager.count("WATCHDOG=1")
            assert list(client.events())[-1] == "[DONE]"
            assert manager.count("WATCHDOG=1") > fed
        assert daemon.wait() == 0
    assert manager.kinds == ["READY", "STOPPING"]
    stopping = next(message for message in manager.messages if message.startswith("STOPPING"))
    assert stopping == "STOPPING=1\nEXTEND_TIMEOUT_USEC=60000000"
    assert manager.count("WATCHDOG=1") > 4


def test_ready_is_told_by_a_daemon_that_accepts(manager: NotifySocket) -> None:
    """Whoever the manager starts next can connect at once."""
    with no_leaks(), Activated({"models": MODELS}, env={"NOTIFY_SOCKET": manager.address}) as daemon:
        daemon.spawn()
        eventually_sync(lambda: "READY" in manager.kinds, 20)
        assert int(daemon.port_file.read_text()) == daemon.port
        assert daemon.request("GET", "/livez")[0] == 200


def test_nothing_is_ready_that_cannot_start(manager: NotifySocket) -> None:
    """A wrong configuration, a port that is taken: the manager hears no READY, and sees the exit code."""
    env = {"NOTIFY_SOCKET": manager.address}
    with no_leaks(), socket.create_server(("127.0.0.1", 0)) as holder:
        for server, code in (({"port": "none"}, 78), ({"port": holder.getsockname()[1]}, 1)):
            daemon = Daemon({"models": MODELS, "server": server}, env=env)
            daemon.spawn()
            assert daemon.wait() == code
            daemon.__exit__()
    assert "READY" not in manager.kinds


def test_daemon_that_is_stopped_feeds_no_watchdog(manager: NotifySocket) -> None:
    """SIGSTOP stands for a loop that is blocked: the manager hears nothing until it goes on."""
    env = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "400000"}
    with no_leaks(), Daemon({"models": MODELS}, env={**env, "WATCHDOG_PID": "1"}) as daemon:
        assert daemon.request("GET", "/livez")[0] == 200
        assert not manager.count("WATCHDOG=1")
    with no_leaks(), Daemon({"models": MODELS}, env=env) as daemon:
        eventually_sync(lambda: manager.count("WATCHDOG=1") > 1)
        daemon.signal(signal.SIGSTOP)
        eventually_sync(lambda: psutil.Process(daemon.pid).status() == psutil.STATUS_STOPPED)
        fed = manager.count("WATCHDOG=1")
        time.sleep(0.6)  # longer than the manager would have waited: what is shown is that nothing comes
        assert manager.count("WATCHDOG=1") == fed
        daemon.signal(signal.SIGCONT)
        eventually_sync(lambda: manager.count("WATCHDOG=1") > fed)


# ------------------------------------------------------------------------------------------------- notifier, heartbeat


def test_variables_are_taken_out_of_the_environment() -> None:
    """No child can speak for the daemon; whoever executes it anew finds them in the notifier."""
    environ = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
    before = dict(environ)
    notifier = take_notifier(environ, clock=SystemClock())
    assert environ == {"HOME": "/"}
    assert notifier.variables == {name: before[name] for name in before if name != "HOME"}
    assert notifier.watchdog_seconds == 30


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({"WATCHDOG_USEC": "400000"}, 0.4),
        ({"WATCHDOG_USEC": "400000", "WATCHDOG_PID": "7"}, 0.4),
        ({"WATCHDOG_USEC": "400000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "often"}, None),
        ({}, None),
    ],
)
def test_watchdog_is_fed_where_it_is_meant_for_this_process(variables: dict[str, str], seconds: float | None) -> None:
    """$WATCHDOG_PID may name another one, whose environment this one has inherited."""
    assert Notifier(variables, pid=7).watchdog_seconds == seconds


def test_reload_is_told_with_the_time(manager: NotifySocket) -> None:
    """systemd matches the answer to its signal by the monotonic clock, in microseconds."""
    clock = SystemClock()
    notifier = Notifier({"NOTIFY_SOCKET": manager.address}, clock=clock)
    before = clock.monotonic()
    notifier.reloading()
    notifier.ready()
    told, ready = manager.messages
    kind, _, microseconds = told.partition("\nMONOTONIC_USEC=")
    assert (kind, ready) == ("RELOADING=1", "READY=1")
    assert before <= int(microseconds) / 1e6 + 1e-6 <= clock.monotonic() + 1e-6


def test_status_is_one_line_and_sent_once(manager: NotifySocket) -> None:
    """Whatever a model is called, no further message can be slipped in."""
    notifier = Notifier({"NOTIFY_SOCKET": manager.address})
    for _ in range(2):
        notifier.status("light\nREADY=1\n busy" + "x" * 1000)
    assert len(manager.messages) == 1
    assert manager.messages[0].startswith("STATUS=light READY=1 busyx")
    assert "\n" not in manager.messages[0]
    assert len(manager.messages[0]) < 600


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/at/all", "vsock:2:1", "@" + "x" * 200])
def test_manager_that_cannot_be_reached_stops_nothing(address: str) -> None:
    """Wrong, of another kind or gone: the daemon serves all the same."""
    with no_leaks():
        notifier = Notifier({"NOTIFY_SOCKET": address})
        notifier.ready()
        notifier.status("well")
        notifier.alive()
        notifier.stopping(seconds=1)
        del notifier


def test_manager_that_reads_nothing_does_not_hold_up_the_daemon(tmp_path: Path) -> None:
    """Its queue is full: what feeds the watchdog is dropped at once."""
    folder = short_folder()
    with NotifySocket(str(folder / "n")) as manager:
        notifier = Notifier({"NOTIFY_SOCKET": manager.address})
        begun = time.monotonic()
        for _ in range(5000):
            notifier.alive()
        assert time.monotonic() - begun < 20
        assert 0 < manager.count("WATCHDOG=1") < 5000
    (folder / "n").unlink()
    folder.rmdir()


async def test_blocked_loop_stops_pinging(manager: NotifySocket) -> None:
    """1. It beats. 2. Something blocks the loop for longer than the watchdog's time. Result: no beat until it goes on,
    for nothing else than the loop sends one."""
    beat = _heartbeat(manager, lambda: None)
    await eventually(lambda: manager.count("WATCHDOG=1") > 1)
    fed = manager.count("WATCHDOG=1")
    time.sleep(0.6)  # noqa: ASYNC251 - this is the fault
    assert manager.count("WATCHDOG=1") == fed
    await eventually(lambda: manager.count("WATCHDOG=1") > fed)
    beat.close()


async def test_watchdog_starves_while_the_supervisor_is_unwell(manager: NotifySocket) -> None:
    """The loop turns, and a model is not looked after: the beat stops, the status says why, and it comes back."""
    problems = [None, "light is not looked after any more"]
    beat = _heartbeat(manager, lambda: problems[-1])
    await eventually(lambda: "STATUS=light is not looked after any more" in manager.messages)
    for _ in range(20):
        await asyncio.sleep(0.01)
    assert not manager.count("WATCHDOG=1")
    problems.pop()
    await eventually(lambda: manager.count("WATCHDOG=1") > 1)
    assert "STATUS=all is well" in manager.messages
    beat.close()


def _heartbeat(manager: NotifySocket, problem: object) -> Heartbeat:
    variables = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "400000"}
    beat = Heartbeat(Notifier(variables), problem=problem, describe=lambda: "all is well")  # pyright: ignore[reportArgumentType]
    beat.start()
    return beat
