"""Whether a worker gets on with its work. Pure.

A worker is judged by progress, not by whether it answers: while it is busy its step number has to move on, and while
it is idle its ticks have to come. One that is stopped, or that hangs in native code, does neither.
"""

from __future__ import annotations

from llmvisor import limits
from llmvisor_runtimes.protocol import Phase, Report, Tick


class ProgressWatch:
    """The progress of one worker; `stall_seconds` without any is a hang."""

    def __init__(self, *, stall_seconds: float, now: float) -> None:
        self.stall_seconds = stall_seconds
        self._moved = now
        self._seen: tuple[Phase, int] = ("start", 0)

    def observe(self, report: Report, now: float) -> None:
        """Take in what the worker sent."""
        if isinstance(report, Tick):
            seen = (report.phase, report.step)
            if seen == self._seen and report.phase != "idle":
                return
            self._seen = seen
        self._moved = now

    def deadline(self) -> float:
        """When the worker counts as hung, if nothing moves until then."""
        return self._moved + self.stall_seconds

    def hung(self, now: float) -> str | None:
        """Why the worker counts as hung, or None."""
        late = now - self.deadline()
        if late < 0:
            return None
        if late > limits.watch_late_seconds:
            # The daemon itself was held up: what the worker sent meanwhile is read first.
            self._moved = now - self.stall_seconds + limits.watch_late_seconds
            return None
        phase, step = self._seen
        return f"no progress for {self.stall_seconds:g} s (phase {phase}, step {step})"
