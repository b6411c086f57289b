"""Every environment name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.configuration import Configured

from llmvisor.config.environment import SERVER_NAMES, TIER_NAMES, fold
from llmvisor.config.layers import load_config
from llmvisor.config.tree import TIERS
from llmvisor.errors import ConfigError


@pytest.fixture
def at(tmp_path: Path) -> Configured:
    return Configured(tmp_path)


# Written out here, because a table that both sides read would prove nothing.
TIER_VALUES = {
    "MODEL_PATH": ("path", "/models/x.gguf", "/models/x.gguf"),
    "BACKEND": ("backend", "mock", "mock"),
    "N_CTX": ("n_ctx", "1234", 1234),
    "N_BATCH": ("n_batch", "99", 99),
    "N_THREADS": ("n_threads", "3", 3),
    "N_GPU_LAYERS": ("n_gpu_layers", "-1", -1),
    "TEMPERATURE": ("temperature", "0.25", 0.25),
    "TOP_P": ("top_p", "0.5", 0.5),
    "TOP_K": ("top_k", "11", 11),
    "MAX_TOKENS": ("max_tokens", "321", 321),
    "REPEAT_PENALTY": ("repeat_penalty", "1.5", 1.5),
    "USE_MMAP": ("use_mmap", "false", False),
    "USE_MLOCK": ("use_mlock", "true", True),
    "EMBEDDING_MODE": ("embedding_mode", "true", True),
    "EMBEDDING_DIMENSION": ("embedding_dimension", "256", 256),
}
CACHE_VALUES = {
    "ENABLE_CACHE": ("enabled", "false", False),
    "LLM_CACHE_ENABLED": ("enabled", "0", False),
    "CACHE_MAX_SIZE": ("max_size", "7", 7),
    "CACHE_TTL_SECONDS": ("ttl_seconds", "60", 60.0),
    "LLM_CACHE_TTL_SECONDS": ("ttl_seconds", "90", 90.0),
    "CACHE_PERSIST_TO_DISK": ("persist_to_disk", "true", True),
    "CACHE_DIR": ("dir", "/cache", "/cache"),
}
TIERS_WRITTEN = ["LIGHT", "MEDIUM", "HEAVY", "EMBEDDING", "RERANKER"]


@pytest.mark.parametrize("tier", TIERS_WRITTEN)
@pytest.mark.parametrize("suffix", list(TIER_VALUES))
def test_environment_every_name_of_every_tier(at: Configured, tier: str, suffix: str) -> None:
    """Each of the names sets its key of the tier's model."""
    key, text, value = TIER_VALUES[suffix]
    loaded = at.load(environ={f"{tier}_MODEL_PATH": "/other.gguf", f"{tier}_{suffix}": text})
    assert list(loaded.config.models) == [tier.lower()]
    model = loaded.config.models[tier.lower()]
    assert getattr(model, key) == value
    assert model.tier == tier.lower()
    assert loaded.origins[f"models.{tier.lower()}.{key}"].where == f"{tier}_{suffix}"


def test_environment_names_are_all_tested() -> None:
    """No name is known to the daemon and not to these tests."""
    assert set(TIER_NAMES) == {f"{tier}_{suffix}" for tier in TIERS_WRITTEN for suffix in TIER_VALUES}
    assert set(SERVER_NAMES) == {"PORT", "HOST", "LOG_LEVEL", "SHUTDOWN_TIMEOUT", "LLMVISOR_SOCKET", *CACHE_VALUES}


def test_environment_names_of_the_server(at: Configured) -> None:
    """PORT, HOST, LOG_LEVEL, SHUTDOWN_TIMEOUT, and the socket's, which `llmctl` reads as well."""
    config = at.load(PORT="81", HOST="::1", LOG_LEVEL="DEBUG", SHUTDOWN_TIMEOUT="0").config
    assert (config.server.port, config.server.host, config.server.shutdown_timeout) == (81, "::1", 0)
    assert config.logging.main.console_level == "debug"
    assert at.load(LLMVISOR_SOCKET="s.sock").config.control.socket == str(at.folder / "s.sock")


def test_environment_empty_variable_is_one_that_is_not_set(at: Configured) -> None:
    """`PORT=` in an environment says nothing."""
    assert at.load(PORT="", LIGHT_MODEL_PATH=" ", LLMVISOR__SERVER__PORT="").config.server.port == 8000


def test_environment_tier_names_speak_of_the_model_that_fills_the_tier(at: Configured) -> None:
    """The model called as the tier is meant, else the first of that tier, else the starter."""
    text = "models: {a: {backend: mock, tier: light}, b: {backend: mock, tier: light}}"
    models = at.load(text, LIGHT_N_CTX="9").config.models
    assert [model.n_ctx for model in models.values()] == [9, 8192]
    assert list(at.load(text, LIGHT_MODEL_PATH="/x.gguf").config.models) == ["a", "b"]
    named = at.load("models: {a: {backend: mock, tier: light}, light: {backend: mock}}", LIGHT_N_CTX="9").config.models
    assert [model.n_ctx for model in named.values()] == [8192, 9]
    assert at.load("llm: {}", LIGHT_N_CTX="9").config.models["smollm2-135m-instruct"].n_ctx == 9


def test_environment_names_of_a_tier_without_a_model_have_no_effect(at: Configured) -> None:
    """A whole set of tier variables may stand there; those of tiers that nothing fills are listed as unused."""
    loaded = at.load(HEAVY_N_CTX="what", HEAVY_EMBEDDING_MODE="true")
    assert list(loaded.config.models) == ["smollm2-135m-instruct"]
    assert loaded.unused == [
        "HEAVY_N_CTX: not used, no model is of the tier heavy",
        "HEAVY_EMBEDDING_MODE: not used, no model is of the tier heavy",
    ]


@pytest.mark.parametrize("name", list(CACHE_VALUES))
def test_environment_names_of_the_cache(at: Configured, name: str) -> None:
    """Each sets its key, whichever of the two names a program uses."""
    key, text, value = CACHE_VALUES[name]
    loaded = at.load(environ={name: text})
    assert getattr(loaded.config.cache, key) == value
    assert loaded.origins[f"cache.{key}"].where == name


FOREIGN = [
    "LM_STUDIO_ENDPOINT",
    "OPENAI_API_KEY", "OPENAI_MODEL", "OPENAI_MAX_TOKENS", "OPENAI_TEMPERATURE", "CLAUDE_API_KEY", "ANTHROPIC_API_KEY",
    "CLAUDE_MODEL", "LLM_ROUTING_STRATEGY", "LLM_GENERAL_MODEL_1",
    "LLM_SQL_MODEL_2", "LLM_ANALYSIS_MODEL_1", "LLM_UI_GENERATION_MODEL_10", "LLM_CONFIG_MANAGEMENT_MODEL_1",
    "LLM_SQL_MODEL",
]  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_environment_names_of_later_versions_are_no_errors(at: Configured, name: str) -> None:
    """Names that other programs share are left alone, and listed as unused without their values."""
    loaded = at.load(environ={name: "hunter2"})
    assert loaded.unused == [f"{name}: not used by this version"]
    assert loaded.config == at.load().config


def test_environment_name_with_one_underscore_too_few_is_listed(at: Configured) -> None:
    """`LLMVISOR_PORT` sets nothing, and that is told; names that say where things are do not count."""
    loaded = at.load(LLMVISOR_PORT="1", LLMVISOR_DATA_DIR="/d")
    assert loaded.unused == ["LLMVISOR_PORT: not used; names of the tree begin with LLMVISOR__"]


# ------------------------------------------------------------------------------------------- anything in the tree


@pytest.mark.parametrize(
    ("name", "text", "path"),
    [
        ("LLMVISOR__SERVER__PORT", "81", "server.port"),
        ("LLMVISOR__LOGGING__MAIN__MAX_BACKUPS", "1", "logging.main.max_backups"),
        ("LLMVISOR__MEMORY__LIMIT", "50%", "memory.limit"),
        ("LLMVISOR__MODELS__QWEN2_5_CODER__N_CTX", "81", "models.qwen2.5-coder.n_ctx"),
        ("LLMVISOR__MODELS__QWEN2_5_CODER__RESTART__BACKOFF", "1,2", "models.qwen2.5-coder.restart.backoff"),
        ("LLMVISOR__MODELS__QWEN2_5_CODER__ENV__Mixed__Case", "v", "models.qwen2.5-coder.env.Mixed__Case"),
        ("LLMVISOR__MODELS__QWEN2_5_CODER__ENV__PATH", "v", "models.qwen2.5-coder.env.PATH"),
        ("LLMVISOR__MODELS__QWEN2_5_CODER__OPTIONS__PATH", "true", "models.qwen2.5-coder.options.path"),
        ("llmvisor__models__qwen2_5_coder__n_ctx", "81", "models.qwen2.5-coder.n_ctx"),
        ("LLMVISOR__BACKENDS__LLAMACPP__PYTHON", "python3", "backends.llamacpp.python"),
    ],
)
def test_environment_long_names_reach_anything(at: Configured, name: str, text: str, path: str) -> None:
    """`LLMVISOR__` and the path, in capitals, with `_` for what a variable's name cannot hold."""
    loaded = at.load("models: {qwen2.5-coder: {backend: mock}}", environ={name: text})
    assert loaded.origins[path].where == name
    assert list(loaded.config.models) == ["qwen2.5-coder"]


def test_environment_long_name_defines_a_model(at: Configured) -> None:
    """A path, or a backend that needs none, is enough for a new model; a name with `__` stays whole."""
    loaded = at.load(LLMVISOR__MODELS__FOO__PATH="/f.gguf", LLMVISOR__MODELS__A__B__BACKEND="mock")
    assert list(loaded.config.models) == ["foo", "a__b"]
    assert loaded.config.models["foo"].path == "/f.gguf"
    assert at.load(LLMVISOR__MODELS__HEAVY__BACKEND="mock").config.models["heavy"].tier == "heavy"


def test_environment_long_name_is_the_more_exact_one(at: Configured) -> None:
    """Where a short and a long name of one layer set the same key, the long one holds, in either order."""
    for names in (("PORT", "LLMVISOR__SERVER__PORT"), ("LLMVISOR__SERVER__PORT", "PORT")):
        assert at.load(environ={name: "1" if name == "PORT" else "2" for name in names}).config.server.port == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("LLMVISOR__SERVER__PROT", "server.prot: unknown key, the nearest is server.port (LLMVISOR__SERVER__PORT)"),
        ("LLMVISOR__SEVER__PORT", "sever: unknown key, the nearest is server (LLMVISOR__SERVER)"),
        ("LLMVISOR__SERVER", "server: a part of the tree, not one value; it has: host, port"),
        ("LLMVISOR__SERVER__PORT__X", "server.port.x: unknown key, server.port is one value"),
        ("LLMVISOR__ROUTING__STRATEGY", "routing: unknown key (a later version of llmvisor has it; this one does not)"),
        ("LLMVISOR__MODELS__LITE__N_CTX", "no model is called lite, the nearest is light"),
        ("LLMVISOR__MODELS__LIGHT__N_CTXX", "models.light.n_ctxx: unknown key, the nearest is models.light.n_ctx"),
        ("LLMVISOR__MODELS__A_B__N_CTX", "stands for more than one model: a-b, a.b"),
        ("LLMVISOR__MODELS__LIGHT", "models.light: a part of the tree"),
        ("LLMVISOR__MODELS", "models: a part of the tree"),
        ("LLMVISOR__", "unknown key"),
    ],
)
def test_environment_unknown_long_name_is_an_error(at: Configured, name: str, said: str) -> None:
    """A name of ours that means nothing is told, with the nearest one that means something."""
    text = "models: {light: {backend: mock}, a-b: {backend: mock}, a.b: {backend: mock}}"
    (problem,) = at.problems(text, environ={name: "1"})
    assert problem.startswith(f"{name}: ")
    assert said in problem


def test_environment_wrong_value_names_the_variable(at: Configured) -> None:
    """Variable, key, what was found and what is allowed."""
    text = "models: {light: {backend: mock}}"
    assert at.problems(text, LIGHT_TOP_P="1.5") == [
        'LIGHT_TOP_P: models.light.top_p: found "1.5", allowed: a number from 0 to 1'
    ]


def test_environment_wins_over_dotenv_name_by_name(at: Configured) -> None:
    """The process's own variable replaces the file's of the same name; others of the file stay."""
    at.write("PORT=1\nHOST=::1\nLIGHT_MODEL_PATH=sub/m.gguf\n", "etc/.env")
    file = at.write("memory: {limit: 1%}", "etc/c.yaml")
    config = at.load(flags={"config": str(file)}, PORT="2").config
    assert (config.server.port, config.server.host) == (2, "::1")
    assert config.models["light"].path == str(at.folder / "etc/sub/m.gguf")


NAMES = st.one_of(
    st.sampled_from([*SERVER_NAMES, *TIER_NAMES, "LLMVISOR__MODELS__M__PATH", "LLMVISOR__BACKENDS__X__PYTHON"]),
    st.text(alphabet="ABNPTX_", max_size=12).map("LLMVISOR__".__add__),
    st.text(alphabet="ABNPTX_", max_size=12).map("LLMVISOR__MODELS__".__add__),
)


@settings(deadline=None)
@given(environ=st.dictionaries(NAMES, st.text(max_size=12), max_size=6))
def test_environment_of_any_variables_is_a_tree_or_a_config_error(environ: dict[str, str]) -> None:
    """Whatever our variables hold, there is a tree or a list of problems."""
    try:
        outcome: object = load_config(flags={}, environ={"HOME": "/nowhere"} | environ, cwd=Path("/nowhere"))
    except ConfigError as error:
        outcome = error.problems
    assert outcome


@settings(deadline=None)
@given(name=st.text(alphabet="abcXYZ019.-_:@+/", min_size=1, max_size=20))
def test_environment_folded_name_fits_into_a_variable(name: str) -> None:
    """A model's name becomes capitals, digits and `_`, sign by sign."""
    folded = fold(name)
    assert len(folded) == len(name)
    assert set(folded) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
    assert set(TIERS) == {tier.lower() for tier in TIERS_WRITTEN}
