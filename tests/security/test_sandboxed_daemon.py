"""The sandbox as a daemon has it: on unless a person says otherwise, told in the status, and in the way of nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.support.daemon import Daemon, Json, alive, mock_model
from tests.support.llmctl_process import llmctl
from tests.support.nosy import REFUSED, ask_daemon, nosy_python
from tests.support.polling import eventually_sync
from tests.support.tiny_gguf import write_tiny_gguf
from tests.support.tiny_lora import write_tiny_lora

from llmvisor_runtimes.confinement import landlock

pytestmark = pytest.mark.skipif(landlock.abi_version() == 0, reason="this kernel has no Landlock")


def test_worker_cannot_turn_against_its_daemon(tmp_path: Path) -> None:
    """A worker that was taken over: no configuration, no keys, no store, no socket, no environment of the daemon."""
    config: Json = {"models": {"nosy": mock_model()}, "backends": {"mock": {"python": nosy_python(tmp_path)}}}
    with Daemon(config, env={"OPENAI_API_KEY": "sk-canary"}) as daemon:
        assert daemon.control("POST", "/keys", {"name": "ops", "scopes": ["management"]})[0] in {200, 201}
        for path in (daemon.config_file, daemon.folder / "data" / "keys.json", daemon.folder / "data" / "llmvisor.db"):
            assert path.exists(), path
            assert ask_daemon_with_control(daemon, f"said(open({str(path)!r}, 'rb').read().hex())") in REFUSED
            assert ask_daemon_with_control(daemon, f"open({str(path)!r}, 'ab')") in REFUSED
        assert ask_daemon_with_control(daemon, f"open('/proc/{daemon.pid}/environ').read()") in REFUSED
        assert ask_daemon_with_control(daemon, f"import os; os.kill({daemon.pid}, 15)") in REFUSED
        assert daemon.control("GET", "/llm/status")[0] == 200


def ask_daemon_with_control(daemon: Daemon, code: str) -> str:
    """As `ask_daemon`, over the control socket: the port asks for a key."""
    body = {"model": "nosy", "messages": [{"role": "user", "content": code}]}
    status, answer = daemon.control("POST", "/apply-template", body)
    assert status == 200, answer
    return answer["prompt"]


def test_sandbox_is_in_force_and_told(tmp_path: Path) -> None:
    """`auto` is the default; `off` is for one model, or for all of them; `llmctl status` and `doctor` say so."""
    config: Json = {"models": {"held": mock_model(), "free": mock_model(sandbox="off")}}
    with Daemon(config) as daemon:
        for model in ("held", "free"):
            assert daemon.complete(model, max_tokens=1)[0] == 200
        held, free = daemon.runtime("held"), daemon.runtime("free")
        assert {"no_new_privs", "seccomp"} <= set(held["sandbox"])
        assert any(name.startswith("landlock") for name in held["sandbox"])
        assert held.get("sandbox_missing", []) == []
        assert free["sandbox"] is None
        shown = llmctl(daemon.socket_path, "status", "held", cwd=daemon.folder)
        assert "seccomp" in shown.stdout, shown
        shown = llmctl(daemon.socket_path, "status", "free", cwd=daemon.folder)
        assert "off" in shown.stdout, shown
    config = {"server": {"sandbox": "off"}, "models": {"free": mock_model(), "held": mock_model(sandbox="required")}}
    with Daemon(config) as daemon:
        for model in ("held", "free"):
            assert daemon.complete(model, max_tokens=1)[0] == 200
        assert daemon.runtime("free")["sandbox"] is None
        assert daemon.runtime("held")["sandbox"]


def test_folder_that_a_person_sets_is_used(tmp_path: Path) -> None:
    """`env: {TMPDIR: …}` of a model wins, and is its to write in."""
    own = tmp_path / "own"
    own.mkdir()
    config: Json = {
        "models": {"nosy": mock_model(env={"TMPDIR": str(own)})},
        "backends": {"mock": {"python": nosy_python(tmp_path)}},
    }
    with Daemon(config) as daemon:
        assert ask_daemon(daemon, "nosy", "import tempfile; said(tempfile.mkdtemp())").startswith(str(own))


def test_start_takes_no_longer_with_it() -> None:
    """What a worker gives up costs milliseconds: far below what starting Python takes."""
    with Daemon({"models": {"held": mock_model(), "free": mock_model(sandbox="off")}}) as daemon:
        for model in ("held", "free"):
            assert daemon.complete(model, max_tokens=1)[0] == 200
        seconds = {model: daemon.runtime(model)["load_seconds"] for model in ("held", "free")}
        assert seconds["held"] < seconds["free"] + 1.0


BOMB = """
import os, time
for _ in range(200):
    if os.fork() == 0:
        try:
            os.setsid()
        except OSError:
            pass
        while True:
            time.sleep(1000)
said('forked')
"""


def test_fork_bomb_ends_with_its_worker(tmp_path: Path) -> None:
    """A worker that starts process after process, each of which tries to get away: all are gone with it."""
    config: Json = {"models": {"nosy": mock_model()}, "backends": {"mock": {"python": nosy_python(tmp_path)}}}
    with Daemon(config) as daemon:
        assert ask_daemon(daemon, "nosy", BOMB) == "forked"
        pid = daemon.worker_pid("nosy")
        started = [process.pid for process in daemon.descendants()]
        assert len(started) > 200
        os.kill(pid, 9)
        eventually_sync(lambda: not any(map(alive, started)), 20, "all that it started is gone")
        assert ask_daemon(daemon, "nosy", "said('well')") == "well"


def linked(folder: Path, name: str, content: Path) -> Path:
    """As a Hugging Face cache has it: the file's name is a link to a blob elsewhere."""
    blob = folder / "blobs" / f"digest-of-{name}"
    snapshot = folder / "snapshots" / "main" / name
    for path in (blob, snapshot):
        path.parent.mkdir(parents=True, exist_ok=True)
    content.rename(blob)
    snapshot.symlink_to(f"../../blobs/{blob.name}")
    return snapshot


def test_model_of_many_files_in_many_places_is_served(tmp_path: Path) -> None:
    """Weights behind a link, a LoRA adapter, a draft model and a state folder, each elsewhere, under `required`."""
    model = linked(tmp_path / "hub", "tiny.gguf", write_tiny_gguf(tmp_path / "t.gguf", context_length=512))
    draft = linked(tmp_path / "drafts", "d.gguf", write_tiny_gguf(tmp_path / "d.gguf", context_length=512))
    (tmp_path / "loras").mkdir()
    lora = write_tiny_lora(tmp_path / "loras" / "a.gguf")
    state = tmp_path / "state"
    options = {"adapters": {"a": {"path": str(lora), "scale": 0.5}}, "draft_model": str(draft)}
    tiny: Json = {"backend": "llamacpp", "path": str(model), "n_ctx": 512, "n_threads": 1, "parallel": 2}
    config: Json = {
        "server": {"sandbox": "required"},
        "models": {"tiny": {**tiny, "options": options}},
        "cache": {"enabled": False, "state_dir": str(state)},
    }
    prompt = "abcdefghijklmnopqrstuvwxyz" * 4
    with Daemon(config) as daemon:
        for extra in ({}, {"speculative": "draft"}, {"adapters": {"a": 1.0}}):
            status, answer = daemon.complete("tiny", prompt, max_tokens=4, **extra)
            assert status == 200, answer
        assert daemon.runtime("tiny")["sandbox_missing"] == []
        status, job = daemon.control("POST", "/jobs", {"type": "unload", "params": {"model": "tiny"}})
        assert status in {200, 202}, job
        daemon.wait_for_state("tiny", "not_loaded")
        assert [path.suffix for path in state.glob("*/*")] == [".kv"]
        answer = daemon.complete("tiny", prompt, max_tokens=1)[1]
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
        assert "Permission denied" not in daemon.console()


def test_worker_that_is_adopted_keeps_its_sandbox_and_its_folder(tmp_path: Path) -> None:
    """An upgrade of the daemon in place: same worker, same limits, and its temporary files stay until it goes."""
    config: Json = {"models": {"nosy": mock_model()}, "backends": {"mock": {"python": nosy_python(tmp_path)}}}
    with Daemon(config) as daemon:
        made = Path(ask_daemon(daemon, "nosy", "import tempfile; said(tempfile.mkstemp()[1])"))
        before = daemon.runtime("nosy")
        status, answer = daemon.control("POST", "/restart", {})
        assert status in {200, 202}, answer
        eventually_sync(lambda: "adopted" in daemon.console() or "upgraded" in daemon.console(), 30, "the upgrade")
        after = daemon.runtime("nosy")
        assert (after["pid"], after["sandbox"]) == (before["pid"], before["sandbox"])
        assert made.exists()
        assert ask_daemon(daemon, "nosy", f"said(open({str(daemon.config_file)!r}).read())") in REFUSED
        os.kill(after["pid"], 9)
        eventually_sync(lambda: not made.parent.exists(), 10, "the folder goes with the worker")
