"""llama.cpp as a backend: continuous batching over one unified KV cache, on llama-cpp-python's low-level API.

batch.py     which tokens are computed next (pure)
kvcache.py   what is where in the KV cache (pure)
choice.py    one choice of one request: its tokens, its text, what it reports
engine.py    the loop: admit, compose, decode, sample, report
sampling.py  how the next token is chosen, and log-probabilities
model.py     load, options, facts about the model; vocabulary.py: text ↔ tokens; context.py: the batch and llama_decode

Importing this package does not import llama_cpp: that happens in `LlamaCppBackend.load`.
"""

from llmvisor_runtimes.llamacpp.backend import LlamaCppBackend

__all__ = ["LlamaCppBackend"]
