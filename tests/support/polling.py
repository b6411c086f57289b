"""Waiting for something that happens soon: poll with a deadline, never sleep for a guess."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

import pytest

T = TypeVar("T")
INTERVAL_SECONDS = 0.01


async def eventually(condition: Callable[[], T], seconds: float = 5, what: str = "") -> T:
    """What `condition` gives as soon as it is true; fails the test where it is not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(_complaint(condition, seconds, value, what))
        await asyncio.sleep(INTERVAL_SECONDS)
    return value


def eventually_sync(condition: Callable[[], T], seconds: float = 5, what: str = "") -> T:
    """`eventually` for tests without a loop."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(_complaint(condition, seconds, value, what))
        time.sleep(INTERVAL_SECONDS)
    return value


def _complaint(condition: object, seconds: float, value: object, what: str) -> str:
    return f"not within {seconds:g} s: {what or condition} (last: {value!r})"
