# pyright: standard
# torch's and FlagEmbedding's types are partial.
"""One forward pass of each kind of model, with the arithmetic of FlagEmbedding's own `encode` and `compute_score`."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from llmvisor_runtimes.flag.engine import Result
from llmvisor_runtimes.flag.options import Pooling
from llmvisor_runtimes.flag.tokens import Tokenized
from llmvisor_runtimes.protocol import Embedding


class TorchEncoder(ABC):
    """A model on one device. Subclasses say what comes of its hidden states."""

    def __init__(self, model: torch.nn.Module, *, device: str, pad_id: int) -> None:
        self.passes = 0
        self.model = model
        self._device = torch.device(device)
        self._pad_id = pad_id
        self._count_layers()

    def compute(self, inputs: Sequence[Tokenized]) -> list[Result]:
        try:
            with torch.inference_mode():
                return self._compute(inputs, self._batch(inputs))
        except RuntimeError as error:
            if is_out_of_memory(error):
                self._free_cache()
                longest = max(len(input.ids) for input in inputs)
                raise MemoryError(f"out of memory for {len(inputs)} inputs of up to {longest} tokens") from None
            raise

    def set_threads(self, count: int) -> None:
        torch.set_num_threads(max(1, count))

    @abstractmethod
    def _compute(self, inputs: Sequence[Tokenized], batch: dict[str, torch.Tensor]) -> list[Result]:
        """The results of one padded batch, in order."""

    def _batch(self, inputs: Sequence[Tokenized]) -> dict[str, torch.Tensor]:
        """The inputs padded to the longest, on the right: causal models give the same for any padding there."""
        shape = (len(inputs), max(len(input.ids) for input in inputs))
        ids = np.full(shape, self._pad_id, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        types = np.zeros(shape, dtype=np.int64)
        for row, input in enumerate(inputs):
            ids[row, : len(input.ids)] = input.ids
            mask[row, : len(input.ids)] = 1
            if input.types is not None:
                types[row, : len(input.types)] = input.types
        arrays = {"input_ids": ids, "attention_mask": mask}
        if inputs[0].types is not None:
            arrays["token_type_ids"] = types
        return {name: torch.from_numpy(array).to(self._device) for name, array in arrays.items()}

    def _count_layers(self) -> None:
        """Count each layer that has been computed: progress that shows also within a pass over a long text."""

        def count(*_: object) -> None:
            self.passes += 1

        stacks = [module for module in self.model.modules() if isinstance(module, torch.nn.ModuleList)]
        for layer in max(stacks, key=len, default=()):
            layer.register_forward_hook(count)

    def _free_cache(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        elif self._device.type == "mps":
            torch.mps.empty_cache()


class DenseEncoder(TorchEncoder):
    """One vector for each text, as `FlagModel`."""

    def __init__(self, model: torch.nn.Module, *, device: str, pad_id: int, pooling: Pooling, normalize: bool) -> None:
        super().__init__(model, device=device, pad_id=pad_id)
        self._pooling = pooling
        self._normalize = normalize

    def _compute(self, inputs: Sequence[Tokenized], batch: dict[str, torch.Tensor]) -> list[Result]:
        hidden = self.model(**batch, return_dict=True).last_hidden_state
        vectors = self._pool(hidden, batch["attention_mask"])
        if self._normalize:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        rows = floats(vectors)
        return [Embedding(len(input.ids), dense=row.tobytes()) for input, row in zip(inputs, rows, strict=True)]

    def _pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self._pooling == "cls":
            return hidden[:, 0]
        if self._pooling == "last":
            return hidden[torch.arange(hidden.shape[0], device=hidden.device), mask.sum(dim=1) - 1]
        return (hidden * mask.unsqueeze(-1).float()).sum(dim=1) / mask.sum(dim=1, keepdim=True).float()


class M3Encoder(TorchEncoder):
    """Dense, sparse and ColBERT vectors of each text from one pass, as `BGEM3FlagModel`."""

    def __init__(self, model: torch.nn.Module, *, device: str, pad_id: int, unweighted: frozenset[int]) -> None:
        """`unweighted`: ids of special tokens, which have no place among lexical weights."""
        super().__init__(model, device=device, pad_id=pad_id)
        self._unweighted = unweighted

    def _compute(self, inputs: Sequence[Tokenized], batch: dict[str, torch.Tensor]) -> list[Result]:
        wanted = {kind for input in inputs for kind in input.kinds}
        output = self.model(
            batch,
            return_dense="dense" in wanted,
            return_sparse="sparse" in wanted,
            return_colbert_vecs="colbert" in wanted,
        )
        dense = floats(output["dense_vecs"]) if "dense" in wanted else None
        weights = floats(output["sparse_vecs"].squeeze(-1)) if "sparse" in wanted else None
        colbert = floats(output["colbert_vecs"]) if "colbert" in wanted else None
        results: list[Result] = []
        for row, input in enumerate(inputs):
            # ColBERT has no vector of the first token.
            vectors = len(input.ids) - 1 if colbert is not None and "colbert" in input.kinds else 0
            results.append(
                Embedding(
                    len(input.ids),
                    dense=dense[row].tobytes() if dense is not None and "dense" in input.kinds else b"",
                    sparse=self._lexical(input.ids, weights[row])
                    if weights is not None and "sparse" in input.kinds
                    else {},
                    colbert=colbert[row, :vectors].tobytes() if colbert is not None and vectors else b"",
                    colbert_vectors=vectors,
                )
            )
        return results

    def _lexical(self, ids: list[int], weights: np.ndarray[Any, Any]) -> dict[int, float]:
        """The largest weight of each token."""
        best: dict[int, float] = {}
        for id, weight in zip(ids, weights.tolist(), strict=False):
            if weight > 0 and id not in self._unweighted and weight > best.get(id, 0.0):
                best[id] = weight
        return best


class PairScorer(TorchEncoder):
    """One score for each pair, as `FlagReranker`."""

    def _compute(self, inputs: Sequence[Tokenized], batch: dict[str, torch.Tensor]) -> list[Result]:
        logits = self.model(**batch, return_dict=True).logits
        return floats(logits.view(len(inputs))).tolist()


class AnswerScorer(TorchEncoder):
    """How likely an LLM answers Yes, as `FlagLLMReranker`: the logit of that token after the question."""

    def __init__(self, model: torch.nn.Module, *, device: str, pad_id: int, yes_id: int) -> None:
        super().__init__(model, device=device, pad_id=pad_id)
        self._yes_id = yes_id
        self._can_choose_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def _compute(self, inputs: Sequence[Tokenized], batch: dict[str, torch.Tensor]) -> list[Result]:
        last = batch["attention_mask"].sum(dim=1) - 1
        rows = torch.arange(len(inputs), device=last.device)
        if not self._can_choose_logits:
            logits = self.model(**batch).logits
            return floats(logits[rows, last, self._yes_id]).tolist()
        # A whole vocabulary of logits for each token of the batch would be gigabytes.
        places, column = torch.unique(last, return_inverse=True)
        logits = self.model(**batch, logits_to_keep=places).logits
        return floats(logits[rows, column, self._yes_id]).tolist()


class LayerScorer(TorchEncoder):
    """A score from one of the layers, as `LayerWiseFlagLLMReranker` with one `cutoff_layers`."""

    def __init__(self, model: torch.nn.Module, *, device: str, pad_id: int, cutoff_layer: int | None) -> None:
        super().__init__(model, device=device, pad_id=pad_id)
        self._cutoff_layers = None if cutoff_layer is None else [cutoff_layer]

    def _compute(self, inputs: Sequence[Tokenized], batch: dict[str, torch.Tensor]) -> list[Result]:
        last = batch["attention_mask"].sum(dim=1) - 1
        output = self.model(**batch, output_hidden_states=True, cutoff_layers=self._cutoff_layers)
        scores = output.logits[-1]
        return floats(scores[torch.arange(len(inputs), device=last.device), last]).tolist()


def floats(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """Little-endian float32. Raises ArithmeticError where the model gave something that is no number."""
    array = tensor.float().cpu().numpy().astype("<f4", copy=False)
    if not np.isfinite(array).all():
        raise ArithmeticError("the model gave something that is no number")
    return array


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says, in one of its ways, that there is no memory left."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text
