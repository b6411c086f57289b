"""Two minutes of chaos in every run of the tests; `make soak` does as many as asked for."""

from __future__ import annotations

import os
import secrets

import pytest
from tests.soak.chaos import Chaos
from tests.support.leaks import no_leaks

SECONDS = float(os.environ.get("LLMVISOR_CHAOS_SECONDS", "120"))


@pytest.mark.model
@pytest.mark.timeout(SECONDS + 240)
def test_nothing_is_lost_under_chaos() -> None:
    """Workers are killed, stopped and unloaded, the configuration changes, memory and disk run out, clients leave, and
    the daemon becomes another one, at random: every request ends once and completely, and nothing is held after."""
    seed = int(os.environ.get("LLMVISOR_CHAOS_SEED", "0")) or secrets.randbelow(10**6)
    print(f"chaos seed {seed}: LLMVISOR_CHAOS_SEED={seed} repeats it")
    with no_leaks():
        report = Chaos(seed, SECONDS).run()
    print(report.text())
    assert report.broken == []
    assert sum(report.requests.values()) > SECONDS
    assert sum(report.faults.values()) > SECONDS / 10
