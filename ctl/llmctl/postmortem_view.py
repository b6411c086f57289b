"""What `llmctl postmortem` shows, as lines. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from llmctl import render
from llmctl.status_view import pair_lines
from llmctl.table import Cell, Column, Paint, table
from llmctl.terminal import Style, printable
from llmctl.times import local_time
from llmvisor.control.api import FrameRecord, Postmortem, RequestRecord

_CRASHES = (
    Column("TIME"),
    Column("MODEL", fold=True),
    Column("PID", right=True),
    Column("LIVED", right=True),
    Column("MEM", right=True),
    Column("INSIDE", right=True, silent=("", "0")),
    Column("ENDED", fold=True),
)
_REQUESTS = (
    Column("REQUEST"),
    Column("KIND"),
    Column("INSIDE FOR", right=True),
    Column("TOKENS", right=True),
    Column("NEW", right=True),
    Column("WHAT BECAME OF IT"),
)
_FATES: dict[str, tuple[str, Style]] = {
    "resumed": ("went on in the next worker", "green"),
    "poison": ("refused as the cause", "red"),
    "failed": ("ended with an error", "yellow"),
    "left": ("its client had left", "dim"),
}
_FRAMES_SHOWN = 12
_LINES_SHOWN = 20
_CURVE_POINTS = 8
_SHORT_HASH_LENGTH = 12


def crashes_table(found: Sequence[Postmortem], *, width: int | None, paint: Paint) -> list[str]:
    """A line for each crash, newest first."""
    rows = [
        [
            local_time(one.time),
            one.model,
            str(one.pid),
            render.duration(one.seconds),
            render.size(one.rss_peak_bytes or None),
            str(len(one.requests)),
            Cell(printable(one.reason), "red"),
        ]
        for one in found
    ]
    return table(_CRASHES, rows, width=width, paint=paint)


def postmortem_view(one: Postmortem, *, width: int | None, paint: Paint) -> list[str]:
    """All that is known of one crash."""
    oom = " (perhaps out of memory)" if one.possible_oom else ""
    pairs = [
        ("ended", printable(one.reason)),
        ("exit code", "" if one.exit_code is None else str(one.exit_code)),
        ("signal", "" if one.signal is None else f"{one.signal}{oom}"),
        ("state", render.state(one.state)),
        ("worker", f"pid {one.pid}, {one.backend}, lived {render.duration(one.seconds)}"),
        ("memory", _curve(one)),
    ]
    title = f"{printable(one.model)} at {local_time(one.time)}"
    lines = [paint(title, "bold"), *pair_lines(pairs)]
    if one.requests:
        rows = [_request_row(request) for request in one.requests]
        lines += ["", *table(_REQUESTS, rows, width=width, paint=paint)]
    if one.frames:
        lines += ["", paint("last frames", "bold"), *map(_frame_line, one.frames[-_FRAMES_SHOWN:])]
    if one.last_lines:
        lines += ["", paint("last lines", "bold"), *(f"  {printable(line)}" for line in one.last_lines[-_LINES_SHOWN:])]
    return lines


def _request_row(request: RequestRecord) -> list[Cell | str]:
    fate, style = _FATES.get(request.fate, (request.fate, ""))
    return [
        request.sha256[:_SHORT_HASH_LENGTH],
        request.kind,
        render.duration(request.seconds),
        str(request.tokens),
        str(request.tokens_new),
        Cell(fate, style),
    ]


def _curve(one: Postmortem) -> str:
    """The memory over the last minute, a few points of it."""
    if not one.memory:
        return ""
    step = max(1, -(-len(one.memory) // _CURVE_POINTS))
    points = one.memory[::-1][::step][::-1]
    curve = " → ".join(render.size(point.rss_bytes) for point in points)
    return f"{curve}, at most {render.long_size(one.rss_peak_bytes)}"


def _frame_line(frame: FrameRecord) -> str:
    way = "→" if frame.direction == "sent" else "←"
    ids = ", ".join(map(str, frame.ids))
    about = f" of {ids}" if ids else ""
    return f"  -{frame.seconds_before:.3f}s {way} {printable(frame.kind)}{about}, {render.long_size(frame.size_bytes)}"
