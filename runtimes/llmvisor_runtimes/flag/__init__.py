"""FlagEmbedding as a backend: embeddings (dense, sparse, ColBERT) and rerankers from folders of PyTorch models.

folder.py    what a model folder holds, by its files alone (no engine)
options.py   the options that only this backend knows
tokens.py    texts and pairs → tokens, exactly counted (prompt thread)
engine.py    the loop: plan a batch, compute it, report; what to do when memory is out or an input is bad (no engine)
pace.py      how large a batch may be for the time that it may take (pure)
library.py   imports torch and FlagEmbedding, so that one OpenMP runtime is in the process
loading.py   loads with FlagEmbedding's own classes (layerwise.py: what one of them needs); progress.py: and tells of it
encoders.py  one forward pass of each kind of model

Importing this package does not import torch: that happens in `FlagBackend.load`.
"""

from llmvisor_runtimes.flag.backend import FlagBackend

__all__ = ["FlagBackend"]
