"""What a chat template may take: a count of time and bytes, and the sizes of values. Knows nothing of jinja2."""

# ruff: noqa: ANN401 - a template's values have any type
from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import Any, cast

from llmvisor_runtimes import limits

REFERENCE_BYTES = 8
"""What one element costs in a list."""

_EMPTY: dict[str, str] = {}
CONTAINERS = (
    *(list, tuple, dict, set, frozenset),
    *(type(_EMPTY.keys()), type(_EMPTY.values()), type(_EMPTY.items())),
)


class LimitExceeded(Exception):
    """A template took more time or made more bytes than it may."""


class Meter:
    """The time and bytes that are left to one rendering."""

    __slots__ = ("_bytes_left", "_deadline", "_steps", "_weights")

    def __init__(self) -> None:
        self._deadline = time.monotonic() + limits.template_seconds_max
        self._bytes_left = limits.template_work_bytes_max
        self._steps = 0
        # The container itself stands beside its weight, so that its id stays its own.
        self._weights: dict[int, tuple[Any, int]] = {}

    def step(self) -> None:
        """Count one small step. Raises `LimitExceeded` once the time is over."""
        self._steps += 1
        if self._steps & 15 == 0:
            self._check_time()

    def charge(self, size_bytes: int) -> None:
        """Count a text or list of that size. Raises `LimitExceeded` where it, or all of them, are too much."""
        self._check_time()
        check_size(size_bytes)
        self._bytes_left -= size_bytes
        if self._bytes_left < 0:
            raise LimitExceeded(f"it makes texts and lists of over {limits.template_work_bytes_max} bytes together")

    def weigh(self, value: Any) -> int:
        """The `weight` of a text or container, 0 for everything else. A container is gone through once only."""
        if isinstance(value, str):
            return len(value)
        if not isinstance(value, CONTAINERS):
            return 0
        known = self._weights.get(id(cast("object", value)))
        return known[1] if known else self.remember(value, weight(value))

    def remember(self, container: Any, container_weight: int) -> int:
        """Know what a container weighs, where that is plain from its parts."""
        self._weights[id(container)] = (container, container_weight)
        return container_weight

    def hold(self, value: Any) -> None:
        """Count a new value. Raises `LimitExceeded` where it, with all that it holds, is too much."""
        check_size(self.weigh(value))
        self.charge(size(value))

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise LimitExceeded(f"it renders for longer than {limits.template_seconds_max:g} s")


def check_size(size_bytes: int) -> None:
    """Raises `LimitExceeded` for a text or list that is over the longest output."""
    if size_bytes > limits.template_output_bytes_max:
        raise LimitExceeded(f"it makes a text or list over {limits.template_output_bytes_max} bytes")


def size(value: Any) -> int:
    """Bytes of a text or of a list's own references; 0 for everything else."""
    if isinstance(value, str):
        return len(value)
    return REFERENCE_BYTES * len(cast("list[Any]", value)) if isinstance(value, CONTAINERS) else 0


def weight(value: Any, *, written: tuple[type, ...] | None = None) -> int:
    """About how many bytes a value takes with everything in it, written out.

    Raises `LimitExceeded` as soon as that is over the longest output: lists may hold each other, and so be small
    and endless. With `written`, raises TypeError for anything that is no text or container and not of these types.
    """
    total = 0
    stack: list[Any] = [value]
    while stack:
        item = stack.pop()
        total += REFERENCE_BYTES
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, dict):
            entries = cast("dict[Any, Any]", item)
            stack += entries.keys()
            stack += entries.values()
        elif isinstance(item, CONTAINERS):
            stack += cast("Iterable[Any]", item)
        elif written is not None and not isinstance(item, written):
            raise TypeError(f"a {type(item).__name__} cannot be written as text")
        check_size(total)
    return total


def count(value: Any) -> int:
    """A number that says how much is to be made, 0 where it is none."""
    return max(0, value) if isinstance(value, int) else 0


def columns(pattern: str) -> int:
    """The columns that a format string's widths and precisions can ask for, all numbers in it taken together."""
    numbers = re.findall(r"\d+", pattern)
    return sum(int(number) if len(number) < 9 else limits.template_output_bytes_max for number in numbers)


def check_integers(operator: str, left: int, right: int) -> None:
    """Raises `LimitExceeded` where the result, or an operand, would be too large a number."""
    bits = left.bit_length() * max(1, abs(right)) if operator == "**" else left.bit_length() + right.bit_length()
    check_bits(bits)


def check_bits(bits: int) -> None:
    if bits > limits.template_integer_bits_max:
        raise LimitExceeded("it computes with too large a number")
