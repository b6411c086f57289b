"""MLX as a backend: mlx-lm's models and its batch generator, on Apple silicon's GPU and on Linux's CPU.

folder.py    what a model's folder says, read without running anything of it
options.py   the options of a model that only this backend knows
model.py     loading, and facts about the model; vocabulary.py: text ↔ tokens
prefixes.py  computed prompts that are kept for those that begin the same way (pure)
sequence.py  one choice of one request, and its place in the engine
sampling.py  how the next token is chosen, and log-probabilities
reading.py   where a prompt begins, and its computing piece by piece
engine.py    the loop: admit, read prompts in pieces, decode all together, report

Importing this package imports neither mlx nor mlx_lm: that happens in `MlxBackend.load`.
"""

from llmvisor_runtimes.mlx.backend import MlxBackend

__all__ = ["MlxBackend"]
