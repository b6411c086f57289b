"""What is taken of a hub's repository: one GGUF model or a folder of safetensors, and never a pickle."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.repository import RepositoryFile, Selection, select, suggested_name
from llmvisor.models.manifest import installed_name_problem, is_inner_path

MLX = ("config.json", "model.safetensors", "tokenizer.json")
NAMES = st.lists(
    st.one_of(
        st.text(max_size=30),
        st.sampled_from(
            [
                "config.json",
                "model.safetensors",
                "a-Q4_K_M.gguf",
                "../b-Q4_K_M.gguf",
                "/c.safetensors",
                "x.bin",
                "A.JSON",
            ]
        ),
        st.tuples(st.text(max_size=8), st.sampled_from([".gguf", ".json", ".safetensors", "-00001-of-00002.gguf"])).map(
            "".join
        ),
    ),
    max_size=12,
)


def chosen(*paths: str, file: str | None = None, quantization: str | None = None, code: bool = False) -> Selection:
    files = [RepositoryFile(path, 10, blob_id="a" * 40) for path in paths]
    return select(files, file=file, quantization_asked=quantization, code=code)


def taken(*paths: str, code: bool = False) -> set[str]:
    return {file.path for file in chosen(*paths, code=code).files}


def refused(*paths: str, file: str | None = None, quantization: str | None = None) -> FetchProblem:
    with pytest.raises(FetchProblem) as caught:
        chosen(*paths, file=file, quantization=quantization)
    return caught.value


def test_gguf_is_preferred_to_a_folder() -> None:
    """A repository with both has the smaller one for everybody's machine."""
    selection = chosen(*MLX, "m-Q4_K_M.gguf", "README.md")
    assert (selection.main, len(selection.files)) == ("m-Q4_K_M.gguf", 1)


def test_encoder_comes_with_the_folders_of_its_steps() -> None:
    """As FlagEmbedding and sentence-transformers have them, without their pickled heads."""
    steps = ("modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors", "sentencepiece.bpe.model")
    assert taken(*MLX, *steps, "colbert_linear.pt", "onnx/model.onnx", "onnx/config.json") == {*MLX, *steps}


def test_weights_are_not_taken_twice() -> None:
    """Of the same model in another layout or precision, one is enough."""
    assert taken(*MLX, "consolidated.safetensors", "model.fp16.safetensors") == set(MLX)
    assert "consolidated.safetensors" in taken("config.json", "consolidated.safetensors")


def test_code_is_taken_only_where_it_is_trusted() -> None:
    """`trust_remote_code` alone brings Python files."""
    assert taken(*MLX, "modeling.py") == set(MLX)
    assert taken(*MLX, "modeling.py", code=True) == {*MLX, "modeling.py"}


def test_what_is_no_model_is_refused_with_the_reason() -> None:
    """Pickles, no weights, no description, parts that are missing."""
    assert "pickles" in refused("config.json", "pytorch_model.bin").message
    assert "pickles" in refused(*MLX, "x.pt", file="x.pt").message
    assert "neither GGUF nor safetensors" in refused("README.md", "config.json").message
    assert "config.json" in refused("model.safetensors").message
    parts = ("model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors")
    assert "only 2 of them" in refused("config.json", *parts).message
    assert "no GGUF files to choose" in refused(*MLX, quantization="Q4_0").message


def test_names_that_differ_in_case_alone_are_refused() -> None:
    """They are one file on some disks."""
    assert refused(*MLX, "Config.json").kind == "refused"


def test_names_that_lead_out_are_refused_only_where_they_are_taken() -> None:
    """A description with an odd name harms nobody."""
    assert refused(*MLX, "../up.json").kind == "refused"
    assert taken(*MLX, "../README.md", "a\0.png") == set(MLX)


def test_revision_changes_with_any_file_that_is_taken() -> None:
    """And with no other; the order of the listing does not matter."""
    files = [RepositoryFile(path, 10, blob_id="a" * 40) for path in MLX]
    first = select(files, file=None, quantization_asked=None)
    same = select([*reversed(files), RepositoryFile("README.md", 5)], file=None, quantization_asked=None)
    other = select(
        [*files[1:], RepositoryFile("config.json", 10, blob_id="b" * 40)], file=None, quantization_asked=None
    )
    assert first.revision == same.revision != other.revision
    assert re.fullmatch(r"[0-9a-f]{40}", first.revision)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Qwen/Qwen2.5-7B-Instruct-GGUF", "qwen2.5-7b-instruct"),
        ("mlx-community/Llama-3.2-1B-Instruct-4bit", "llama-3.2-1b-instruct-4bit"),
        ("o/--GGUF", "model"),
        ("o/" + "x" * 500, "x" * 100),
        ("Ünï cødé", "n-c-d"),
        ("model.gguf", "model"),
    ],
)
def test_name_is_made_of_the_repositorys(text: str, name: str) -> None:
    """Without what only tells the format."""
    assert suggested_name(text) == name


@given(st.text(max_size=200))
def test_suggested_name_can_always_be_a_models(text: str) -> None:
    """Whatever it is made of; only the names of tiers are somebody else's."""
    assert installed_name_problem(suggested_name(text)) in {None, "that is a tier; `--tier` makes a model fill it"}


@given(NAMES, st.one_of(st.none(), st.text(max_size=12)), st.one_of(st.none(), st.text(max_size=8)))
def test_any_listing_gives_safe_names_or_a_problem(
    names: list[str], file: str | None, quantization: str | None
) -> None:
    """No listing makes an error of another kind, or a path that leads out."""
    files = [RepositoryFile(name, 1) for name in names]
    try:
        selection = select(files, file=file, quantization_asked=quantization)
    except FetchProblem:
        return
    assert selection.files
    assert all(is_inner_path(one.path) for one in selection.files)
    assert not any(one.path.lower().endswith((".bin", ".pt", ".py")) for one in selection.files)
