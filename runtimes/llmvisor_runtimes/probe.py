"""`python -P -m llmvisor_runtimes.probe NAME`: imports one backend and its engine, and prints a `Probe` as JSON.

A process of its own, in the interpreter that the backend's workers have: an engine that crashes on import takes nothing
else with it.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, entry_points

import msgspec

from llmvisor_runtimes.backend import ENTRY_POINT_GROUP, Backend, HasDevices
from llmvisor_runtimes.protocol import PROTOCOL_VERSION


class Probe(msgspec.Struct):
    """What there is of a backend."""

    protocol_version: int = PROTOCOL_VERSION
    version: str | None = None
    """The engine's."""
    devices: list[str] = []
    """What it can compute with."""
    missing: bool = False
    """Its engine, or the backend itself, is not installed."""
    error: str | None = None


def probe(name: str) -> Probe:
    """The backend's version and devices, or why it cannot be used."""
    entries = list(entry_points(group=ENTRY_POINT_GROUP, name=name))
    if not entries:
        return Probe(missing=True, error="not registered")
    try:
        backend: Backend = entries[0].load()()
        devices = backend.devices() if isinstance(backend, HasDevices) else []
        return Probe(version=backend.version(), devices=devices)
    except (ModuleNotFoundError, PackageNotFoundError) as error:
        return Probe(missing=True, error=f"{error.name or error} is not installed")
    except Exception as error:  # noqa: BLE001 - whatever an engine raises is the finding
        return Probe(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    found = probe(sys.argv[1])
    # The last line: engines print as they are imported.
    print("\n" + msgspec.json.encode(found).decode(), flush=True)
