"""The layers of configuration, one on top of the other."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.configuration import Configured

from llmvisor import limits
from llmvisor.config import schema
from llmvisor.config.layers import LoadedConfig, check_text, config_values, load_config
from llmvisor.config.paths import starter_model_path
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
  management: perhaps
sever:
  port: 1
routing: {strategy: cost}
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
    backend: onnx
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
config.yaml:6: server.management: found "perhaps", allowed: true or false
config.yaml:7: sever: unknown key, the nearest is server
config.yaml:9: routing: unknown key (a later version of llmvisor has it; this one does not)
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
config.yaml:25: models.other.backend: found "onnx", allowed in this version: flag, llamacpp, mlx, mock, or a plug-in's
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
    environ = {"HOME": str(at.folder / "home")}
    assert model.path == str(starter_model_path(environ))
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
        outcome: object = load_config(flags=flags, environ={"HOME": "/nowhere"}, cwd=Path("/nowhere"))
    except ConfigError as error:
        outcome = error.problems
    assert outcome
