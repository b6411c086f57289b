"""The mock backend at work: slots, timing, cancels, options and failpoints."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.mock_driver import Mock, numbers, reply_of
from tests.support.worker_client import text_request

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import LoadError, RequestError
from llmvisor_runtimes.mock import LOAD_STEPS
from llmvisor_runtimes.protocol import (
    ChatMessage,
    ChatPrompt,
    Failed,
)

# --------------------------------------------------------------------------------------------- slots and batching


def test_sixteen_streams_equal_what_each_gives_alone() -> None:
    """Requests that run together do not touch each other."""
    requests = [text_request(id, f"prompt {id}", max_tokens=20 + id) for id in range(16)]
    mock = Mock(parallel=16)
    mock.run(*requests)
    assert max(len(step.deltas) for step in mock.steps) == 16
    for request in requests:
        assert mock.replies[request.id].tokens() == reply_of(request).tokens()


def test_requests_beyond_the_slots_wait_their_turn() -> None:
    """First come, first served; the others count as waiting."""
    mock = Mock(parallel=2)
    mock.take(*[text_request(id, "x", max_tokens=3) for id in range(1, 5)])
    mock.step()
    assert [mock.replies[id].tokens() != [] for id in range(1, 5)] == [True, True, False, False]
    assert (mock.backend.progress().active, mock.backend.progress().waiting) == (2, 2)
    mock.step(3)
    assert mock.replies[3].tokens() != []
    mock.run(text_request(5, "x"))
    assert all(reply.done for reply in mock.replies.values())


def test_choices_beyond_the_slots_all_come() -> None:
    """A request may have more choices than there are slots."""
    reply = reply_of(text_request(1, "x", n=5, max_tokens=3), parallel=2)
    assert [reply.finish(index) for index in range(5)] == ["length"] * 5
    assert reply.done is not None
    assert reply.done.completion_tokens == 15


def test_done_comes_once_with_the_last_choice() -> None:
    """One `Done` for a request, in the step of its last delta."""
    mock = Mock()
    mock.run(text_request(1, "x", n=3, max_tokens=4))
    assert [bool(step.done) for step in mock.steps] == [False] * 3 + [True]


def test_common_prefix_counts_as_cached() -> None:
    """Prompt tokens seen before are not computed again, but for the last one; not where the request says so."""
    mock = Mock()
    cached = [
        mock.run(text_request(id, text, max_tokens=1, cache_prompt=cache_prompt)).done
        for id, (text, cache_prompt) in enumerate(
            [("system one", True), ("system two", True), ("system two", True), ("system two", False), ("new", True)]
        )
    ]
    assert [done.cached_tokens if done else None for done in cached] == [0, 7, 9, 0, 0]


# ---------------------------------------------------------------------------------------------------------- timing


def test_delays_follow_the_clock() -> None:
    """Prefill by prompt token, then one token each `token_delay_ms`; the reply's timings tell it."""
    mock = Mock(token_delay_ms=20, prefill_ms_per_token=10)
    began = mock.clock.now
    reply = mock.run(text_request(1, "hello", max_tokens=5))
    assert mock.clock.now - began == pytest.approx(0.05 + 4 * 0.02)
    assert reply.done is not None
    assert reply.done.prompt_ms == pytest.approx(50)
    assert reply.done.predicted_ms == pytest.approx(80)


def test_long_delay_moves_the_step_number() -> None:
    """The daemon judges by progress: while a token takes long, steps go on."""
    mock = Mock(prefill_ms_per_token=1000)
    mock.take(text_request(1, "hello", max_tokens=1))
    mock.step()
    assert mock.backend.progress().phase == "prefill"
    assert mock.backend.delay_seconds() == limits.mock_step_seconds_max
    before = mock.backend.progress().step
    mock.step()
    assert mock.backend.progress().step > before
    assert mock.replies[1].deltas == []


def test_load_takes_its_time_and_tells_of_it() -> None:
    """`load_seconds` in ten steps of progress, and in the model's info."""
    mock = Mock(load_seconds=3)
    assert mock.info.load_seconds == pytest.approx(3)
    assert [done for _, done, _, _ in mock.progress] == list(range(LOAD_STEPS + 1))
    assert {call[2:] for call in mock.progress} == {(LOAD_STEPS, "steps")}


def test_progress_tells_phase_and_tokens() -> None:
    """Idle, decoding, idle; tokens are prompt and reply."""
    mock = Mock()
    assert mock.backend.progress().phase == "idle"
    assert mock.backend.delay_seconds() is None
    mock.take(text_request(1, "hello", max_tokens=3))
    mock.step()
    progress = mock.backend.progress()
    assert (progress.phase, progress.active, progress.tokens, progress.kv_used) == ("decode", 1, 6, 6)
    mock.step(2)
    assert mock.backend.progress().phase == "idle"
    assert mock.backend.progress().tokens == 8


# -------------------------------------------------------------------------------------------- cancel, pause, resume


def test_cancel_ends_a_request_within_one_step() -> None:
    """Its choices end `cancelled`, its `Done` tells what there was, the others go on."""
    mock = Mock()
    mock.take(text_request(1, "x", n=2), text_request(2, "x"))
    mock.step(3)
    mock.backend.cancel(1)
    assert mock.backend.delay_seconds() == 0
    mock.step()
    reply = mock.replies[1]
    assert (reply.finish(0), reply.finish(1)) == ("cancelled", "cancelled")
    assert reply.done is not None
    assert reply.done.completion_tokens == 6
    assert mock.run(text_request(3, "x")).done is not None
    assert mock.replies[2].finish() == "length"


def test_cancel_reaches_a_request_that_waits_for_a_slot() -> None:
    """It ends without ever having run, and the queue goes on behind it."""
    mock = Mock(parallel=1)
    mock.take(text_request(1, "x"), text_request(2, "x"), text_request(3, "x"))
    mock.step()
    mock.backend.cancel(2)
    mock.step()
    reply = mock.replies[2]
    assert (reply.finish(), reply.tokens()) == ("cancelled", [])
    assert mock.backend.progress().waiting == 1
    mock.run(text_request(4, "x"))
    assert mock.replies[3].finish() == "length"


def test_cancel_of_an_unknown_or_ended_request_does_nothing() -> None:
    """The daemon may be late."""
    mock = Mock()
    mock.run(text_request(1, "x", max_tokens=1))
    steps = len(mock.steps)
    mock.backend.cancel(1)
    mock.backend.cancel(99)
    mock.step()
    assert len(mock.steps) == steps


def test_cancel_gives_the_text_held_back() -> None:
    """Text that waited for a stop string to be told comes with the last delta."""
    words = reply_of(text_request(1, "x", max_tokens=3)).text()
    mock = Mock()
    mock.take(text_request(1, "x", stop=[words + "!"]))
    mock.step(3)
    assert mock.replies[1].text() == ""
    mock.backend.cancel(1)
    mock.step()
    assert mock.replies[1].text() == words


def test_paused_request_gets_no_token_until_it_is_resumed() -> None:
    """Others go on; a mock that has only paused requests is idle; a paused request can be cancelled."""
    mock = Mock()
    mock.take(text_request(1, "x", max_tokens=9), text_request(2, "x", max_tokens=3))
    mock.step()
    mock.backend.pause(1)
    mock.step(4)
    assert len(mock.replies[1].tokens()) == 1
    assert mock.replies[2].finish() == "length"
    assert mock.backend.delay_seconds() is None
    assert mock.backend.progress().phase == "idle"
    mock.backend.resume(1)
    assert mock.backend.delay_seconds() == 0
    mock.step()
    assert len(mock.replies[1].tokens()) == 2
    mock.backend.pause(1)
    mock.backend.cancel(1)
    mock.step()
    assert mock.replies[1].finish() == "cancelled"


# -------------------------------------------------------------------------------------------- options and failpoints


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token_delay": 3}, "token_delay"),
        ({"token_delay_ms": -1}, "token_delay_ms"),
        ({"tokens_per_step": 0}, "tokens_per_step"),
        ({"reply_tokens": "many"}, "reply_tokens"),
        ({"failpoints": "load=fly"}, "options.failpoints: no verb 'fly'.*at position 5"),
    ],
)
def test_wrong_option_can_never_load(options: dict[str, Any], message: str) -> None:
    """It is named, and trying again is of no use."""
    with pytest.raises(LoadError, match=message) as caught:
        Mock(**options)
    assert caught.value.permanent


@pytest.mark.parametrize(("verb", "permanent"), [("error(disk is slow)", False), ("refuse(disk is slow)", True)])
def test_load_fails_as_told(verb: str, permanent: bool) -> None:
    """`error` may work another time, `refuse` never."""
    with pytest.raises(LoadError, match="disk is slow") as caught:
        Mock(failpoints=f"load=2*token->{verb}")
    assert caught.value.permanent is permanent


def test_generation_fails_after_exactly_so_many_tokens() -> None:
    """The tokens before it come, then one `Failed`, and no `Done`; other requests go on."""
    mock = Mock(tokens_per_step=4)
    mock.take(text_request(1, "[[failpoint: generate=3*token->error(oops)]]", n=2), text_request(2, "x"))
    mock.step(9)
    reply = mock.replies[1]
    assert reply.failed == Failed(1, "internal_error", "oops")
    assert numbers(reply.tokens(0)) + numbers(reply.tokens(1)) == [0, 1, 0]
    assert reply.done is None
    assert len(mock.replies[2].tokens()) == 36


def test_models_failpoints_hit_the_request_that_comes_then() -> None:
    """`1*ok->1*error`: the first request is served, the second fails, the third is served."""
    mock = Mock(failpoints="generate=1*ok->1*error(oops)->ok")
    replies = [mock.run(text_request(id, "x", max_tokens=3)) for id in range(3)]
    assert [bool(reply.failed) for reply in replies] == [False, True, False]


def test_panic_comes_out_of_step() -> None:
    """An exception of the engine itself is not the request's failure."""
    mock = Mock()
    mock.take(text_request(1, "[[failpoint: generate=panic]]"))
    with pytest.raises(RuntimeError, match="injected"):
        mock.step()


@pytest.mark.parametrize("operation", ["tokenize", "apply_template"])
def test_other_operations_fail_as_told(operation: str) -> None:
    """Each operation has its own failpoint."""
    mock = Mock(failpoints=f"{operation}=1*refuse(not now)")
    chat = ChatPrompt([ChatMessage("user", "hi")])
    calls = {
        "tokenize": lambda: mock.backend.tokenize(chat, add_special=True, parse_special=True),
        "apply_template": lambda: mock.backend.apply_template(chat),
    }
    with pytest.raises(RequestError, match="not now") as caught:
        calls[operation]()
    assert caught.value.kind == "invalid_value"
    assert mock.backend.apply_template(chat)


def test_prompts_wrong_failpoint_is_the_requests_error() -> None:
    """With its position in the prompt, and the parameter that holds it."""
    with pytest.raises(RequestError, match="at position 13") as caught:
        Mock().take(text_request(1, "[[failpoint: fly=ok]]"))
    assert (caught.value.kind, caught.value.param) == ("invalid_value", "prompt")


def test_fault_of_frames_needs_a_host() -> None:
    """Without pipes there is nothing to break; it says so rather than pass."""
    mock = Mock()
    mock.take(text_request(1, "[[failpoint: generate=badid]]"))
    with pytest.raises(RuntimeError, match="pipes"):
        mock.step()
