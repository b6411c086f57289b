"""Ranges of numbers as llguidance gets them right. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection
from decimal import Decimal

from llmvisor_runtimes import limits

_NUDGE = Decimal("0.001")


def mend_range(schema: dict[str, object]) -> None:
    """Put a bound just inside in place of one that is excluded, where llguidance would let the bound itself through.

    It does where the bounds are less than 1 apart and the one nearer to zero is whole and excluded: `0` would fit
    `{"exclusiveMinimum": 0, "maximum": 0.5}`. What is lost is a thousandth of the range, beside that bound.
    """
    lows, highs = _bounds(schema, "minimum"), _bounds(schema, "maximum")
    if not lows or not highs or not 0 < min(highs) - max(lows) < 1:
        return
    low, high = max(lows), min(highs)
    name, bound, step = ("minimum", low, _NUDGE) if low >= 0 else ("maximum", high, -_NUDGE)
    excluded = "exclusive" + name.capitalize()
    if _number(schema.get(excluded)) == bound == bound.to_integral_value():
        del schema[excluded]
        schema[name] = float(bound + (high - low) * step)


def multiples_cheap(values: Collection[object], *, joined: bool) -> bool:
    """Whether the automata that tell multiples of these numbers are small; `joined` where some may have to be of all.

    Each has as many states as the number, the decimal point left out; factors of ten cost nothing.
    """
    numbers = [number for number in map(_number, values) if number is not None and number > 0]
    if any(number.adjusted() > limits.multiple_digits_max or -number.adjusted() > limits.multiple_digits_max
           for number in numbers):  # fmt: skip
        return False
    digits = max((-int(number.as_tuple().exponent) for number in numbers), default=0)
    if joined:
        whole = [int(number.scaleb(max(digits, 0))) for number in numbers]
        return _states(math.lcm(*whole)) <= limits.multiple_states_max
    return sum(_states(int("".join(map(str, number.as_tuple().digits)))) for number in numbers) <= (
        limits.multiple_states_max
    )


def _states(number: int) -> int:
    while number and number % 10 == 0:
        number //= 10
    return number


def _bounds(schema: dict[str, object], name: str) -> list[Decimal]:
    values = (_number(schema.get(key)) for key in (name, "exclusive" + name.capitalize()))
    return [value for value in values if value is not None]


def _number(value: object) -> Decimal | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    # An integer is finite, but one that no float holds makes `isfinite` fail; as text it may be of any length.
    return Decimal(value) if isinstance(value, int) else Decimal(str(value)) if math.isfinite(value) else None
