"""Requests whose worker is gone: what the next one is told, and what whoever asked sees of it."""

from __future__ import annotations

import asyncio
import signal

import pytest
from tests.support.fake_worker import FakeWorld, generation
from tests.support.polling import eventually

from llmvisor import limits
from llmvisor.config.tree import Restart
from llmvisor.errors import PoisonRequest, RuntimeCrashed
from llmvisor.services.service import EmbeddingRequest, Generation, SamplingRequest, ScoringRequest, Terms
from llmvisor.supervision.scheduling.state import State
from llmvisor.supervision.stream import GenerationStream
from llmvisor_runtimes.protocol import (
    Cancel,
    Command,
    Delta,
    Detokenize,
    Done,
    Embed,
    Embedding,
    Embeddings,
    Generate,
    Pause,
    Resume,
    Resumed,
    Score,
    Scores,
    Step,
    Text,
    TextPrompt,
    Tick,
    ToolCallDelta,
)

QUICK = Restart(max=1000, backoff=(0.001, 0.002))
KILL = -int(signal.SIGKILL)
FAULT = -int(signal.SIGSEGV)


def named(prompt: str, *, n: int = 1, resume: bool = True) -> Generation:
    return Generation("req_1", TextPrompt(prompt), SamplingRequest(), n=n, terms=Terms(resume=resume))


def done(request_id: int = 1, tokens: int = 3) -> Step:
    return Step([], [Done(request_id, 4, 0, tokens, 1.0, 20.0)])


def delta(*tokens: int, request_id: int = 1, index: int = 0) -> Step:
    return Step([Delta(request_id, index, "".join(map(str, tokens)), list(tokens))])


def generates(commands: list[Command]) -> list[Generate]:
    return [command for command in commands if isinstance(command, Generate)]


async def read(stream: GenerationStream) -> str:
    return "".join([delta.text async for batch in stream for delta in batch])


async def test_next_worker_is_told_what_was_sent_and_sends_the_rest() -> None:
    """Read by the client or only buffered for it: it is sent. The text has each token once, and the usage is that of
    the last worker, which counts the whole."""
    world = FakeWorld(restart=QUICK)
    worker = await world.loaded()
    stream = world.runtime.generate(generation())
    worker.report(delta(1, 2))
    batches = aiter(stream)
    texts = [one.text for one in await anext(batches)]
    worker.report(delta(3))
    world.clock.at += 2
    worker.exit(KILL)
    newer = await world.restarted()
    (command,) = generates(newer.sent)
    assert command.resumed == [Resumed([1, 2, 3])]
    assert command.id == 1
    newer.report(delta(4))
    newer.report(done(tokens=4))
    texts += [one.text async for batch in batches for one in batch]
    assert texts == ["12", "3", "4"]
    assert stream.done == Done(1, 4, 0, 4, 1.0, 2020.0, resumed=1)
    assert world.runtime.in_flight == 0


async def test_choices_and_tool_calls_go_on_each_where_it_was() -> None:
    """One has ended, one has begun a call, one has nothing yet."""
    world = FakeWorld(restart=QUICK)
    worker = await world.loaded()
    stream = world.runtime.generate(generation(3))
    call = ToolCallDelta(0, "call_1", "look", "{")
    more = ToolCallDelta(0, None, None, "}")
    worker.report(Step([Delta(1, 0, "a", [7], "stop"), Delta(1, 1, "", [8], tool_calls=[call])]))
    worker.report(Step([Delta(1, 1, "", [9], tool_calls=[more])]))
    worker.exit(KILL)
    newer = await world.restarted()
    assert generates(newer.sent)[0].resumed == [Resumed([7], "stop"), Resumed([8, 9], None, ["call_1"]), Resumed()]
    newer.report(done())
    assert await read(stream) == "a"


async def test_request_that_has_sent_nothing_begins_anew() -> None:
    """And has waited for the first worker alone, as far as its answer tells."""
    world = FakeWorld(restart=QUICK)
    worker = await world.loaded()
    stream = world.runtime.generate(generation())
    worker.exit(KILL)
    newer = await world.restarted()
    assert generates(newer.sent)[0].resumed == []
    newer.report(delta(1))
    newer.report(done())
    assert await read(stream) == "1"
    assert stream.queue_ms == 0


async def test_request_sent_to_a_worker_that_is_dead_already_is_served() -> None:
    """The daemon learns of the end a moment later: what came in between is nobody's loss."""
    world = FakeWorld(restart=QUICK)
    worker = await world.loaded()
    streams = [world.runtime.generate(generation()) for _ in range(3)]
    worker.exit(KILL)
    late = world.runtime.generate(generation())
    newer = await world.restarted()
    for request_id, stream in enumerate([*streams, late], 1):
        newer.report(delta(5, request_id=request_id))
        newer.report(done(request_id))
        assert await read(stream) == "5"


async def test_worker_after_the_next_is_told_all_of_it() -> None:
    """However often it is killed."""
    world = FakeWorld(restart=QUICK)
    worker = await world.loaded()
    stream = world.runtime.generate(generation())
    for token in range(5):
        worker.report(delta(token))
        worker.exit(KILL)
        worker = await world.restarted()
        assert generates(worker.sent)[0].resumed == [Resumed([*range(token + 1)])]
    worker.report(done())
    assert await read(stream) == "01234"
    assert stream.done is not None
    assert stream.done.resumed == 5


async def test_kills_that_are_not_for_memory_are_no_fault_of_the_request() -> None:
    """It is alone inside and has brought nothing, three times in a row. Where the kernel may have done it, the second
    is enough."""
    world = FakeWorld(restart=QUICK)
    worker = await world.loaded()
    stream = world.runtime.generate(generation())
    for _ in range(3):
        worker.exit(KILL, memory_ran_out=False)
        worker = await world.restarted()
    assert [one.possible_oom for one in world.runtime.postmortems.all()] == [False] * 3
    worker.report(delta(7))
    worker.report(done())
    assert await read(stream) == "7"
    for memory_ran_out in (True, None):
        stream = world.runtime.generate(named(f"memory ran out: {memory_ran_out}"))
        for _ in range(2):
            worker.exit(KILL, memory_ran_out=memory_ran_out)
            worker = await world.restarted()
        with pytest.raises(PoisonRequest):
            await read(stream)


@pytest.mark.parametrize("stopped", [True, False])
async def test_worker_that_somebody_stops_is_no_fault_of_the_request(stopped: bool) -> None:
    """It makes no progress, and is replaced; one that hangs by itself costs the request inside at the second time."""
    world = FakeWorld(restart=QUICK, stall_timeout=0.02)
    worker = await world.loaded()
    stream = world.runtime.generate(generation())
    for _ in range(2):
        worker.is_stopped = stopped
        world.clock.at += 0.021
        await eventually(lambda worker=worker: worker.stops == ["abort"])
        worker.exit(-int(signal.SIGABRT))
        worker = await world.restarted()
    if not stopped:
        with pytest.raises(PoisonRequest):
            await read(stream)
        return
    assert "stopped from outside" in world.runtime.postmortems.all()[0].reason
    worker.report(done())
    assert await read(stream) == ""


async def test_slow_reader_is_told_to_the_next_worker() -> None:
    """Paused it stays, and is resumed when it has caught up; in between nobody is told of an unknown request."""
    world = FakeWorld(restart=QUICK)
    worker = await world.loaded()
    stream = world.runtime.generate(generation())
    for _ in range(limits.stream_pause_deltas + 1):
        worker.report(delta(1))
    assert worker.sent[-1] == Pause(1)
    worker.exit(KILL)
    newer = await world.restarted()
    assert [type(command) for command in newer.sent[-2:]] == [Generate, Pause]
    await anext(aiter(stream))
    assert newer.sent[-1] == Resume(1)


async def test_reader_that_catches_up_in_between_is_not_paused_any_more() -> None:
    """The next worker hears nothing of it."""
    world = FakeWorld(restart=QUICK)
    worker = await world.loaded()
    stream = world.runtime.generate(generation())
    for _ in range(limits.stream_pause_deltas + 1):
        worker.report(delta(1))
    worker.exit(KILL)
    await anext(aiter(stream))
    newer = await world.restarted()
    assert isinstance(newer.sent[-1], Generate)


async def test_client_that_leaves_while_it_waits_for_the_next_worker_is_forgotten() -> None:
    """That one never hears of it."""
    world = FakeWorld(restart=QUICK)
    worker = await world.loaded()
    async with world.runtime.generate(generation()):
        worker.report(delta(1))
        worker.exit(KILL)
    assert world.runtime.in_flight == 0
    newer = await world.restarted()
    assert generates(newer.sent) == []


async def test_client_that_had_left_before_the_crash_is_forgotten() -> None:
    """Its Cancel went down with the worker."""
    world = FakeWorld(restart=QUICK)
    worker = await world.loaded()
    async with world.runtime.generate(generation()):
        pass
    assert worker.sent[-1] == Cancel(1)
    worker.exit(KILL)
    assert world.runtime.in_flight == 0
    assert [one.fate for one in world.runtime.postmortems.all()[0].requests] == ["left"]


async def test_another_model_does_not_go_on_with_a_text() -> None:
    """The file has changed: what was begun ends with an error, what has nothing yet is served."""
    world = FakeWorld(restart=QUICK)
    worker = await world.loaded()
    begun, fresh = world.runtime.generate(generation()), world.runtime.generate(generation())
    worker.report(delta(1))
    world.signature = 2
    worker.exit(KILL)
    newer = await world.restarted()
    with pytest.raises(RuntimeCrashed, match="another one now"):
        await read(begun)
    newer.report(done(2))
    assert await read(fresh) == ""
    assert world.runtime.in_flight == 0


async def test_error_instead_of_a_pause_is_a_term_of_the_request() -> None:
    """`X-LLMVISOR-Resume: off`."""
    world = FakeWorld(restart=QUICK)
    worker = await world.loaded()
    stream = world.runtime.generate(named("hello", resume=False))
    worker.exit(KILL)
    with pytest.raises(RuntimeCrashed, match="SIGKILL"):
        await read(stream)


async def test_embeddings_scores_and_questions_are_asked_again_as_a_whole() -> None:
    """What had come of the vectors is computed again: those of two workers may differ by float noise."""
    world = FakeWorld(restart=QUICK)
    worker = await world.loaded()
    vectors = [Embedding(1, b"\0\0\0\0"), Embedding(2, b"\0\0\0\0")]
    embedded = asyncio.create_task(world.runtime.embed(EmbeddingRequest("req_1", ["a", "b"], ["dense"])))
    scored = asyncio.create_task(world.runtime.score(ScoringRequest("req_2", [("a", "b")])))
    said = asyncio.create_task(world.runtime.call(lambda call_id: Detokenize(call_id, [1])))
    await eventually(lambda: len(worker.sent) == 4)
    worker.report(Embeddings(1, 0, vectors[:1], last=False))
    worker.exit(KILL)
    newer = await world.restarted()
    assert {type(command) for command in newer.sent[1:]} == {Embed, Score, Detokenize}
    newer.report(Embeddings(1, 0, vectors, last=True))
    newer.report(Scores(2, [0.5], 3))
    newer.report(Text(3, "text"))
    assert (await embedded).items == vectors
    assert (await scored).scores == [0.5]
    assert await said == Text(3, "text")


async def test_request_that_ends_its_worker_twice_is_refused_and_its_like_for_a_while() -> None:
    """By what it asks for, whoever asks; another one is served. A person's restart gives it another chance."""
    world = FakeWorld(restart=QUICK)
    worker = await world.loaded()
    stream = world.runtime.generate(named("poison"))
    worker.exit(FAULT)
    (await world.restarted()).exit(FAULT)
    with pytest.raises(PoisonRequest, match="llmctl postmortem tiny"):
        await read(stream)
    with pytest.raises(PoisonRequest, match="the same request"):
        await read(world.runtime.generate(named("poison")))
    newer = await world.restarted()
    world.runtime.generate(named("poison", n=2))
    world.runtime.generate(named("bread"))
    assert len(generates(newer.sent)) == 1  # two choices fill this worker
    world.clock.at += limits.poison_quarantine_seconds
    world.runtime.generate(named("poison"))
    assert world.runtime.in_flight == 3
    world.runtime.reset()
    assert world.runtime.state is State.READY


async def test_suspects_run_alone_until_they_are_cleared() -> None:
    """1. Two are inside at two crashes. Result: the newer one runs first, and alone; once it has brought enough the
    other one may come in, and only then whoever is new."""
    world = FakeWorld(restart=QUICK)
    worker = await world.loaded()
    streams = [world.runtime.generate(generation()) for _ in range(2)]
    worker.exit(FAULT)
    (await world.restarted()).exit(FAULT)
    newer = await world.restarted()
    fresh = world.runtime.generate(generation())
    assert [command.id for command in generates(newer.sent)] == [2]
    newer.report(delta(*range(limits.poison_cleared_tokens - 1), request_id=2))
    assert len(generates(newer.sent)) == 1
    newer.report(delta(1, request_id=2))
    assert [command.id for command in generates(newer.sent)] == [2, 1]
    newer.report(done(2))
    newer.report(done(1))
    assert [command.id for command in generates(newer.sent)] == [2, 1, 3]
    newer.report(done(3))
    assert [len(await read(stream)) > 0 for stream in (*streams, fresh)] == [False, True, False]


async def test_sacrificed_worker_costs_its_requests_a_pause() -> None:
    """The daemon takes it to keep the machine alive: no matter of its requests."""
    world = FakeWorld(restart=QUICK)
    worker = await world.loaded()
    stream = world.runtime.generate(generation())
    worker.report(delta(1))
    world.runtime.sacrifice("out of memory")
    assert worker.stops == ["kill"]
    worker.exit(KILL)
    newer = await world.restarted()
    newer.report(done())
    assert await read(stream) == "1"


async def test_postmortem_tells_the_end_and_nothing_of_what_was_said() -> None:
    """Newest first, and no more than so many."""
    world = FakeWorld(restart=QUICK)
    worker = await world.loaded()
    stream = world.runtime.generate(named("canary"))
    worker.report(Tick(1, "decode", 1, 0, 5, rss_bytes=100))
    world.clock.at += 1
    worker.report(Tick(2, "decode", 1, 0, 5, rss_bytes=70))
    worker.report(Step([Delta(1, 0, "canary", [1, 2])]))
    world.clock.at += 2
    worker.exit(FAULT)
    (one,) = world.runtime.postmortems.all()
    assert (one.pid, one.signal, one.exit_code, one.state) == (worker.pid, signal.SIGSEGV, None, "loaded")
    assert (one.seconds, one.rss_peak_bytes) == (3.0, 100)
    assert [(point.seconds_before, point.rss_bytes) for point in one.memory] == [(3.0, 100), (2.0, 70)]
    frames = {(frame.direction, frame.kind, tuple(frame.ids)) for frame in one.frames}
    assert frames >= {
        ("sent", "Load", ()),
        ("sent", "Generate", (1,)),
        ("received", "Tick", ()),
        ("received", "Step", (1,)),
    }
    (request,) = one.requests
    assert (request.kind, request.tokens, request.tokens_new, request.fate) == ("generate", 2, 2, "resumed")
    assert "canary" not in repr(one)
    for _ in range(limits.postmortems_kept_max):
        (await world.restarted()).exit(3)
    found = world.runtime.postmortems.all()
    assert len(found) == limits.postmortems_kept_max
    assert found[0].exit_code == 3
    await stream.__aexit__()
