"""A figure: ours and the peer's in alternating rounds, their ratio's median and spread, and versions."""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import os
import platform
import statistics
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import uvloop

ROUNDS = 5
QUICK_ROUNDS = 2
PACKAGES = ("llmvisor", "llama-cpp-python", "aiohttp", "uvloop", "msgspec")


class BenchmarkError(Exception):
    """A measurement that cannot be made, with the reason."""


class Options(msgspec.Struct, frozen=True):
    """How long to measure. `quick` only shows that the measurement works."""

    rounds: int = ROUNDS
    quick: bool = False

    def scaled(self, full: int, quick: int) -> int:
        return quick if self.quick else full


class Bound(msgspec.Struct, frozen=True):
    """What a figure aims at: `of` the ratio, or the value itself, at least or at most so much."""

    of: Literal["ratio", "ours"]
    relation: Literal["≥", "≤"]
    value: float

    def holds(self, figure: Figure) -> bool | None:
        """None where there is no number to compare."""
        measured = figure.ratio if self.of == "ratio" else figure.ours
        if measured is None:
            return None
        return measured >= self.value if self.relation == "≥" else measured <= self.value


class Figure(msgspec.Struct, frozen=True):
    """One line of the table. Ours and the peer's are medians over the rounds."""

    name: str
    unit: str
    ours: float
    peer: float | None = None
    peer_name: str | None = None
    ratio: float | None = None
    """Ours ÷ the peer's, the median of the rounds' own ratios."""
    ratio_spread: tuple[float, float] | None = None
    """The lowest and the highest round."""
    target: Bound | None = None
    met: bool | None = None
    rounds: int = 1
    notes: dict[str, float] = {}
    """What was measured beside it, by name with the unit last."""
    versions: dict[str, str] = {}


def compare(
    name: str,
    unit: str,
    rounds: Sequence[tuple[float, float]],
    *,
    peer_name: str,
    target: Bound | None = None,
    notes: dict[str, float] | None = None,
) -> Figure:
    """The figure of rounds of (ours, peer's)."""
    ratios = [ours / peer for ours, peer in rounds]
    return judged(
        Figure(
            name=name,
            unit=unit,
            ours=statistics.median(ours for ours, _ in rounds),
            peer=statistics.median(peer for _, peer in rounds),
            peer_name=peer_name,
            ratio=statistics.median(ratios),
            ratio_spread=(min(ratios), max(ratios)),
            target=target,
            rounds=len(rounds),
            notes=notes or {},
            versions=versions(),
        )
    )


def alone(
    name: str, unit: str, values: Sequence[float], *, target: Bound | None = None, notes: dict[str, float] | None = None
) -> Figure:
    """The figure of values that no peer stands beside."""
    return judged(
        Figure(
            name=name,
            unit=unit,
            ours=statistics.median(values),
            target=target,
            rounds=len(values),
            notes=notes or {},
            versions=versions(),
        )
    )


def judged(figure: Figure) -> Figure:
    """The figure with whether it meets its target."""
    return msgspec.structs.replace(figure, met=figure.target.holds(figure) if figure.target else None)


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which this share of the values lies: 0.5 is the median."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def versions() -> dict[str, str]:
    """What was measured, and on what."""
    found = {"python": platform.python_version(), "cpu": _cpu_model(), "cores": str(os.cpu_count())}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


Measure = Callable[[Options], Awaitable[list[Figure]]]


def measure_now(measure: Measure, options: Options) -> list[Figure]:
    """Run a measurement on a loop of its own."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:

        async def run() -> list[Figure]:
            return await measure(options)

        return runner.run(run())


def command(measure: Measure, description: str | None) -> None:
    """What `python -m benchmarks.<figure>` does: measure, print a JSON line for each figure, exit."""
    parser = argparse.ArgumentParser(description=description)
    add_options(parser)
    options = options_of(parser.parse_args())
    try:
        for figure in measure_now(measure, options):
            print(json_line(figure), flush=True)
    except BenchmarkError as error:
        sys.exit(f"cannot measure: {error}")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that every figure takes."""
    parser.add_argument("--rounds", type=int, help=f"turns of ours and the peer's (default {ROUNDS})")
    parser.add_argument("--quick", action="store_true", help="only see whether it works: seconds instead of minutes")


def options_of(parsed: argparse.Namespace) -> Options:
    return Options(rounds=parsed.rounds or (QUICK_ROUNDS if parsed.quick else ROUNDS), quick=parsed.quick)


def json_line(figure: Figure) -> str:
    rounded = {name: round(value, 4) for name, value in figure.notes.items()}
    return msgspec.json.encode(msgspec.structs.replace(figure, notes=rounded)).decode()
