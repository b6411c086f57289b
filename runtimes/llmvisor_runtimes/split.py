"""Cuts what is too long for one frame: a long prompt echoed with log-probabilities, vectors of many texts."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from llmvisor_runtimes import limits
from llmvisor_runtimes.protocol import Delta, Embedding, Embeddings, Step


def split_step(step: Step) -> Iterator[Step]:
    """The same deltas in several steps, `delta_tokens_split` tokens in each; what has ended is in the last."""
    for delta in step.deltas:
        yield from (Step([piece]) for piece in _split_delta(delta))
    if step.done:
        yield Step([], step.done)


def _split_delta(delta: Delta) -> Iterator[Delta]:
    """A delta's tokens bit by bit. Its text comes with the last of them, since text may lag behind tokens."""
    at = 0
    size = limits.delta_tokens_split
    while len(delta.tokens) - at > size:
        yield Delta(delta.id, delta.index, "", delta.tokens[at : at + size], None, delta.logprobs[at : at + size])
        at += size
    yield msgspec.structs.replace(delta, tokens=delta.tokens[at:], logprobs=delta.logprobs[at:])


def split_embeddings(frame: Embeddings) -> Iterator[Embeddings]:
    """The same items in several frames, none of them much longer than `embeddings_frame_bytes`."""
    items: list[Embedding] = []
    first, size = frame.first, 0
    for item in frame.items:
        length = _embedding_bytes(item)
        if items and size + length > limits.embeddings_frame_bytes:
            yield Embeddings(frame.id, first, items, last=False)
            first, items, size = first + len(items), [], 0
        items.append(item)
        size += length
    yield Embeddings(frame.id, first, items, frame.last)


def _embedding_bytes(item: Embedding) -> int:
    return len(item.dense) + len(item.colbert) + 14 * len(item.sparse) + 32
