"""A benchmark run for real, as briefly as can be: the daemon, its peer and the client work together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from benchmarks.figures import Figure

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["throughput", "sse", "many_models"])
def test_benchmark_prints_its_figure(name: str) -> None:
    """`python -m benchmarks.NAME --quick` prints JSON lines with what it measured and on what."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--rounds", "1"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout
    for figure in [msgspec.json.decode(line, type=Figure) for line in answer.stdout.splitlines()]:
        assert figure.ours > 0
        assert figure.versions["llmvisor"]
