"""Keys, turns, deadlines and honest refusals, on a real daemon with real workers."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.daemon import Daemon, Json, alive, mock_model, stream
from tests.support.llmctl_process import llmctl
from tests.support.polling import eventually_sync

CONFIGURED = "a-key-of-the-configuration-0123"
CONFIG: Json = {
    "server": {"api_keys": ["CI_KEY"], "management": True},
    "models": {
        "narrow": mock_model(token_delay_ms=5, parallel=1, queue_limit=40),
        "short": mock_model(token_delay_ms=20, parallel=1, queue_limit=2),
        "slow": mock_model(token_delay_ms=30, parallel=2),
        "lame": mock_model(token_delay_ms=30, load_seconds=3),
    },
}


@pytest.fixture(scope="module")
def daemon() -> Generator[Daemon]:
    with Daemon(CONFIG, env={"CI_KEY": CONFIGURED}) as it:
        yield it


def add_key(daemon: Daemon, name: str, **fields: Any) -> str:
    status, made = daemon.control("POST", "/keys", {"name": name, **fields})
    assert status == 201, made
    return made["key"]


def bearer(key: str, **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", **more}


def ask(
    daemon: Daemon, model: str, key: str, *, max_tokens: int = 4, headers: Mapping[str, str] | None = None
) -> tuple[int, Any]:
    body = {"model": model, "prompt": "hello", "max_tokens": max_tokens}
    return daemon.request("POST", "/v1/completions", body, **bearer(key), **(headers or {}))


def test_greedy_client_does_not_starve_another(daemon: Daemon) -> None:
    """1. A client has thirty requests in the queue of a model with one place. 2. Another asks once. Result: it is
    answered after about two of the others, not after all."""
    greedy, polite = add_key(daemon, "greedy"), add_key(daemon, "polite")
    ask(daemon, "narrow", greedy)
    ended: list[str] = []
    lock = threading.Lock()

    def one(name: str, key: str) -> int:
        status, _ = ask(daemon, "narrow", key, max_tokens=20)
        with lock:
            ended.append(name)
        return status

    with ThreadPoolExecutor(32) as pool:
        many = [pool.submit(one, "greedy", greedy) for _ in range(30)]
        eventually_sync(lambda: daemon.runtime("narrow")["queued"] >= 25, 20)
        before = len(ended)
        assert one("polite", polite) == 200
        place = ended.index("polite") - before
        assert [each.result() for each in many] == [200] * 30
    assert place <= 4, f"after {place} of the greedy client's"


def test_high_priority_goes_ahead_where_the_key_allows_it(daemon: Daemon) -> None:
    """A queue of normal requests, one of a key capped to low, one of high: the last goes next, the capped one last."""
    normal = add_key(daemon, "normal")
    meek = add_key(daemon, "meek", priority="low")
    ended: list[str] = []

    def one(name: str, key: str, priority: str) -> None:
        assert ask(daemon, "narrow", key, max_tokens=20, headers={"X-Priority": priority})[0] == 200
        ended.append(name)

    with ThreadPoolExecutor(12) as pool:
        several = [pool.submit(one, "normal", normal, "normal") for _ in range(8)]
        eventually_sync(lambda: daemon.runtime("narrow")["queued"] >= 6, 20)
        several += [pool.submit(one, "capped", meek, "high")]
        eventually_sync(lambda: daemon.runtime("narrow")["queued"] >= 6, 20)
        several += [pool.submit(one, "high", normal, "high")]
        for each in several:
            each.result()
    assert ended.index("high") < 5
    assert ended[-1] == "capped"


def test_deadline_of_a_waiting_request_holds(daemon: Daemon) -> None:
    """504 when it says, not when its turn has come; the queue goes on."""
    key = add_key(daemon, "waiting")
    with stream(daemon, "narrow", headers=bearer(key), max_tokens=400) as running:
        running.next_event()
        begun = time.monotonic()
        status, body = ask(daemon, "narrow", key, headers={"X-Request-Timeout": "0.3"})
        assert (status, body["error"]["code"], body["error"]["type"]) == (504, "timeout", "timeout_error")
        assert time.monotonic() - begun < 1.5
    assert ask(daemon, "narrow", key)[0] == 200


def test_deadline_of_a_running_request_frees_its_place(daemon: Daemon) -> None:
    """1. A whole answer would take twelve seconds. 2. Its time is half a second. Result: 504, and the place is free."""
    key = add_key(daemon, "running")
    status, body = ask(daemon, "slow", key, max_tokens=400, headers={"X-Request-Timeout": "0.5"})
    assert (status, body["error"]["code"]) == (504, "timeout")
    eventually_sync(lambda: daemon.runtime("slow")["slots_busy"] == 0, 5)


def test_deadline_after_the_first_byte_is_an_error_event(daemon: Daemon) -> None:
    """The stream ends with it, and with nothing after."""
    key = add_key(daemon, "streaming")
    headers = bearer(key, **{"X-Request-Timeout": "1"})
    with stream(daemon, "slow", headers=headers, max_tokens=400) as running:
        assert running.status == 200
        events = list(running.events())
    assert len(events) > 3
    assert json.loads(events[-1])["error"]["code"] == "timeout"
    assert "[DONE]" not in events
    eventually_sync(lambda: daemon.runtime("slow")["slots_busy"] == 0, 5)


def test_deadline_holds_while_a_worker_is_replaced(daemon: Daemon) -> None:
    """1. A stream's worker is killed, and the next one takes three seconds to load. 2. The stream's time is over before
    that. Result: it is told then, and the next request is served."""
    key = add_key(daemon, "unlucky")
    assert ask(daemon, "lame", key)[0] == 200
    with stream(daemon, "lame", headers=bearer(key, **{"X-Request-Timeout": "1"}), max_tokens=400) as running:
        running.next_event()
        os.kill(daemon.worker_pid("lame"), signal.SIGKILL)
        begun = time.monotonic()
        events = list(running.events())
        seconds = time.monotonic() - begun
    assert json.loads(events[-1])["error"]["code"] == "timeout"
    assert seconds < 2.5
    assert ask(daemon, "lame", key)[0] == 200


def test_full_queue_says_when_to_come_back(daemon: Daemon) -> None:
    """1. Requests of about two seconds fill place and queue. 2. Others are refused. Result: each is told to come back
    a service later than the one before; who does so is served."""
    key = add_key(daemon, "patient")
    assert ask(daemon, "short", key, max_tokens=100)[0] == 200
    told: list[int] = []
    with ThreadPoolExecutor(4) as pool:
        served = [pool.submit(ask, daemon, "short", key, max_tokens=100) for _ in range(3)]
        eventually_sync(lambda: daemon.runtime("short")["queued"] == 2, 10)
        for _ in range(2):
            status, seconds = refused(daemon, key)
            assert status == 503
            told.append(seconds)
        assert [each.result()[0] for each in served] == [200] * 3
    assert 1 <= told[0] <= 5
    assert told[0] < told[1] <= 12


def refused(daemon: Daemon, key: str) -> tuple[int, int]:
    """The status and the Retry-After of a request."""
    with stream(daemon, "short", headers=bearer(key)) as it:
        return it.status, int(it.answer.getheader("Retry-After") or "0")


# -------------------------------------------------------------------------------------------------- keys


def test_key_of_an_environment_variable_does_everything(daemon: Daemon) -> None:
    assert ask(daemon, "narrow", CONFIGURED)[0] == 200
    assert daemon.request("GET", "/llm/runtimes", **bearer(CONFIGURED))[0] == 200
    assert ask(daemon, "narrow", CONFIGURED[:-1])[0] == 401


def test_llmctl_adds_lists_and_revokes(daemon: Daemon) -> None:
    """The key is the first line of what `add` prints, so that a script can take it, and is never seen again."""
    made = llmctl(
        daemon.socket_path, "keys", "add", "script", "--models", "narrow", "--rate", "600/h", "--expires", "1d",
        "--concurrent", "3", "--priority", "normal",
    )  # fmt: skip
    assert made.code == 0
    key = made.stdout.strip()
    assert key.startswith("llmv-")
    assert "shown" in made.stderr
    assert ask(daemon, "narrow", key)[0] == 200
    assert ask(daemon, "slow", key)[0] == 404
    listed = llmctl(daemon.socket_path, "keys")
    assert "10/min" in listed.stdout
    assert "CI_KEY" in listed.stdout
    assert key not in listed.stdout + llmctl(daemon.socket_path, "keys", "--json").stdout
    assert llmctl(daemon.socket_path, "keys", "revoke", "script").code == 0
    assert ask(daemon, "narrow", key)[0] == 401
    assert llmctl(daemon.socket_path, "keys", "revoke", "script").code == 4


@pytest.mark.parametrize(
    "arguments",
    [("add",), ("revoke",), ("add", "x", "--rate", "fast"), ("add", "x", "--expires", "soon"), ("list", "x")],
)
def test_llmctl_says_what_it_does_not_understand(daemon: Daemon, arguments: tuple[str, ...]) -> None:
    assert llmctl(daemon.socket_path, "keys", *arguments).code == 2


def test_llmctl_manages_over_tcp_with_a_key(daemon: Daemon, tmp_path: Path) -> None:
    """With `--url` and a key of the scope, from a file or the environment; without one it is a mistake of usage."""
    key, plain = add_key(daemon, "remote", scopes=["management"]), add_key(daemon, "plain")
    file = tmp_path / "key"
    file.write_text(f"{key}\n")
    nowhere = tmp_path / "absent.sock"
    told = llmctl(nowhere, "--url", daemon.url, "--key-file", str(file), "status", "--json")
    assert told.code == 0, told.stderr
    assert json.loads(told.stdout)["pid"] == daemon.pid
    assert llmctl(nowhere, "load", "short", "--url", daemon.url, env={"LLMVISOR_API_KEY": key}).code == 0
    assert llmctl(nowhere, "--url", daemon.url, "status", env={"LLMVISOR_API_KEY": plain}).code == 1
    assert llmctl(nowhere, "--url", daemon.url, "status").code == 2
    assert llmctl(nowhere, "--url", "ftp://x", "status", env={"LLMVISOR_API_KEY": key}).code == 2
    assert llmctl(nowhere, "--url", "http://127.0.0.1:1", "status", env={"LLMVISOR_API_KEY": key}).code == 3


def test_no_key_stands_anywhere_but_with_its_owner(daemon: Daemon) -> None:
    """Not in the log, not in the console, not on disk, in no worker's environment or command line."""
    key = add_key(daemon, "canary")
    assert ask(daemon, "narrow", key)[0] == 200
    assert ask(daemon, "narrow", f"{key}x")[0] == 401
    texts = [daemon.console(), daemon.log_file.read_text()]
    kept = [path for path in (daemon.folder / "data").rglob("*") if path.is_file()]
    texts += [path.read_bytes().decode(errors="replace") for path in kept]
    for process in daemon.descendants():
        texts += [" ".join(process.cmdline()), *process.environ().values()]
    assert not [text for text in texts if key in text or CONFIGURED in text]


def test_keys_hold_over_a_restart_with_a_damaged_store() -> None:
    """1. A key is made, the daemon killed, its store damaged. Result: the next one asks for the key, and knows it."""
    with Daemon({"models": {"narrow": mock_model()}}) as daemon:
        key = add_key(daemon, "app")
        pid = daemon.pid
        daemon.signal(signal.SIGKILL)
        daemon.wait()
        assert not alive(pid)
        (daemon.folder / "data" / "llmvisor.db").write_bytes(b"no database" * 1000)
        daemon.port_file.unlink(missing_ok=True)
        daemon.start()
        assert ask(daemon, "narrow", key)[0] == 200
        assert ask(daemon, "narrow", "llmv-other")[0] == 401


# -------------------------------------------------------------------------------------------------- the start


@contextmanager
def unstarted(config: Json) -> Generator[Daemon]:
    daemon = Daemon(config)
    try:
        yield daemon
    finally:
        daemon.__exit__()


def started(config: Json) -> tuple[int, str]:
    """The exit code of a start that fails, and what it says."""
    with unstarted(config) as daemon:
        daemon.spawn()
        return daemon.wait(), daemon.console()


def test_public_address_needs_a_key() -> None:
    public: Json = {"server": {"host": "0.0.0.0"}, "models": {"narrow": mock_model()}}
    code, said = started(public)
    assert code == 78
    assert "--insecure-no-auth" in said
    assert "llmctl keys add" in said
    public["server"]["api_keys"] = ["CI_KEY"]
    with Daemon(public, env={"CI_KEY": CONFIGURED}) as daemon:
        assert daemon.complete("narrow")[0] == 401
        assert ask(daemon, "narrow", CONFIGURED)[0] == 200


def test_public_address_may_go_by_a_key_that_was_made() -> None:
    """1. A key is made on loopback. 2. The next start is public. Result: it starts, and asks for the key."""
    with Daemon({"models": {"narrow": mock_model()}}) as daemon:
        key = add_key(daemon, "app")
        daemon.signal(signal.SIGTERM)
        daemon.wait()
        daemon.reconfigure({"server": {"host": "0.0.0.0"}, "models": {"narrow": mock_model()}})
        daemon.start()
        assert daemon.complete("narrow")[0] == 401
        assert ask(daemon, "narrow", key)[0] == 200


def test_insecure_start_says_so() -> None:
    public: Json = {"server": {"host": "0.0.0.0"}, "models": {"narrow": mock_model()}}
    with unstarted(public) as daemon:
        daemon.start("--insecure-no-auth")
        eventually_sync(lambda: "open to other machines" in daemon.console(), 10)
        assert daemon.complete("narrow")[0] == 200


@pytest.mark.parametrize(
    ("entry", "text", "said"),
    [
        ("sk-somebody-put-the-key-itself-here", None, "not set"),
        ("keys/none.txt", None, "cannot be read"),
        ("keys/mine.txt", "", "holds no key"),
        ("keys/mine.txt", "tooshort\n", "a key of 8 characters"),
        ("keys/mine.txt", "two words are not a key at all\n", "blanks"),
    ],
)
def test_entries_that_hold_no_key_are_told_without_telling_them(
    tmp_path: Path, entry: str, text: str | None, said: str
) -> None:
    """Somebody may have put the key itself there: neither it nor what a file holds is printed."""
    if entry.startswith("keys/") and text is not None:
        (tmp_path / "mine.txt").write_text(text)
        entry = str(tmp_path / "mine.txt")
    code, console = started({"server": {"api_keys": [entry]}, "models": {"narrow": mock_model()}})
    assert code == 78
    assert said in console
    assert "api_keys" in console
    assert entry not in console
    assert not text or text.strip() not in console


def test_file_of_keys_holds_several(tmp_path: Path) -> None:
    """One on each line, with comments; told apart by what they are."""
    file = tmp_path / "keys.txt"
    file.write_text(f"# of the team\n{CONFIGURED}\n\nanother-key-0123456789\n")
    file.chmod(0o600)
    with Daemon({"server": {"api_keys": [str(file)]}, "models": {"narrow": mock_model()}}) as daemon:
        assert ask(daemon, "narrow", CONFIGURED)[0] == ask(daemon, "narrow", "another-key-0123456789")[0] == 200
        assert ask(daemon, "narrow", "# of the team")[0] == 401
        _, listed = daemon.control("GET", "/keys")
        assert len({key["name"] for key in listed["data"]}) == 2


def test_usage_is_told_by_key(daemon: Daemon) -> None:
    """Who asked for how much."""
    key = add_key(daemon, "counted")
    assert ask(daemon, "narrow", key)[0] == 200

    def counted() -> bool:
        _, body = daemon.control("GET", "/usage?group_by=key")
        return any(row.get("key") == "counted" and row["completion_tokens"] == 4 for row in body["data"])

    eventually_sync(counted, 10)
    assert "counted" in llmctl(daemon.socket_path, "usage", "--by", "key").stdout


def test_reload_takes_and_gives_back_keys() -> None:
    """A key comes into the configuration and goes again: asked for at once, and no more, without a restart."""
    models: Json = {"narrow": mock_model()}
    with Daemon({"models": models}, env={"CI_KEY": CONFIGURED}) as daemon:
        assert daemon.complete("narrow")[0] == 200
        pid = daemon.worker_pid("narrow")
        daemon.reconfigure({"server": {"api_keys": ["CI_KEY"]}, "models": models})
        assert daemon.control("POST", "/config/reload", {})[0] == 200
        assert daemon.complete("narrow")[0] == 401
        assert ask(daemon, "narrow", CONFIGURED)[0] == 200
        daemon.reconfigure({"models": models})
        assert daemon.control("POST", "/config/reload", {})[0] == 200
        assert daemon.complete("narrow")[0] == 200
        assert daemon.worker_pid("narrow") == pid
