"""Every figure, one after another; a table of ours ÷ peer; and `benchmarks/RESULTS.md`."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import (
    cached,
    cpu_sharing,
    decode,
    embedding,
    infinity,
    many_models,
    memory,
    overhead,
    prefill_stall,
    resume,
    speculative,
    sse,
    startup,
    structured,
    swap,
    throughput,
    ttft_prefix,
)
from benchmarks.figures import BenchmarkError, Figure, Measure, add_options, json_line, measure_now, options_of
from benchmarks.table import results_page, table

MEASURES: dict[str, Measure] = {
    "decode": decode.measure,
    "ttft_prefix": ttft_prefix.measure,
    "prefill_stall": prefill_stall.measure,
    "overhead": overhead.measure,
    "throughput": throughput.measure,
    "sse": sse.measure,
    "cached": cached.measure,
    "structured": structured.measure,
    "speculative": speculative.measure,
    "cpu_sharing": cpu_sharing.measure,
    "embedding": embedding.measure,
    "infinity": infinity.measure,
    "startup": startup.measure,
    "resume": resume.measure,
    "swap": swap.measure,
    "many_models": many_models.measure,
    "memory": memory.measure,
}
RESULTS = Path(__file__).parent / "RESULTS.md"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(MEASURES), help="these alone; RESULTS.md stays as it is")
    add_options(parser)
    parsed = parser.parse_args()
    options = options_of(parsed)
    figures: list[Figure] = []
    failures: list[str] = []
    for name in parsed.only or MEASURES:
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        try:
            found = measure_now(MEASURES[name], options)
        except BenchmarkError as error:
            failures.append(f"{name}: {error}")
            continue
        figures += found
        for figure in found:
            print(json_line(figure), flush=True)
    print("\n" + table(figures))
    for failure in failures:
        print(f"not measured: {failure}", file=sys.stderr)
    if figures and not (parsed.only or options.quick or failures):
        RESULTS.write_text(results_page(figures, datetime.now(UTC)), encoding="utf-8")
        print(f"written to {RESULTS.name}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
