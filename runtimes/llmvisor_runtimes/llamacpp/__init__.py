"""llama.cpp as a backend: continuous batching over one unified KV cache, on llama-cpp-python's low-level API.

batch.py     which tokens are computed next (pure)
kvcache.py   what is where in the KV cache (pure)
choice.py    one choice of one request: its tokens, its text, what it reports
engine.py    the loop: admit, compose, decode, report; admission.py: who waits and who has a slot; feeds.py: what is
             computed of each in a step; advance.py: what that brings
projector.py images and sounds as embeddings (libmtmd); media_encoder.py: made beside the engine, in turns with it;
             media_prompt.py: conversations that show them; media_tokens.py: their places among tokens (pure);
             images.py and sounds.py: how much a file unpacks to (pure)
speculative.py  tokens guessed ahead by prompt lookup (pure); draft.py: by a draft model
adapters.py  LoRA adapters; infill.py: filling in the middle; saved_state.py: the KV cache in a file between two loads
sampling.py  how the next token is chosen, and log-probabilities; constrained.py: where a grammar has its say
weights.py   a file's weights, and whether they go on with texts or encode them
encoder.py   the loop for those that encode: embeddings and scores of pairs; encoder_model.py, encoder_text.py (what
             such a model reads) and encoder_context.py (whole texts in one batch) belong to it
model.py     load, options, facts about the model; vocabulary.py: text ↔ tokens; context.py: the batch and llama_decode

Importing this package does not import llama_cpp: that happens in `LlamaCppBackend.load`.
"""

from llmvisor_runtimes.llamacpp.backend import LlamaCppBackend

__all__ = ["LlamaCppBackend"]
