"""`python -m llmctl.backend_probe NAME`: imports one backend and its engine, and prints a `ProbeAnswer` as JSON.

Run as a process of its own: an engine that crashes on import takes nothing else with it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

import msgspec

GROUP = "llmvisor.runtimes"
ENGINES = {"llamacpp": ("llama_cpp",), "mlx": ("mlx.core", "mlx_lm"), "flag": ("FlagEmbedding",)}
"""What a backend imports when it loads a model; a plug-in's backend is only imported itself."""


class ProbeAnswer(msgspec.Struct):
    version: str | None = None
    error: str | None = None


def probe(name: str) -> ProbeAnswer:
    """The backend's version, or why it cannot be used."""
    entries = list(entry_points(group=GROUP, name=name))
    if not entries:
        return ProbeAnswer(error="not registered")
    try:
        backend: Any = entries[0].load()
        for engine in ENGINES.get(name, ()):
            import_module(engine)
        return ProbeAnswer(version=str(backend().version()))
    except Exception as error:  # noqa: BLE001 - whatever an engine raises is the finding
        return ProbeAnswer(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    print(msgspec.json.encode(probe(sys.argv[1])).decode())
