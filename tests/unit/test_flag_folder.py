"""What kind of model a folder holds, and why one cannot be loaded: told before any engine is imported."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from llmvisor_runtimes.backend import LoadError
from llmvisor_runtimes.flag.folder import ModelFolder, read_folder
from llmvisor_runtimes.flag.options import FlagOptions, Kind, Pooling, read_options

BERT = {"architectures": ["BertModel"], "model_type": "bert", "hidden_size": 384, "max_position_embeddings": 512}
HEADS = {"sparse_linear.pt": b"", "colbert_linear.pt": b""}
PIPELINE = ["Transformer", "Pooling", "Normalize"]


def modules(*names: str) -> list[dict[str, str]]:
    return [{"type": f"sentence_transformers.models.{name}", "path": f"1_{name}"} for name in names]


def make(folder: Path, config: object = BERT, **files: object) -> Path:
    """A model folder; `files` are further ones, JSON unless they are bytes, with `__` for a slash."""
    given: dict[str, object] = {"model.safetensors": b"weights", "tokenizer.json": {}, "config.json": config, **files}
    for name, content in given.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


def read(folder: Path, options: FlagOptions | None = None) -> ModelFolder:
    return read_folder(str(folder), options or FlagOptions())


def refusal(folder: Path, options: FlagOptions | None = None) -> str:
    with pytest.raises(LoadError) as caught:
        read(folder, options)
    assert caught.value.permanent
    return caught.value.reason


@pytest.mark.parametrize(
    ("config", "files", "kind"),
    [
        ({"architectures": ["XLMRobertaModel"]}, HEADS, "m3"),
        ({"architectures": ["BertModel"]}, {}, "dense"),
        ({}, {}, "dense"),
        ({"architectures": ["XLMRobertaForSequenceClassification"], "num_labels": 1}, {}, "reranker"),
        ({"architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}}, {}, "reranker"),
        ({"architectures": ["GemmaForCausalLM"]}, {}, "llm_reranker"),
        ({"architectures": ["Qwen3ForCausalLM"]}, {"modules.json": modules(*PIPELINE)}, "dense"),
        ({"architectures": ["LayerWiseMiniCPMForCausalLM"], "start_layer": 8}, {}, "layerwise_reranker"),
    ],
)
def test_kind_is_told_from_the_files(tmp_path: Path, config: object, files: dict[str, object], kind: Kind) -> None:
    """Each of FlagEmbedding's classes has its kind of folder."""
    assert read(make(tmp_path, config, **files)).kind == kind


def test_kind_can_be_said(tmp_path: Path) -> None:
    """An option overrules what the files seem to say."""
    folder = make(tmp_path, {"architectures": ["LlamaForCausalLM"]})
    assert read(folder, FlagOptions(kind="dense")).kind == "dense"


@pytest.mark.parametrize(
    ("modes", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "word_embedding_dimension": 3}, "mean"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
    ],
)
def test_pooling_is_the_folders_own(tmp_path: Path, modes: object, pooling: Pooling) -> None:
    """Vectors of another pooling would be wrong without a word."""
    folder = make(tmp_path, **{"1_Pooling__config.json": modes, "modules.json": modules(*PIPELINE)})
    found = read(folder)
    assert (found.pooling, found.normalize) == (pooling, True)
    assert read(folder, FlagOptions(pooling="cls", normalize=False)).pooling == "cls"
    assert not read(folder, FlagOptions(normalize=False)).normalize


def test_vectors_are_normalized_only_where_the_folder_says_so(tmp_path: Path) -> None:
    """A pipeline without that part has vectors of any length; without a pipeline FlagEmbedding's default holds."""
    assert not read(make(tmp_path / "a", **{"modules.json": modules("Transformer", "Pooling")})).normalize
    assert read(make(tmp_path / "b")).normalize


def test_length_is_what_the_files_agree_on(tmp_path: Path) -> None:
    """The table of positions, less what RoBERTa never uses of it, and what sentence-transformers says."""
    assert read(make(tmp_path / "a")).length_max == 512
    m3 = {"model_type": "xlm-roberta", "max_position_embeddings": 8194, "pad_token_id": 1}
    assert read(make(tmp_path / "b", m3)).length_max == 8192
    assert read(make(tmp_path / "c", **{"sentence_bert_config.json": {"max_seq_length": 256}})).length_max == 256
    assert read(make(tmp_path / "d", {})).length_max is None


def test_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    """Missing folders, files in their place, and folders of something else are told apart."""
    assert "does not exist" in refusal(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    assert "is a file" in refusal(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refusal(tmp_path / "empty")


@pytest.mark.parametrize(
    ("missing", "reason"), [("model.safetensors", "no weights"), ("tokenizer.json", "no tokenizer.json")]
)
def test_missing_file_is_named(tmp_path: Path, missing: str, reason: str) -> None:
    """What a folder lacks is said by name."""
    (make(tmp_path) / missing).unlink()
    assert reason in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"hidden_size": "many"}', b"[" * 100_000])
def test_damaged_configuration_is_a_load_error(tmp_path: Path, content: bytes) -> None:
    """Whatever is in the file, it is the file that is named."""
    assert "config.json" in refusal(make(tmp_path, content))


def test_half_an_m3_is_refused(tmp_path: Path) -> None:
    """FlagEmbedding would make up random weights for the head that is missing."""
    assert "no colbert_linear.pt" in refusal(make(tmp_path, **{"sparse_linear.pt": b""}))
    assert "no sparse_linear.pt, colbert_linear.pt" in refusal(make(tmp_path / "b"), FlagOptions(kind="m3"))


@pytest.mark.parametrize(
    ("config", "files", "reason"),
    [
        ({"architectures": ["BertForSequenceClassification"], "num_labels": 3}, {}, "3 labels"),
        ({"architectures": ["BertForSequenceClassification"]}, {}, "2 labels"),
        ({"architectures": ["CostWiseGemmaForCausalLM"]}, {}, "lightweight"),
        (BERT, {"modules.json": modules("Transformer", "Pooling", "Dense")}, "Dense"),
        (BERT, {"1_Pooling__config.json": {"pooling_mode_max_tokens": True}}, "pooling_mode_max_tokens"),
        (
            BERT,
            {"1_Pooling__config.json": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}},
            "pooling_mode_mean_tokens and pooling_mode_cls_token",
        ),
    ],
)
def test_unsupported_model_is_refused_with_the_reason(
    tmp_path: Path, config: object, files: dict[str, object], reason: str
) -> None:
    """Rather no model than one whose vectors or scores are wrong."""
    assert reason in refusal(make(tmp_path, config, **files))


def test_unknown_option_is_named_with_the_nearest() -> None:
    """A slip of the pen is told, not ignored."""
    packed = msgspec.Raw(msgspec.msgpack.encode("cpu"))
    with pytest.raises(LoadError, match="'device'"):
        read_options({"devise": packed})
    with pytest.raises(LoadError, match="batch_inputs"):
        read_options({"batch_inputs": packed})
    assert read_options({"device": packed}).device == "cpu"
