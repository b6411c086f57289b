"""A preloaded model that does not fit."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.support.daemon import Daemon
from tests.support.leaks import no_leaks
from tests.support.polling import eventually_sync
from tests.support.tiny_gguf import write_tiny_gguf


def test_preload_without_room_is_tried_once_and_told(tmp_path: Path) -> None:
    """The daemon tried again without end and without a pause, and called itself healthy.

    1. A model is to be preloaded that does not fit. Result: one try, health is degraded and says why, and the daemon is
    not ready."""
    models = {"big": {"path": str(write_tiny_gguf(tmp_path / "tiny.gguf")), "preload": True, "n_ctx": 1_000_000}}
    with no_leaks(), Daemon({"models": models, "memory": {"limit": "1MiB"}}) as daemon:
        eventually_sync(lambda: daemon.runtime("big").get("error"), 10)
        health = daemon.request("GET", "/health")[1]
        assert health["status"] == "degraded"
        assert "big is not_loaded: it needs about" in health["reasons"][0]
        assert daemon.request("GET", "/readyz")[0] == 503
        assert daemon.runtime("big")["pid"] is None
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert daemon.console().count("not_loaded → loading") == 1
