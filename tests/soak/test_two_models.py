"""Two models that do not fit together, asked for in turns by eight clients, for minutes: the longer form of
`tests/e2e/test_memory.py`, with a real model.

`LLMVISOR_SOAK_SECONDS` says for how long (120 by default). It prints what a request waited at worst, and the swaps.
"""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.support.daemon import Daemon, Json, starter_model
from tests.support.leaks import no_leaks

SECONDS = float(os.environ.get("LLMVISOR_SOAK_SECONDS", "120"))
CLIENTS = 8
WAIT_SECONDS_MAX = 60.0
pytestmark = [pytest.mark.soak, pytest.mark.model, pytest.mark.timeout(SECONDS + 240)]


@pytest.mark.parametrize("alternate", [True, False], ids=["in turns", "each its own"])
def test_two_models_in_turns_starve_nobody(alternate: bool) -> None:
    """Clients that ask for both in turns, and clients that ask for one of them without a pause: no error, nobody
    starves, and swaps are bounded by what a model stays at least."""
    own: Json = {"memory": "500MiB", "n_ctx": 1024, "parallel": 4, "tier": None}
    models = {name: {**starter_model(), **own} for name in ("one", "other")}
    config = {"models": models, "memory": {"limit": "800MiB", "min_residency": 5}}
    waits: dict[str, list[float]] = {name: [] for name in models}
    errors: list[Json] = []
    ends_at = time.monotonic() + SECONDS
    lock = threading.Lock()

    def ask(daemon: Daemon, number: int) -> None:
        turn = number
        while time.monotonic() < ends_at:
            name = list(models)[turn % 2]
            began = time.monotonic()
            status, answer = daemon.complete(name, f"Story {turn}:", max_tokens=8)
            with lock:
                waits[name].append(time.monotonic() - began)
                errors.extend([answer] if status != 200 else [])
            turn += 1 if alternate else 2

    with no_leaks(), Daemon(config) as daemon:
        with ThreadPoolExecutor(CLIENTS) as pool:
            for number in range(CLIENTS):
                pool.submit(ask, daemon, number)
        swaps = daemon.console().count("to make room")
        worst = {name: round(max(times), 2) for name, times in waits.items()}
        counts = {name: len(times) for name, times in waits.items()}
        print(f"\n{SECONDS:.0f} s, requests {counts}, worst waits {worst} s, {swaps} swaps, {len(errors)} errors")
        assert errors == []
        assert min(counts.values()) > 10
        assert max(worst.values()) < WAIT_SECONDS_MAX
        assert swaps < sum(counts.values()) / 2
