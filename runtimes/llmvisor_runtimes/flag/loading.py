# pyright: standard
# FlagEmbedding, torch and transformers have partial types.
"""Loads a model folder with FlagEmbedding's own classes."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

import FlagEmbedding
import msgspec
import torch

from llmvisor_runtimes.backend import LoadError, LoadProgressCallback
from llmvisor_runtimes.flag import layerwise
from llmvisor_runtimes.flag.encoders import (
    AnswerScorer,
    DenseEncoder,
    LayerScorer,
    M3Encoder,
    PairScorer,
    TorchEncoder,
    is_out_of_memory,
)
from llmvisor_runtimes.flag.folder import ModelFolder
from llmvisor_runtimes.flag.options import FlagOptions
from llmvisor_runtimes.flag.progress import told_by_memory
from llmvisor_runtimes.flag.tokens import Pairs, Questions, Texts, Tokenizer

_LENGTH_UNKNOWN_MIN = 1_000_000
"""transformers writes a huge number where a tokenizer knows no bound."""
_QUESTION = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'."
)
"""FlagEmbedding's default prompt."""


T = TypeVar("T")


class _HubTokenizer(Protocol):
    """A fast tokenizer of transformers."""

    backend_tokenizer: Tokenizer
    bos_token_id: int | None
    pad_token_id: int | None
    model_max_length: int
    model_input_names: list[str]


class _Library(Protocol):
    """What FlagEmbedding's classes have in common."""

    model: torch.nn.Module
    tokenizer: _HubTokenizer


class LoadedModel(msgspec.Struct, frozen=True):
    """A model, and what makes its inputs."""

    encoder: TorchEncoder
    texts: Texts
    pairs: Pairs | Questions | None
    """For rerankers."""
    device: str
    length_max: int
    parameters: int
    weights_bytes: int
    precision: str


def devices() -> list[str]:
    """Where this machine can compute."""
    found = [f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]


def load_model(
    folder: ModelFolder, options: FlagOptions, *, n_ctx: int, threads: int, progress: LoadProgressCallback
) -> LoadedModel:
    """Load it onto its device. Raises `LoadError`."""
    device = _device(options.device)
    torch.set_num_threads(threads)
    fp16 = device != "cpu" and options.fp16 is not False
    with told_by_memory(progress, folder.weights_bytes):
        library = _or_load_error(folder, lambda: _construct(folder, options, device=device, fp16=fp16))
    model = _or_load_error(folder, lambda: _placed(library.model, device=device, fp16=fp16))
    length_max = _length_max(folder, library.tokenizer, options, n_ctx)
    parameters = list(model.parameters())
    texts, pairs = _inputs(folder, options, library.tokenizer, length_max)
    return LoadedModel(
        encoder=_encoder(folder, options, library, device),
        texts=texts,
        pairs=pairs,
        device=device,
        length_max=length_max,
        parameters=sum(parameter.numel() for parameter in parameters),
        weights_bytes=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        precision="F16" if fp16 else "F32",
    )


def _device(wanted: str) -> str:
    if wanted == "auto":
        return "cuda:0" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    name, _, index = wanted.partition(":")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name not in there or (index and not index.isdecimal()):
        raise LoadError(f"device {wanted!r} is none of auto, cpu, cuda, cuda:N, mps", permanent=True)
    if not there[name] or (name == "cuda" and int(index or 0) >= torch.cuda.device_count()):
        raise LoadError(f"device {wanted!r} is not there; there are: {', '.join(devices())}", permanent=True)
    return "cuda:0" if wanted == "cuda" else wanted


def _construct(folder: ModelFolder, options: FlagOptions, *, device: str, fp16: bool) -> _Library:
    path = str(folder.path)
    common: dict[str, Any] = {"use_fp16": fp16, "devices": device, "trust_remote_code": False}
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        made: Any
        match folder.kind:
            case "m3":
                if folder.pooling == "last":
                    common["pooling_method"] = "last_token"
                else:
                    common["pooling_method"] = folder.pooling
                made = FlagEmbedding.BGEM3FlagModel(path, normalize_embeddings=folder.normalize, **common)
            case "dense":
                made = FlagEmbedding.FlagModel(path, normalize_embeddings=folder.normalize, **common)
            case "reranker":
                made = FlagEmbedding.FlagReranker(path, **common)
            case "llm_reranker":
                made = FlagEmbedding.FlagLLMReranker(path, **common)
            case "layerwise_reranker":
                layerwise.adapt()
                layers = None if options.cutoff_layer is None else [options.cutoff_layer]
                made = FlagEmbedding.LayerWiseFlagLLMReranker(path, cutoff_layers=layers, **common)
                layerwise.restore(made.model)
    return made


def _placed(model: torch.nn.Module, *, device: str, fp16: bool) -> torch.nn.Module:
    model.to(device)
    model.eval()
    return model.half() if fp16 else model.float()


def _encoder(folder: ModelFolder, options: FlagOptions, library: _Library, device: str) -> TorchEncoder:
    tokenizer = library.tokenizer
    pad_id = 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
    match folder.kind:
        case "m3":
            names = ("cls_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
            unweighted = frozenset(id for name in names if (id := getattr(tokenizer, name)) is not None)
            return M3Encoder(library.model, device=device, pad_id=pad_id, unweighted=unweighted)
        case "dense":
            return DenseEncoder(
                library.model, device=device, pad_id=pad_id, pooling=folder.pooling, normalize=folder.normalize
            )
        case "reranker":
            return PairScorer(library.model, device=device, pad_id=pad_id)
        case "llm_reranker":
            return AnswerScorer(library.model, device=device, pad_id=pad_id, yes_id=cast("Any", library).yes_loc)
        case "layerwise_reranker":
            return LayerScorer(library.model, device=device, pad_id=pad_id, cutoff_layer=options.cutoff_layer)


def _inputs(
    folder: ModelFolder, options: FlagOptions, tokenizer: _HubTokenizer, length_max: int
) -> tuple[Texts, Pairs | Questions | None]:
    backend = tokenizer.backend_tokenizer
    with_types = "token_type_ids" in tokenizer.model_input_names
    instruction = options.instruction
    texts = Texts(backend, length_max=length_max, with_types=with_types, instruction=instruction)
    if folder.kind == "reranker":
        return texts, Pairs(backend, length_max=length_max, with_types=with_types, instruction=instruction)
    if folder.kind not in {"llm_reranker", "layerwise_reranker"}:
        return texts, None
    bos = tokenizer.bos_token_id
    begin = [] if bos is None or (folder.kind == "llm_reranker" and bos == tokenizer.pad_token_id) else [int(bos)]
    question = _QUESTION if options.prompt is None else options.prompt
    return texts, Questions(backend, length_max=length_max, begin=begin, question=question, instruction=instruction)


def _length_max(folder: ModelFolder, tokenizer: _HubTokenizer, options: FlagOptions, n_ctx: int) -> int:
    """Tokens of one input: what the model can take, within what the options allow."""
    bounds = [n_ctx] if n_ctx else []
    if folder.length_max:
        bounds.append(folder.length_max)
    if tokenizer.model_max_length < _LENGTH_UNKNOWN_MIN:
        bounds.append(int(tokenizer.model_max_length))
    able = min(bounds, default=512)
    if options.max_length > able:
        raise LoadError(f"max_length is {options.max_length}; this model takes {able} tokens", permanent=True)
    return options.max_length or able


def _or_load_error(folder: ModelFolder, load: Callable[[], T]) -> T:
    """What `load` gives. Raises `LoadError` for whatever goes wrong: permanent unless memory was short."""
    try:
        return load()
    except MemoryError as error:
        raise LoadError(f"out of memory while loading {folder.path}", permanent=False) from error
    except Exception as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise LoadError(f"out of memory while loading {folder.path}: {error}", permanent=False) from error
        reason = f"{type(error).__name__}: {error}".strip()
        raise LoadError(f"FlagEmbedding cannot load {folder.path}: {reason}", permanent=True) from error
