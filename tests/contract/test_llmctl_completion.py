"""Completion in a real bash, the scripts of the other shells, and the manual."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import fake_daemon as fake
from tests.support.fake_daemon import FakeDaemon
from tests.support.llmctl_process import TerminalRun, environment, llmctl

from llmctl.command_table import COMMANDS

NAMES = [entry.name for _, members in COMMANDS for entry in members]
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path / "s") as daemon:
        models = [fake.model("smollm2"), fake.model("qwen", id="heavy/qwen", tier="heavy", aliases=[])]
        daemon.items("/llm/models", [*models, fake.model("evil", id="$(touch pwned)", aliases=["`id`", "a b"])])
        daemon.items("/jobs", [fake.job(), fake.ended_job(id="job_02")])
        daemon.items("/config", [{"path": "server.port", "value": 1, "layer": "file", "origin": "x"}])
        yield daemon


def bash_environment(daemon: FakeDaemon, tmp_path: Path) -> dict[str, str]:
    """An environment in which `llmctl` is this one."""
    program = tmp_path / "bin" / "llmctl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m llmctl "$@"\n')
    program.chmod(0o755)
    return environment(daemon.socket_path, {"PATH": f"{program.parent}:/usr/bin:/bin"})


def completed(env: dict[str, str], line: str, cwd: Path) -> list[str]:
    """What bash would offer at the end of a line: its own words of it, cut as it cuts them."""
    script = """
        source <(llmctl completion bash)
        COMP_LINE=$1 COMP_POINT=${#1}
        IFS=$' \\t\\n' read -r -a COMP_WORDS <<< "${1//:/ : }"
        [[ "$1" == *' ' ]] && COMP_WORDS+=('')
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        _llmctl
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    ended = subprocess.run(
        ["bash", "--noprofile", "--norc", "-c", script, "bash", line],
        env=env,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
        cwd=cwd,
    )
    return ended.stdout.split()


@needs_bash
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("llmctl sta", ["status", "start"]),
        ("llmctl status l", ["light/smollm2", "light"]),
        ("llmctl load q", ["qwen"]),
        ("llmctl --json load heavy/", ["heavy/qwen"]),
        ("llmctl jobs w", ["watch"]),
        ("llmctl jobs cancel ", ["job_01", "job_02"]),
        ("llmctl jobs cancel job_01 job_02", ["job_02"]),
        ("llmctl models --state load", ["loading", "loaded"]),
        ("llmctl models --state=load", ["loading", "loaded"]),
        ("llmctl models rollback h", ["heavy/qwen", "heavy"]),
        ("llmctl install h", ["hf:"]),
        ("llmctl install --tier l", ["light"]),
        ("llmctl config s", ["show", "set"]),
        ("llmctl config set serv", ["server.port"]),
        ("llmctl completion ", ["bash", "zsh", "fish"]),
        ("llmctl unload --f", ["--force"]),
        ("llmctl --socket /x/y status l", []),
        ("llmctl nothing ", []),
        ("llmctl ", NAMES),
        ("llmctl run light ", []),
        ('llmctl run light "an open quote', []),
    ],
)
def test_bash_offers_what_may_stand_there(daemon: FakeDaemon, tmp_path: Path, line: str, offered: list[str]) -> None:
    """Commands, options, choices, and the models, jobs and keys that the daemon has."""
    assert completed(bash_environment(daemon, tmp_path), line, tmp_path) == offered


@needs_bash
def test_bash_is_never_offered_what_it_would_run(daemon: FakeDaemon, tmp_path: Path) -> None:
    """A model whose name is a command is left out."""
    offered = completed(bash_environment(daemon, tmp_path), "llmctl show ", tmp_path)
    assert "light/smollm2" in offered
    assert not [word for word in offered if set(word) & set("$`( ")]


@needs_bash
def test_bash_in_a_terminal_completes_on_tab(daemon: FakeDaemon, tmp_path: Path) -> None:
    """1. A command is completed. 2. A model. 3. A source, with no space behind its colon. 4. A file's name."""
    (tmp_path / "weights.gguf").touch()
    (tmp_path / "inputrc").write_text("set enable-bracketed-paste off\n")
    env = {**bash_environment(daemon, tmp_path), "PS1": "$ ", "INPUTRC": str(tmp_path / "inputrc")}
    with TerminalRun(daemon.socket_path, "--noprofile", "--norc", "-i", env=env, program="bash", columns=120) as run:
        run.send(f"cd {tmp_path}; source <(llmctl completion bash); echo rea''dy\n")
        run.expect("ready")
        run.send("echo llmctl; llmctl stat\t")
        run.expect("status ")
        run.send("\x15llmctl show heavy/\t")
        run.expect("heavy/qwen ")
        run.send("\x15llmctl install hf\t")
        run.expect("install hf:")
        run.send("org/repo #\x01echo \x05\n")
        run.expect("llmctl install hf:org/repo")
        run.send("llmctl import wei\t")
        run.expect("weights.gguf")
        run.send("\x15exit\n")
        assert run.wait() == 0


@needs_bash
def test_bash_without_a_daemon_still_completes_commands(tmp_path: Path) -> None:
    """Models are not offered then, and nothing is said."""
    with FakeDaemon(tmp_path / "s") as daemon:
        env = bash_environment(daemon, tmp_path)
    assert completed(env, "llmctl hea", tmp_path) == ["health"]
    assert completed(env, "llmctl load ", tmp_path) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(tmp_path: Path, shell: str) -> None:
    """It needs no daemon, and calls back with the shell's name; where the shell is there, it accepts the script."""
    ended = llmctl(tmp_path / "absent", "completion", shell)
    assert ended.code == 0
    assert f"__complete {shell} " in ended.stdout
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=ended.stdout, text=True, check=True, timeout=30)


def test_zsh_and_fish_are_told_what_each_word_is(daemon: FakeDaemon) -> None:
    """In the form of each: a colon in a word is escaped for zsh, a tab divides for fish."""
    zsh = llmctl(daemon.socket_path, "__complete", "zsh", "install", "h").stdout
    assert zsh == "hf\\::Hugging Face: hf:org/repo[:file]\n"
    fish = llmctl(daemon.socket_path, "__complete", "fish", "jobs", "show", "job_01").stdout
    assert fish == "job_01\tload light, running\n"
    assert llmctl(daemon.socket_path, "__complete", "fish", "import", "").code == 10


def test_completion_of_another_shell_is_usage(tmp_path: Path) -> None:
    """Exit code 2 names those that there are."""
    ended = llmctl(tmp_path / "absent", "completion", "tcsh")
    assert ended.code == 2
    assert "fish" in ended.stderr


def test_manual_tells_every_command_and_exit_code(tmp_path: Path) -> None:
    """As roff in a pipe, without a daemon."""
    text = llmctl(tmp_path / "absent", "man").stdout
    assert text.startswith(".TH LLMCTL 1")
    roff = [name.replace("-", "\\-") for name in NAMES]
    assert [name for name in roff if f".B llmctl {name}\n" not in text] == []
    assert "cancel\\-on\\-interrupt" in text
    assert ".B 130\ninterrupted" in text
    assert "\x1b" not in text


@pytest.mark.skipif(shutil.which("groff") is None, reason="there is no groff")
def test_manual_is_roff_without_warnings(tmp_path: Path) -> None:
    """groff finds nothing to say about it, and what it sets holds the examples as they are typed."""
    text = llmctl(tmp_path / "absent", "man").stdout
    command = ["groff", "-man", "-ww", "-Tascii", "-P-cbou"]
    ended = subprocess.run(command, input=text, capture_output=True, text=True, check=True, timeout=30)
    assert ended.stderr == ""
    assert 'llmctl chat light --system "Answer in one sentence."' in ended.stdout
    assert 'llmctl completion zsh > "${fpath[1]}/_llmctl"' in ended.stdout
