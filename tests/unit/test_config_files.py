"""Where configuration is read from, and what it says about paths."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.support.configuration import Configured

from llmvisor import limits


@pytest.fixture
def at(tmp_path: Path) -> Configured:
    return Configured(tmp_path)


def test_config_file_is_looked_for_in_order(at: Configured) -> None:
    """Flag, $LLMVISOR_CONFIG, ./config.yaml, the person's own: the first that is named or there is taken alone."""
    at.write("server: {port: 4}", "home/.config/llmvisor/config.yaml")
    assert at.load().config.server.port == 4
    at.write("server: {port: 3}", "config.yaml")
    assert at.load().config.server.port == 3
    at.write("server: {port: 2}", "named.yaml")
    assert at.load(LLMVISOR_CONFIG="named.yaml").config.server.port == 2
    path = at.write("server: {port: 1}", "home/flag.yaml")
    for named in (str(path), "~/flag.yaml", "home/flag.yaml"):
        loaded = at.load(LLMVISOR_CONFIG="named.yaml", flags={"config": named})
        assert (loaded.config.server.port, loaded.file) == (1, path)


def test_config_file_in_xdg_config_home_is_found(at: Configured) -> None:
    """The person's own file is looked for where the desktop's standard says."""
    path = at.write("server: {port: 9}", "xdg/llmvisor/config.yaml")
    assert at.load(XDG_CONFIG_HOME=str(at.folder / "xdg")).file == path


def test_config_dotenv_stands_beside_the_file_or_in_the_working_directory(at: Configured) -> None:
    """The one beside the file is taken; without one there, the working directory's."""
    at.write("PORT=1", ".env")
    file = at.write("memory: {limit: 50%}", "etc/config.yaml")
    assert at.load(flags={"config": str(file)}).config.server.port == 1
    beside = at.write("PORT=2", "etc/.env")
    loaded = at.load(flags={"config": str(file)})
    assert (loaded.config.server.port, loaded.dotenv) == (2, beside)


@pytest.mark.parametrize("how", ["absent", "folder", "pipe", "too large", "latin-1", "forbidden"])
def test_config_file_that_cannot_be_read_is_one_problem(at: Configured, how: str) -> None:
    """Absent, a folder, a pipe, too large, not UTF-8, forbidden: a sentence that names the file, and no hang."""
    path = at.folder / "config.yaml"
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "too large":
        path.write_bytes(b"#" * (limits.config_file_bytes_max + 1))
    elif how == "latin-1":
        path.write_bytes(b"server:\n  host: caf\xe9\n")
    elif how == "forbidden":
        if os.getuid() == 0:
            pytest.skip("root reads everything")
        path.write_text("server: {}")
        path.chmod(0)
    (problem,) = at.problems(flags={"config": "config.yaml"})
    expected = {
        "absent": "config.yaml: cannot be read: No such file or directory",
        "folder": "config.yaml: cannot be read: Is a directory",
        "pipe": "config.yaml: not a regular file",
        "too large": f"config.yaml: larger than {limits.config_file_bytes_max} bytes",
        "latin-1": "config.yaml:2: not in UTF-8 (byte 0xe9)",
        "forbidden": "config.yaml: cannot be read: Permission denied",
    }
    assert problem == expected[how]


def test_config_file_of_exactly_the_bound_is_read(at: Configured) -> None:
    """A file of `config_file_bytes_max` bytes passes."""
    text = "server: {port: 5}\n"
    at.write(text + "#" * (limits.config_file_bytes_max - len(text)))
    assert at.load().config.server.port == 5


@pytest.mark.parametrize("text", ["", "\n\n", "# all commented out\n", "---\n"])
def test_config_file_that_is_empty_is_an_error(at: Configured, text: str) -> None:
    """An empty file is a half-written one, and never means to serve nothing."""
    (problem,) = at.problems(text)
    assert problem.startswith("config.yaml:1: nothing in it")


def test_config_paths_start_where_they_were_written(at: Configured) -> None:
    """A relative path starts from its file's folder, the environment's from the working directory; `~` is the home."""
    file = at.write(
        "models: {a: {path: sub/a.gguf}, b: {path: ~/b.gguf}, light: {path: x.gguf}}\nserver: {port_file: p}\n",
        "etc/c.yaml",
    )
    loaded = at.load(flags={"config": str(file), "log_file": "f.log"}, LIGHT_MODEL_PATH="../l.gguf")
    folder = at.folder
    assert {name: model.path for name, model in loaded.config.models.items()} == {
        "a": str(folder / "etc/sub/a.gguf"),
        "b": str(folder / "home/b.gguf"),
        "light": str(folder.parent / "l.gguf"),
    }
    assert loaded.config.server.port_file == str(folder / "etc/p")
    assert loaded.config.logging.main.file == str(folder / "f.log")


def test_config_files_of_ours_stand_in_the_working_directory_or_a_service_folder(at: Configured) -> None:
    """`.port` and the log stand in the working directory; a systemd service's own folder takes them in."""
    assert at.load().config.server.port_file == str(at.folder / ".port")
    loaded = at.load(STATE_DIRECTORY="/var/lib/llmvisor:/other", RUNTIME_DIRECTORY="/run/llmvisor")
    assert loaded.config.server.port_file == "/var/lib/llmvisor/.port"
    assert loaded.config.logging.main.file == "/var/lib/llmvisor/logs/main.log"
    assert loaded.config.control.socket == "/run/llmvisor/control.sock"
    assert loaded.config.models["smollm2-135m-instruct"].path == (
        "/var/lib/llmvisor/models/smollm2-135m-instruct/b179c9523d0e/SmolLM2-135M-Instruct.Q4_1.gguf"
    )


def test_config_file_that_everybody_may_write_to_is_warned_of(at: Configured) -> None:
    """Whoever may write to the file, or to `.env`, runs programs as the daemon."""
    path, dotenv = at.write("server: {port: 1}"), at.write("PORT=1", ".env")
    assert at.load().warnings == []
    path.chmod(0o666)
    dotenv.chmod(0o602)
    assert at.load().warnings == [
        f"{name}: every person of this machine may write to it" for name in ("config.yaml", ".env")
    ]
