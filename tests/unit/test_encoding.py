"""What the batch planner of encoders promises: nothing lost, nothing twice, order, bounds, turns."""

from __future__ import annotations

from collections import Counter
from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmvisor_runtimes.encoding import Batch, BatchPlanner, Fault, Input, Job, Part
from llmvisor_runtimes.protocol import Lane

Planner = BatchPlanner[str, str]


def planner(tokens_max: int = 64, inputs_max: int = 8, **others: int) -> Planner:
    return BatchPlanner(tokens_max=tokens_max, inputs_max=inputs_max, **others)


def text(name: str, length: int) -> Input[str]:
    return Input(name, length, name)


def job(id: int, *lengths: int, lane: Lane = "interactive", client: str = "", whole: bool = False) -> Job[str]:
    """A job whose inputs are all different from those of others."""
    inputs = [text(f"{id}.{index}", length) for index, length in enumerate(lengths)]
    return Job(id, inputs, lane=lane, client=client, whole=whole)


def computed(batch: Batch[str]) -> list[str]:
    return [f"<{payload}>" for payload in batch.inputs]


def run(queue: Planner) -> tuple[list[Batch[str]], list[Part[str]]]:
    """Compute all there is."""
    batches: list[Batch[str]] = []
    parts: list[Part[str]] = []
    while (batch := queue.next_batch()) is not None:
        batches.append(batch)
        parts += queue.done(batch, computed(batch))
    assert not queue
    return batches, parts


def results_of(parts: list[Part[str]], id: int) -> list[str]:
    """A job's results; checks that its parts follow each other and that exactly the final one is the last."""
    own = [part for part in parts if part.id == id]
    results: list[str] = []
    for part in own:
        assert part.first == len(results)
        results += part.results
    assert [part.last for part in own] == [False] * (len(own) - 1) + [True]
    return results


def test_planner_gives_a_job_its_results_in_order() -> None:
    """Inputs are computed in whatever order suits; they come back in the order in which they were asked for."""
    queue = planner()
    assert queue.submit(job(1, 40, 3, 41, 3)) == []
    batches, parts = run(queue)
    assert len(batches) > 1
    assert results_of(parts, 1) == ["<1.0>", "<1.1>", "<1.2>", "<1.3>"]
    assert (queue.jobs, bool(queue)) == (0, False)


def test_planner_ends_an_empty_job_at_once() -> None:
    """A request without inputs has an answer: none."""
    assert planner().submit(Job(1, [])) == [Part(1, 0, [], last=True)]


def test_planner_keeps_a_whole_job_together() -> None:
    """A job that is answered in one piece gives one part."""
    queue = planner(inputs_max=1)
    queue.submit(job(1, 5, 5, 5, whole=True))
    batches, parts = run(queue)
    assert len(batches) == 3
    assert [(part.first, len(part.results), part.last) for part in parts] == [(0, 3, True)]


def test_batches_join_the_inputs_of_several_jobs() -> None:
    """Requests that wait at the same moment are computed together."""
    queue = planner()
    for id in range(1, 5):
        queue.submit(job(id, 8, client=f"client-{id}"))
    batches, parts = run(queue)
    assert [len(batch.units) for batch in batches] == [4]
    assert all(results_of(parts, id) == [f"<{id}.0>"] for id in range(1, 5))


def test_batch_holds_similar_lengths_only() -> None:
    """Short and long texts are not padded to each other."""
    queue = planner(tokens_max=1000)
    queue.submit(job(1, 4, 100, 4, 100, 4, 100))
    batches, _ = run(queue)
    assert sorted(batch.longest for batch in batches) == [4, 100]


def test_padding_below_the_free_amount_is_allowed() -> None:
    """Where another pass costs more than the padding, short texts of any length go together."""
    queue = planner(tokens_max=1000, padding_free_tokens=20)
    queue.submit(job(1, 4, 10, 5, 9))
    batches, _ = run(queue)
    assert len(batches) == 1


def test_input_over_the_budget_goes_alone() -> None:
    """A text that is longer than a batch may be is still computed."""
    queue = planner(tokens_max=50)
    queue.submit(job(1, 80, 80, 79))
    batches, parts = run(queue)
    assert [len(batch.units) for batch in batches] == [1, 1, 1]
    assert len(results_of(parts, 1)) == 3


def test_exact_duplicate_is_computed_once_for_all_who_asked() -> None:
    """Within a job, among jobs that wait, and for one that comes while it is computed."""
    queue = planner()
    queue.submit(Job(1, [text("same", 5), text("other", 5), text("same", 5)]))
    queue.submit(Job(2, [text("same", 5)], client="b"))
    batch = queue.next_batch()
    assert batch is not None
    assert sorted(batch.inputs) == ["other", "same"]
    queue.submit(Job(3, [text("same", 5)], client="c"))
    parts = queue.done(batch, computed(batch))
    assert results_of(parts, 1) == ["<same>", "<other>", "<same>"]
    assert results_of(parts, 2) == results_of(parts, 3) == ["<same>"]
    assert queue.next_batch() is None


def test_duplicates_beyond_the_lookahead_are_computed_once() -> None:
    """A job of one text a thousand times costs one."""
    queue = planner(lookahead_inputs=4)
    queue.submit(Job(1, [text("same", 5)] * 1000))
    batches, parts = run(queue)
    assert sum(len(batch.units) for batch in batches) == 1
    assert results_of(parts, 1) == ["<same>"] * 1000


def test_interactive_goes_ahead_of_bulk() -> None:
    """A single text waits for no more than the batch under way, whatever the bulk job's size."""
    queue = planner()
    queue.submit(job(1, *[8] * 200, lane="bulk"))
    first = queue.next_batch()
    assert first is not None
    queue.submit(job(2, 8))
    queue.done(first, computed(first))
    second = queue.next_batch()
    assert second is not None
    assert (second.lane, second.inputs) == ("interactive", ["2.0"])


def test_bulk_never_starves() -> None:
    """While interactive requests never end, bulk gets one batch after a bounded run of theirs."""
    queue = planner(interactive_run_max=3)
    queue.submit(job(1, *[8] * 40, lane="bulk"))
    lanes: list[Lane] = []
    for id in range(2, 34):
        queue.submit(job(id, 8))
        batch = queue.next_batch()
        assert batch is not None
        lanes.append(batch.lane)
        queue.done(batch, computed(batch))
    assert "".join(lane[0] for lane in lanes[:12]) == "iiibiiibiiib"


def test_interactive_asker_pulls_an_input_out_of_the_bulk_lane() -> None:
    """What somebody waits for does not stay behind because a bulk job asked first."""
    queue = planner(inputs_max=1)
    queue.submit(Job(1, [text("a", 5), text("b", 5)], lane="bulk"))
    queue.submit(Job(2, [text("b", 5)], client="x"))
    batches, parts = run(queue)
    assert [batch.inputs for batch in batches] == [["b"], ["a"]]
    assert results_of(parts, 2) == ["<b>"]
    assert results_of(parts, 1) == ["<a>", "<b>"]


def test_bulk_batches_have_a_budget_of_their_own() -> None:
    """Who measures that bulk batches take long makes them smaller; interactive ones stay."""
    queue = planner(tokens_max=64, inputs_max=100)
    queue.bulk_tokens_max = 16
    queue.submit(job(1, *[8] * 4, lane="bulk"))
    queue.submit(job(2, *[8] * 8))
    batches, _ = run(queue)
    assert [(batch.lane, batch.padded_tokens) for batch in batches] == [
        ("interactive", 64), ("bulk", 16), ("bulk", 16),
    ]  # fmt: skip


@given(
    queued=st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=30), min_size=2, max_size=6),
    waits=st.integers(1, 60),
)
def test_client_waits_for_no_more_turns_than_there_are_clients(queued: list[list[int]], waits: int) -> None:
    """However much the others have queued, a newcomer's first input is in one of the next batches."""
    queue = planner()
    for id, lengths in enumerate(queued, start=1):
        queue.submit(job(id, *lengths, client=f"client-{id}"))
    queue.submit(job(100, waits, client="late"))
    for _ in range(len(queued) + 1):
        batch = queue.next_batch()
        assert batch is not None
        if "100.0" in batch.inputs:
            return
        queue.done(batch, computed(batch))
    pytest.fail("the newcomer had no turn")


def test_clients_share_the_batches_of_one_length() -> None:
    """Two clients with much queued have about the same number of inputs in each batch."""
    queue = planner()
    queue.submit(job(1, *[8] * 100, client="a"))
    queue.submit(job(2, *[8] * 100, client="b"))
    for _ in range(10):
        batch = queue.next_batch()
        assert batch is not None
        assert Counter(payload.split(".")[0] for payload in batch.inputs) == {"1": 4, "2": 4}
        queue.done(batch, computed(batch))


def test_failing_batch_is_halved_until_the_bad_input_alone_fails() -> None:
    """Whoever was in a batch with a bad input gets an answer all the same."""
    queue = planner(tokens_max=1000, inputs_max=100)
    for id in range(1, 9):
        queue.submit(job(id, 5, 5, client=f"client-{id}"))
    parts: list[Part[str]] = []
    faults: list[Fault] = []
    passes = 0
    error = ValueError("bad")
    while (batch := queue.next_batch()) is not None:
        passes += 1
        if "5.1" in batch.inputs:
            faults += queue.failed(batch, error)
        else:
            parts += queue.done(batch, computed(batch))
    assert faults == [Fault(5, error)]
    assert all(len(results_of(parts, id)) == 2 for id in range(1, 9) if id != 5)
    assert passes <= 10
    assert queue.jobs == 0


def test_bad_input_fails_everyone_who_asked_for_it() -> None:
    """A duplicate of a bad input is as bad."""
    queue = planner()
    queue.submit(Job(1, [text("bad", 5)]))
    queue.submit(Job(2, [text("bad", 5)]))
    batch = queue.next_batch()
    assert batch is not None
    assert [fault.id for fault in queue.failed(batch, ValueError("bad"))] == [1, 2]
    assert not queue


def test_retries_of_bulk_wait_behind_interactive() -> None:
    """A bulk job that fails holds up nobody in the other lane."""
    queue = planner()
    queue.submit(job(1, 8, 8, 8, 8, lane="bulk"))
    batch = queue.next_batch()
    assert batch is not None
    queue.failed(batch, ValueError("bad"))
    queue.submit(job(2, 8))
    batch = queue.next_batch()
    assert batch is not None
    assert batch.lane == "interactive"


def test_out_of_memory_halves_and_is_remembered() -> None:
    """What did not fit once is not tried again in that size."""
    queue = planner(tokens_max=64)
    queue.submit(job(1, *[8] * 24))
    batch = queue.next_batch()
    assert batch is not None
    assert batch.padded_tokens == 64
    assert queue.out_of_memory(batch, MemoryError()) == []
    batches, parts = run(queue)
    assert {batch.padded_tokens for batch in batches} == {32}
    assert len(results_of(parts, 1)) == 24


def test_input_that_never_fits_fails_its_job() -> None:
    """A single text that takes all memory is a failure of its request, not a loop."""
    queue = planner()
    queue.submit(job(1, 60))
    batch = queue.next_batch()
    assert batch is not None
    assert [fault.id for fault in queue.out_of_memory(batch, MemoryError())] == [1]
    assert queue.tokens_max == 64


def test_cancelled_job_leaves_nothing_behind() -> None:
    """Its inputs go from the queue, but for those that others want too."""
    queue = planner()
    queue.submit(Job(1, [text("mine", 5), text("ours", 5)]))
    queue.submit(Job(2, [text("ours", 5)]))
    assert queue.cancel(1)
    assert not queue.cancel(1)
    batches, parts = run(queue)
    assert [batch.inputs for batch in batches] == [["ours"]]
    assert {part.id for part in parts} == {2}


def test_job_cancelled_while_it_is_computed_gets_no_part() -> None:
    """The results of its batch are for the others in it."""
    queue = planner()
    queue.submit(job(1, 8, client="a"))
    queue.submit(job(2, 8, client="b"))
    batch = queue.next_batch()
    assert batch is not None
    queue.cancel(1)
    assert [part.id for part in queue.done(batch, computed(batch))] == [2]


def test_job_looks_ahead_by_a_bounded_number_of_inputs() -> None:
    """A job of very many texts holds few results: those next to what it has handed out."""
    queue = planner(lookahead_inputs=16)
    # One long text first, then short ones of every length: out of order they would all be there before it.
    queue.submit(job(1, *[60 if index % 16 == 0 else 1 + index % 7 for index in range(200)]))
    handed_out = 0
    seen: set[str] = set()
    while (batch := queue.next_batch()) is not None:
        seen.update(batch.inputs)
        assert max(int(payload.split(".")[1]) for payload in seen) < handed_out + 16 + 1
        handed_out += sum(len(part.results) for part in queue.done(batch, computed(batch)))
    assert handed_out == 200


JOBS = st.lists(
    st.tuples(
        st.lists(st.integers(1, 40), max_size=12),
        st.sampled_from(["interactive", "bulk"]),
        st.sampled_from(["a", "b", "c"]),
        st.booleans(),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150)
@given(jobs=JOBS, events=st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_any_mix_of_jobs_ends_with_each_result_once(
    jobs: list[tuple[list[int], Lane, str, bool]], events: list[int]
) -> None:
    """Jobs come, are cancelled, fail and run out of memory in any order; who is left gets all results, each once."""
    queue = planner(tokens_max=100, inputs_max=5, lookahead_inputs=4)
    wanted: dict[int, list[str]] = {}
    parts: list[Part[str]] = []
    ended: set[int] = set()
    to_come = list(enumerate(jobs, start=1))
    event = cycle(events)
    while to_come or queue:
        if to_come and (not queue or next(event) < 5):
            id, (lengths, lane, client, whole) = to_come.pop(0)
            # The text decides the length, so that equal lengths are exact duplicates of each other.
            inputs = [text(f"text-{length}", length) for length in lengths]
            wanted[id] = [f"<{input.payload}>" for input in inputs]
            parts += queue.submit(Job(id, inputs, lane=lane, client=client, whole=whole))
        if wanted and next(event) == 0:
            victim = sorted(wanted)[next(event) % len(wanted)]
            if queue.cancel(victim):
                ended.add(victim)
        batch = queue.next_batch()
        if batch is None:
            continue
        assert len(batch.units) <= 5
        assert len(batch.units) == 1 or batch.padded_tokens <= 100
        assert len(set(batch.inputs)) == len(batch.inputs)
        if "text-13" in batch.inputs:
            ended.update(fault.id for fault in queue.failed(batch, ValueError("bad")))
        elif next(event) == 1 and len(batch.units) > 1:
            assert queue.out_of_memory(batch, MemoryError()) == []
        else:
            parts += queue.done(batch, computed(batch))
    assert (queue.jobs, bool(queue)) == (0, False)
    for id, results in wanted.items():
        if id not in ended:
            assert "<text-13>" not in results
            assert results_of(parts, id) == results


@given(lengths=st.lists(st.integers(1, 512), min_size=1, max_size=200))
def test_each_input_is_computed_exactly_once(lengths: list[int]) -> None:
    """Whatever the lengths, the batches together are the inputs, and little of them is padding."""
    queue = planner(tokens_max=2048, inputs_max=64)
    queue.submit(job(1, *lengths))
    batches, parts = run(queue)
    assert sorted(payload for batch in batches for payload in batch.inputs) == sorted(
        f"1.{index}" for index in range(len(lengths))
    )
    assert len(results_of(parts, 1)) == len(lengths)
    padded = sum(batch.padded_tokens for batch in batches)
    assert padded - sum(lengths) <= 0.1 * padded
