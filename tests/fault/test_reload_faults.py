"""Configuration files as they really come: half-written, empty, gone, unreadable, saved again and again."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from tests.support.daemon import Daemon, mock_model, stream, text_of
from tests.support.polling import eventually_sync

Json = dict[str, Any]

FIRST: Json = {"models": {"mock": mock_model(reply_tokens=2), "other": mock_model(reply_tokens=3)}}
SECOND: Json = {"models": {"mock": mock_model(reply_tokens=2, max_tokens=77), "other": mock_model(reply_tokens=3)}}


@pytest.fixture
def daemon() -> Generator[Daemon]:
    with Daemon(FIRST) as running:
        running.complete("mock")
        yield running


def config_status(daemon: Daemon) -> Json:
    return daemon.control("GET", "/llm/status")[1]["config"]


def problems(daemon: Daemon) -> list[str]:
    return config_status(daemon).get("problems", [])


def max_tokens(daemon: Daemon) -> int:
    values = daemon.control("GET", "/config")[1]["data"]
    return next(value["value"] for value in values if value["path"] == "models.mock.max_tokens")


def reloads(daemon: Daemon) -> list[str]:
    """What the log says of reloads, whichever way they ended."""
    lines = daemon.log_file.read_text().splitlines() if daemon.log_file.exists() else []
    return [line for line in lines if "configuration reloaded" in line or "configuration not reloaded" in line]


def eventually(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    eventually_sync(lambda: bool(condition()), seconds, what)


def text_with(daemon: Daemon, config: Json) -> str:
    """The text of the daemon's file, were it configured so."""
    before = daemon.config_file.read_text()
    daemon.reconfigure(config)
    text = daemon.config_file.read_text()
    daemon.config_file.write_text(before)
    return text


def replace(daemon: Daemon, text: str) -> None:
    """As editors save."""
    partial = daemon.config_file.with_suffix(".tmp")
    partial.write_text(text)
    partial.replace(daemon.config_file)


def write(daemon: Daemon, text: str) -> None:
    """Into the same file."""
    daemon.config_file.write_text(text)


def broken_by(daemon: Daemon, what: str, pid: int) -> None:
    """The error is shown, and what ran goes on."""
    eventually(lambda: what in str(problems(daemon)), f"the error is shown: {what}")
    assert what in str(daemon.request("GET", "/health")[1]["reasons"])
    assert daemon.worker_pid("mock") == pid
    assert daemon.complete("mock")[0] == 200


def mended(daemon: Daemon) -> None:
    """A file that is right again holds, and the error is gone."""
    replace(daemon, text_with(daemon, SECOND))
    eventually(lambda: max_tokens(daemon) == 77, "the new configuration holds")
    assert problems(daemon) == []
    assert daemon.request("GET", "/health")[1]["status"] == "healthy"


def test_reload_follows_a_file_that_is_replaced_or_written_in_place(daemon: Daemon) -> None:
    """By rename, twice, and by writing into the same file; each is one reload."""
    for number, save in enumerate((replace, replace, write)):
        wanted = {"models": FIRST["models"] | {"mock": mock_model(reply_tokens=2, max_tokens=100 + number)}}
        save(daemon, text_with(daemon, wanted))
        eventually(lambda number=number: max_tokens(daemon) == 100 + number, "the new configuration holds")
    eventually(lambda: len(reloads(daemon)) >= 3, "the log has it")
    assert len(reloads(daemon)) == 3


def test_half_written_file_is_not_believed(daemon: Daemon) -> None:
    """Truncated, half of it after 600 ms, the rest later: one reload, of the whole."""
    text = text_with(daemon, SECOND)
    pids = [daemon.worker_pid("mock")]
    with daemon.config_file.open("w") as file:
        for part in (text[: len(text) // 2], text[len(text) // 2 :]):
            time.sleep(0.6)
            file.write(part)
            file.flush()
    eventually(lambda: max_tokens(daemon) == 77, "the new configuration holds")
    eventually(lambda: reloads(daemon), "the log has it")
    assert len(reloads(daemon)) == 1
    assert [daemon.worker_pid("mock")] == pids


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "nothing in it"), ("# all of it commented out\n", "nothing in it"), ("models:\n", "sets nothing")],
)
def test_empty_config_does_not_unload_models(daemon: Daemon, text: str, said: str) -> None:
    """It is an error, not the wish to have nothing."""
    pid = daemon.worker_pid("mock")
    daemon.config_file.write_text(text)
    broken_by(daemon, said, pid)
    mended(daemon)


def test_reload_of_a_wrong_file_keeps_what_runs_and_names_the_line(daemon: Daemon) -> None:
    """All its mistakes are told, each with its line, in the log, in the status and in /health."""
    pid = daemon.worker_pid("mock")
    replace(daemon, text_with(daemon, SECOND) + "servre: {}\nmemory: {limit: much}\n")
    broken_by(daemon, "servre: unknown key", pid)
    assert len(problems(daemon)) == 2
    line = len(text_with(daemon, SECOND).splitlines()) + 1
    assert problems(daemon)[0].startswith(f"config.yaml:{line}: servre")
    status, body = daemon.control("POST", "/config/reload")
    assert (status, body["error"]["code"]) == (400, "invalid_config")
    mended(daemon)


def test_file_that_is_gone_or_not_to_be_read_keeps_what_runs(daemon: Daemon) -> None:
    """Deleted; deleted and made again; a pipe in its place."""
    pid, text = daemon.worker_pid("mock"), daemon.config_file.read_text()
    daemon.config_file.unlink()
    broken_by(daemon, "config.yaml", pid)
    os.mkfifo(daemon.config_file)
    broken_by(daemon, "not a regular file", pid)
    daemon.config_file.unlink()
    daemon.config_file.write_text(text)
    eventually(lambda: not problems(daemon), "the error is gone")
    mended(daemon)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads what nobody may read")
def test_unreadable_file_keeps_what_runs(daemon: Daemon) -> None:
    """chmod 000, and back."""
    pid = daemon.worker_pid("mock")
    daemon.config_file.chmod(0)
    broken_by(daemon, "Permission denied", pid)
    daemon.config_file.chmod(0o600)
    eventually(lambda: not problems(daemon), "the error is gone")


def test_hundred_rapid_saves_are_few_reloads_and_end_with_the_last(daemon: Daemon) -> None:
    """Written as fast as they come; no descriptor and no process is left of them."""
    pid = daemon.worker_pid("mock")
    descriptors = psutil.Process(daemon.pid).num_fds()
    texts = [
        text_with(daemon, {"models": FIRST["models"] | {"mock": mock_model(reply_tokens=2, max_tokens=number + 1)}})
        for number in range(100)
    ]
    for text in texts:
        replace(daemon, text)
    eventually(lambda: max_tokens(daemon) == 100, "the last one holds")
    assert len(reloads(daemon)) <= 10
    assert daemon.worker_pid("mock") == pid
    eventually(lambda: psutil.Process(daemon.pid).num_fds() <= descriptors + 1, "no descriptor is left open")


def test_dotenv_beside_the_file_is_watched(daemon: Daemon) -> None:
    """One that comes into being counts too."""
    (daemon.folder / ".env").write_text("LLMVISOR__MODELS__MOCK__MAX_TOKENS=55\n")
    eventually(lambda: max_tokens(daemon) == 55, "the new file counts")


def test_link_to_a_file_somewhere_else_is_followed(daemon: Daemon, tmp_path: Path) -> None:
    """Nothing happens in the folder of the link, as on a bind mount: it is noticed all the same."""
    target = tmp_path / "real.yaml"
    target.write_text(daemon.config_file.read_text())
    daemon.config_file.unlink()
    daemon.config_file.symlink_to(target)
    target.write_text(text_with(daemon, SECOND))
    eventually(lambda: max_tokens(daemon) == 77, "the target is looked at")
    target.write_text(target.read_text().replace("max_tokens: 77", "max_tokens: 78"))
    eventually(lambda: max_tokens(daemon) == 78, "the target is looked at again")


# ------------------------------------------------------------------------------------------------ applying it


def test_failed_apply_rolls_back(daemon: Daemon, unused_tcp_port: int) -> None:
    """A port that is taken: nothing of the new configuration holds, not even what came before it."""
    pid, port = daemon.worker_pid("mock"), daemon.port
    with socket.create_server(("127.0.0.1", unused_tcp_port)):
        wrong = {**SECOND, "server": {"port": unused_tcp_port}, "logging": {"main": {"file": str(daemon.folder / "x")}}}
        daemon.reconfigure(wrong)
        status, body = daemon.control("POST", "/config/reload")
        assert (status, body["error"]["code"]) == (500, "reload_failed")
        assert "is taken" in body["error"]["message"]
        assert max_tokens(daemon) != 77
        assert daemon.port == port
        assert daemon.worker_pid("mock") == pid
        assert "is taken" in str(problems(daemon))
    before = daemon.log_file.stat().st_size
    assert daemon.complete("mock")[0] == 200
    eventually(lambda: daemon.log_file.stat().st_size > before, "the log is where it was")
    assert daemon.control("POST", "/config/reload")[1]["outcome"] == "applied"
    assert daemon.port == unused_tcp_port


def test_reload_is_serialized(daemon: Daemon) -> None:
    """A storm of saves, SIGHUPs and requests at once: they share reloads, and the last configuration holds."""
    answers: list[int] = []

    def ask() -> None:
        answers.append(daemon.control("POST", "/config/reload")[0])

    for number in range(20):
        models = FIRST["models"] | {"mock": mock_model(reply_tokens=2, max_tokens=number + 1)}
        replace(daemon, text_with(daemon, {"models": models}))
        daemon.signal(signal.SIGHUP)
        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert set(answers) == {200}
    assert max_tokens(daemon) == 20
    assert daemon.complete("mock")[0] == 200


def test_sighup_reads_the_configuration(daemon: Daemon) -> None:
    """As service managers reload."""
    daemon.config_file.write_text(text_with(daemon, SECOND))
    daemon.signal(signal.SIGHUP)
    eventually(lambda: max_tokens(daemon) == 77, "the new configuration holds", seconds=5)


def test_shutdown_wins_over_a_reload(daemon: Daemon) -> None:
    """SIGTERM in the middle of reloads: the daemon ends, in order, and starts nothing any more."""
    for number in range(5):
        models = {"mock": mock_model(load_seconds=5.0 + number), "new": mock_model(preload=True, load_seconds=20.0)}
        daemon.reconfigure({"models": models})
        daemon.signal(signal.SIGHUP)
    workers = daemon.descendants()
    daemon.signal(signal.SIGTERM)
    daemon.signal(signal.SIGHUP)
    assert daemon.wait(20) == 0
    assert not any(worker.is_running() for worker in workers)
    assert "Traceback" not in daemon.console()


def test_put_writes_and_applies_or_does_neither(daemon: Daemon) -> None:
    """A text that is wrong, or that cannot be applied, leaves the file as it was."""
    text = text_with(daemon, SECOND)
    before = daemon.config_file.read_text()
    status, body = daemon.control("PUT", "/config", {"text": "models: {mock: {backend: nonsense}}"})
    assert (status, body["error"]["code"]) == (400, "invalid_config")
    assert daemon.config_file.read_text() == before
    taken = yaml.safe_dump(yaml.safe_load(text) | {"control": {"socket": "/proc/nowhere/control.sock"}})
    assert daemon.control("PUT", "/config", {"text": taken})[0] == 500
    assert daemon.config_file.read_text() == before
    assert daemon.control("PUT", "/config", {"text": ""})[0] == 400
    assert daemon.config_file.read_text() == before
    status, report = daemon.control("PUT", "/config", {"text": text})
    assert (status, report["models_updated"]) == (200, ["mock"])
    assert daemon.config_file.read_text() == text
    assert max_tokens(daemon) == 77


def test_stream_goes_on_through_every_failed_and_successful_reload(daemon: Daemon) -> None:
    """Its tokens come one after the other, whatever becomes of the configuration meanwhile."""
    config = {"models": {"mock": mock_model(token_delay_ms=30, reply_tokens=60), "other": mock_model()}}
    daemon.reconfigure(config)
    assert daemon.control("POST", "/config/reload")[0] == 200
    eventually(lambda: not config_status(daemon).get("replacing"), "the slow one serves")
    with stream(daemon, "mock", max_tokens=60) as running:
        events = [running.next_event()]
        for change in ({"n_ctx": 4096}, {"n_ctx": 2048}, {"max_tokens": 3}):
            daemon.config_file.write_text("nonsense: {\n")
            assert daemon.control("POST", "/config/reload")[0] == 400
            changed = mock_model(token_delay_ms=30, reply_tokens=60, **change)
            daemon.reconfigure({"models": config["models"] | {"mock": changed}})
            assert daemon.control("POST", "/config/reload")[0] == 200
            events.append(running.next_event())
        events += running.events()
    assert len(text_of(events).split()) == 60
    assert events[-1] == "[DONE]"
