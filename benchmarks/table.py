"""Figures as a Markdown table, which a terminal shows well too. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from benchmarks.figures import Figure

_WHERE_THE_TIME_GOES = """\
Where the time goes:

- Decode, many streams: llama-server, told how many sequences there are, splits the context into as many parts, and a
  step looks at each sequence's own. Ours shares one cache, so that any sequence may have all of it and a prefix is
  computed once; a step then passes over the cells of all. Beside llama-server with one cache (`--kv-unified`) that
  difference is gone.
- Decode, few streams: what is left is Python's part of a step, and that the daemon's process and pipes take their turns
  on the cores that compute; llama-server does it all in one process.
- Prefill beside a stream: short steps keep the gap short and cost the prompt some of its speed; both times to its first
  token stand below.
- Requests on 64 connections: each passes the front, the scheduler, two pipes and the mock's process, on the same two
  cores as the client; the bare handler answers out of one.
- SSE: encoding one event for each token, and one system call for each stream and wake-up. The wall figure is bounded by
  the two cores that the daemon, the mock and the client share.
- First token: what is computed is the same; the daemon, its pipes and Python's part add about what llama-server's HTTP
  threads do, within one or two percent either way.
- Cached answer: the request is decoded, checked and made into a key; the bare handler does the first of these alone.
- Single embedding beside a bulk job: it waits for the batch under way, which is bounded at 30 ms, and shares two cores
  with the tokenizing of the job.
- Resumed stream: the bare process has to start, import, load and compute as well; beside that the daemon notices the
  death and starts the worker, whose own modules are imported, and the token passes two pipes and HTTP.
- Swap: the next worker starts while the other one still ends, and imports while llama.cpp reads the file; what is left
  is the decision, its own modules, two pipes and HTTP.
- Start: the modules of the front, of the jobs and of the store, on top of the libraries that both import.
- Idle: what watches the configuration's files has 3 MB, and wakes some times a second.
"""

_HEADINGS = ("figure", "unit", "ours", "peer", "peer's", "ours ÷ peer", "spread", "target", "met")


def table(figures: Sequence[Figure]) -> str:
    """One line for each figure, columns aligned."""
    rows = [_HEADINGS, *(_row(figure) for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = [f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


def results_page(figures: Sequence[Figure], measured_at: datetime) -> str:
    """The whole of `RESULTS.md`: the table, what was noted beside it, versions and date."""
    versions = figures[0].versions if figures else {}
    notes = [
        f"- {figure.name}: " + ", ".join(f"{name} {_number(value)}" for name, value in figure.notes.items())
        for figure in figures
        if figure.notes
    ]
    parts = [
        "# Results",
        "",
        f"Measured on {measured_at:%Y-%m-%d} with `make bench`. Ours and the peer take turns on the same machine;",
        "each ratio is the median of the rounds' own ratios, the spread its lowest and highest round.",
        "Absolute numbers are for orientation.",
        "",
        table(figures),
        _WHERE_THE_TIME_GOES,
        "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
    ]
    if notes:
        parts += ["", "Beside them:", "", *notes]
    return "\n".join(parts) + "\n"


def _row(figure: Figure) -> tuple[str, ...]:
    spread = figure.ratio_spread
    target = figure.target
    return (
        figure.name,
        figure.unit,
        _number(figure.ours),
        figure.peer_name or "–",
        _number(figure.peer),
        _number(figure.ratio),
        f"{_number(spread[0])} to {_number(spread[1])}" if spread else "–",
        f"{target.of} {target.relation} {_number(target.value)}" if target else "–",
        {True: "yes", False: "no", None: "–"}[figure.met],
    )


def _number(value: float | None) -> str:
    """Three significant digits, without an exponent."""
    if value is None:
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
