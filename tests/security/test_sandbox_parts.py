"""The sandbox's parts without a process: the filter's program, the profile's text, and what the probe prints."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from llmvisor.config.tree import ModelConfig
from llmvisor.supervision.workers.confinement import confinement
from llmvisor_runtimes.confinement import seatbelt, seccomp


@pytest.mark.parametrize("machine", sorted(seccomp.MACHINES))
@pytest.mark.parametrize("unix_sockets", [True, False])
def test_filter_is_one_that_the_kernel_takes(machine: str, *, unix_sockets: bool) -> None:
    """Every jump lands inside, the last line returns, and what an engine needs falls through to it."""
    lines = seccomp.program(machine, unix_sockets=unix_sockets)
    for at, (code, yes, no, _) in enumerate(lines):
        if code in {0x15, 0x35, 0x45}:
            assert at + 1 + max(yes, no) < len(lines)
    assert lines[-1] == (0x06, 0, 0, 0x7FFF0000)
    known = seccomp.MACHINES[machine]

    def result(number: int, argument: int = 0, second: int = 0, audit: int = known.audit) -> int:
        return run_filter(lines, {0: number, 4: audit, 16: argument, 24: second})

    assert result(1) == 0x7FFF0000
    assert result(known.socket, 2) == 0x00050000 | 97
    assert result(known.socket, 1) == (0x7FFF0000 if unix_sockets else 0x00050000 | 97)
    assert result(known.clone, 0x10000000) == 0x00050000 | 1
    assert result(known.clone, 0x00010000) == 0x7FFF0000
    assert result(1, audit=0x40000003) == 0x00050000 | 38
    assert all(result(number) == 0x00050000 | 1 for number in known.refused.values())
    assert all(result(number) == 0x00050000 for number in known.unchanged.values())
    assert result(known.prlimit, 0) == 0x7FFF0000
    assert result(known.prlimit, 4711) == 0x00050000 | 1
    assert result(known.socketpair, 1, 1 | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) == 0x7FFF0000
    assert {result(known.socketpair, 1, kind) for kind in (2, 3, 5)} == {0x00050000 | 97}
    assert result(known.socketpair, 30, 1) == 0x00050000 | 97


def run_filter(lines: list[seccomp.Instruction], data: dict[int, int]) -> int:
    """A classic BPF machine, as far as the filter uses it."""
    at = value = 0
    while True:
        code, yes, no, operand = lines[at]
        at += 1
        if code == 0x06:
            return operand
        if code == 0x20:
            value = data[operand]
        elif code == 0x54:
            value &= operand
        else:
            holds = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[code]
            at += yes if holds else no


def test_profile_of_macos_denies_and_then_allows() -> None:
    """The text that `sandbox-exec -p` would take: network and writing denied, the model and own folders given back."""
    text = seatbelt.profile(home="/Users/me", read=["/Users/me/models/a"], write=['/private/var/t "1"'])
    lines = text.splitlines()
    assert lines[0] == "(version 1)"
    assert text.count("(") == text.count(")")
    denied = lines.index('(deny file-read-data (subpath "/Users/me"))')
    assert lines.index('(allow file-read* (subpath "/Users/me/models/a"))') > denied
    assert '(allow file-read* file-write* (subpath "/private/var/t \\"1\\""))' in lines
    assert {"(deny network*)", "(deny file-write*)"} <= set(lines)
    with pytest.raises(ValueError, match="line break"):
        seatbelt.profile(home="/", read=["/a\n(allow network*)"], write=[])


def test_stop_string_opens_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks like a path in a model's options is given to its worker: not all there is for `stop: ["/"]`."""
    monkeypatch.setenv("HOME", "/home/me")
    options: dict[str, object] = {
        "stop": ["/", "//", "~", "/home", "/home/me/", "/home/me/../me"],
        "draft_model": "~/d.gguf",
        "adapters": {"a": {"path": "/home/m"}},
    }
    found = confinement(ModelConfig(path="/m.gguf", options=options), "", otherwise="auto")
    assert found is not None
    assert found.read == ["/m.gguf", "/home/me/d.gguf", "/home/m"]


def test_probe_says_what_this_machine_has() -> None:
    """`python -m llmvisor_runtimes.confinement`, which `llmctl doctor` runs."""
    command = [sys.executable, "-P", "-m", "llmvisor_runtimes.confinement"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(ended.stdout)
    assert found.get("in_force") or found.get("missing")
    assert ended.stderr == ""
