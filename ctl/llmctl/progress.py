"""Shows how far jobs are: a bar for each on a terminal, now and then a line where there is none. Written to stderr."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from llmctl import limits, render
from llmctl.terminal import Terminal, printable
from llmctl.times import clock_time
from llmvisor.control.api import Job

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_LABEL_WIDTH_MIN = 20
_NARROW = 110
"""Columns of a terminal below which bars are short, to leave room for what stands beside them."""
Label = Callable[[Job], str]


class JobDisplay(Protocol):
    """Something that shows jobs while the `with` lasts."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def update(self, job: Job) -> None: ...


def job_display(out: Terminal, label: Label) -> JobDisplay:
    """Bars on a terminal, lines otherwise."""
    return _Bars(out, label) if out.stderr_interactive else _Lines(out, label)


class Rate:
    """How fast something goes, over the whole of a stage. `now` is in seconds of any clock that never jumps."""

    def __init__(self) -> None:
        self._stage: str | None = None
        self._began = (0.0, 0)

    def update(self, stage: str, done: int, total: int, *, now: float) -> tuple[float, float | None]:
        """Units per second, and the seconds left (None while unknown)."""
        if stage != self._stage or done < self._began[1]:
            self._stage, self._began = stage, (now, done)
        seconds, amount = now - self._began[0], done - self._began[1]
        rate = amount / seconds if seconds > 0 else 0.0
        return rate, (total - done) / rate if rate > 0 and total >= done else None


def progress_text(job: Job, rate: float, left_seconds: float | None) -> str:
    """`weights  45 of 98 MiB  120 MiB/s  0.4s left`; of a job that waits, what it waits for."""
    if job.state == "queued" or job.retry_at is not None:
        return _waiting_text(job)
    parts = [printable(job.stage or job.state)]
    if job.total > 0:
        parts.append(render.part(job.done, job.total, job.unit))
    if rate > 0:
        parts.append(f"{render.amount(rate, job.unit)}/s")
    if left_seconds is not None and job.done < job.total:
        parts.append(f"{render.duration(left_seconds)} left")
    if job.attempts > 1:
        parts.append(f"try {job.attempts}")
    return "  ".join(parts)


def _waiting_text(job: Job) -> str:
    if job.retry_at is None:
        return "waits for its turn" if job.stage in {"", "queued"} else printable(job.stage)
    reason = f"  {printable(job.error)}" if job.error else ""
    return f"tried {render.times(job.attempts)}, again at {clock_time(job.retry_at)[:8]}{reason}"


class _Rates:
    """How fast each of several jobs goes: what the daemon says, else what is seen here."""

    def __init__(self) -> None:
        self._rates: dict[str, Rate] = {}

    def text(self, job: Job) -> str:
        rate, left = self._rates.setdefault(job.id, Rate()).update(job.stage, job.done, job.total, now=time.monotonic())
        if job.bytes_per_second > 0 and job.unit == "bytes":
            rate, left = job.bytes_per_second, (job.total - job.done) / job.bytes_per_second
        return progress_text(job, rate, left)


class _Bars:
    def __init__(self, out: Terminal, label: Label) -> None:
        self._out = out
        self._label = label
        self._rates = _Rates()
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._labels: dict[str, str] = {}
        self._room = 0
        """Columns for a label and the text of a job together."""
        self._label_width = 0
        """It only shrinks: bars that move from side to side are hard to read."""

    def __enter__(self) -> Self:
        from rich.console import Console  # noqa: PLC0415 - on a terminal alone
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn  # noqa: PLC0415 - as above

        console = Console(file=self._out.stderr, no_color=not self._out.stderr_colour, highlight=False)
        bar_width = 24 if console.width >= _NARROW else 8
        self._room = self._label_width = console.width - bar_width - 5
        self._progress = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=bar_width),
            TextColumn("{task.fields[text]}", markup=False),
            console=console,
            transient=True,
        )
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, job: Job) -> None:
        if self._progress is None:
            return
        if job.id not in self._tasks:
            self._tasks[job.id] = self._progress.add_task("", total=None, text="")
        self._labels[job.id] = self._label(job)
        text = _fitting(self._rates.text(job), self._room - _LABEL_WIDTH_MIN) if job.ended_at is None else job.state
        self._label_width = max(min(self._label_width, self._room - len(text)), _LABEL_WIDTH_MIN)
        completed, total = (job.done, job.total or None) if job.state != "succeeded" else (1, 1)
        self._progress.update(self._tasks[job.id], completed=completed, total=total, text=text)
        for job_id, label in self._labels.items():
            self._progress.update(self._tasks[job_id], description=_shortened(label, self._label_width))


def _fitting(text: str, width: int) -> str:
    """What fits: without the stage, which matters less than how much is done, where that is what is too long."""
    width = max(width, 1)
    if len(text) > width and " of " in text:
        text = text.partition("  ")[2]
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _shortened(label: str, width: int) -> str:
    """`install …Qwen3-4B-GGUF`: what is being done, and the end of the name, which tells most."""
    if len(label) <= width:
        return label
    verb, _, subject = label.partition(" ")
    return f"{verb} …{subject[-max(width - len(verb) - 2, 1) :]}"


class _Lines:
    def __init__(self, out: Terminal, label: Label) -> None:
        self._out = out
        self._label = label
        self._rates = _Rates()
        self._last: dict[str, tuple[str, float]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def update(self, job: Job) -> None:
        if job.ended_at is not None and job.id in self._last:
            return  # how it ended is told by whoever watched it
        now = time.monotonic()
        text = self._rates.text(job)
        stage = f"{job.state} {job.stage} {job.retry_at}"
        last_stage, said_at = self._last.get(job.id, ("", 0.0))
        if stage != last_stage or now - said_at >= limits.plain_progress_seconds_min:
            self._last[job.id] = (stage, now)
            self._out.note(f"{self._label(job)}: {text}")
