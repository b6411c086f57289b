"""Shows a job's progress: a bar on a terminal, now and then a line where there is none. Written to stderr."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from llmctl import limits, render
from llmctl.terminal import Terminal, printable
from llmvisor.control.api import Job

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_BAR_WIDTH = 24


class JobDisplay(Protocol):
    """Something that shows a job while the `with` lasts."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def update(self, job: Job) -> None: ...


def job_display(out: Terminal, label: str) -> JobDisplay:
    """A bar on a terminal, lines otherwise."""
    return _Bar(out, label) if out.stderr_interactive else _Lines(out, label)


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
    """`weights  45 MB of 98 MB  120 MB/s  0.4s left`."""
    parts = [printable(job.stage or job.state)]
    if job.total > 0:
        done = render.long_size(job.done) if job.unit == "bytes" else str(job.done)
        parts.append(f"{done} of {render.amount(job.total, job.unit)}")
    if rate > 0:
        parts.append(f"{render.amount(rate, job.unit)}/s")
    if left_seconds is not None and job.done < job.total:
        parts.append(f"{render.duration(left_seconds)} left")
    return "  ".join(parts)


class _Bar:
    def __init__(self, out: Terminal, label: str) -> None:
        self._out = out
        self._label = label
        self._rate = Rate()
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        from rich.console import Console  # noqa: PLC0415 - on a terminal alone
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn  # noqa: PLC0415 - as above

        console = Console(file=self._out.stderr, no_color=not self._out.stderr_colour, highlight=False)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=_BAR_WIDTH),
            TextColumn("{task.fields[text]}", markup=False),
            console=console,
            transient=True,
        )
        self._progress.start()
        self._task = self._progress.add_task(self._label, total=None, text="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, job: Job) -> None:
        rate, left = self._rate.update(job.stage, job.done, job.total, now=time.monotonic())
        if self._progress is not None and self._task is not None:
            text = progress_text(job, rate, left)
            self._progress.update(self._task, completed=job.done, total=job.total or None, text=text)


class _Lines:
    def __init__(self, out: Terminal, label: str) -> None:
        self._out = out
        self._label = label
        self._rate = Rate()
        self._last: tuple[str, float] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def update(self, job: Job) -> None:
        now = time.monotonic()
        rate, left = self._rate.update(job.stage, job.done, job.total, now=now)
        new_stage = self._last is None or self._last[0] != job.stage
        if self._last is None or new_stage or now - self._last[1] >= limits.plain_progress_seconds_min:
            self._last = (job.stage, now)
            self._out.note(f"{self._label}: {progress_text(job, rate, left)}")
