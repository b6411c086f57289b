"""A15: what stands in the configuration becomes one argument of one program, and never a line for a shell."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from tests.support.daemon import Daemon, Json, mock_model
from tests.support.workers import executable

ROOT = Path(__file__).resolve().parents[2]
TOKENS = [
    "a; touch CANARY",
    "$(touch CANARY)",
    "`touch CANARY`",
    "a\ntouch CANARY\n",
    "a && touch CANARY",
    "a | touch CANARY",
    "> CANARY",
    "--read-fd=0",
    "-c",
    "*",
    "${HOME}",
    "a b  c",
    "'\"\\",
]


def argv(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]


@pytest.mark.parametrize("token", TOKENS, ids=ascii)
def test_token_stays_one_argument(tmp_path: Path, token: str) -> None:
    """In a model's path, its options and its variables: the argument list has it whole, and no shell saw it."""
    canary = tmp_path / "canary"
    name = token.replace("CANARY", str(canary)).replace("/", "_")
    folder = tmp_path / name
    folder.mkdir()
    config: Json = {
        "models": {
            "mock": {
                **mock_model(),
                "path": str(folder),
                "env": {"TOKEN_OF_A_TEST": token},
            }
        }
    }
    with Daemon(config) as daemon:
        assert daemon.complete("mock", max_tokens=1)[0] == 200
        pid = daemon.worker_pid("mock")
        arguments = argv(pid)
        assert arguments[arguments.index("--read") + 1] == str(folder)
        assert f"TOKEN_OF_A_TEST={token}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert arguments[1:4] == ["-P", "-m", "llmvisor_runtimes"]
    assert not canary.exists()


def test_interpreter_is_a_path_and_no_command(tmp_path: Path) -> None:
    """`backends.X.python: "python -c …"` names a file that is not there; a file of a strange name is run as it is."""
    canary = tmp_path / "canary"
    strange = executable(tmp_path / "a; b $(c)", f'touch "{tmp_path}/ran"; exit 1')
    for python in (f"/bin/sh -c 'touch {canary}'", f"/bin/true; touch {canary}", f"$(touch {canary})/python", strange):
        config: Json = {"models": {"mock": mock_model()}, "backends": {"mock": {"python": python}}}
        with Daemon(config) as daemon:
            assert daemon.complete("mock", max_tokens=1)[0] == 503
    assert not canary.exists()
    assert (tmp_path / "ran").exists()


def test_option_that_looks_like_a_path_is_data(tmp_path: Path) -> None:
    """A text in a model's options reaches the worker in a frame; as an argument only where it is an absolute path."""
    config: Json = {"models": {"mock": {**mock_model(), "options": {"reply": "--sandbox off; /x"}}}}
    with Daemon(config) as daemon:
        daemon.complete("mock", max_tokens=1)
        runtime = daemon.runtime("mock")
        if runtime["pid"] is not None:
            assert "--sandbox off; /x" not in argv(runtime["pid"])


def test_no_source_has_a_shell() -> None:
    """No `shell=True`, no `os.system`, no `popen`: argument lists alone."""
    found: list[str] = []
    for path in sorted(path for root in ("daemon", "runtimes", "ctl") for path in (ROOT / root).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            shell = any(word.arg == "shell" and ast.unparse(word.value) != "False" for word in node.keywords)
            if (
                shell
                or called in {"os.system", "os.popen", "subprocess.getoutput"}
                or called.endswith("subprocess_shell")
            ):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []
