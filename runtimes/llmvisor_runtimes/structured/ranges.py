"""Ranges of numbers as llguidance gets them right. Pure."""

from __future__ import annotations

import math
from decimal import Decimal

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


def _bounds(schema: dict[str, object], name: str) -> list[Decimal]:
    values = (_number(schema.get(key)) for key in (name, "exclusive" + name.capitalize()))
    return [value for value in values if value is not None]


def _number(value: object) -> Decimal | None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return Decimal(str(value))
