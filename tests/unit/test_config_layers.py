"""The layers of configuration, one on top of the other."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.configuration import Configured

from llmvisor import limits
from llmvisor.config import schema
from llmvisor.config.layers import LoadedConfig, check_text, config_values, load_config
from llmvisor.errors import ConfigError


@pytest.fixture
def at(tmp_path: Path) -> Configured:
    return Configured(tmp_path)


def keys_of(*path: str) -> list[str]:
    """The keys of a section of the tree."""
    place = schema.ROOT
    for key in path:
        below = schema.below(place, key)
        assert below is not None
        place = below
    return schema.keys(place)


def value_of(loaded: LoadedConfig, path: str) -> tuple[object, str, str]:
    """A value as `GET /config` shows it, its layer and its origin."""
    value = next(each for each in config_values(loaded) if each.path == path)
    return msgspec.json.decode(value.value), value.layer, value.origin


EVERY_MISTAKE = """\
server:
  host: 127.0.0.1
  port: 65536
  prot: 1
  cors_origins: [loopback, ftp://x]
  management: true
sever:
  port: 1
cache: {enabled: true}
logging:
  main: loud
memory: {limit: 101%}
control: {mode: "0888"}
models:
  light:
    path: a.gguf
    n_ctx: lots
    n_ctx: 4096
    top_k: -1
    use_mmap: 7
    restart: {backoff: [10, 1], maximum: 3}
    replicas: 2
  other:
    tier: huge
    backend: mlx
    path: model.gguf
    aliases: [light]
  -bad-:
    backend: mock
  empty:
llm:
  temperature: .nan
  default_service: openai
  services: {}
backends:
  llamacpp: {pyhton: /usr/bin/python3}
"""

EVERY_PROBLEM = """\
config.yaml:3: server.port: found 65536, allowed: a whole number from 0 to 65535, or `auto`
config.yaml:4: server.prot: unknown key, the nearest is server.port
config.yaml:5: server.cors_origins: found ["loopback","ftp://x"], allowed: a list, each `loopback`, `*`, or
config.yaml:6: server.management: unknown key (a later version of llmvisor has it; this one does not)
config.yaml:7: sever: unknown key, the nearest is server
config.yaml:9: cache: unknown key (a later version of llmvisor has it; this one does not)
config.yaml:11: logging.main: found "loud", allowed: keys: console_level, file_level, file, format,
config.yaml:12: memory.limit: found "101%", allowed: a share such as 80%, or bytes such as 16GiB or 17179869184
config.yaml:13: control.mode: found "0888", allowed: an octal mode from "0600" to "0777"
config.yaml:17: models.light.n_ctx: found "lots", allowed: a whole number from 1 to 16777216
config.yaml:18: the key 'n_ctx' is there already, in line 17
config.yaml:19: models.light.top_k: found -1, allowed: a whole number from 0 to 1000000
config.yaml:20: models.light.use_mmap: found 7, allowed: true or false
config.yaml:21: models.light.restart.maximum: unknown key, the nearest is models.light.restart.max
config.yaml:21: models.light.restart.backoff: found [10.0, 1.0], allowed: the shortest wait first
config.yaml:22: models.light.replicas: unknown key (a later version of llmvisor has it; this one does not)
config.yaml:24: models.other.tier: found "huge", allowed: one of embedding, heavy, light, medium, reranker or null
config.yaml:25: models.other.backend: found "mlx", allowed in this version: llamacpp, mock, or a plug-in's
config.yaml:27: models.other.aliases: found "light", which is a model's name already
config.yaml:28: models.-bad-: found the name '-bad-'
config.yaml:30: models.empty: no path, allowed: `path:` of a GGUF file, or `backend: mock`
config.yaml:32: llm.temperature: found ".nan", allowed: a number from 0 to 2
config.yaml:33: llm.default_service: found "openai", allowed: one of local
config.yaml:34: llm.services: unknown key (a later version of llmvisor has it; this one does not)
config.yaml:36: backends.llamacpp.pyhton: unknown key, the nearest is backends.llamacpp.python
""".splitlines()


def test_config_reports_every_mistake_of_a_file_at_once(at: Configured) -> None:
    """One start tells all of a file's mistakes, each with file, line, path, what was found and what is allowed."""
    found = at.problems(EVERY_MISTAKE)
    assert len(found) == len(EVERY_PROBLEM)
    for problem, expected in zip(found, EVERY_PROBLEM, strict=True):
        assert problem.startswith(expected)


def test_config_reports_mistakes_of_all_layers_together(at: Configured) -> None:
    """File, `.env`, environment and flags are judged in one go, in that order, each named."""
    at.write("PORT=many\nnot a variable\n", ".env")
    found = at.problems("server: {port: -1}\n", HOST="a b", flags={"port": "99999"})
    assert [problem.split(": found")[0] for problem in found] == [
        "config.yaml:1: server.port",
        ".env:1 PORT: server.port",
        ".env:2: no NAME=value line",
        "HOST: server.host",
        "--port: server.port",
    ]


def test_config_is_complete_without_any(at: Configured) -> None:
    """With no configuration at all the starter model is served on loopback."""
    loaded = at.load()
    assert loaded.file is None
    assert loaded.config.server.host == "127.0.0.1"
    (name, model), *rest = loaded.config.models.items()
    assert not rest
    assert (name, model.tier, model.backend, model.n_ctx) == ("smollm2-135m-instruct", "light", "llamacpp", 8192)
    assert model.path == str(at.folder / "home/.local/share/llmvisor/models/SmolLM2-135M-Instruct.Q4_1.gguf")
    assert {each.layer for each in config_values(loaded)} == {"default"}
    assert loaded.warnings == []


def test_config_layers_beat_each_other_in_order(at: Configured) -> None:
    """Default, file, `.env`, environment, flag: each one wins over those before it, and is named as the origin."""
    assert value_of(at.load(), "server.port") == (8000, "default", "default")
    at.write("# a comment\nserver:\n  port: 1\n")
    assert value_of(at.load(), "server.port") == (1, "file", "config.yaml:3")
    at.write("\nPORT=2\n", ".env")
    assert value_of(at.load(), "server.port") == (2, "dotenv", ".env:2 PORT")
    assert value_of(at.load(PORT="3"), "server.port") == (3, "environment", "PORT")
    assert value_of(at.load(PORT="3", flags={"port": 4}), "server.port") == (4, "flag", "--port")
    assert value_of(at.load(PORT="3", flags={"port": None}), "server.port") == (3, "environment", "PORT")


def test_config_layers_win_key_by_key(at: Configured) -> None:
    """A layer that sets one key of a section leaves the others to the layers below, in every kind of section."""
    text = """\
server: {host: "::1", port: 1}
models:
  light: {backend: mock, n_ctx: 100, n_batch: 10, env: {A: file, B: file}, restart: {max: 9, window: 9}}
"""
    loaded = at.load(
        text,
        PORT="2",
        LIGHT_N_CTX="200",
        LLMVISOR__MODELS__LIGHT__ENV__B="mine",
        LLMVISOR__MODELS__LIGHT__RESTART__MAX="1",
    )
    light = loaded.config.models["light"]
    assert (loaded.config.server.host, loaded.config.server.port) == ("::1", 2)
    assert (light.n_ctx, light.n_batch) == (200, 10)
    assert light.env == {"A": "file", "B": "mine"}
    assert (light.restart.max, light.restart.window, light.restart.backoff) == (1, 9.0, (0.1, 10.0))
    assert value_of(loaded, "models.light.env.A")[1:] == ("file", "config.yaml:3")
    assert value_of(loaded, "models.light.env.B")[1:] == ("environment", "LLMVISOR__MODELS__LIGHT__ENV__B")


def test_config_any_model_takes_the_place_of_the_starter(at: Configured) -> None:
    """The starter is served only where no layer names a model."""
    assert list(at.load("models: {mine: {backend: mock}}").config.models) == ["mine"]
    assert list(at.load("server: {port: 1}", MEDIUM_MODEL_PATH="/m.gguf").config.models) == ["medium"]
    assert list(at.load(flags={"models.qwen2.5.path": "/m.gguf"}).config.models) == ["qwen2.5"]
    assert list(at.load("models:\n").config.models) == ["smollm2-135m-instruct"]


def test_config_flags_reach_anything_in_the_tree(at: Configured) -> None:
    """A dotted path is a flag, for models whose names have dots as well; unknown ones are problems."""
    text = "models: {qwen2.5: {backend: mock}}"
    loaded = at.load(text, flags={"models.qwen2.5.n_ctx": "77", "log_level": "DEBUG", "models.qwen2.5.options.x": "1"})
    assert loaded.config.models["qwen2.5"].n_ctx == 77
    assert loaded.config.models["qwen2.5"].options == {"x": 1}
    assert loaded.config.logging.main.console_level == "debug"
    assert value_of(loaded, "models.qwen2.5.n_ctx")[2] == "--set models.qwen2.5.n_ctx"
    assert at.problems(text, flags={"server.prot": "1", "server": "1"}) == [
        "--set server.prot: server.prot: unknown key, the nearest is server.port",
        "--set server: server: a part of the tree, not one value",
    ]


# ---------------------------------------------------------------------------------------------- files and folders


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
        "folder": "config.yaml: not a regular file",
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
    """A relative path starts from its file's folder, `~` is the home, the environment's starts from the working directory."""
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
        "/var/lib/llmvisor/models/SmolLM2-135M-Instruct.Q4_1.gguf"
    )


# --------------------------------------------------------------------------------------------- what is said of it


def test_config_values_mask_secrets(at: Configured) -> None:
    """What looks like a key shows as `****`, in the values and in the warnings; a number called `max_tokens` does not."""
    text = """\
models:
  light:
    backend: mock
    max_tokens: 77
    env: {HF_TOKEN: hunter2, PLAIN: shown}
    options: {api_key: hunter2, token_limit: 3}
"""
    loaded = at.load(text)
    shown = {each.path: msgspec.json.decode(each.value) for each in config_values(loaded)}
    assert shown["models.light.env.HF_TOKEN"] == "****"
    assert shown["models.light.env.PLAIN"] == "shown"
    assert shown["models.light.options.api_key"] == "****"
    assert shown["models.light.options.token_limit"] == 3
    assert shown["models.light.max_tokens"] == 77
    assert loaded.config.models["light"].env["HF_TOKEN"] == "hunter2"
    assert "hunter2" not in str(loaded.warnings)
    assert [warning.split(": a secret")[0] for warning in loaded.warnings] == [
        "config.yaml:5: models.light.env.HF_TOKEN",
        "config.yaml:6: models.light.options.api_key",
    ]


def test_config_problems_mask_secrets(at: Configured) -> None:
    """A secret of the wrong shape does not stand in the message that says so."""
    (problem,) = at.problems("models: {light: {backend: mock, env: {HF_TOKEN: [hunter2]}}}")
    assert "****" in problem
    assert "hunter2" not in problem


def test_config_values_cover_the_whole_tree(at: Configured) -> None:
    """Every key of the tree is shown once, and every origin is that of a value."""
    loaded = at.load("models: {a: {backend: mock}, b: {backend: mock}}\nbackends: {mock: {python: python3}}")
    paths = [each.path for each in config_values(loaded)]
    assert len(paths) == len(set(paths))
    assert set(paths) == set(loaded.origins)
    assert {"server.port", "models.a.restart.backoff", "models.b.n_ctx", "backends.mock.python"} <= set(paths)


def test_config_public_address_is_refused_unless_allowed(at: Configured) -> None:
    """Without API keys no other machine may reach the port, unless the person insists, and is warned at each start."""
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        (problem,) = at.problems(HOST=host)
        assert problem.startswith(f"HOST: server.host: {host} is open to other machines")
        loaded = at.load(HOST=host, flags={"insecure_no_auth": True})
        assert loaded.config.server.host == host
        assert len(loaded.warnings) == 1
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost", "LOCALHOST"):
        assert at.load(HOST=host).warnings == []


def test_config_socket_path_at_the_bound_and_past_it(at: Configured) -> None:
    """A path of `socket_path_bytes_max` bytes passes, one more is refused with both numbers, counted in bytes."""
    fits = "/" + "s" * (limits.socket_path_bytes_max - 1)
    assert at.load(flags={"socket": fits}).config.control.socket == fits
    (problem,) = at.problems(flags={"socket": fits + "s"})
    assert f"has {limits.socket_path_bytes_max + 1} bytes" in problem
    assert f"up to {limits.socket_path_bytes_max} bytes" in problem
    assert at.problems(flags={"socket": fits[:-1] + "é"})
    assert at.problems(XDG_RUNTIME_DIR="/" + "r" * limits.socket_path_bytes_max)


def test_config_socket_mode_may_be_written_as_a_number(at: Configured) -> None:
    """0660 with and without quotes is the octal mode; one that shuts its own person out, or is open to all, is told."""
    for text in ('"0660"', "0660", "660", "0o660"):
        assert at.load(f"control: {{mode: {text}}}").config.control.mode_bits == 0o660
    assert at.problems("control: {mode: 0060}")
    assert len(at.load("control: {mode: 0666}").warnings) == 1


@pytest.mark.parametrize(
    ("limit", "total", "expected"),
    [
        ("80%", 1000, 800),
        ("100%", 7, 7),
        ("0.5%", 1000, 5),
        ("16GiB", 1, 2**34),
        ("1.5 kB", 1, 1500),
        ("4096", 1, 4096),
    ],
)
def test_config_memory_limit_is_a_share_or_bytes(at: Configured, limit: str, total: int, expected: int) -> None:
    """A percentage counts of what there is, a size as it is."""
    assert at.load(f"memory: {{limit: {limit}}}").config.memory.limit_bytes(total) == expected


@pytest.mark.parametrize("limit", ["0%", "101%", "-1", "0", "GiB", "16Gib2", "1e9", "80%%", "٣GiB", "[]", "", "1.2.3"])
def test_config_memory_limit_of_another_form_is_refused(at: Configured, limit: str) -> None:
    """What is neither a share nor bytes is a problem."""
    assert "memory.limit" in at.problems(f"memory: {{limit: {limit}}}")[0]


def test_config_check_text_judges_a_text_by_itself(at: Configured) -> None:
    """The same problems as a start's, without the machine's environment; none = it can be used."""
    at.write("PORT=many", ".env")
    assert check_text("server: {port: 1}", "new.yaml") == []
    assert check_text("server: {port: x}", "new.yaml") == [
        'new.yaml:1: server.port: found "x", allowed: a whole number from 0 to 65535, or `auto`'
    ]
    assert len(check_text(EVERY_MISTAKE, "config.yaml")) == len(EVERY_PROBLEM)
    assert check_text("#" * (limits.config_file_bytes_max + 1), "n.yaml") == [
        f"n.yaml: larger than {limits.config_file_bytes_max} bytes"
    ]
    with_environment = check_text("server: {port: 1}", "n.yaml", environ=at.environ, cwd=at.folder)
    assert [problem.split(":")[0] for problem in with_environment] == [".env"]


def test_config_loading_twice_gives_the_same(at: Configured) -> None:
    """Nothing of a load stays behind for the next."""
    at.write("models: {a: {backend: mock, env: {X: y}}}")
    assert at.load() == at.load()


@settings(deadline=None)
@given(text=st.one_of(st.text(max_size=150), st.text(alphabet="abmodelserv:-[]{}&*!#\n \"?<>|,'%0.~", max_size=80)))
def test_config_of_any_text_is_a_tree_or_a_config_error(text: str) -> None:
    """Whatever stands in the file, the daemon has a tree or a list of problems."""
    problems = check_text(text, "config.yaml")
    assert all(problem.startswith("config.yaml") for problem in problems)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
EVERY_KEY = [
    *[(section, key) for section in ("server", "control", "memory", "llm") for key in keys_of(section)],
    *[("logging", "main", key) for key in keys_of("logging", "main")],
    *[("models", "m", key) for key in keys_of("models", "m")],
    *[("models", "m", "restart", key) for key in keys_of("models", "m", "restart")],
    ("models", "m", "env", "A"),
    ("models", "m", "options", "a"),
    ("models", "m"),
    ("models",),
    ("backends", "mock", "python"),
    ("nothing",),
]


@settings(deadline=None)
@given(path=st.sampled_from(EVERY_KEY), value=JSON)
def test_config_of_any_value_at_any_key_is_a_tree_or_a_config_error(path: tuple[str, ...], value: object) -> None:
    """Any value at any key of the tree, in the file or as a flag, gives a tree or problems."""
    tree = value
    for key in reversed(path):
        tree = {key: tree}
    # YAML takes JSON in; numbers that are none become null there.
    problems = check_text(msgspec.json.encode(tree).decode(), "config.yaml")
    assert all(problem.startswith("config.yaml") for problem in problems)
    flags: dict[str, object] = {"models.m.backend": "mock", ".".join(path): value}
    try:
        load_config(flags=flags, environ={"HOME": "/nowhere"}, cwd=Path("/nowhere"))
    except ConfigError as error:
        assert error.problems
