"""What llama.cpp's own helper makes of a text with media, one request alone: what the engine is held to."""
# pyright: standard

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import llama_cpp as _llama_cpp
import numpy as np
from llama_cpp import mtmd_cpp as _mtmd_cpp

llama_cpp = cast("Any", _llama_cpp)
mtmd = cast("Any", _mtmd_cpp)


def reference_logprobs(
    model: Path, mmproj: Path, text: str, files: Sequence[bytes], continuation: Sequence[int], *, n_batch: int = 512
) -> list[float]:
    """The log-probability of each token of a continuation, by `mtmd_helper_eval_chunks` and plain decoding."""
    llama_cpp.llama_backend_init()
    loaded = llama_cpp.llama_model_load_from_file(os.fsencode(model), llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_threads, params.n_threads_batch = 512, n_batch, 1, 1
    context = llama_cpp.llama_init_from_model(loaded, params)
    own = mtmd.mtmd_context_params_default()
    own.n_threads, own.print_timings = 1, False
    projector = mtmd.mtmd_init_from_file(os.fsencode(mmproj), loaded, own)
    try:
        past = _evaluate(projector, context, text.encode(), files, n_batch)
        vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(loaded))
        found: list[float] = []
        for place, token in enumerate(continuation):
            row = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), shape=(vocabulary,))
            row = row.astype(np.float64)
            found.append(float(row[token] - row.max() - np.log(np.exp(row - row.max()).sum())))
            _decode(context, token, past + place)
        return found
    finally:
        mtmd.mtmd_free(projector)
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(loaded)


def _evaluate(projector: Any, context: Any, text: bytes, files: Sequence[bytes], n_batch: int) -> int:
    bitmaps = [
        mtmd.mtmd_helper_bitmap_init_from_buf(
            projector, (ctypes.c_uint8 * len(file)).from_buffer_copy(file), len(file), False
        )
        for file in files
    ]
    wanted = mtmd.mtmd_input_text(text=text, text_len=len(text), add_special=True, parse_special=True)
    chunks = mtmd.mtmd_input_chunks_init()
    pointers = (ctypes.c_void_p * len(bitmaps))(*bitmaps)
    assert mtmd.mtmd_tokenize(projector, chunks, ctypes.byref(wanted), pointers, len(bitmaps)) == 0
    past = ctypes.c_int32(0)
    status = mtmd.mtmd_helper_eval_chunks(projector, context, chunks, 0, 0, n_batch, True, ctypes.byref(past))
    assert status == 0
    mtmd.mtmd_input_chunks_free(chunks)
    for bitmap in bitmaps:
        mtmd.mtmd_bitmap_free(bitmap)
    return past.value


def _decode(context: Any, token: int, position: int) -> None:
    batch = llama_cpp.llama_batch_init(1, 0, 1)
    batch.n_tokens, batch.token[0], batch.pos[0] = 1, token, position
    batch.n_seq_id[0], batch.seq_id[0][0], batch.logits[0] = 1, 0, True
    assert llama_cpp.llama_decode(context, batch) == 0
    llama_cpp.llama_batch_free(batch)
