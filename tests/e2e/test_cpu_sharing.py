"""Models that compute at the same time share the cores; whoever computes alone has all of them."""

from __future__ import annotations

from tests.support.daemon import Daemon, Json, mock_model, stream
from tests.support.polling import eventually_sync

CORES = 4


def threads(daemon: Daemon) -> Json:
    """What `llmctl status` shows of each model."""
    return {runtime["model"]: runtime["threads"] for runtime in daemon.control("GET", "/llm/status")[1]["runtimes"]}


def test_models_that_generate_together_share_the_cores() -> None:
    """1. A model generates. 2. A second begins. 3. It ends. Result: all cores, half each, all again."""
    models = {"a": mock_model(token_delay_ms=20), "b": mock_model(token_delay_ms=20), "set": mock_model(n_threads=3)}
    with Daemon({"models": models, "cpu": {"threads": CORES}}) as daemon:
        assert threads(daemon) == {"a": None, "b": None, "set": 3}
        with stream(daemon, "a"):
            eventually_sync(lambda: threads(daemon)["a"] == CORES)
            with stream(daemon, "b"):
                eventually_sync(lambda: threads(daemon) == {"a": CORES // 2, "b": CORES // 2, "set": 3})
            eventually_sync(lambda: threads(daemon)["a"] == CORES)
