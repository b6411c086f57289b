# pyright: standard
# FlagEmbedding and transformers have partial types.
"""Makes FlagEmbedding's layerwise MiniCPM, written for transformers 4, right under transformers 5.

Without this it does not load there; and made to load, it would compute nonsense without a word: models are now built
without memory behind them and filled from the file, and its tables of positions are in no file.
"""

from __future__ import annotations

from typing import Any

import torch
from FlagEmbedding.inference.reranker.decoder_only.models import modeling_minicpm_reranker as minicpm


def adapt() -> None:
    """Change the classes, once, before one of them is built."""
    # Was a list; no layerwise reranker ties its heads to its embeddings.
    minicpm.LayerWiseMiniCPMForCausalLM._tied_weights_keys = {}  # noqa: SLF001 - transformers' own way to declare it
    attention: Any = minicpm.MiniCPMAttention
    if attention._init_rope is not _init_rope:  # noqa: SLF001 - as above
        _original.append(attention._init_rope)  # noqa: SLF001 - as above
        attention._init_rope = _init_rope  # noqa: SLF001 - as above


def restore(model: torch.nn.Module) -> None:
    """Compute what was in no file, in a model that was loaded."""
    for module in model.modules():
        if isinstance(module, minicpm.MiniCPMAttention):
            module._init_rope()  # noqa: SLF001 - it has no other name
    config: Any = model.config
    # Its cache is of an interface that is gone; a single pass needs none.
    config.use_cache = False


_original: list[Any] = []


def _init_rope(self: Any) -> None:  # noqa: ANN401 - takes the place of a method
    # transformers 5 writes the absence of scaling as a kind of scaling, and calls the kind otherwise.
    scaling = self.config.rope_scaling
    if scaling is not None and "type" not in scaling:
        kind = scaling.get("rope_type", "default")
        self.config.rope_scaling = None if kind == "default" else {**scaling, "type": kind}
    _original[0](self)
