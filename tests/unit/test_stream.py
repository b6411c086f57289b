"""A generation under way, between the actor and its reader."""

from __future__ import annotations

import asyncio

import pytest

from llmvisor import limits
from llmvisor.errors import LlmvisorError, RuntimeCrashed, ShuttingDown
from llmvisor.supervision.stream import Call, GenerationStream
from llmvisor_runtimes.protocol import Command, Delta, Done, Generate, Pause, Resume, Sampling, Text, TextPrompt

GENERATE = Generate(7, "req_1", TextPrompt("x"), Sampling())
DONE = Done(7, 1, 0, 2, 0.0, 0.0)


class Ends:
    """A stream, and what it did."""

    def __init__(self) -> None:
        self.sent: list[Command] = []
        self.left: list[int] = []
        self.stream = GenerationStream(
            7, choices=1, command=lambda: GENERATE, send=self.sent.append, leave=self.left.append
        )
        self.stream.sent()

    def push(self, count: int = 1) -> None:
        for _ in range(count):
            self.stream.push(Delta(7, 0, "x", [5]))

    async def read(self) -> int:
        """Deltas until the end."""
        return sum([len(batch) async for batch in self.stream])


async def test_reader_gets_what_has_come_at_once_and_then_the_end() -> None:
    """Every pending delta in one go; the end only after all of them."""
    ends = Ends()
    ends.push(3)
    ends.stream.finish(DONE)
    assert [len(batch) async for batch in ends.stream] == [3]
    assert ends.stream.done == DONE
    assert ends.stream.tokens_sent == [[5, 5, 5]]


async def test_reader_that_waits_is_woken() -> None:
    """By a delta, and by the end."""
    ends = Ends()
    reading = asyncio.create_task(ends.read())
    await asyncio.sleep(0)
    ends.push()
    await asyncio.sleep(0)
    ends.stream.finish(DONE)
    assert await asyncio.wait_for(reading, 5) == 1


async def test_slow_reader_pauses_its_sequence_once_and_resumes_it() -> None:
    """One Pause past the bound and none at it; one Resume when the reader has caught up."""
    ends = Ends()
    ends.push(limits.stream_pause_deltas)
    assert ends.sent == []
    ends.push(2)
    assert ends.sent == [Pause(7)]
    assert len(await anext(aiter(ends.stream))) == limits.stream_pause_deltas + 2
    assert ends.sent == [Pause(7), Resume(7)]


async def test_stream_that_overflows_ends_and_keeps_nothing() -> None:
    """A worker that sends on after the Pause: the request ends with an error, and is cancelled."""
    ends = Ends()
    ends.push(limits.stream_deltas_max)
    assert ends.left == []
    ends.push()
    assert ends.left == [7]
    with pytest.raises(LlmvisorError, match="too slowly"):
        await ends.read()


async def test_leaving_before_the_end_cancels_and_after_it_does_not() -> None:
    """Once for each stream."""
    ends = Ends()
    async with ends.stream:
        ends.push()
    assert ends.left == [7]
    done, failed = Ends(), Ends()
    async with done.stream:
        done.stream.finish(DONE)
    async with failed.stream:
        failed.stream.fail(ShuttingDown("x"))
    assert (done.left, failed.left) == ([], [])


async def test_first_error_wins_and_none_follows_the_end() -> None:
    """A request fails once."""
    ends = Ends()
    ends.stream.fail(ShuttingDown("first"))
    ends.stream.fail(RuntimeCrashed("second"))
    with pytest.raises(ShuttingDown, match="first"):
        await ends.read()
    whole = Ends()
    whole.stream.finish(DONE)
    whole.stream.fail(RuntimeCrashed("late"))
    assert await whole.read() == 0


async def test_what_came_before_an_error_is_read_before_it() -> None:
    """The client keeps what the worker gave."""
    ends = Ends()
    ends.push(2)
    ends.stream.fail(RuntimeCrashed("gone"))
    batches = aiter(ends.stream)
    assert len(await anext(batches)) == 2
    with pytest.raises(RuntimeCrashed):
        await anext(batches)


async def test_call_is_answered_once() -> None:
    """The first answer or error counts."""
    left: list[int] = []
    call = Call(3, command=None, leave=left.append)
    call.answer(Text(3, "yes"))
    call.answer(Text(3, "no"))
    call.fail(RuntimeCrashed("late"))
    assert await call.result() == Text(3, "yes")
    failed = Call(4, command=None, leave=left.append)
    failed.fail(RuntimeCrashed("gone"))
    failed.answer(None)
    with pytest.raises(RuntimeCrashed):
        await failed.result()
    assert left == []


async def test_call_whose_asker_goes_leaves() -> None:
    """And an error that came in the same moment is nobody's loss."""
    left: list[int] = []
    waiting = asyncio.create_task(Call(3, command=None, leave=left.append).result())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert left == [3]
    call = Call(4, command=None, leave=left.append)
    failed = asyncio.create_task(call.result())
    await asyncio.sleep(0)
    call.fail(RuntimeCrashed("gone"))
    failed.cancel()
    await asyncio.wait([failed])
    assert failed.cancelled()
    assert left == [3]
