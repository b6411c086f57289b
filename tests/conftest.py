"""Fixtures and loops that every test may use."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from tests.support import loops
from tests.support.leaks import leak_check

__all__ = ["leak_check"]


def pytest_configure(config: pytest.Config) -> None:
    # A shell that runs the tests in the background has them ignore Ctrl-C, and what they start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "both_loops: runs on the standard library's event loop and on uvloop")


_AFTER_ALL_OTHERS = ("process", "service")
"""Folders whose tests come last in their process: engines that compute beside other engines take many times as long."""
_WITH_DAEMONS = frozenset({"e2e", "fault", "security", "service"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deal the tests out to two processes (`-n 2`), since most of them wait. The soak goes to whichever is through."""
    folders = {item: item.path.relative_to(Path(__file__).parent).parts[0] for item in items}
    items.sort(key=lambda item: folders[item] in _AFTER_ALL_OTHERS)
    for item, folder in folders.items():
        part = "soak" if folder == "soak" else "daemons" if folder in _WITH_DAEMONS else "others"
        item.add_marker(pytest.mark.xdist_group(part))


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, loops.LoopFactory]:
    """Every async test runs on the daemon's own loop, and those about processes on the standard library's as well."""
    return loops.factories(item)
