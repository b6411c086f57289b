"""`llmvisor config`, without a daemon."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import msgspec
import pytest
from tests.support.configuration import Configured

from llmvisor.config import schema
from llmvisor.config.command import example_text, run
from llmvisor.config.document import Mapping, Node, read_document
from llmvisor.config.layers import check_text, load_config
from llmvisor.config.tree import Config
from llmvisor.control.api import ConfigValue


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configured:
    """A working directory and a home of the process itself, and no variable of ours in its environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("PORT", "HOST", "LOG_LEVEL", "LLMVISOR_CONFIG", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return Configured(tmp_path)


Output = pytest.CaptureFixture[str]


def test_command_check_prints_every_problem_and_fails(at: Configured, capsys: Output) -> None:
    """Each problem on a line of its own on standard error, exit 1."""
    at.write("server: {port: x}\nsever: {}\n", "bad.yaml")
    assert run(["check", "bad.yaml"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(" ")[0] for line in err.splitlines()] == ["bad.yaml:1:", "bad.yaml:2:"]


def test_command_check_passes_what_can_be_used(at: Configured, capsys: Output) -> None:
    """Exit 0, the file's name, warnings beside it; without a name the file that a start would take."""
    path = at.write("models: {m: {backend: mock, env: {A_TOKEN: hunter2}}}\n")
    assert run(["check"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{path}: correct\n"
    assert err.startswith("warning: config.yaml:1: models.m.env.A_TOKEN: ")
    assert "hunter2" not in out + err


def test_command_check_takes_a_public_address_as_a_start_does(at: Configured, capsys: Output) -> None:
    """Wrong by itself, a warning with the flag that a start would need."""
    at.write("server: {host: 0.0.0.0}")
    assert run(["check"]) == 1
    assert run(["check", "--insecure-no-auth"]) == 0
    assert "warning: config.yaml:1: server.host: 0.0.0.0 is open" in capsys.readouterr().err


def test_command_show_prints_values_with_their_origin(
    at: Configured, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One value on a line, who set it behind; variables without effect at the end; nothing secret."""
    at.write("server:\n  host: '::1'\nmodels: {m: {backend: mock, env: {A_TOKEN: hunter2}}}\n")
    monkeypatch.setenv("PORT", "99")
    monkeypatch.setenv("OPENAI_API_KEY", "hunter2")
    assert run(["show", "--origin"]) == 0
    out, _ = capsys.readouterr()
    lines = {line.split("#")[0].strip(): line.split("# ")[1] for line in out.splitlines()}
    assert lines['server.host: "::1"'] == "file config.yaml:2"
    assert lines["server.port: 99"] == "environment PORT"
    assert lines["server.max_body_mb: 32"] == "default"
    assert lines['models.m.env.A_TOKEN: "****"'] == "file config.yaml:3"
    assert lines[""] == "OPENAI_API_KEY: not used by this version"
    assert "hunter2" not in out


def test_command_show_gives_json(at: Configured, capsys: Output) -> None:
    """The same objects as `GET /config` gives."""
    at.write("server: {port: 1}")
    assert run(["show", "--json"]) == 0
    values = msgspec.json.decode(capsys.readouterr().out, type=list[ConfigValue])
    port = next(value for value in values if value.path == "server.port")
    assert (msgspec.json.decode(port.value), port.layer, port.origin) == (1, "file", "config.yaml:1")


def test_command_path_prints_the_file_that_a_start_takes(at: Configured, capsys: Output) -> None:
    """The path alone; without a file nothing on standard output, and exit 1."""
    assert run(["path"]) == 1
    assert capsys.readouterr().out == ""
    path = at.write("server: {port: 1}")
    assert run(["path"]) == 0
    assert capsys.readouterr().out == f"{path}\n"


def test_command_init_writes_a_file_that_can_be_used(at: Configured, capsys: Output) -> None:
    """The example stands at the person's own path, for that person alone, and a start takes it."""
    assert run(["init"]) == 0
    path = at.folder / "home/.config/llmvisor/config.yaml"
    assert capsys.readouterr().out == f"{path}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert run(["check"]) == 0
    assert capsys.readouterr().out == f"{path}: correct\n"


def test_command_init_never_overwrites(at: Configured, capsys: Output) -> None:
    """A file that is there stays, a link as well, and an absent folder is told."""
    path = at.write("mine: 1")
    assert run(["init", "config.yaml"]) == 1
    assert path.read_text() == "mine: 1"
    link = at.folder / "link.yaml"
    link.symlink_to(at.folder / "nowhere.yaml")
    assert run(["init", "link.yaml"]) == 1
    assert not (at.folder / "nowhere.yaml").exists()
    assert run(["init", "config.yaml/x.yaml"]) == 1
    _, err = capsys.readouterr()
    assert len(err.splitlines()) == 3


def test_command_usage_error_exits_with_two(at: Configured, capsys: Output) -> None:
    """A word that is no action is a usage error."""
    with pytest.raises(SystemExit) as caught:
        run(["chekc"])
    assert caught.value.code == 2
    assert "check" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------- the example


def uncommented(text: str) -> str:
    """The example with every commented key taken in."""
    return re.sub(r"(?m)^( *)# ( *)([a-z_]+:(?: .*)?)$", r"\1\2\3", text)


def test_example_changes_nothing(at: Configured) -> None:
    """Every value that the example sets is the built-in default."""
    environ = {"HOME": str(at.folder)}
    default = load_config(flags={}, environ=environ, cwd=at.folder)
    at.write(example_text())
    assert load_config(flags={}, environ=environ, cwd=at.folder).config == default.config


def test_example_with_everything_taken_in_can_be_used() -> None:
    """The commented keys are right as well: without their `#` the file has no problem."""
    text = uncommented(example_text())
    assert check_text(text, "example.yaml") == []
    root, _ = read_document(text)
    assert set(root.entries) == set(Config.__struct_fields__)


def test_example_teaches_every_key() -> None:
    """No key of the tree is missing from the example."""
    text = uncommented(example_text())
    root, _ = read_document(text)

    def missing(place: schema.Place, node: Node, path: str) -> list[str]:
        if place.kind in ("leaf", "open"):
            return []
        assert isinstance(node, Mapping), path
        found: list[str] = []
        for key in schema.keys(place) or list(node.entries):
            below, here = schema.below(place, key), f"{path}.{key}"
            assert below is not None
            found += missing(below, node.entries[key].node, here) if key in node.entries else [here]
        return found

    assert missing(schema.ROOT, root, "") == []
