"""Plans the batches of an encoder: whose texts are computed together, and what is complete for whom. Pure.

    planner.submit(job)  →  planner.next_batch()  →  (the engine computes)  →  planner.done(batch, results) → parts

A batch holds inputs of one lane and of similar length, so that little of it is padding; the interactive lane goes ahead
of the bulk lane, which still gets its share; within a lane clients take turns; an input that several asked for is
computed once. One thread owns a planner.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

import msgspec

from llmvisor_runtimes import limits
from llmvisor_runtimes.encoding_queue import LaneQueue, Shape, Unit
from llmvisor_runtimes.protocol import Lane

P = TypeVar("P")
R = TypeVar("R")


class Input(msgspec.Struct, Generic[P], frozen=True):
    """One text of a job."""

    key: Hashable
    """Inputs of equal keys have equal results."""
    length: int
    """Tokens that are computed for it, at least 1."""
    payload: P


class Job(msgspec.Struct, Generic[P], frozen=True):
    """What one request wants encoded."""

    id: int
    inputs: Sequence[Input[P]]
    lane: Lane = "interactive"
    client: str = ""
    whole: bool = False
    """All results come in one `Part`, not in ranges as they are there."""


class Batch(msgspec.Struct, Generic[P], frozen=True):
    """Inputs to be computed together."""

    units: list[Unit[P]]
    lane: Lane

    @property
    def inputs(self) -> list[P]:
        """The payloads, in the order in which `done` wants the results."""
        return [unit.payload for unit in self.units]

    @property
    def longest(self) -> int:
        """Tokens of the longest input."""
        return max(unit.length for unit in self.units)

    @property
    def tokens(self) -> int:
        """Tokens of all inputs, without padding."""
        return sum(unit.length for unit in self.units)

    @property
    def padded_tokens(self) -> int:
        """Tokens of all inputs, with padding."""
        return len(self.units) * self.longest


class Part(msgspec.Struct, Generic[R], frozen=True):
    """Results of a job's inputs from number `first` on; the job has ended with the part that is `last`."""

    id: int
    first: int
    results: list[R]
    last: bool


class Fault(msgspec.Struct, frozen=True):
    """A job that ended without (further) results, since one of its inputs cannot be computed."""

    id: int
    error: Exception


class _Open(Generic[P, R]):
    """A job under way."""

    __slots__ = ("distinct", "filed", "job", "missing", "places", "results", "sent")

    def __init__(self, job: Job[P]) -> None:
        self.job = job
        self.places: dict[Hashable, list[int]] = {}
        for index, input in enumerate(job.inputs):
            self.places.setdefault(input.key, []).append(index)
        self.distinct = [places[0] for places in self.places.values()]
        """Where each distinct input comes first."""
        self.filed = 0
        """How many of those wait or are computed already."""
        self.results: dict[int, R] = {}
        """What is there and not handed out."""
        self.sent = 0
        self.missing = len(job.inputs)


class BatchPlanner(Generic[P, R]):
    """The queue of an encoder's jobs."""

    def __init__(
        self,
        *,
        tokens_max: int,
        inputs_max: int,
        padding_share_max: float = 0.1,
        padding_free_tokens: int = 0,
        lookahead_inputs: int = limits.encoding_lookahead_inputs,
        interactive_run_max: int = limits.encoding_interactive_run_max,
    ) -> None:
        """`tokens_max`: of a batch with its padding, where it has more than one input. `padding_share_max`: of these.

        `padding_free_tokens`: so much padding is allowed in any case, where another batch would cost more.
        """
        self.tokens_max = tokens_max
        self.interactive_tokens_max = tokens_max
        self.bulk_tokens_max = tokens_max
        """The same for each lane; whoever measures how long batches take may change them at any time."""
        self._inputs_max = inputs_max
        self._padding_share_max = padding_share_max
        self._padding_free_tokens = padding_free_tokens
        self._lookahead_inputs = lookahead_inputs
        self._interactive_run_max = interactive_run_max
        self._open: dict[int, _Open[P, R]] = {}
        self._units: dict[Hashable, Unit[P]] = {}
        self._lanes: dict[Lane, LaneQueue[P]] = {"interactive": LaneQueue(), "bulk": LaneQueue()}
        self._retries: dict[Lane, deque[list[Unit[P]]]] = {"interactive": deque(), "bulk": deque()}
        self._interactive_run = 0

    # ------------------------------------------------------------------------------------------------ jobs

    @property
    def jobs(self) -> int:
        """Jobs that have not ended."""
        return len(self._open)

    def __bool__(self) -> bool:
        """Whether it is worth asking for the `next_batch`."""
        return any(self._retries.values()) or any(self._lanes.values())

    def submit(self, job: Job[P]) -> list[Part[R]]:
        """Take a job in; gives its end at once if it has no inputs."""
        assert job.id not in self._open, "an id is used once"
        if not job.inputs:
            return [Part(job.id, 0, [], last=True)]
        opened: _Open[P, R] = _Open(job)
        self._open[job.id] = opened
        self._file(opened)
        return []

    def cancel(self, id: int) -> bool:
        """Forget a job, also while one of its batches is computed. False if there is none."""
        opened = self._open.pop(id, None)
        if opened is None:
            return False
        for index in opened.distinct[: opened.filed]:
            unit = self._units.get(opened.job.inputs[index].key)
            if unit is not None and id in unit.askers:
                unit.askers.remove(id)
                if not unit.askers and unit.queue is not None:
                    unit.queue.remove(unit)
                    del self._units[unit.key]
        return True

    # ---------------------------------------------------------------------------------------------- batches

    def next_batch(self) -> Batch[P] | None:
        """The inputs to compute next; None where nothing waits."""
        for lane in self._lanes_in_turn():
            while self._retries[lane]:
                units = [unit for unit in self._retries[lane].popleft() if self._is_wanted(unit)]
                if units:
                    return Batch(units, lane)
            if self._lanes[lane]:
                return Batch(self._lanes[lane].take(self._shape(lane)), lane)
        return None

    def done(self, batch: Batch[P], results: Sequence[R]) -> list[Part[R]]:
        """Take a batch's results; gives what can be handed out now, in order for each job."""
        assert len(results) == len(batch.units), "one result for each input"
        touched: dict[int, _Open[P, R]] = {}
        for unit, result in zip(batch.units, results, strict=True):
            self._units.pop(unit.key, None)
            for id in unit.askers:
                opened = touched[id] = self._open[id]
                places = opened.places[unit.key]
                opened.missing -= len(places)
                for place in places:
                    opened.results[place] = result
        return [part for opened in touched.values() if (part := self._part(opened)) is not None]

    def failed(self, batch: Batch[P], error: Exception) -> list[Fault]:
        """A batch could not be computed: it is halved and tried again, until the bad input alone fails its jobs."""
        if len(batch.units) > 1:
            middle = len(batch.units) // 2
            self._retries[batch.lane].extendleft((batch.units[middle:], batch.units[:middle]))
            return []
        unit = batch.units[0]
        self._units.pop(unit.key, None)
        ids = sorted(unit.askers)
        for id in ids:
            self.cancel(id)
        return [Fault(id, error) for id in ids]

    def out_of_memory(self, batch: Batch[P], error: Exception) -> list[Fault]:
        """As `failed`, and no batch is that large again."""
        if len(batch.units) > 1:
            self.tokens_max = min(self.tokens_max, max(1, batch.padded_tokens // 2))
        return self.failed(batch, error)

    # ----------------------------------------------------------------------------------------------- inside

    def _lanes_in_turn(self) -> tuple[Lane, Lane]:
        """Interactive first, but bulk after a run of those."""
        interactive = bool(self._lanes["interactive"] or self._retries["interactive"])
        bulk = bool(self._lanes["bulk"] or self._retries["bulk"])
        if not (interactive and bulk) or self._interactive_run >= self._interactive_run_max:
            self._interactive_run = 0
            return ("bulk", "interactive")
        self._interactive_run += 1
        return ("interactive", "bulk")

    def _shape(self, lane: Lane) -> Shape:
        lane_max = self.interactive_tokens_max if lane == "interactive" else self.bulk_tokens_max
        tokens_max = min(self.tokens_max, lane_max)
        return Shape(
            tokens_max=tokens_max,
            inputs_max=self._inputs_max,
            padding_share_max=self._padding_share_max,
            padding_free_tokens=self._padding_free_tokens,
        )

    def _is_wanted(self, unit: Unit[P]) -> bool:
        if not unit.askers:
            self._units.pop(unit.key, None)
        return bool(unit.askers)

    def _file(self, opened: _Open[P, R]) -> None:
        """Put a job's next inputs into the queue, not far ahead of what it has handed out.

        So a job of 100,000 texts holds no more results than these, and comes back in order.
        """
        job = opened.job
        end = opened.sent + self._lookahead_inputs
        while opened.filed < len(opened.distinct) and (job.whole or opened.distinct[opened.filed] < end):
            self._ask(job, job.inputs[opened.distinct[opened.filed]])
            opened.filed += 1

    def _ask(self, job: Job[P], input: Input[P]) -> None:
        unit = self._units.get(input.key)
        if unit is None:
            unit = self._units[input.key] = Unit(input.key, input.length, input.payload, job.client)
            self._lanes[job.lane].add(unit)
        elif job.lane == "interactive" and unit.queue is self._lanes["bulk"]:
            self._lanes["bulk"].remove(unit)
            unit.client = job.client
            self._lanes["interactive"].add(unit)
        unit.askers.add(job.id)

    def _part(self, opened: _Open[P, R]) -> Part[R] | None:
        """What a job can hand out now."""
        if opened.job.whole and opened.missing:
            return None
        first, results = opened.sent, opened.results
        ready: list[R] = []
        while opened.sent in results:
            ready.append(results.pop(opened.sent))
            opened.sent += 1
        if not opened.missing:
            del self._open[opened.job.id]
        elif ready:
            self._file(opened)
        return Part(opened.job.id, first, ready, last=not opened.missing) if ready else None
