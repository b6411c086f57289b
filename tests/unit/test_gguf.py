"""GGUF headers: the facts of good files, and one clear error for every bad one.

Files are made by hand in `tests/support/gguf_bytes.py`. The fuzz changes bytes of a good one anywhere and asks that
nothing but a header or a `GgufError` comes out, soon and without memory. The starter model is the real file.
"""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support import gguf_bytes as g
from tests.support.models import starter_model_path

from llmvisor import limits
from llmvisor.errors import ModelLoadFailed
from llmvisor.models.gguf import GgufError, GgufHeader, estimate_memory, read_header


def read(tmp_path: Path, content: bytes) -> GgufHeader:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return read_header(path)


def problem(tmp_path: Path, content: bytes) -> str:
    """What is said of a file that cannot be read, without its path."""
    with pytest.raises(GgufError) as caught:
        read(tmp_path, content)
    assert caught.value.message.startswith(f"{tmp_path / 'model.gguf'}: ")
    return caught.value.message.split(": ", 1)[1]


def with_metadata(**changes: bytes | None) -> dict[str, bytes]:
    """The usual metadata with keys changed (`__` stands for the dot) or left out."""
    merged = {**g.METADATA, **{key.replace("__", "."): value for key, value in changes.items() if value is not None}}
    return {key: value for key, value in merged.items() if changes.get(key.replace(".", "__"), b"") is not None}


# ---------------------------------------------------------------------------------------------------------- good files


@pytest.mark.model
def test_gguf_of_the_starter_model_has_its_facts() -> None:
    """The real file gives what llama.cpp prints of it when it loads."""
    path = starter_model_path()
    header = read_header(path)
    assert (header.architecture, header.type, header.quantization, header.version) == ("llama", "llm", "Q4_1", 3)
    assert (header.parameters, header.weights_bytes) == (134_515_008, 96_576_768)
    assert header.file_bytes == path.stat().st_size
    assert (header.context_length, header.embedding_length, header.block_count) == (8192, 576, 30)
    assert (header.head_count, header.head_count_kv, header.key_length, header.value_length) == (9, 3, 64, 64)
    assert (header.vocabulary, header.tokenizer_model) == (49152, "gpt2")
    assert (header.bos_token_id, header.eos_token_id) == (1, 2)
    assert header.chat_template is not None
    assert "<|im_start|>" in header.chat_template
    assert header.chat_template_sha256 == "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788"


@pytest.mark.model
def test_memory_of_the_starter_model_is_what_llama_cpp_allocates() -> None:
    """Weights and cache are exact (llama.cpp: 92.10 and 180.00 MiB), the compute buffers (21.5) are not too small."""
    header = read_header(starter_model_path())
    memory = estimate_memory(header, n_ctx=8192, n_batch=512)
    assert memory.weights_bytes == 96_576_768
    assert memory.kv_bytes == 180 * 2**20
    assert 21 * 2**20 < memory.compute_bytes < 100 * 2**20


@pytest.mark.parametrize("version", [2, 3])
def test_gguf_made_by_hand_is_read(tmp_path: Path, version: int) -> None:
    """A small file of either version gives its facts, tensors of different types counted together."""
    header = read(tmp_path, g.gguf(version=version))
    assert (header.version, header.architecture, header.name, header.type) == (version, "llama", "Tiny", "llm")
    assert (header.parameters, header.weights_bytes) == (256 + 3 + 64, 160 + 12 + 256)
    assert (header.head_count, header.head_count_kv, header.kv_heads, header.key_length) == (4, 2, 4, 16)
    assert (header.vocabulary, header.bos_token_id, header.eos_token_id) == (4, 2, 3)
    assert header.chat_template == "{{ messages }}"
    assert header.quantization == "Q4_1"


def test_gguf_without_a_file_type_takes_the_type_of_most_elements(tmp_path: Path) -> None:
    """The quantisation of an unlabelled file is that of the most elements."""
    tensors = (g.Tensor("a", (64, 4), g.TYPE_F16, 512), g.Tensor("b", (64,), g.TYPE_F32, 256))
    assert read(tmp_path, g.gguf(with_metadata(general__file_type=None), tensors)).quantization == "F16"
    unknown = with_metadata(general__file_type=g.number(g.U32, 1024))
    assert read(tmp_path, g.gguf(unknown, tensors)).quantization == "F16"


def test_gguf_with_heads_by_layer_sums_them(tmp_path: Path) -> None:
    """Arrays by layer give the largest and, for the cache, the sum."""
    metadata = with_metadata(llama__attention__head_count_kv=g.numbers(g.I32, [1, 4]))
    header = read(tmp_path, g.gguf(metadata))
    assert (header.head_count_kv, header.kv_heads) == (4, 5)


def test_gguf_keeps_explicit_head_lengths_and_alignment(tmp_path: Path) -> None:
    """Key and value lengths of their own, and another alignment, are taken as they stand."""
    metadata = with_metadata(
        llama__attention__key_length=g.number(g.U32, 24),
        llama__attention__value_length=g.number(g.U32, 8),
        general__alignment=g.number(g.U32, 64),
    )
    header = read(tmp_path, g.gguf(metadata, alignment=64))
    assert (header.key_length, header.value_length) == (24, 8)
    memory = estimate_memory(header, n_ctx=1000, n_batch=512)
    assert memory.kv_bytes == 1024 * 4 * (24 + 8) * 2


@pytest.mark.parametrize(
    ("architecture", "pooling", "tensor", "expected"),
    [
        ("llama", None, "output.weight", "llm"),
        ("bert", None, "pooler.weight", "embeddings"),
        ("bert", 2, "pooler.weight", "embeddings"),
        ("bert", 4, "pooler.weight", "reranker"),
        ("bert", None, "cls.weight", "reranker"),
        ("qwen3", 3, "output.weight", "embeddings"),
        ("qwen3", 4, "cls.output.weight", "reranker"),
        ("clip", None, "v.patch_embd.weight", "unknown"),
    ],
)
def test_gguf_type_comes_from_metadata_and_tensors(
    tmp_path: Path, architecture: str, pooling: int | None, tensor: str, expected: str
) -> None:
    """Encoders embed, classifiers rank, and the rest writes text."""
    metadata = {"general.architecture": g.string(architecture)}
    if pooling is not None:
        metadata[f"{architecture}.pooling_type"] = g.number(g.U32, pooling)
    header = read(tmp_path, g.gguf(metadata, [g.Tensor(tensor, (64,), g.TYPE_F32, 256)]))
    assert header.type == expected


def test_gguf_of_an_encoder_needs_no_cache(tmp_path: Path) -> None:
    """A model that reads a text at once has no key-value cache to estimate."""
    metadata = {key.replace("llama.", "bert."): value for key, value in g.METADATA.items()}
    metadata["general.architecture"] = g.string("bert")
    assert estimate_memory(read(tmp_path, g.gguf(metadata)), n_ctx=512, n_batch=512).kv_bytes == 0


def test_gguf_of_an_encoder_needs_room_for_its_longest_text(tmp_path: Path) -> None:
    """Its logits count, though nobody reads them: llama.cpp has a row of the vocabulary for each token."""
    metadata = {key.replace("llama.", "bert."): value for key, value in g.METADATA.items()}
    metadata["general.architecture"] = g.string("bert")
    header = read(tmp_path, g.gguf(metadata))
    trained = estimate_memory(header, n_ctx=0, n_batch=512).compute_bytes
    assert trained > header.context_length * header.vocabulary * 4
    assert estimate_memory(header, n_ctx=10 * header.context_length, n_batch=512).compute_bytes == trained
    assert estimate_memory(header, n_ctx=header.context_length // 2, n_batch=64).compute_bytes < trained / 2


def test_gguf_of_a_split_model_says_how_many_files(tmp_path: Path) -> None:
    """The first file of a split model may hold no tensors at all."""
    metadata = with_metadata(split__count=g.number(g.U16, 3))
    assert read(tmp_path, g.gguf(metadata, ())).split_count == 3


def test_gguf_with_values_of_the_wrong_type_leaves_those_facts_out(tmp_path: Path) -> None:
    """A fact that is no number where it should be one, or an absurd one, counts as not said."""
    metadata = with_metadata(
        llama__context_length=g.string("long"),
        llama__embedding_length=g.number(g.U64, 2**63),
        tokenizer__chat_template=g.number(g.U32, 1),
        tokenizer__ggml__bos_token_id=g.number(g.I32, -1),
        llama__pooling_type=g.number(g.U32, 99),
    )
    header = read(tmp_path, g.gguf(metadata))
    assert (header.context_length, header.embedding_length, header.bos_token_id) == (0, 0, None)
    assert (header.chat_template, header.chat_template_sha256, header.pooling) == (None, None, None)
    estimate_memory(header, n_ctx=0, n_batch=0)


def test_gguf_with_a_large_vocabulary_is_read_fast(tmp_path: Path) -> None:
    """300,000 texts are passed over without being kept."""
    words = g.texts([f"word{index}" for index in range(150_000)])
    metadata = with_metadata(tokenizer__ggml__tokens=words, tokenizer__ggml__merges=words)
    content = g.gguf(metadata)
    read(tmp_path, content)
    started = time.perf_counter()
    assert read_header(tmp_path / "model.gguf").vocabulary == 150_000
    assert time.perf_counter() - started < 1.0
    tracemalloc.start()
    read_header(tmp_path / "model.gguf")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 3 * limits.gguf_read_bytes


# ----------------------------------------------------------------------------------------------------------- bad files

GOOD = g.gguf()
ENDS = "ends inside its header"

OTHER_KINDS = [
    (b"", "empty"),
    (b"\x00" * 600, "all zeros"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git-lfs pointer"),
    (b"PK\x03\x04" + bytes(60), "zip archive"),
    (b"\x80\x02}q\x00.", "pickle"),
    (struct.pack("<Q", 40) + b'{"a":{"dtype":"F32","shape":[1]}}', "safetensors"),
    (b"lmgg" + bytes(60), "before GGUF"),
    (b"tjgg\x03\x00\x00\x00", "before GGUF"),
    (b"\xef\xbb\xbf\n<!DOCTYPE html><html>", "web page"),
    (b"<html><body>Sign in", "web page"),
    (b'<?xml version="1.0"?><Error>', "XML"),
    (b'{"error": "Repository not found"}', "JSON"),
    (b"\x1f\x8b\x08", "gzip"),
    (b"GGU", "unknown kind"),
    (b"hello", "unknown kind"),
]


@pytest.mark.parametrize(("content", "said"), OTHER_KINDS)
def test_gguf_that_is_another_kind_of_file_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    """What people mistake for a GGUF is called by its name."""
    message = problem(tmp_path, content)
    assert said in message
    assert "not a GGUF file" in message


BAD_HEADERS = {
    "magic alone": (b"GGUF", ENDS),
    "version cut": (b"GGUF\x03\x00", ENDS),
    "version 0": (g.gguf(version=0), "version 0"),
    "version 1": (g.gguf(version=1), "version 1"),
    "version 4": (g.gguf(version=4), "version 4"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + bytes(64), "big-endian"),
    "endless tensors": (g.gguf(tensor_count=2**63), "claims"),
    "endless entries": (g.gguf(entry_count=2**64 - 1), "claims"),
    "one entry too many": (g.gguf(with_data=False, tensors=(), entry_count=99), ENDS),
    "empty key": (g.gguf({**g.METADATA, "": g.number(g.U8, 1)}), "empty"),
    "endless key": (g.gguf({}, entry_count=1, extra=struct.pack("<Q", 2**62)), "metadata key"),
    "key twice": (
        g.gguf(entry_count=len(g.METADATA) + 1, extra=g.text("general.name") + g.string("x")),
        "occurs twice",
    ),
    "unknown value type": (g.gguf(with_metadata(x=struct.pack("<I", 13) + bytes(8))), "unknown type 13"),
    "nested array": (g.gguf(with_metadata(x=g.array(g.ARRAY, [bytes(12)]))), "array of arrays"),
    "array of unknown type": (g.gguf(with_metadata(x=g.array(77, [bytes(8)]))), "unknown type 77"),
    "endless array of numbers": (g.gguf(with_metadata(x=g.array(g.U64, [], count=2**62))), ENDS),
    "endless array of texts": (g.gguf(with_metadata(x=g.array(g.TEXT, [], count=2**62))), "claims"),
    "long array of texts": (g.gguf(with_metadata(x=g.array(g.TEXT, [], count=2**20))), ENDS),
    "text past the end": (g.gguf(with_metadata(x=struct.pack("<IQ", g.TEXT, 2**40))), ENDS),
    "text in an array past the end": (g.gguf(with_metadata(x=g.array(g.TEXT, [struct.pack("<Q", 2**63)]))), ENDS),
    "endless chat template": (
        g.gguf(with_metadata(tokenizer__chat_template=struct.pack("<IQ", g.TEXT, 2**40))),
        "over the bound",
    ),
    "no architecture": (g.gguf(with_metadata(general__architecture=None)), "general.architecture"),
    "architecture is a number": (g.gguf(with_metadata(general__architecture=g.number(g.U32, 1))), "architecture"),
    "alignment 0": (g.gguf(with_metadata(general__alignment=g.number(g.U32, 0))), "power of two"),
    "alignment 24": (g.gguf(with_metadata(general__alignment=g.number(g.U32, 24))), "power of two"),
    "alignment is text": (g.gguf(with_metadata(general__alignment=g.string("32"))), "power of two"),
    "no tensors": (g.gguf(tensors=()), "no tensors"),
    "tensor table cut": (GOOD[: GOOD.index(b"output_norm") + 20], ENDS),
    "tensor data cut": (GOOD[:-1], "1 bytes of its tensors are missing"),
    "tensor data missing": (g.gguf(with_data=False), "missing"),
    "tensor name too long": (g.gguf(tensors=[g.Tensor("x" * 64, (1,), 0, 4)]), "tensor's name"),
    "tensor twice": (g.gguf(tensors=[g.Tensor("x", (1,), 0, 4)] * 2), "occurs twice"),
    "five dimensions": (g.gguf(tensors=[g.Tensor("x", (1,) * 5, 0, 4)]), "5 dimensions"),
    "absurd dimension": (g.gguf(tensors=[g.Tensor("x", (2**63,), 0, 4)]), "absurd shape"),
    "absurd shape": (g.gguf(tensors=[g.Tensor("x", (2**32, 2**32), 0, 4)]), "absurd shape"),
    "more than the file": (g.gguf(tensors=[g.Tensor("x", (2**20, 2**20), 0, 4)]), "missing"),
    "rows of half a block": (g.gguf(tensors=[g.Tensor("x", (48,), g.TYPE_Q4_1, 30)]), "no multiple of 32"),
    "unknown tensor type": (g.gguf(tensors=[g.Tensor("x", (32,), 99, 4)]), "unknown type 99"),
    "removed tensor type": (g.gguf(tensors=[g.Tensor("x", (32,), 31, 4)]), "no more"),
    "unaligned tensor": (g.gguf(tensors=[g.Tensor("x", (1,), 0, 4), g.Tensor("y", (1,), 0, 4, 4)]), "not aligned"),
    "overlapping tensors": (g.gguf(tensors=[g.Tensor("x", (64,), 0, 256), g.Tensor("y", (1,), 0, 4, 32)]), "is free"),
    "gap between tensors": (g.gguf(tensors=[g.Tensor("x", (1,), 0, 4), g.Tensor("y", (1,), 0, 4, 64)]), "is free"),
    "offset past everything": (g.gguf(tensors=[g.Tensor("x", (1,), 0, 4, 2**63)], with_data=False), "is free"),
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_gguf_that_is_malformed_says_how(tmp_path: Path, name: str) -> None:
    """Each way of being wrong gives its own sentence."""
    content, said = BAD_HEADERS[name]
    assert said in problem(tmp_path, content)


def test_gguf_header_over_the_bound_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large the file, its header is read only to the bound."""
    monkeypatch.setattr(limits, "gguf_header_bytes_max", 200)
    assert "over the bound of 200" in problem(tmp_path, GOOD)


def test_gguf_cut_anywhere_is_refused(tmp_path: Path) -> None:
    """Every beginning of a good file is an error, and none takes another way out."""
    for length in range(len(GOOD)):
        assert problem(tmp_path, GOOD[:length])


@pytest.mark.parametrize("make", ["absent", "folder", "fifo", "broken link", "null in path"])
def test_gguf_that_is_no_file_is_refused(tmp_path: Path, make: str) -> None:
    """Paths to nothing, folders and pipes are errors at once; a pipe holds nobody up."""
    path = tmp_path / ("x\0y" if make == "null in path" else "model.gguf")
    if make == "folder":
        path.mkdir()
    elif make == "fifo":
        os.mkfifo(path)
    elif make == "broken link":
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ModelLoadFailed, match=r"no such file|folder|no regular file|cannot be read"):
        read_header(path)


def test_gguf_reading_leaves_no_file_open(tmp_path: Path) -> None:
    """Good or bad, the file is closed."""
    before = len(os.listdir("/dev/fd"))
    read(tmp_path, GOOD)
    problem(tmp_path, GOOD[:50])
    assert len(os.listdir("/dev/fd")) == before


fuzzed = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzzed
@given(
    changes=st.lists(
        st.tuples(st.integers(0, len(GOOD) - 1), st.one_of(st.binary(min_size=1, max_size=8), st.just(b"\xff" * 8))),
        min_size=1,
        max_size=6,
    ),
    cut=st.integers(0, len(GOOD)),
)
def test_gguf_with_changed_bytes_is_read_or_refused(tmp_path: Path, changes: list[tuple[int, bytes]], cut: int) -> None:
    """Whatever bytes change, there is a header or a `GgufError`, in no time and in no memory."""
    content = bytearray(GOOD)
    for at, replacement in changes:
        content[at : at + len(replacement)] = replacement
    path = tmp_path / "model.gguf"
    path.write_bytes(content[:cut] if cut % 3 == 0 else content)
    started = time.perf_counter()
    tracemalloc.start()
    try:
        header = read_header(path)
    except GgufError:
        header = None
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    if header is not None:
        memory = estimate_memory(header, n_ctx=8192, n_batch=512)
        assert 0 <= memory.kv_bytes + memory.compute_bytes < 2**63
    assert peak_bytes < 4 * limits.gguf_read_bytes
    assert time.perf_counter() - started < 2.0


@pytest.mark.parametrize("layers", [0, 513, 2**31])
def test_number_of_layers_that_ends_llama_cpp_is_refused(tmp_path: Path, layers: int) -> None:
    """llama.cpp calls abort() for these: the file is refused before a worker sees it."""
    path = tmp_path / "model.gguf"
    path.write_bytes(g.gguf({**g.METADATA, "llama.block_count": g.number(g.U32, layers)}))
    with pytest.raises(GgufError, match=f"block_count is {layers}"):
        read_header(path)
