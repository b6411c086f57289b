"""When a loaded model has been without a request for long enough to go. Pure."""

from __future__ import annotations

from llmvisor import limits


class Idleness:
    """One worker's; times in seconds on the monotonic clock."""

    def __init__(self) -> None:
        self.deadline: float | None = None
        """When it is to be unloaded; None = never, or in use."""
        self.keep_alive_seconds: float | None = None
        """What the last request that ran asked for; None leaves what is set."""

    def used(self) -> None:
        """A request waits or runs, or the worker is to go anyway."""
        self.deadline = None

    def rests(self, now: float, timeout_seconds: float) -> None:
        """Nobody needs it, from now on or since earlier. A keep-alive of 0 unloads at once; a negative one, or an idle
        timeout of 0, never."""
        if self.deadline is not None:
            return
        if self.keep_alive_seconds is not None:
            seconds = self.keep_alive_seconds
            self.deadline = now + seconds if seconds >= 0 else None
        else:
            self.deadline = now + timeout_seconds if timeout_seconds > 0 else None

    def is_over(self, now: float, timeout_seconds: float) -> bool:
        """Whether it has rested for long enough. Where the machine slept, that was no idleness of the model's."""
        if self.deadline is None or now < self.deadline:
            return False
        slept = now - self.deadline > limits.suspend_gap_seconds
        self.deadline = None
        if slept:
            self.rests(now, timeout_seconds)
        return not slept

    def gone(self) -> None:
        """The worker has ended, and with it what was asked of it."""
        self.deadline = self.keep_alive_seconds = None
