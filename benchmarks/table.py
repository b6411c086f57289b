"""Figures as a Markdown table, which a terminal shows well too. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from benchmarks.figures import Figure

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
