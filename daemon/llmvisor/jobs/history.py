"""What happened to one job, numbered, so that a client that comes back misses nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from contextlib import contextmanager

import msgspec

from llmvisor import limits
from llmvisor.broadcast import Hub, Subscription
from llmvisor.control.api import Job


class JobEvent(msgspec.Struct, frozen=True):
    """A job as it was at one moment. `id` only grows, over restarts of the daemon too."""

    id: int
    job: Job


class JobHistory:
    """The last events of one job, and whoever watches it."""

    def __init__(self) -> None:
        self._events: deque[JobEvent] = deque(maxlen=limits.job_events_kept_max)
        self._hub: Hub[JobEvent] = Hub(limits.subscriber_queue_events_max)

    def add(self, job: Job, *, at_least: int) -> None:
        """The next event. `at_least` is its number where the one before is smaller: the milliseconds of the clock."""
        event = JobEvent(max(at_least, self._events[-1].id + 1 if self._events else 0), job)
        self._events.append(event)
        self._hub.publish(event)

    @contextmanager
    def watch(self, after: int | None) -> Generator[Subscription[JobEvent]]:
        """The events after this number, or the last one alone, and then what comes; over when the job has ended.

        Events that are not kept any more are left out. An ended job gives its last event in any case.
        """
        with self._hub.subscribe() as subscription:
            for event in self._since(after):
                subscription.put(event)
            yield subscription

    def _since(self, after: int | None) -> list[JobEvent]:
        last = list(self._events)[-1:]
        if after is None:
            return last
        newer = [event for event in self._events if event.id > after]
        return newer or (last if last and last[0].job.ended_at is not None else [])

    def end_watches(self) -> None:
        """End what watches it; whoever comes back misses nothing."""
        self._hub.end_subscriptions()

    def close(self) -> None:
        """The job has ended."""
        self._hub.close()
