"""llama.cpp's context as an encoder: many whole texts in one batch, one row of floats for each."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from llmvisor_runtimes import limits
from llmvisor_runtimes.llamacpp.context import DECODED, LlamaContext, Part
from llmvisor_runtimes.llamacpp.native import llama_cpp

Rows = NDArray[np.float32]


class EncoderContext(LlamaContext):
    """One context whose outputs are pooled: a text's vector, or its scores. For one thread, except `abort`."""

    def __init__(self, model: object, params: object, *, n_vocab: int) -> None:
        """Raises MemoryError where llama.cpp cannot make the context."""
        super().__init__(model, params, n_vocab=n_vocab)
        pooling = llama_cpp.llama_pooling_type(self.pointer)
        ranks = pooling == llama_cpp.LLAMA_POOLING_TYPE_RANK
        self.width: int = llama_cpp.llama_model_n_cls_out(model) if ranks else llama_cpp.llama_model_n_embd_out(model)
        """Floats of a row."""
        self.reads_last_token: bool = llama_cpp.llama_get_causal_attn(self.pointer) and (
            ranks or pooling == llama_cpp.LLAMA_POOLING_TYPE_LAST
        )
        """Only each text's last token counts, and no token sees those after it: the others need no outputs."""
        self.nodes_computed = 0
        """Of the graphs of long batches: what shows that one goes on."""
        self._node_callback = llama_cpp.ggml_abort_callback(self._node)
        self._has_encoder: bool = llama_cpp.llama_model_has_encoder(model)

    def encode(self, texts: Sequence[Sequence[int]]) -> int:
        """Compute whole texts together; the same answers as `decode`'s."""
        # The memory's bytes may stay: what nothing refers to is never read.
        llama_cpp.llama_memory_clear(self._memory, False)
        if self.reads_last_token:
            return self._encode_last(texts)
        total = sum(map(len, texts))
        assert total <= self.n_batch, "llama.cpp would end the process"
        self._fill([_part(sequence, 0, tokens, outputs=True) for sequence, tokens in enumerate(texts)])
        run = llama_cpp.llama_encode if self._has_encoder else llama_cpp.llama_decode
        if total < limits.encoder_watched_tokens_min:
            return run(self.pointer, self._batch)
        llama_cpp.llama_set_abort_callback(self.pointer, self._node_callback, None)
        try:
            return run(self.pointer, self._batch)
        finally:
            self._set_abort_callback()

    def rows(self, count: int) -> Rows:
        """The rows of the first `count` texts of the last `encode`, copied."""
        rows = np.empty((count, self.width), dtype=np.float32)
        for sequence in range(count):
            address = llama_cpp.llama_get_embeddings_seq(self.pointer, sequence)
            floats = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
            rows[sequence] = np.ctypeslib.as_array(floats, shape=(self.width,))
        return rows

    def _node(self, _data: object) -> bool:
        """llama.cpp asks between two nodes of its graph whether to go on; a long text takes minutes in all."""
        self.nodes_computed += 1
        return self._abort_flag[0] != b"\x00"

    def _encode_last(self, texts: Sequence[Sequence[int]]) -> int:
        """Everything but the last tokens without outputs, then those.

        With outputs llama.cpp would compute the logits of every token: more than the rest of a small model, and a
        whole vocabulary of floats for each.
        """
        llama_cpp.llama_set_embeddings(self.pointer, False)
        status = DECODED
        for parts in _chunks(texts, self.n_batch):
            status = self.decode(parts)
            if status != DECODED:
                break
        llama_cpp.llama_set_embeddings(self.pointer, True)
        if status != DECODED:
            return status
        ends = [_part(sequence, len(tokens) - 1, tokens[-1:], outputs=True) for sequence, tokens in enumerate(texts)]
        return self.decode(ends)


def _chunks(texts: Sequence[Sequence[int]], tokens_max: int) -> Iterator[list[Part]]:
    """All tokens but the last of each text, in batches."""
    parts: list[Part] = []
    room = tokens_max
    for sequence, tokens in enumerate(texts):
        start, end = 0, len(tokens) - 1
        while start < end:
            stop = min(end, start + room)
            parts.append(_part(sequence, start, tokens[start:stop], outputs=False))
            room -= stop - start
            start = stop
            if not room:
                yield parts
                parts, room = [], tokens_max
    if parts:
        yield parts


def _part(sequence: int, position: int, tokens: Sequence[int], *, outputs: bool) -> Part:
    return Part(sequence, position, tokens, every_logit=outputs, last_logit=outputs)
