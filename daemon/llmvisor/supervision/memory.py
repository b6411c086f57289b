"""How much memory the workers may take together, and whether one more fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil

from llmvisor.errors import InsufficientMemory

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def machine_memory_bytes() -> int:
    """The machine's memory, or the cgroup's limit where that is lower."""
    total = psutil.virtual_memory().total
    for path in _CGROUP_LIMITS:
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            total = min(total, int(text))
    return total


def available_memory_bytes() -> int:
    """What new processes can have without swapping, caches that can be dropped included."""
    return psutil.virtual_memory().available


class MemoryBudget:
    """What each model's worker was estimated to need, and the bound for all of them."""

    def __init__(self, limit_bytes: int, *, available: Callable[[], int]) -> None:
        self.limit_bytes = limit_bytes
        self._available = available
        self._reserved: dict[str, int] = {}

    def reserve(self, model: str, needed_bytes: int) -> None:
        """Set memory aside for a model until `release`. Raises `InsufficientMemory`."""
        self._reserved.pop(model, None)
        left = self.limit_bytes - sum(self._reserved.values())
        available = self._available()
        if needed_bytes > min(left, available):
            raise InsufficientMemory(
                f"it needs about {_size(needed_bytes)}; {_size(max(0, left))} is left of the limit of "
                f"{_size(self.limit_bytes)}, and {_size(available)} is free on the machine; {self._holders()}",
                hint="unload a model (`llmctl unload NAME`), lower its n_ctx, or raise memory.limit",
            )
        self._reserved[model] = needed_bytes

    def release(self, model: str) -> None:
        self._reserved.pop(model, None)

    def _holders(self) -> str:
        if not self._reserved:
            return "no model is loaded"
        return "held by " + ", ".join(f"{name} ({_size(size)})" for name, size in self._reserved.items())


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 10 * 2**30 else f"{size / 2**20:,.0f} MiB"
