"""Vectors as workers send them (little-endian float32) → what clients read. Pure."""

from __future__ import annotations

import base64
import math
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from llmvisor.errors import InternalError, InvalidRequest

_ENCODER = msgspec.json.Encoder()


def floats(vector: bytes) -> array[float]:
    """The numbers of a vector. Raises `InternalError` where one is none: JSON cannot say it, nor can anybody use it."""
    values = array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    if not math.isfinite(sum(values)):
        raise InternalError("the model gave a vector with values that are no numbers")
    return values


def cut(values: array[float], dimensions: int) -> array[float]:
    """The first `dimensions` numbers, made a vector of length 1 again. Raises `InvalidRequest` where it has fewer."""
    if dimensions > len(values):
        raise InvalidRequest(
            f"dimensions: expected at most {len(values)}, which the model gives, found {dimensions}", param="dimensions"
        )
    if dimensions == len(values):
        return values
    part = values[:dimensions]
    length = math.hypot(*part) or 1.0
    return array("f", [value / length for value in part])


def shortened(values: array[float], asked: int | None, usual: int | None) -> array[float]:
    """The vector as asked for, else as the model's configuration says. Raises `InvalidRequest`."""
    if asked is not None:
        return cut(values, asked)
    return cut(values, usual) if usual is not None and usual < len(values) else values


def as_json(values: array[float]) -> msgspec.Raw:
    """A list of numbers."""
    return msgspec.Raw(_ENCODER.encode(values.tolist()))


def as_base64(values: array[float]) -> msgspec.Raw:
    """A text of the numbers as little-endian float32, as OpenAI's clients read it."""
    if sys.byteorder == "big":
        values = values[:]
        values.byteswap()
    return msgspec.Raw(b'"' + base64.b64encode(values.tobytes()) + b'"')


def split(vectors: bytes, count: int) -> Iterator[array[float]]:
    """Vectors of one length that stand one after another. Raises `InternalError` as `floats` does."""
    size = len(vectors) // count if count else 0
    for place in range(count):
        yield floats(vectors[place * size : (place + 1) * size])


def weights(sparse: Mapping[int, float]) -> dict[str, float]:
    """Weights by token id, as JSON has its keys. Raises `InternalError` as `floats` does."""
    if not math.isfinite(sum(sparse.values())):
        raise InternalError("the model gave weights that are no numbers")
    return {str(token): weight for token, weight in sparse.items()}


def checked_scores(scores: Sequence[float], *, raw: bool) -> list[float]:
    """Logits as they are, or as probabilities (sigmoid). Raises `InternalError` where one is no number."""
    if not math.isfinite(sum(scores)):
        raise InternalError("the model gave scores that are no numbers")
    return list(scores) if raw else [sigmoid(score) for score in scores]


def sigmoid(logit: float) -> float:
    """0–1, without overflow for logits of any size."""
    if logit >= 0:
        return 1 / (1 + math.exp(-min(logit, 700.0)))
    power = math.exp(max(logit, -700.0))
    return power / (1 + power)
