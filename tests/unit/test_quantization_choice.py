"""Which GGUF files of a repository are one model, by their names as people write them."""

from __future__ import annotations

import pytest

from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.quantization import choose, is_model, quantization_of


def problem(*paths: str, file: str | None = None, quantization: str | None = None) -> FetchProblem:
    with pytest.raises(FetchProblem) as caught:
        choose(paths, file=file, quantization=quantization)
    return caught.value


@pytest.mark.parametrize(
    ("path", "quantization"),
    [
        ("model-Q4_K_M.gguf", "Q4_K_M"),
        ("model.Q4_K_M.gguf", "Q4_K_M"),
        ("model_q4_k_m.gguf", "Q4_K_M"),
        ("qwen2.5-7b-instruct-q4_0.gguf", "Q4_0"),
        ("qwen2.5-7b-instruct-fp16-00001-of-00004.gguf", "F16"),
        ("model.Q4_K_M-00001-of-00003.gguf", "Q4_K_M"),
        ("Q4_K_M/model-00001-of-00002.gguf", "Q4_K_M"),
        ("BF16/DeepSeek-R1.BF16-00001-of-00030.gguf", "BF16"),
        ("UD-IQ1_S/DeepSeek-R1-UD-IQ1_S-00001-of-00003.gguf", "UD-IQ1_S"),
        ("gemma-3-4b-it-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("Meta-Llama-3.1-8B-Instruct-Q4_0_4_4.gguf", "Q4_0_4_4"),
        ("Model.i1-IQ2_XXS.gguf", "IQ2_XXS"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("gpt-oss-20b-MXFP4_MOE.gguf", "MXFP4_MOE"),
        ("bitnet-TQ1_0.gguf", "TQ1_0"),
        ("model-f32.gguf", "F32"),
        ("model.gguf", None),
        ("phi-3-mini-4k.gguf", None),
        ("Phi-3-mini-4k-instruct-q4.gguf", "Q4"),
        ("Llama-3.3-70B-Instruct-Q8_0/Llama-3.3-70B-Instruct-Q8_0-00001-of-00002.gguf", "Q8_0"),
        ("gemma-3-4b-it-qat-q4_0.gguf", "Q4_0"),
        ("Qwen3-30B-A3B-Instruct-2507-IQ4_NL.gguf", "IQ4_NL"),
        ("Mixtral-8x7B-v0.1.Q5_K_S.gguf", "Q5_K_S"),
    ],
)
def test_quantization_is_read_from_names_in_the_wild(path: str, quantization: str | None) -> None:
    """In any case, with any separator, in the file's name or its folder's."""
    assert quantization_of(path) == quantization


def test_default_is_q4_k_m_and_else_the_nearest() -> None:
    """Not the first, the smallest or the largest."""
    assert choose(["m-Q2_K.gguf", "m-Q4_K_M.gguf", "m-F16.gguf"]).quantization == "Q4_K_M"
    assert choose(["m-Q2_K.gguf", "m-Q4_K_S.gguf", "m-Q8_0.gguf"]).quantization == "Q4_K_S"
    assert choose(["m-Q2_K.gguf", "m-Q5_K_M.gguf", "m-f16.gguf"]).quantization == "Q5_K_M"
    assert choose(["m-F32.gguf", "m-fp16.gguf"]).quantization == "F16"
    assert choose(["m-q4.gguf", "m-fp16.gguf"]).quantization == "Q4"
    assert choose(["m-UD-Q4_K_XL.gguf", "m-Q3_K_M.gguf"]).quantization == "UD-Q4_K_XL"
    assert choose(["m-UD-Q4_K_XL.gguf", "m-Q4_K_XL.gguf"]).files == ("m-Q4_K_XL.gguf",)


def test_one_file_without_a_quantization_is_taken() -> None:
    """A repository with a single model needs no choice."""
    chosen = choose(["model.gguf", "mmproj-model-f16.gguf", "imatrix.gguf"])
    assert (chosen.files, chosen.quantization, chosen.projector) == (("model.gguf",), None, "mmproj-model-f16.gguf")


def test_asked_quantization_is_found_in_any_writing() -> None:
    """Upper or lower case, `FP16` for `F16`, without `UD-`, with dashes."""
    paths = ["m-Q4_K_M.gguf", "m-F16.gguf", "m-UD-Q2_K_XL.gguf"]
    for asked, file in (
        ("q4_k_m", "m-Q4_K_M.gguf"),
        ("Q4-K-M", "m-Q4_K_M.gguf"),
        ("fp16", "m-F16.gguf"),
        ("Q2_K_XL", "m-UD-Q2_K_XL.gguf"),
        ("ud-q2_k_xl", "m-UD-Q2_K_XL.gguf"),
    ):
        assert choose(paths, quantization=asked).files == (file,)


def test_absent_quantization_lists_what_there_is() -> None:
    """By their names, or the files where they have none."""
    absent = problem("m-Q4_K_M.gguf", "m-Q8_0.gguf", "mmproj-F16.gguf", quantization="Q6_K")
    assert absent.kind == "not_found"
    assert "Q6_K" in absent.message
    assert absent.hint == "there is Q4_K_M, Q8_0"
    assert "model.gguf" in (problem("model.gguf", quantization="Q6_K").hint or "")


def test_parts_of_a_split_model_come_together_in_order() -> None:
    """Whichever of them is named, the first is the one to load."""
    parts = tuple(f"model.Q4_K_M-0000{n}-of-00003.gguf" for n in (1, 2, 3))
    assert choose([*reversed(parts), "model.Q8_0.gguf"]).files == parts
    assert choose(parts, file=parts[1]).files == parts


def test_missing_parts_are_refused() -> None:
    """Two of three parts are no model, unless another quantisation is whole."""
    parts = ["m-Q4_K_M-00001-of-00003.gguf", "m-Q4_K_M-00003-of-00003.gguf"]
    missing = problem(*parts)
    assert missing.kind == "refused"
    assert "2 of 3" in missing.message
    assert choose([*parts, "m-Q8_0.gguf"]).quantization == "Q8_0"
    assert problem(*parts, "m-Q8_0.gguf", quantization="Q4_K_M").kind == "refused"


def test_whole_file_wins_over_the_same_one_in_parts() -> None:
    """Some repositories have both."""
    paths = ["Q4_K_M/m-Q4_K_M-00001-of-00002.gguf", "Q4_K_M/m-Q4_K_M-00002-of-00002.gguf", "m-Q4_K_M.gguf"]
    assert choose(paths).files == ("m-Q4_K_M.gguf",)


def test_two_models_in_one_repository_have_to_be_told_apart() -> None:
    """Both names are in the message, and either can be named."""
    paths = ["small-Q4_K_M.gguf", "large-Q4_K_M.gguf"]
    several = problem(*paths)
    assert several.kind == "invalid"
    assert all(path in several.message for path in paths)
    assert choose(paths, file="large-Q4_K_M.gguf").files == ("large-Q4_K_M.gguf",)


def test_file_is_found_by_its_own_name_in_a_folder() -> None:
    """Without its folder, unless two have it."""
    paths = ["a/m-Q8_0.gguf", "b/n-Q8_0.gguf", "c/n-Q8_0.gguf"]
    assert choose(paths, file="m-Q8_0.gguf").files == ("a/m-Q8_0.gguf",)
    assert choose(paths, file="b/n-Q8_0.gguf").files == ("b/n-Q8_0.gguf",)
    assert problem(*paths, file="n-Q8_0.gguf").kind == "invalid"


def test_quantization_stands_where_a_file_would() -> None:
    """`hf:org/repo:Q8_0`, as other programs have it."""
    assert choose(["m-Q4_K_M.gguf", "m-Q8_0.gguf"], file="q8_0").files == ("m-Q8_0.gguf",)


def test_what_goes_with_a_model_is_none() -> None:
    """Projectors, importance matrices and vocabularies are never chosen, not even by name."""
    others = ["mmproj-m-Q4_K_M.gguf", "m.imatrix.gguf", "imatrix_unsloth.gguf", "ggml-vocab-bert.gguf"]
    assert is_model("m-Q4_K_M-imatrix.gguf")
    assert not any(map(is_model, others))
    assert choose([*others, "m-F16.gguf"]).files == ("m-F16.gguf",)
    assert problem("m-F16.gguf", "mmproj-F16.gguf", file="mmproj-F16.gguf").kind == "refused"
    assert problem(*others).kind == "not_found"


@pytest.mark.parametrize(
    "companion", ["m-draft-Q4_K_M", "mtp-m-Q4_K_M", "m-EAGLE3-Q4_K_M", "m.lora-Q4_K_M", "adapter-f16"]
)
def test_default_is_nothing_that_only_runs_beside_a_model(companion: str) -> None:
    """Even where its quantisation would be the better one; by its name it is had, and alone it is what there is."""
    assert choose(["m-Q8_0.gguf", f"{companion}.gguf"]).files == ("m-Q8_0.gguf",)
    models = ["m-Q4_K_M.gguf", "m-F16.gguf", f"{companion}.gguf"]
    assert choose(models, quantization="Q4_K_M").files == ("m-Q4_K_M.gguf",)
    assert choose(["m-Q8_0.gguf", f"{companion}.gguf"], file=f"{companion}.gguf").files == (f"{companion}.gguf",)
    assert choose([f"{companion}.gguf"]).files == (f"{companion}.gguf",)


def test_projector_is_the_models_own() -> None:
    """F16 before others, of its folder or the top, and none of another model's folder."""
    paths = ["m-Q4_0.gguf", "mmproj-F32.gguf", "mmproj-BF16.gguf", "mmproj-F16.gguf"]
    assert choose(paths).projector == "mmproj-F16.gguf"
    assert choose(["a/m-Q4_0.gguf", "b/mmproj-F16.gguf"]).projector is None


def test_unknown_file_lists_what_there_is_within_bounds() -> None:
    """A thousand files are not all named."""
    paths = [f"model-{n}-Q4_0.gguf" for n in range(1000)]
    hint = problem(*paths, file="other.gguf").hint or ""
    assert "model-0-Q4_0.gguf" in hint
    assert "960 more" in hint
