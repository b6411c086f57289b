"""An upgrade in place under a service manager: it is told, its sockets stay, and its watchdog is fed again."""

from __future__ import annotations

import signal

from tests.support.daemon import Daemon, mock_model, stream
from tests.support.leaks import no_leaks
from tests.support.polling import eventually_sync
from tests.support.service_manager import Activated, NotifySocket, short_folder
from tests.support.upgrades import KeptAlive, begin_upgrade, ended_upgrade, upgrade, upgrade_status

from llmvisor.upgrade.fault import FAULT_VARIABLE

MODELS = {"slow": mock_model(token_delay_ms=20, preload=True)}


def test_manager_is_told_of_an_upgrade_and_of_its_end() -> None:
    """RELOADING before anything waits, READY once the new program serves; it feeds the watchdog as the old one did."""
    folder = short_folder()
    with NotifySocket(str(folder / "notify")) as manager:
        env = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "400000"}
        with no_leaks(), Daemon({"models": MODELS}, env=env) as daemon:
            daemon.worker_pid("slow")
            assert manager.kinds == ["READY"]
            upgrade(daemon)
            eventually_sync(lambda: manager.kinds == ["READY", "RELOADING", "READY"])
            fed = manager.count("WATCHDOG=1")
            eventually_sync(lambda: manager.count("WATCHDOG=1") > fed + 2, 10, "the watchdog is fed")
            assert any("MONOTONIC_USEC=" in message for message in manager.messages)
            daemon.signal(signal.SIGTERM)
            assert daemon.wait() == 0
        assert manager.kinds == ["READY", "RELOADING", "READY", "STOPPING"]
    (folder / "notify").unlink()
    folder.rmdir()


def test_upgrade_that_is_given_up_is_told_as_over() -> None:
    """Each RELOADING has its READY; a stop in the middle is STOPPING, and no READY after it."""
    folder = short_folder()
    with NotifySocket(str(folder / "notify")) as manager:
        with no_leaks(), Daemon({"models": MODELS}, env={"NOTIFY_SOCKET": manager.address}) as daemon:
            with stream(daemon, "slow", max_tokens=250) as client:
                client.next_event()
                begin_upgrade(daemon, timeout_seconds=0.2)
                assert ended_upgrade(daemon)["state"] == "failed"
                eventually_sync(lambda: manager.kinds == ["READY", "RELOADING", "READY"])
                begin_upgrade(daemon)
                eventually_sync(lambda: manager.kinds[-1] == "RELOADING")
                daemon.signal(signal.SIGTERM)
                assert list(client.events())[-1] == "[DONE]"
            assert daemon.wait() == 0
        assert manager.kinds == ["READY", "RELOADING", "READY", "RELOADING", "STOPPING"]
    (folder / "notify").unlink()
    folder.rmdir()


def test_trial_that_fails_is_told_as_over() -> None:
    """`systemctl reload` waits for RELOADING and READY after its signal: else until its own timeout, for nothing."""
    folder = short_folder()
    fault = folder / "fault"
    fault.write_text("preflight")
    with NotifySocket(str(folder / "notify")) as manager:
        env = {"NOTIFY_SOCKET": manager.address, FAULT_VARIABLE: str(fault)}
        config = {"models": MODELS, "server": {"upgrade": True}}
        with no_leaks(), Daemon(config, env=env) as daemon:
            daemon.signal(signal.SIGHUP)
            eventually_sync(lambda: upgrade_status(daemon)["attempts"] == 1)
            assert ended_upgrade(daemon)["state"] == "failed"
            eventually_sync(lambda: manager.kinds == ["READY", "RELOADING", "READY"])
    for path in (fault, folder / "notify"):
        path.unlink()
    folder.rmdir()


def test_sockets_of_a_manager_outlast_upgrades_and_idle_exit() -> None:
    """All of them serve after an upgrade; after the exit they are still there, and the next client starts it again."""
    config = {"models": {"slow": mock_model(token_delay_ms=5)}, "server": {"shutdown_timeout": 2}}
    with no_leaks(), Activated(config, tcp=2) as daemon:
        daemon.spawn()
        ports = [sock.getsockname()[1] for sock in daemon.tcp_sockets]
        assert daemon.complete("slow", max_tokens=2)[0] == 200
        pid = daemon.worker_pid("slow")
        for _ in range(2):
            upgrade(daemon)
        assert daemon.worker_pid("slow") == pid
        for port in ports:
            with KeptAlive(daemon, port=port) as client:
                assert client.ask("slow", max_tokens=2)[0] == 200
        assert upgrade_status(daemon)["completed"] == 2
        assert daemon.wait(20) == 0
        assert daemon.socket_path.is_socket()
        daemon.spawn()
        assert daemon.complete("slow", max_tokens=2)[0] == 200
