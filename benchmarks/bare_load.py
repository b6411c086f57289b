"""A bare process that loads a model, computes a prompt and chooses one token: what nobody who starts again can spare.

Run as `python -m benchmarks.bare_load PATH N_CTX THREADS`, token ids as JSON on standard input, which may come while it
loads. It writes a JSON line with the seconds of each part.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from typing import Any

BATCH_TOKENS = 512


def main() -> None:
    """Load, compute, choose, tell."""
    began = time.perf_counter()
    import llama_cpp as module  # noqa: PLC0415 - its import is measured

    llama: Any = module
    imported = time.perf_counter()
    llama.llama_log_set(llama.llama_log_callback(_silent), ctypes.c_void_p(0))
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(sys.argv[1].encode(), llama.llama_model_default_params())
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_batch = int(sys.argv[2]), BATCH_TOKENS
    params.n_threads = params.n_threads_batch = int(sys.argv[3])
    context = llama.llama_init_from_model(model, params)
    loaded = time.perf_counter()
    tokens: list[int] = json.load(sys.stdin)
    asked = time.perf_counter()
    for start in range(0, len(tokens), BATCH_TOKENS):
        part = tokens[start : start + BATCH_TOKENS]
        array = (ctypes.c_int32 * len(part))(*part)
        if llama.llama_decode(context, llama.llama_batch_get_one(array, len(part))) != 0:
            sys.exit("llama_decode failed")
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    logits = llama.llama_get_logits_ith(context, -1)
    max(range(vocabulary), key=lambda token: logits[token])
    computed = time.perf_counter()
    seconds = {"import": imported - began, "load": loaded - imported, "prefill": computed - asked}
    print(json.dumps(seconds), flush=True)


def _silent(_level: int, _text: bytes, _data: object) -> None:
    pass


if __name__ == "__main__":
    main()
