"""The event loops that process tests run on: uvloop, which the daemon uses, and the standard library's.

They differ where it hurts: in how they wait for children, in what a write to a dead child raises, in what they do
without descriptors. A test marked `both_loops` runs once on each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

BOTH: dict[str, LoopFactory] = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def factories(item: pytest.Item) -> dict[str, LoopFactory]:
    """The loops that a test asks for."""
    return BOTH if item.get_closest_marker("both_loops") else {"uvloop": uvloop.new_event_loop}
