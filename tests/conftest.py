"""Fixtures and loops that every test may use."""

from __future__ import annotations

import signal

import pytest
from tests.support import loops
from tests.support.leaks import leak_check

__all__ = ["leak_check"]


def pytest_configure(config: pytest.Config) -> None:
    # A shell that runs the tests in the background has them ignore Ctrl-C, and what they start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "both_loops: runs on the standard library's event loop and on uvloop")


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, loops.LoopFactory]:
    """Every async test runs on the daemon's own loop, and those about processes on the standard library's as well."""
    return loops.factories(item)
