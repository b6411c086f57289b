"""The models of a configuration: names, tiers, backends, files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.configuration import Configured

from llmvisor import limits


@pytest.fixture
def at(tmp_path: Path) -> Configured:
    return Configured(tmp_path)


def test_model_called_as_a_tier_fills_it(at: Configured) -> None:
    """`tier` is the name where that is a tier's, and may be said for any other name."""
    models = at.load(
        "models: {heavy: {backend: mock}, a: {backend: mock, tier: medium}, b: {backend: mock}}"
    ).config.models
    assert {name: model.tier for name, model in models.items()} == {"heavy": "heavy", "a": "medium", "b": None}


def test_model_called_as_a_tier_fills_no_other(at: Configured) -> None:
    """A model `heavy` of the tier light would make one name mean two."""
    assert at.problems("models: {heavy: {backend: mock, tier: light}}") == [
        "config.yaml:1: models.heavy.tier: found light, allowed for a model called heavy: heavy"
    ]


def test_model_backend_is_guessed_from_the_file(at: Configured) -> None:
    """A GGUF is llama.cpp's, in any case of letters."""
    models = at.load(
        "models: {a: {path: x.gguf}, b: {path: X.GGUF}, c: {path: x.bin, backend: llamacpp}}"
    ).config.models
    assert {model.backend for model in models.values()} == {"llamacpp"}


def test_model_backend_is_guessed_from_the_folder(at: Configured) -> None:
    """A folder of a model that writes text is MLX's, one of an encoder FlagEmbedding's."""
    for name, kind in (("text", "LlamaForCausalLM"), ("vectors", "XLMRobertaModel")):
        (at.folder / name).mkdir()
        model_type = "llama" if name == "text" else "xlm-roberta"
        config = {"architectures": [kind], "model_type": model_type}
        (at.folder / name / "config.json").write_text(json.dumps(config))
        (at.folder / name / "model.safetensors").write_bytes(bytes(100))
        (at.folder / name / "tokenizer.json").write_text("{}")
    models = at.load("models: {a: {path: text}, b: {path: vectors}}").config.models
    assert [model.backend for model in models.values()] == ["mlx", "flag"]


def test_model_backend_that_cannot_be_guessed_is_told(at: Configured) -> None:
    """A folder and a file of another kind are refused with the backends that there are."""
    (at.folder / "mlx-model").mkdir()
    folder, file = at.problems("models:\n  a: {path: mlx-model}\n  b: {path: x.safetensors}\n")
    assert folder.startswith("config.yaml:2: models.a.path: found a folder")
    assert file.startswith("config.yaml:3: models.b.path: found")
    for problem in (folder, file):
        assert "this version has the backends flag, llamacpp, mlx, mock" in problem


def test_model_folder_is_nothing_for_llamacpp(at: Configured) -> None:
    """A folder is refused also where the backend is said."""
    (at.folder / "d.gguf").mkdir()
    first, second = at.problems("models: {a: {path: d.gguf}, b: {path: d.gguf, backend: llamacpp}}")
    assert "models.a.path: found a folder" in first
    assert "models.b.path: found a folder" in second


def test_model_without_a_file_needs_a_backend_that_needs_none(at: Configured) -> None:
    """Only `mock` goes without a path."""
    assert at.load("models: {a: {backend: mock}}").config.models["a"].path is None
    assert at.problems("models: {a: {backend: llamacpp}}") == [
        "config.yaml:1: models.a: no path, and the backend llamacpp needs one"
    ]


def test_model_file_that_is_absent_is_no_mistake_of_the_configuration(at: Configured) -> None:
    """The file may come later; its absence is told when the model is loaded."""
    assert at.load("models: {a: {path: absent.gguf}}").config.models["a"].path == str(at.folder / "absent.gguf")


def test_model_backend_of_another_interpreter_is_taken_as_it_is(at: Configured) -> None:
    """A plug-in that only its own interpreter has cannot be seen from here."""
    text = "models: {a: {backend: theirs, path: x}}\n"
    assert "models.a.backend" in at.problems(text)[0]
    assert at.load(text + "backends: {theirs: {python: venv/bin/python}}").config.backends["theirs"].python == str(
        at.folder / "venv/bin/python"
    )


def test_model_inherits_from_llm(at: Configured) -> None:
    """Temperature and length stand under `llm` for all models that do not set their own, with that origin."""
    text = (
        "models:\n  a: {backend: mock, max_tokens: 5}\n  b: {backend: mock}\nllm:\n  max_tokens: 9\n  temperature: 0\n"
    )
    loaded = at.load(text)
    a, b = loaded.config.models.values()
    assert (a.max_tokens, b.max_tokens) == (5, 9)
    assert (a.temperature, b.temperature) == (0, 0)
    assert loaded.origins["models.b.max_tokens"].where == "config.yaml:5"
    assert loaded.origins["models.a.max_tokens"].where == "config.yaml:2"


@pytest.mark.parametrize(
    ("alias", "said"),
    [
        ("b", "a model's name already"),
        ("light/b", "allowed are letters"),
        ("medium", "a tier"),
        ("default", "whatever model is loaded"),
        ("same", "models.a.aliases has already"),
        ("a b", "found 'a b'"),
        ("x" * 257, "up to 256"),
    ],
)
def test_model_alias_stands_for_one_model(at: Configured, alias: str, said: str) -> None:
    """An alias is no model's name, no tier, nobody else's alias, and a name that a request can carry."""
    text = f"models: {{a: {{backend: mock, aliases: [same]}}, b: {{backend: mock, tier: light, aliases: ['{alias}']}}}}"
    (problem,) = at.problems(text)
    assert problem.startswith("config.yaml:1: models.b.aliases: ")
    assert said in problem


def test_model_aliases_twice_in_one_list_are_told(at: Configured) -> None:
    """The same alias twice is a slip, not a wish."""
    assert "has already" in at.problems("models: {a: {backend: mock, aliases: [x, x]}}")[0]


@pytest.mark.parametrize("name", ["a b", "../x", "", "n" * 257, "-x", "a/b", "default"])
def test_model_name_that_no_request_can_carry_is_refused(at: Configured, name: str) -> None:
    """Spaces, ways out of a folder, nothing, and endless names."""
    (problem,) = at.problems(f"models: {{'{name}': {{backend: mock}}}}")
    assert problem.startswith("config.yaml:1: models.")


@pytest.mark.parametrize("name", ["A=B", "1A", "a-b", "", "A B"])
def test_model_environment_takes_names_of_variables(at: Configured, name: str) -> None:
    """What no process can have as a variable's name is refused, in every layer."""
    (problem,) = at.problems(f"models: {{m: {{backend: mock, env: {{'{name}': x}}}}}}")
    assert problem.startswith("config.yaml:1: models.m.env.")
    (problem,) = at.problems(flags={"models.m.backend": "mock", f"models.m.env.{name}": "x"})
    assert "letters, digits and _" in problem


def test_model_option_name_at_the_bound_and_past_it(at: Configured) -> None:
    """A name of `option_name_chars_max` printable characters passes, a longer one and one with a line break do not."""
    fits = "o" * limits.option_name_chars_max
    text = 'models: {{m: {{backend: mock, options: {{"{}": 1}}}}}}'
    assert at.load(text.format(fits)).config.models["m"].options == {fits: 1}
    for wrong in (fits + "o", "a\\nb", ""):
        assert "printable characters" in at.problems(text.format(wrong))[0]


def test_models_at_the_bound_and_past_it(at: Configured) -> None:
    """`models_configured_max` models pass, one more does not."""
    text = "models:\n" + "".join(f"  m{n}: {{backend: mock}}\n" for n in range(limits.models_configured_max))
    assert len(at.load(text).config.models) == limits.models_configured_max
    assert f"up to {limits.models_configured_max}" in at.problems(text + "  more: {backend: mock}\n")[0]


def test_models_keep_the_order_of_the_file(at: Configured) -> None:
    """The first model stays the first, whatever other layers set."""
    text = "models: {z: {backend: mock}, light: {}, a: {backend: mock}}"
    models = at.load(text, LIGHT_BACKEND="mock", HEAVY_BACKEND="mock", LLMVISOR__MODELS__A__N_CTX="5").config.models
    assert list(models) == ["z", "light", "a", "heavy"]


def test_files_in_the_options_start_from_the_configurations_folder(at: Configured) -> None:
    """A worker's own folder is another: what is relative there, or begins with ~, means the file beside the config."""
    text = """
models:
  m:
    backend: llamacpp
    path: m.gguf
    options:
      draft_model: drafts/small.gguf
      mmproj: /eyes.gguf
      adapters: {near: {path: near.gguf, scale: 0.5}, home: {path: ~/far.gguf}}
"""
    options = at.load(text).config.models["m"].options
    assert options["draft_model"] == str(at.folder / "drafts/small.gguf")
    assert options["mmproj"] == "/eyes.gguf"
    assert options["adapters"] == {
        "near": {"path": str(at.folder / "near.gguf"), "scale": 0.5},
        "home": {"path": str(at.folder / "home/far.gguf")},
    }


def test_files_of_a_plug_ins_options_are_left_alone(at: Configured) -> None:
    """What a backend's option means is the backend's to say."""
    assert at.load("models: {m: {backend: mock, options: {mmproj: a}}}").config.models["m"].options == {"mmproj": "a"}


def test_adapters_that_are_no_mapping_are_the_backends_to_refuse(at: Configured) -> None:
    """Configuration passes on what it does not know."""
    text = "models: {m: {backend: llamacpp, path: m.gguf, options: {adapters: [a], draft_model: 3}}}"
    assert at.load(text).config.models["m"].options == {"adapters": ["a"], "draft_model": 3}


@pytest.mark.parametrize(
    ("key", "option"),
    [("mmproj", "mmproj"), ("draft", "draft_model"), ("lora", "adapters"), ("chat_template", "chat_template")],
)
def test_option_beside_the_path_is_told_where_it_belongs(at: Configured, key: str, option: str) -> None:
    """Other programs have it there; here it is one of the backend's options."""
    assert at.problems(f"models: {{m: {{path: x.gguf, {key}: a}}}}") == [
        f"config.yaml:1: models.m.{key}: unknown key; it is one of the model's options: options: {{{option}: …}}"
    ]
