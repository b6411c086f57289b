# pyright: basic
# FlagEmbedding's types are partial, and wrong where a method gives one thing or another.
"""`python ask_flagembedding.py`: a JSON `flag_reference.Question` on stdin, a JSON `Answer` on stdout."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from types import SimpleNamespace
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"

import FlagEmbedding
import msgspec
import torch
from FlagEmbedding.inference.reranker.decoder_only.models import modeling_minicpm_reranker as minicpm
from safetensors.torch import load_file

from llmvisor_runtimes.flag import layerwise as compatibility

# Untyped: what these give depends on what they are given.
flag: Any = FlagEmbedding


def answer(question: SimpleNamespace) -> dict[str, object]:
    torch.set_num_threads(1)
    common = {"use_fp16": False, "devices": "cpu"}
    pairs = question.pairs
    m3 = flag.BGEM3FlagModel(question.m3, **common)
    vectors = m3.encode(question.texts, return_dense=True, return_sparse=True, return_colbert_vecs=True)
    mean = flag.FlagModel(question.dense, pooling_method="mean", **common).encode(question.texts)
    return {
        "dense": vectors["dense_vecs"].tolist(),
        "sparse": [{id: float(weight) for id, weight in each.items()} for each in vectors["lexical_weights"]],
        "colbert": [each.tolist() for each in vectors["colbert_vecs"]],
        "mean": mean.tolist(),
        "reranker": flag.FlagReranker(question.reranker, max_length=8192, **common).compute_score(pairs),
        "llm_reranker": flag.FlagLLMReranker(question.llm_reranker, **common).compute_score(pairs),
        "layerwise_reranker": layerwise(question),
    }


def layerwise(question: SimpleNamespace) -> list[float]:
    """With a model that was built in memory and filled from the file, which no version of transformers gets wrong."""
    compatibility.adapt()
    folder = question.layerwise_reranker
    reranker = flag.LayerWiseFlagLLMReranker(
        folder, cutoff_layers=[question.cutoff_layer], use_fp16=True, devices="cpu"
    )
    model: Any = minicpm.LayerWiseMiniCPMForCausalLM(reranker.model.config)
    model.config.use_cache = False
    model.load_state_dict(load_file(f"{folder}/model.safetensors"))
    reranker.model = model
    return reranker.compute_score(question.pairs)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(sys.stderr):
        found = answer(SimpleNamespace(**msgspec.json.decode(sys.stdin.buffer.read())))
    sys.stdout.buffer.write(msgspec.json.encode(found))
