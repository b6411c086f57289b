"""What is shown of a configuration, and of its mistakes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tests.support.configuration import Configured

from llmvisor import limits
from llmvisor.config.layers import config_values


@pytest.fixture
def at(tmp_path: Path) -> Configured:
    return Configured(tmp_path)


def test_config_values_mask_secrets(at: Configured) -> None:
    """What looks like a key shows as `****` and is warned of by its name alone; a number called `max_tokens` shows."""
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


def test_config_problems_are_one_printable_line_each(at: Configured) -> None:
    """A key with line breaks or escape sequences cannot write to the terminal, and an endless one is cut."""
    escape, endless = at.problems('"a\\n\\e[31mb": 1\n' + "k" * 500 + ": 1\n")
    assert escape.startswith("config.yaml:1: a\\n\\x1b[31mb: unknown key")
    assert endless.startswith("config.yaml:2: kkk")
    problems = at.problems('"' + "é" * 990 + '": 1')
    assert [len(problem) for problem in problems] == [limits.problem_chars_max + 1]


def test_config_values_cover_the_whole_tree(at: Configured) -> None:
    """Every key of the tree is shown once, and every origin is that of a value."""
    loaded = at.load("models: {a: {backend: mock}, b: {backend: mock}}\nbackends: {mock: {python: python3}}")
    paths = [each.path for each in config_values(loaded)]
    assert len(paths) == len(set(paths))
    assert set(paths) == set(loaded.origins)
    assert {"server.port", "models.a.restart.backoff", "models.b.n_ctx", "backends.mock.python"} <= set(paths)
