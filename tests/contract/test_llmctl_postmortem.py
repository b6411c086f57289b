"""`llmctl postmortem`: why workers crashed, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import fake_daemon as fake
from tests.support.fake_daemon import FakeDaemon
from tests.support.llmctl_process import llmctl


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path / "s") as daemon:
        yield daemon


def test_crashes_of_every_model_are_a_line_each(daemon: FakeDaemon) -> None:
    """Newest first, as the daemon has them."""
    daemon.items("/llm/postmortems", [fake.postmortem("one"), fake.postmortem("two", reason="exited with code 70")])
    ended = llmctl(daemon.socket_path, "postmortem")
    lines = ended.stdout.splitlines()
    assert (ended.code, len(lines)) == (0, 3)
    assert "one" in lines[1]
    assert "killed by SIGSEGV" in lines[1]
    assert "exited with code 70" in lines[2]


def test_crash_of_one_model_is_shown_in_full(daemon: FakeDaemon) -> None:
    """How it ended, the memory's curve, who was inside and what became of it; frames, and lines without escapes."""
    daemon.items("/llm/runtimes/tier/one/postmortems", [fake.postmortem("one")])
    ended = llmctl(daemon.socket_path, "postmortem", "tier/one")
    shown = ended.stdout
    assert ended.code == 0, ended
    for said in ("killed by SIGSEGV", "200M → 300M", "0123456789ab", "went on in the next worker", "assertion "):
        assert said in shown, shown
    assert "→ Generate of 3, 400 B" in shown
    assert "← Step of 3, 40 B" in shown
    assert "\x1b" not in shown


def test_number_chooses_an_earlier_crash(daemon: FakeDaemon) -> None:
    """The second newest; one that there is not is a mistake of the command's."""
    crashes = [fake.postmortem("one"), fake.postmortem("one", reason="exited with code 3", exit_code=3, signal=None)]
    daemon.items("/llm/runtimes/one/postmortems", crashes)
    shown = llmctl(daemon.socket_path, "postmortem", "one", "--number", "2").stdout
    assert "exited with code 3" in shown
    assert "SIGSEGV" not in shown
    assert llmctl(daemon.socket_path, "postmortem", "one", "--number", "3").code == 2
    assert llmctl(daemon.socket_path, "postmortem", "--number", "1").code == 2


def test_no_crashes_is_good_news(daemon: FakeDaemon) -> None:
    """Nothing on stdout, and a list for programs."""
    daemon.items("/llm/postmortems", [])
    ended = llmctl(daemon.socket_path, "postmortem")
    assert (ended.code, ended.stdout) == (0, "")
    assert "no crashes" in ended.stderr
    assert json.loads(llmctl(daemon.socket_path, "postmortem", "--json").stdout)["data"] == []
