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
        self._memory = llama_cpp.llama_get_memory(self.pointer)
        self._n_vocab = n_vocab
        self._allocate(self.n_batch)
        self._logits_at = 0
        self._logits: NDArray[np.float32] = np.empty((0, n_vocab), dtype=np.float32)
        self._install_abort()

    def decode(self, parts: Sequence[Part]) -> int:
        """Compute the parts as one batch; `DECODED`, `NO_ROOM`, `ABORTED` or llama.cpp's error number."""
        tokens: list[int] = []
        positions: list[int] = []
        sequences: list[int] = []
        outputs: list[int] = []
        for part in parts:
            count = len(part.tokens)
            tokens += part.tokens
            positions += range(part.position, part.position + count)
            sequences += [part.sequence] * count
            outputs += [int(part.every_logit)] * (count - 1)
            outputs.append(int(part.last_logit or part.every_logit))
        total = len(tokens)
        self._tokens[:total] = tokens
        self._positions[:total] = positions
        self._sequences[:total] = sequences
        self._outputs[:total] = outputs
        self._batch.n_tokens = total
        return llama_cpp.llama_decode(self.pointer, self._batch)

    def logits(self, rows: int) -> NDArray[np.float32]:
        """The logits of the last decode, one row for each output in the order of the batch. Valid until the next."""
        pointer = llama_cpp.llama_get_logits(self.pointer)
        address = ctypes.cast(pointer, ctypes.c_void_p).value or 0
        if address != self._logits_at or rows > len(self._logits):
            floats = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float))
            self._logits = np.ctypeslib.as_array(floats, shape=(rows, self._n_vocab))
            self._logits_at = address
        return self._logits[:rows]

    def abort(self) -> None:
        """Have the decode under way come back with `ABORTED`. From any thread."""
        self._abort_flag[0] = b"\x01"

    def clear_abort(self) -> None:
        """Let the next decode run."""
        self._abort_flag[0] = b"\x00"

    @property
    def aborting(self) -> bool:
        return self._abort_flag[0] != b"\x00"

    def remove(self, sequence: int, start: int) -> None:
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, start, -1)

    def copy(self, source: int, target: int, stop: int) -> None:
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, 0, stop)

    def clear(self) -> None:
        """Forget everything."""
        llama_cpp.llama_memory_clear(self._memory, True)

    def close(self) -> None:
        if self.pointer:
            llama_cpp.llama_free(self.pointer)
            self.pointer = None

    def _allocate(self, n_batch: int) -> None:
        # The batch's arrays are ours: numpy writes a whole step into them at once.
        self._tokens = np.zeros(n_batch, dtype=np.int32)
        self._positions = np.zeros(n_batch, dtype=np.int32)
        self._sequences = np.zeros(n_batch, dtype=np.int32)
        self._outputs = np.zeros(n_batch, dtype=np.int8)
        self._sequence_counts = np.ones(n_batch, dtype=np.int32)
        itemsize = self._sequences.itemsize
        self._sequence_pointers = self._sequences.ctypes.data + itemsize * np.arange(n_batch, dtype=np.uintp)
        batch = self._batch = llama_cpp.llama_batch()
        for name, array in (
            ("token", self._tokens),
            ("pos", self._positions),
            ("n_seq_id", self._sequence_counts),
            ("seq_id", self._sequence_pointers),
            ("logits", self._outputs),
        ):
            kind: Any = type(cast("object", getattr(batch, name)))
            setattr(batch, name, ctypes.cast(ctypes.c_void_p(array.ctypes.data), kind))

    def _install_abort(self) -> None:
        # llama.cpp asks between the nodes of its graph. `strlen` of a buffer answers without Python: no lock is taken,
        # and the first byte decides: NUL = 0 = go on, anything else = 1 = abort.
        self._abort_flag = ctypes.create_string_buffer(2)
        address = ctypes.cast(_libc.strlen, ctypes.c_void_p).value
        self._abort_callback = llama_cpp.ggml_abort_callback(address)
        data = ctypes.cast(self._abort_flag, ctypes.c_void_p)
        llama_cpp.llama_set_abort_callback(self.pointer, self._abort_callback, data)
