"""Tells the daemon how far a load is: some `LoadProgress` frames, and a step number for the ticks."""

from __future__ import annotations

import time
from typing import Literal

from llmvisor_runtimes import limits
from llmvisor_runtimes.pipes import Pipes
from llmvisor_runtimes.protocol import LoadProgress, Phase, Tick


class LoadReporter:
    """Takes a backend's progress calls, as many as come, and sends on what a reader can follow."""

    def __init__(self, pipes: Pipes) -> None:
        self._pipes = pipes
        self._phase: Phase = "start"
        self._step = 0
        self._last = ("", -1)
        self._sent_at = 0.0

    @property
    def loading(self) -> bool:
        """Whether a load is under way."""
        return self._phase == "load"

    def begin(self) -> None:
        """A load was asked for."""
        self._phase = "load"

    def finish(self) -> None:
        """The load has failed."""
        self._phase = "start"

    def progress(self, stage: str, done: int, total: int, unit: Literal["bytes", "layers", "steps"]) -> None:
        """The backend's `LoadProgressCallback`. Only what differs from the call before counts as progress."""
        stage_before, done_before = self._last
        if (stage, done) == (stage_before, done_before):
            return
        self._last = (stage, done)
        self._step += 1
        now = time.monotonic()
        if stage != stage_before or done == total or now - self._sent_at >= limits.load_progress_interval_seconds:
            self._sent_at = now
            self._pipes.send([LoadProgress(stage, done, total, unit)])

    def tick(self, rss_bytes: int) -> Tick:
        """A tick from before the model is there."""
        return Tick(step=self._step, phase=self._phase, active=0, waiting=0, tokens=0, rss_bytes=rss_bytes)
