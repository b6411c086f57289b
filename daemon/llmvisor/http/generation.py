"""Running a generation for one HTTP request, whatever its dialect: collected whole, or pumped into an event stream."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from aiohttp import web

from llmvisor.control.api import ModelStatus
from llmvisor.errors import InternalError, LlmvisorError
from llmvisor.http.cache_control import CACHE_HEADER, cache_state
from llmvisor.http.choice import Choice, finish_reason
from llmvisor.http.front import REQUEST_ID, Front
from llmvisor.http.sse import EventStream
from llmvisor.log import get_logger
from llmvisor.services.service import Stream
from llmvisor_runtimes.protocol import Delta, Done

_log = get_logger(__name__)

Encode = Callable[[Sequence[Delta]], bytes]
"""Deltas of one generation → whole events."""


async def collect(stream: Stream, choices_count: int) -> list[Choice]:
    """Every choice of a generation, by index. Raises the `LlmvisorError` that ended it."""
    choices = [Choice() for _ in range(choices_count)]
    async with stream:
        async for deltas in stream:
            for delta in deltas:
                choices[delta.index].add(delta)
    for choice in choices:
        finish_reason(choice.finish)
    return choices


async def pump(stream: Stream, events: EventStream, encode: Encode) -> Done:
    """Write a generation as it comes, every delta that is pending in one write. Raises what `collect` does."""
    async with stream:
        async for deltas in stream:
            if data := encode(deltas):
                await events.write(data)
    return finished(stream)


def finished(stream: Stream) -> Done:
    """Usage and timings of a stream whose iteration has ended."""
    if stream.done is None:
        raise InternalError("the generation ended without a report")
    return stream.done


def first_wait(streams: Sequence[Stream]) -> str:
    """What the first of these that waits waits for."""
    return next((waits for stream in streams if (waits := stream.waits_for())), "")


def serving_headers(model: ModelStatus, streams: Sequence[Stream]) -> dict[str, str]:
    """Who served, and how long that took to begin. The times are known once something has come."""
    headers = {"X-LLMVISOR-Model": model.id, CACHE_HEADER: cache_state(stream.cache for stream in streams)}
    if streams:
        headers["X-LLMVISOR-Queue-Ms"] = f"{max(stream.queue_ms for stream in streams):.3f}"
        headers["X-LLMVISOR-Load-Ms"] = f"{max(stream.load_ms for stream in streams):.3f}"
    return headers


async def answer_events(
    request: web.Request,
    front: Front,
    headers: Callable[[], Mapping[str, str]],
    produce: Callable[[EventStream], Awaitable[None]],
    waits_for: Callable[[], str] = str,
) -> web.StreamResponse:
    """An answer of what `produce` writes. Its errors have their status before the first byte, else are an event.

    `waits_for` says in a few words why nothing comes; heartbeats tell the client.
    """
    async with EventStream(request, front, headers, waits_for) as events:
        try:
            await produce(events)
        except LlmvisorError as error:
            await events.fail(error)
        except ConnectionError:
            raise  # the client has gone: nobody to tell
        except Exception:  # told to the client in the stream's own form, with its traceback in the log
            if not events.started:
                raise
            _log.exception("a stream failed")
            await events.fail(unexpected(request))
        return await events.end()


def unexpected(request: web.Request) -> InternalError:
    """What a client is told of a bug of ours."""
    return InternalError(f"an internal error; the log has it under request id {request[REQUEST_ID]}")
