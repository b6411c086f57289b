"""Folders as models: what they are, which backend is for them, how large they are, and when they change."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from llmvisor import limits
from llmvisor.config.tree import ModelConfig
from llmvisor.models.catalogue import Catalogue, file_signature
from llmvisor.models.folders import backend_of, read_folder


def folder(at: Path, config: object = None, **files: bytes | object) -> Path:
    """A model's folder; `__` in a name is a dot, `___` a slash."""
    at.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (at / "config.json").write_text(json.dumps(config))
    for name, content in files.items():
        file = at / name.replace("___", "/").replace("__", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return at


BERT = {"architectures": ["BertModel"], "model_type": "bert", "max_position_embeddings": 512, "hidden_size": 384}
XLM = {"architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta", "torch_dtype": "float32"}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16"}
POOLED = [
    {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


@pytest.mark.parametrize(
    ("name", "config", "files", "kind", "backend"),
    [
        ("bge-m3", XLM, {"sparse_linear__pt": b"x", "colbert_linear__pt": b"x"}, "embeddings", "flag"),
        ("minilm", BERT, {"modules__json": POOLED}, "embeddings", "flag"),
        ("e5", BERT, {"1_Pooling___config__json": {}}, "embeddings", "flag"),
        ("bert", BERT, {}, "embeddings", "flag"),
        ("ce", {"architectures": ["XLMRobertaForSequenceClassification"]}, {}, "reranker", "flag"),
        ("bge-reranker-v2-gemma", {"architectures": ["GemmaForCausalLM"]}, {}, "reranker", "flag"),
        ("e5-mistral", {"architectures": ["MistralModel"]}, {"modules__json": POOLED}, "embeddings", "flag"),
        ("llama", LLAMA, {"model__safetensors": b"x"}, "llm", "mlx"),
        ("llama-pickled", LLAMA, {"pytorch_model__bin": b"x"}, "llm", None),
        ("empty", None, {}, "unknown", None),
        ("broken", None, {"config__json": b"{"}, "unknown", None),
        ("list", [], {}, "unknown", None),
        ("odd", {"architectures": 3}, {}, "unknown", None),
    ],
)
def test_folder_tells_what_it_is(
    tmp_path: Path, name: str, config: object, files: dict[str, object], kind: str, backend: str | None
) -> None:
    """By its classes, its pooling, its heads, and at last its name."""
    at = folder(tmp_path / name, config, **files)
    assert read_folder(at).type == kind
    assert backend_of(at) == backend


def test_folder_that_is_a_file_or_missing_has_no_backend(tmp_path: Path) -> None:
    """Nobody has to look first."""
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert backend_of(tmp_path / "model.gguf") is None
    assert backend_of(tmp_path / "nowhere") is None
    assert read_folder(tmp_path / "nowhere").type == "unknown"


def test_folder_says_its_facts(tmp_path: Path) -> None:
    """Weights of one format count once, with BGE-M3's heads; half precision takes twice as much on a CPU."""
    files = {"model__safetensors": b"x" * 100, "pytorch_model__bin": b"x" * 200, "sparse_linear__pt": b"x" * 7}
    found = read_folder(folder(tmp_path / "m3", {**BERT, "dtype": "float16"}, **files))
    assert (found.architecture, found.quantization, found.context_length) == ("bert", "float16", 512)
    assert (found.embedding_length, found.weights_bytes, found.memory_estimated) == (384, 107, 214)
    mlx = read_folder(folder(tmp_path / "q", {**LLAMA, "quantization": {"bits": 4}}, model__safetensors=b"x" * 10))
    assert (mlx.quantization, mlx.memory_estimated) == ("4-bit", 10)


def test_folder_of_a_hubs_cache_is_read_through_its_links(tmp_path: Path) -> None:
    """Links to files count as the files; links to nothing, and to folders, are left alone."""
    blob = tmp_path / "blob"
    blob.write_bytes(b"x" * 50)
    at = folder(tmp_path / "snapshot", LLAMA)
    (at / "model.safetensors").symlink_to(blob)
    (at / "gone.safetensors").symlink_to(tmp_path / "nothing")
    (at / "loop").symlink_to(at)
    assert read_folder(at).weights_bytes == 50


def test_description_that_is_too_long_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are more files looked at than a model has."""
    at = folder(tmp_path / "m", BERT, model__safetensors=b"x")
    monkeypatch.setattr(limits, "model_folder_json_bytes_max", 10)
    assert read_folder(at).type == "unknown"
    monkeypatch.setattr(limits, "model_folder_files_max", 1)
    assert read_folder(at).weights_bytes == 0


async def test_folder_of_another_backend_than_it_looks_like_is_of_unknown_type(tmp_path: Path) -> None:
    """A causal model may be a reranker, and a plug-in may serve anything: the worker is asked."""
    at = folder(tmp_path / "gemma", {"architectures": ["GemmaForCausalLM"]}, model__safetensors=b"x")
    catalogue = Catalogue({name: ModelConfig(path=str(at), backend=name) for name in ("flag", "mlx", "plugin")})
    for name, kind in (("flag", "unknown"), ("mlx", "llm"), ("plugin", "unknown")):
        await catalogue.inspect(name)
        assert catalogue.type(name) == kind


async def test_catalogue_knows_folders_and_notices_changes(tmp_path: Path) -> None:
    """Type, size and memory of a folder, read again when one of its files has changed."""
    at = folder(tmp_path / "m", BERT, model__safetensors=b"x" * 10)
    config = ModelConfig(path=str(at), backend="flag")
    catalogue = Catalogue({"m": config, "mock": ModelConfig(backend="mock")})
    assert catalogue.type("m") == "llm"
    await catalogue.inspect("m")
    assert (catalogue.type("m"), catalogue.type("mock")) == ("embeddings", "llm")
    assert catalogue.memory_estimated("m") == 10
    before = file_signature(config)
    assert before is not None
    assert before.size == 10 + (at / "config.json").stat().st_size
    assert file_signature(config) == before
    (at / "config.json").write_text(json.dumps({"architectures": ["BertForSequenceClassification"]}))
    os.utime(at / "config.json", ns=(1, before.modified_ns + 1_000_000))
    assert await asyncio.to_thread(file_signature, config) != before
    await catalogue.inspect("m")
    assert catalogue.type("m") == "reranker"
