"""llama.cpp's context: one batch that is filled in place, llama_decode, the logits, and the KV memory."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from llmvisor_runtimes.llamacpp.native import llama_cpp

_libc = ctypes.CDLL(None)

DECODED, NO_ROOM, ABORTED = 0, 1, 2
"""What `llama_decode` answers; anything else is an error."""


class Part(NamedTuple):
    """Tokens of one sequence for one batch, from `position` on."""

    sequence: int
    position: int
    tokens: Sequence[int]
    every_logit: bool
    """Logits of each token are wanted."""
    last_logit: bool
    """Logits of the last token are wanted."""


class LlamaContext:
    """One llama context. For one thread, except `abort`."""

    def __init__(self, model: object, params: object, *, n_vocab: int) -> None:
        """Raises MemoryError where llama.cpp cannot make the context."""
        self.pointer = llama_cpp.llama_init_from_model(model, params)
        if not self.pointer:
            raise MemoryError("llama.cpp could not make the context")
        self.n_ctx: int = llama_cpp.llama_n_ctx(self.pointer)
        self.n_batch: int = llama_cpp.llama_n_batch(self.pointer)
        self.n_outputs_max: int = int(getattr(params, "n_outputs_max", 0)) or self.n_batch
        """Tokens of one batch whose logits may be wanted."""
        self._memory = llama_cpp.llama_get_memory(self.pointer)
        self._n_vocab = n_vocab
        self._allocate(self.n_batch)
        # llama_cpp's own gives a pointer object; the number is enough.
        address_of = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
        self._get_logits = address_of(ctypes.cast(llama_cpp.llama_get_logits, ctypes.c_void_p).value or 0)
        self._logits_at: int | None = 0
        self._logits: NDArray[np.float32] = np.empty((0, n_vocab), dtype=np.float32)
        self._install_abort()

    def decode(self, parts: Sequence[Part]) -> int:
        """Compute the parts as one batch; `DECODED`, `NO_ROOM`, `ABORTED` or llama.cpp's error number."""
        self._fill(parts)
        return llama_cpp.llama_decode(self.pointer, self._batch)

    def decode_embeddings(
        self,
        sequence: int,
        embeddings: NDArray[np.float32],
        places: NDArray[np.int32],
        *,
        causal: bool,
        last_logit: bool,
    ) -> int:
        """Compute rows of embeddings as tokens of one sequence; answers as `decode` does.

        `places` has the positions of the rows, a row of them for each dimension that positions have. Not `causal`:
        each row sees all others, which have to fit in one ubatch.
        """
        count = len(embeddings)
        rows, positions = np.ascontiguousarray(embeddings), np.ascontiguousarray(places)
        self._sequences[:count] = [sequence] * count
        self._outputs[:count] = [False] * count
        self._outputs[count - 1] = last_logit
        batch = self._embedding_batch
        batch.embd = rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        batch.pos = positions.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch.n_tokens = count
        if causal:
            return llama_cpp.llama_decode(self.pointer, batch)
        llama_cpp.llama_set_causal_attn(self.pointer, False)
        try:
            return llama_cpp.llama_decode(self.pointer, batch)
        finally:
            llama_cpp.llama_set_causal_attn(self.pointer, True)

    def _fill(self, parts: Sequence[Part]) -> None:
        start = 0
        for sequence, position, tokens, every_logit, last_logit in parts:
            count = len(tokens)
            end = start + count
            if count == 1:
                self._tokens[start] = tokens[0]
                self._positions[start] = position
                self._sequences[start] = sequence
            else:
                self._tokens[start:end] = tokens
                self._positions[start:end] = range(position, position + count)
                self._sequences[start:end] = [sequence] * count
                self._outputs[start:end] = [every_logit] * count
            self._outputs[end - 1] = every_logit or last_logit
            start = end
        self._batch.n_tokens = start

    def logits(self, rows: int) -> NDArray[np.float32]:
        """The logits of the last decode, one row for each output in the order of the batch. Valid until the next."""
        address = self._get_logits(self.pointer)
        if address != self._logits_at or rows > len(self._logits):
            floats = ctypes.cast(ctypes.c_void_p(address), ctypes.POINTER(ctypes.c_float))
            self._logits = np.ctypeslib.as_array(floats, shape=(rows, self._n_vocab))
            self._logits_at = address
        return self._logits

    def set_threads(self, count: int) -> None:
        """Compute with so many threads from the next decode on. From any thread: llama.cpp reads two plain numbers."""
        llama_cpp.llama_set_n_threads(self.pointer, count, count)

    def abort(self) -> None:
        """Have the decode under way come back with `ABORTED`. From any thread."""
        self._abort_flag[0] = b"\x01"

    def clear_abort(self) -> None:
        """Let the next decode run."""
        self._abort_flag[0] = b"\x00"

    def remove(self, sequence: int, start: int) -> None:
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, start, -1)

    def copy(self, source: int, target: int, stop: int) -> None:
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, 0, stop)

    def save(self, sequence: int) -> bytearray:
        size = llama_cpp.llama_state_seq_get_size(self.pointer, sequence)
        state = bytearray(size)
        written = llama_cpp.llama_state_seq_get_data(self.pointer, _array_over(state), size, sequence)
        return state if written == size else bytearray()

    def restore(self, sequence: int, state: bytearray) -> bool:
        read = llama_cpp.llama_state_seq_set_data(self.pointer, _array_over(state), len(state), sequence)
        return read == len(state)

    def clear(self) -> None:
        """Forget everything."""
        llama_cpp.llama_memory_clear(self._memory, True)

    def close(self) -> None:
        if self.pointer:
            llama_cpp.llama_free(self.pointer)
            self.pointer = None

    def _allocate(self, n_batch: int) -> None:
        # The batch's arrays are ours, and plain ctypes: between two decodes everything is out of the processor's
        # caches, and numpy's way to set four numbers is a long one.
        integers = ctypes.c_int32 * n_batch
        self._tokens, self._positions, self._sequences = integers(), integers(), integers()
        self._sequence_counts = integers(*[1] * n_batch)
        self._outputs = (ctypes.c_int8 * n_batch)()
        base, size = ctypes.addressof(self._sequences), ctypes.sizeof(ctypes.c_int32)
        self._sequence_pointers = (ctypes.c_size_t * n_batch)(*range(base, base + n_batch * size, size))
        shared: dict[str, object] = {
            "n_seq_id": self._sequence_counts,
            "seq_id": self._sequence_pointers,
            "logits": self._outputs,
        }
        self._batch = _batch_over({**shared, "token": self._tokens, "pos": self._positions})
        self._embedding_batch = _batch_over(shared)

    def _install_abort(self) -> None:
        # llama.cpp asks between the nodes of its graph. `strlen` of a buffer answers without Python: no lock is taken,
        # and the first byte decides: NUL = 0 = go on, anything else = 1 = abort.
        self._abort_flag = ctypes.create_string_buffer(2)
        address = ctypes.cast(_libc.strlen, ctypes.c_void_p).value
        self._abort_callback = llama_cpp.ggml_abort_callback(address)
        self._set_abort_callback()

    def _set_abort_callback(self) -> None:
        data = ctypes.cast(self._abort_flag, ctypes.c_void_p)
        llama_cpp.llama_set_abort_callback(self.pointer, self._abort_callback, data)


def _batch_over(arrays: dict[str, object]) -> Any:  # noqa: ANN401 - a ctypes structure of llama_cpp's
    """A `llama_batch` that points into these arrays."""
    batch = llama_cpp.llama_batch()
    for name, array in arrays.items():
        kind: Any = type(cast("object", getattr(batch, name)))
        setattr(batch, name, ctypes.cast(cast("Any", array), kind))
    return batch


def _array_over(data: bytearray) -> ctypes.Array[ctypes.c_uint8]:
    return (ctypes.c_uint8 * len(data)).from_buffer(data)
