"""`llmctl config set`: checked before it is written, written all at once, and honest about when it takes effect."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import fake_daemon as fake
from tests.support.fake_daemon import FakeDaemon, as_object
from tests.support.llmctl_process import llmctl

REPORT = {
    "time": "2026-01-01T00:00:00+00:00",
    "cause": "request",
    "outcome": "applied",
    "summary": "changed server.port",
}
TEXT = "# mine\nserver:\n  port: 8000   # PORT\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config" / "config.yaml"
    path.parent.mkdir()
    path.write_text(TEXT)
    path.chmod(0o640)
    return path


@pytest.fixture
def daemon(tmp_path: Path, file: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path / "s") as daemon:
        daemon.answer("GET", "/llm/status", fake.daemon_status(config_file=str(file)))
        daemon.answer("POST", "/config/check", {"valid": True, "problems": []})
        daemon.answer("POST", "/config/reload", REPORT)
        daemon.items("/config", [{"path": "server.port", "value": 8000, "layer": "file", "origin": "config.yaml:3"}])
        yield daemon


def test_set_changes_the_daemons_file_and_keeps_its_comments(daemon: FakeDaemon, file: Path) -> None:
    """The whole new text was checked under the file's own name; mode and neighbours stay; the daemon is told."""
    ended = llmctl(daemon.socket_path, "config", "set", "server.port", "9000")
    said = f"server.port is 9000 in {file} (it was 8000)\nchanged server.port\n"
    assert (ended.code, ended.stdout) == (0, said)
    assert len(daemon.asked("POST", "/config/reload")) == 1
    assert file.read_text() == TEXT.replace("8000", "9000")
    assert as_object(daemon.asked("POST", "/config/check")[0]) == {"text": file.read_text(), "name": str(file)}
    assert file.stat().st_mode & 0o777 == 0o640
    assert os.listdir(file.parent) == ["config.yaml"]


def test_set_shows_what_is_called_like_a_secret_and_is_none(daemon: FakeDaemon) -> None:
    """Tokens are counted, too."""
    assert "llm.max_tokens is 512 in" in llmctl(daemon.socket_path, "config", "set", "llm.max_tokens", "512").stdout


def test_set_refuses_what_the_daemon_finds_wrong(daemon: FakeDaemon, file: Path) -> None:
    """Exit code 1, every problem told, and the file as it was."""
    daemon.answer("POST", "/config/check", {"valid": False, "problems": ["config.yaml:3: no port", "and more"]})
    ended = llmctl(daemon.socket_path, "config", "set", "server.port", "-1")
    assert ended.code == 1
    assert ended.stderr == "llmctl: nothing is changed: config.yaml:3: no port\n  and more\n"
    assert file.read_text() == TEXT
    assert os.listdir(file.parent) == ["config.yaml"]


def test_set_tells_who_overrides_it(daemon: FakeDaemon, file: Path) -> None:
    """A value that the environment sets is changed in the file for nothing, and that is said."""
    daemon.items("/config", [{"path": "server.port", "value": 1, "layer": "environment", "origin": "PORT"}])
    ended = llmctl(daemon.socket_path, "config", "set", "server.port", "9000")
    assert "PORT (environment) says something else, and wins" in ended.stderr
    shown = json.loads(llmctl(daemon.socket_path, "config", "set", "server.port", "9001", "--json").stdout)
    assert shown["overridden_by"] == "PORT (environment)"
    assert (shown["file"], shown["key"], shown["value"], shown["before"]) == (str(file), "server.port", "9001", "9000")


def test_set_without_a_daemon_is_checked_by_its_program(tmp_path: Path, file: Path) -> None:
    """The real `llmvisor config check`: it takes what is right, refuses what is not, and names the file itself."""
    absent = tmp_path / "absent"
    assert llmctl(absent, "config", "set", "server.port", "9000", "--file", str(file)).code == 0
    assert file.read_text() == TEXT.replace("8000", "9000")
    ended = llmctl(absent, "config", "set", "server.prot", "1", "--file", str(file))
    assert ended.code == 1
    assert "prot" in ended.stderr
    assert "config.yaml:4" in ended.stderr
    assert ".yaml." not in ended.stderr
    assert file.read_text() == TEXT.replace("8000", "9000")


def test_set_quotes_what_is_right_only_as_a_text(tmp_path: Path, file: Path) -> None:
    """An octal mode is a text: it is quoted without the person's knowing of YAML's numbers."""
    ended = llmctl(tmp_path / "absent", "config", "set", "control.group", "1000", "--file", str(file))
    assert ended.code == 0
    assert 'group: "1000"' in file.read_text()


@pytest.mark.parametrize(
    ("key", "value"), [("models.light.env.HF_TOKEN", "hf_new"), ("models.light.env", "{HF_TOKEN: hf_new}")]
)
@pytest.mark.parametrize("json_", [(), ("--json",)])
def test_set_shows_no_secret(daemon: FakeDaemon, file: Path, key: str, value: str, json_: tuple[str, ...]) -> None:
    """Neither the old one nor the new one, which stands in the file."""
    file.write_text("models:\n  light:\n    env: {HF_TOKEN: hf_old}\n")
    ended = llmctl(daemon.socket_path, "config", "set", key, value, *json_)
    assert (ended.code, file.read_text()) == (0, "models:\n  light:\n    env: {HF_TOKEN: hf_new}\n")
    assert "hf_" not in ended.stdout + ended.stderr
    assert "****" in ended.stdout


def test_set_follows_a_link(daemon: FakeDaemon, file: Path, tmp_path: Path) -> None:
    """The file that is linked to changes; the link stays one."""
    link = tmp_path / "link.yaml"
    link.symlink_to(file)
    assert llmctl(daemon.socket_path, "config", "set", "server.port", "1", "--file", str(link)).code == 0
    assert link.is_symlink()
    assert "port: 1 " in file.read_text()


@pytest.mark.parametrize(("key", "code"), [("", 2), ("a..b", 2), ("server.port.x", 1)])
def test_set_of_a_key_that_cannot_be_leaves_the_file_alone(daemon: FakeDaemon, file: Path, key: str, code: int) -> None:
    """What is no key at all is usage; what has no place in this file is told with the file's name."""
    assert llmctl(daemon.socket_path, "config", "set", key, "1").code == code
    assert file.read_text() == TEXT


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"a: [\n"], ids=["absent", "binary", "broken"])
def test_set_in_a_file_that_is_none_is_told(daemon: FakeDaemon, file: Path, content: bytes | None) -> None:
    """One line and exit code 1, not a traceback."""
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    ended = llmctl(daemon.socket_path, "config", "set", "server.port", "1")
    assert ended.code == 1
    assert ended.stderr.startswith("llmctl: ")
    assert str(file) in ended.stderr


@pytest.mark.parametrize("json_", [(), ("--json",)])
def test_set_finds_a_file_whose_name_the_locale_cannot_spell(tmp_path: Path, json_: tuple[str, ...]) -> None:
    """A plain C locale reads and writes the same file, `path` and `check` find it too."""
    file = tmp_path / "données" / "llmvisor" / "config.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(TEXT)
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "XDG_CONFIG_HOME": str(tmp_path / "données")}
    for arguments in (("set", "server.port", "9000"), ("path",), ("check",)):
        ended = llmctl(tmp_path / "absent", "config", *arguments, *json_, env=plain, cwd=tmp_path)
        assert ended.code == 0, ended.stderr
    assert file.read_text() == TEXT.replace("8000", "9000")


def test_set_without_any_file_says_how_to_get_one(daemon: FakeDaemon, tmp_path: Path) -> None:
    """`config init` writes the first."""
    daemon.answer("GET", "/llm/status", fake.daemon_status(config_file=None))
    home = {"HOME": str(tmp_path)}
    ended = llmctl(daemon.socket_path, "config", "set", "server.port", "1", env=home, cwd=tmp_path)
    assert ended.code == 1
    assert "llmctl config init" in ended.stderr


def test_set_in_another_file_than_the_daemons_waits_for_a_start_with_it(daemon: FakeDaemon, tmp_path: Path) -> None:
    """The daemon is not asked to do anything, and that is said."""
    other = tmp_path / "other.yaml"
    other.write_text(TEXT)
    ended = llmctl(daemon.socket_path, "config", "set", "server.port", "9000", "--file", str(other))
    assert ended.code == 0
    assert "it takes effect when llmvisor is started with this file" in ended.stderr
    assert daemon.asked("POST", "/config/reload") == []
