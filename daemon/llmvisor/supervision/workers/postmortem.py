"""What is known of a worker at its end: its last frames, its memory, the requests inside. Never what these say."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from llmvisor import limits
from llmvisor.clock import Clock
from llmvisor.control.api import FrameRecord, MemoryRecord, Postmortem, RequestFate, RequestRecord
from llmvisor.supervision.scheduling.effects import Effect, Refuse, Suspend
from llmvisor.supervision.workers.reaper import WorkerExit
from llmvisor_runtimes.framing import encode
from llmvisor_runtimes.protocol import Command, Embeddings, Report, Scores, Step, Text, Tick, Tokens


class Inside(msgspec.Struct, frozen=True):
    """A request inside a worker."""

    id: int
    kind: str
    sha256: str
    seconds: float
    tokens: int
    tokens_new: int
    leaving: bool


class Postmortems:
    """The last crashes of one model."""

    def __init__(self, model: str, clock: Clock) -> None:
        self._model = model
        self._clock = clock
        self._kept: deque[Postmortem] = deque(maxlen=limits.postmortems_kept_max)

    def all(self) -> list[Postmortem]:
        """Newest first."""
        return list(reversed(self._kept))

    def take(self, others: Iterable[Postmortem]) -> None:
        """Keep those of another runtime of the model as well."""
        both = sorted([*self._kept, *others], key=lambda each: each.time)
        self._kept.clear()
        self._kept.extend(both)

    def add(
        self,
        recorder: FlightRecorder,
        exit: WorkerExit,
        *,
        state: str,
        reason: str,
        inside: Sequence[Inside],
        effects: Iterable[Effect],
    ) -> None:
        """A worker crashed in this state, with these requests inside, which led to these effects."""
        now, fates = self._clock.monotonic(), _fates(effects)
        self._kept.append(
            Postmortem(
                model=self._model,
                time=self._clock.now().isoformat(),
                backend=recorder.backend,
                pid=recorder.pid,
                reason=reason,
                state=state,
                exit_code=exit.code,
                signal=exit.signal,
                possible_oom=exit.possible_oom,
                seconds=round(now - recorder.begun, 3),
                rss_peak_bytes=recorder.rss_peak_bytes,
                memory=recorder.memory(now),
                frames=recorder.frames(now),
                requests=[_request(one, fates) for one in inside],
                last_lines=[
                    line[: limits.postmortem_line_chars_max] for line in exit.last_lines[-limits.postmortem_lines :]
                ],
            )
        )


class FlightRecorder:
    """The last frames and ticks of one worker. Noting one costs next to nothing: what they were is read at the end."""

    def __init__(self, now: float, backend: str = "") -> None:
        self.begun = now
        self.backend = backend
        self.pid = 0
        self.rss_peak_bytes = 0
        self._sent: deque[tuple[float, str, list[int], int]] = deque(maxlen=limits.postmortem_frames_sent)
        self._received: deque[tuple[float, Report | _Large]] = deque(maxlen=limits.postmortem_frames_received)
        self._ticks: deque[tuple[float, int]] = deque(maxlen=limits.postmortem_ticks)

    def sent(self, command: Command, size_bytes: int, now: float) -> None:
        self._sent.append((now, type(command).__name__, _ids(command), size_bytes))

    def received(self, report: Report, now: float) -> None:
        self._received.append((now, _Large.of(report) if type(report) in _LARGE else report))
        if type(report) is Tick:
            self._ticks.append((now, report.rss_bytes))
            self.rss_peak_bytes = max(self.rss_peak_bytes, report.rss_bytes)

    def memory(self, now: float) -> list[MemoryRecord]:
        """The curve up to now, oldest first."""
        return [MemoryRecord(round(now - at, 3), rss_bytes) for at, rss_bytes in self._ticks]

    def frames(self, now: float) -> list[FrameRecord]:
        """Of both directions, oldest first."""
        frames = [FrameRecord(round(now - at, 3), "sent", kind, ids, size) for at, kind, ids, size in self._sent]
        frames += [FrameRecord(round(now - at, 3), "received", *_described(one)) for at, one in self._received]
        return sorted(frames, key=lambda frame: -frame.seconds_before)


class _Large(msgspec.Struct, frozen=True):
    """What is kept of a frame that is too large to be kept."""

    kind: str
    id: int
    size_bytes: int
    """Of its contents, about."""

    @classmethod
    def of(cls, report: Report) -> _Large:
        match report:
            case Embeddings():
                size_bytes = sum(len(item.dense) + len(item.colbert) for item in report.items)
            case Scores():
                size_bytes = _NUMBER_BYTES * len(report.scores)
            case Tokens():
                size_bytes = _NUMBER_BYTES * len(report.tokens)
            case Text():
                size_bytes = len(report.text)
            case _:
                size_bytes = 0
        return cls(type(report).__name__, getattr(report, "id", 0), size_bytes)


_LARGE = frozenset({Embeddings, Scores, Tokens, Text})
_NUMBER_BYTES = 8


def _described(report: Report | _Large) -> tuple[str, list[int], int]:
    if isinstance(report, _Large):
        return report.kind, [report.id], report.size_bytes
    return type(report).__name__, _ids(report), len(encode(report))


def _request(one: Inside, fates: Mapping[int, RequestFate]) -> RequestRecord:
    return RequestRecord(
        id=one.id,
        kind=one.kind,
        sha256=one.sha256,
        seconds=round(one.seconds, 3),
        tokens=one.tokens,
        tokens_new=one.tokens_new,
        fate="left" if one.leaving else fates.get(one.id, "failed"),
    )


def _ids(frame: Command | Report) -> list[int]:
    if isinstance(frame, Step):
        return sorted({one.id for one in (*frame.deltas, *frame.done)})
    request_id = getattr(frame, "id", None)
    return [] if request_id is None else [request_id]


def _fates(effects: Iterable[Effect]) -> dict[int, RequestFate]:
    fates: dict[int, RequestFate] = {}
    for effect in effects:
        if isinstance(effect, Suspend):
            fates[effect.id] = "resumed"
        elif isinstance(effect, Refuse):
            fates[effect.id] = "poison" if effect.kind == "poison_request" else "failed"
    return fates
