"""The management paths that go on: a job's progress, the log, every change of state. All as server-sent events."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TypeVar, get_args

import msgspec
from aiohttp import web

from llmvisor.broadcast import Subscription
from llmvisor.control.api import ListAnswer, LogLevel
from llmvisor.errors import InvalidRequest
from llmvisor.http.answers import ENCODER, json_answer
from llmvisor.http.decode import shown
from llmvisor.http.front import FRONT, Front
from llmvisor.http.generation import answer_events
from llmvisor.http.management import ended
from llmvisor.http.sse import EventStream

T = TypeVar("T")
_EVENT_DIGITS_MAX = 18
_LEVELS: tuple[LogLevel, ...] = get_args(LogLevel)


async def job_events(request: web.Request) -> web.StreamResponse:
    """`event: job` with the job as it is, then at each change until it has ended; `Last-Event-ID` goes on after one."""
    front = request.app[FRONT]
    await front.control.jobs_known()
    watch = front.control.watch_job(request.match_info["id"], _last_event(request))

    async def produce(events: EventStream) -> None:
        with watch as changes:
            async for event in changes:
                await events.write(b"id: %d\n" % event.id + _event("job", event.job))
                if ended(event.job):
                    return

    return await answer_events(request, front, dict, produce)


def _last_event(request: web.Request) -> int | None:
    """The number of the last event that a client has seen; what is none counts as none."""
    said = request.headers.get("Last-Event-ID", "")
    return int(said) if said.isascii() and said.isdigit() and len(said) <= _EVENT_DIGITS_MAX else None


async def state_events(request: web.Request) -> web.StreamResponse:
    """`event: runtime`, `job` or `daemon` at each change, until the daemon ends."""
    front = request.app[FRONT]
    return await _feed(request, front, front.control.subscribe_events(), lambda event: event.kind)


async def logs(request: web.Request) -> web.StreamResponse:
    """Recent lines as a list; with `follow` as `event: log`, and then what comes. `model` and `level` filter."""
    front, query = request.app[FRONT], request.query
    level = query.get("level", "debug")
    if level not in _LEVELS:
        raise InvalidRequest(f"level: expected one of {', '.join(_LEVELS)}, found {shown(level)}", param="level")
    named = query.get("model")
    model = None if named is None else await front.find(named)
    if query.get("follow", "false").lower() not in {"true", "1", "yes"}:
        recent = front.control.recent_logs(model=model, level=level)
        return json_answer(ListAnswer([msgspec.Raw(ENCODER.encode(record)) for record in recent]))
    wanted = frozenset(_LEVELS[_LEVELS.index(level) :])
    return await _feed(
        request,
        front,
        front.control.subscribe_logs(),
        lambda record: "log" if record.level in wanted and model in {None, record.model} else None,
        recent=lambda: front.control.recent_logs(model=model, level=level),
    )


async def _feed(
    request: web.Request,
    front: Front,
    subscribe: AbstractContextManager[Subscription[T]],
    kind: Callable[[T], str | None],
    recent: Callable[[], Iterable[T]] = list,
) -> web.StreamResponse:
    """What was, then what comes. `kind` names an item's event, None leaves it out. Losses are told as comments."""

    async def produce(events: EventStream) -> None:
        with subscribe as items:
            # Subscribed first: nothing falls between what was and what comes.
            await events.write(
                b": open\n\n" + b"".join(_event(name, item) for item in recent() if (name := kind(item)))
            )
            dropped = 0
            async for item in items:
                if items.dropped != dropped:
                    await events.write(b": %d dropped\n\n" % (items.dropped - dropped))
                    dropped = items.dropped
                if name := kind(item):
                    await events.write(_event(name, item))

    return await answer_events(request, front, dict, produce)


def _event(kind: str, value: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), ENCODER.encode(value))
