"""`llmctl run` and `chat`: prompts in, text out."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import fake_daemon as fake
from tests.support.fake_daemon import FakeDaemon, as_object, chat_chunks
from tests.support.llmctl_process import TerminalRun, llmctl

COMPLETIONS = "/v1/chat/completions"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path / "s") as daemon:
        daemon.answer("GET", "/llm/models/light", fake.model())
        daemon.stream("POST", COMPLETIONS, chat_chunks("The sky", " is", " blue."))
        yield daemon


@pytest.fixture
def state(tmp_path: Path) -> dict[str, str]:
    """An environment in which chat keeps its history beside the test."""
    return {"XDG_STATE_HOME": str(tmp_path / "state")}


def messages(daemon: FakeDaemon) -> list[list[dict[str, str]]]:
    return [as_object(request)["messages"] for request in daemon.asked("POST", COMPLETIONS)]


def test_run_streams_the_answer(daemon: FakeDaemon) -> None:
    """The text alone on stdout, ended by a line break."""
    ended = llmctl(daemon.socket_path, "run", "light", "Why", "blue?")
    assert (ended.code, ended.stdout, ended.stderr) == (0, "The sky is blue.\n", "")
    assert messages(daemon) == [[{"role": "user", "content": "Why blue?"}]]
    assert as_object(daemon.requests[0])["model"] == "light"
    assert as_object(daemon.requests[0])["stream"] is True


def test_run_hands_its_settings_on(daemon: FakeDaemon) -> None:
    """Settings that are given go out, others are left to the model."""
    llmctl(daemon.socket_path, "run", "light", "hi", "--system", "Be brief.", "--temperature", "0", "--seed", "7")
    request = as_object(daemon.requests[0])
    assert request["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (request["temperature"], request["seed"]) == (0, 7)
    assert "max_tokens" not in request


@pytest.mark.parametrize(
    ("words", "prompt"),
    [
        ([], "from stdin\n"),
        (["-"], "from stdin\n"),
        (["Summarise:"], "Summarise:\n\nfrom stdin\n"),
        (["Before", "-", "after"], "Before\n\nfrom stdin\n\n\nafter"),
    ],
)
def test_run_reads_what_is_piped_in(daemon: FakeDaemon, words: list[str], prompt: str) -> None:
    """Standard input is the prompt, or stands where `-` does, or comes after the words."""
    llmctl(daemon.socket_path, "run", "light", *words, stdin=b"from stdin\n")
    assert messages(daemon) == [[{"role": "user", "content": prompt}]]


def test_run_without_a_prompt_is_a_usage_error(daemon: FakeDaemon) -> None:
    """Nothing is asked of the model."""
    assert llmctl(daemon.socket_path, "run", "light", stdin=b" \n").code == 2
    assert llmctl(daemon.socket_path, "run", "light").code == 2
    assert daemon.requests == []


def test_run_on_a_terminal_loads_the_model_with_a_bar_first(daemon: FakeDaemon) -> None:
    """A person sees why the answer takes its time; the question comes after the load."""
    daemon.answer("GET", "/llm/models/light", fake.model(state="not_loaded"))
    daemon.answer("POST", "/jobs", fake.job())
    daemon.stream("GET", "/jobs/job_01/events", [("job", fake.job()), ("job", fake.ended_job())])
    with TerminalRun(daemon.socket_path, "run", "light", "hi") as run:
        run.expect("loading smollm2-135m-instruct")
        run.expect("The sky is blue.")
        assert run.wait() == 0
    assert [request.path for request in daemon.requests][-1] == COMPLETIONS


def test_run_in_a_pipe_asks_at_once(daemon: FakeDaemon) -> None:
    """One request: the daemon loads the model by itself."""
    llmctl(daemon.socket_path, "run", "light", "hi")
    assert [request.path for request in daemon.requests] == [COMPLETIONS]


def test_run_tells_statistics_on_stderr(daemon: FakeDaemon) -> None:
    """`--stats` leaves stdout to the answer."""
    ended = llmctl(daemon.socket_path, "run", "light", "hi", "--stats")
    assert ended.stdout == "The sky is blue.\n"
    assert ended.stderr.startswith("3 tokens")


def test_run_json_is_the_whole_answer(daemon: FakeDaemon) -> None:
    """With `--json` nothing is streamed: the API's own completion comes out."""
    answer = {"id": "chatcmpl-1", "object": "chat.completion"}
    daemon.answer("POST", COMPLETIONS, answer)
    assert json.loads(llmctl(daemon.socket_path, "run", "light", "hi", "--json").stdout) == answer
    assert not as_object(daemon.requests[0]).get("stream")


def test_run_fails_on_an_error_inside_the_stream(daemon: FakeDaemon) -> None:
    """What came is printed, the error goes to stderr, the exit code is 1."""
    error = {"message": "the worker crashed", "type": "model_error", "code": "runtime_crashed", "param": None}
    daemon.stream("POST", COMPLETIONS, [*chat_chunks("The sky")[:2], (None, {"error": error})])
    ended = llmctl(daemon.socket_path, "run", "light", "hi")
    assert (ended.code, ended.stdout) == (1, "The sky\n")
    assert "the worker crashed" in ended.stderr


def test_run_fails_on_a_stream_that_is_cut(daemon: FakeDaemon) -> None:
    """A stream without its end mark is not taken for an answer."""
    daemon.stream("POST", COMPLETIONS, chat_chunks("The sky")[:2])
    ended = llmctl(daemon.socket_path, "run", "light", "hi")
    assert ended.code == 1
    assert "cut off before its end" in ended.stderr


def test_run_keeps_control_characters_from_a_terminal(daemon: FakeDaemon) -> None:
    """A model cannot steer the terminal; a pipe gets what the model said."""
    daemon.stream("POST", COMPLETIONS, chat_chunks("a\x1b]0;title\x07b\n\tc"))
    with TerminalRun(daemon.socket_path, "run", "light", "hi") as run:
        assert run.wait() == 0
    assert "\x1b" not in run.raw
    assert "b\r\n\tc" in run.raw
    assert llmctl(daemon.socket_path, "run", "light", "hi").stdout == "a\x1b]0;title\x07b\n\tc\n"


def test_run_interrupted_leaves_the_daemon(daemon: FakeDaemon) -> None:
    """Ctrl-C closes the connection, which is how the daemon knows to stop; exit code 130."""
    daemon.stream("POST", COMPLETIONS, chat_chunks("The sky")[:2], hold_open=True)
    with TerminalRun(daemon.socket_path, "run", "light", "hi") as run:
        run.expect("The sky")
        run.interrupt()
        assert run.wait() == 130
    assert daemon.client_left.wait(10)


def test_chat_keeps_the_conversation(daemon: FakeDaemon, state: dict[str, str]) -> None:
    """The second question goes out with the first one and its answer; Ctrl-D ends with 0."""
    with TerminalRun(daemon.socket_path, "chat", "light", env=state) as run:
        run.expect(">>> ")
        run.send("Why?\n")
        run.expect("The sky is blue.\n")
        run.expect(">>> ")
        run.send("Sure?\n")
        run.expect("The sky is blue.\n")
        run.expect(">>> ")
        run.send("\x04")
        assert run.wait() == 0
    assert [message["content"] for message in messages(daemon)[1]] == ["Why?", "The sky is blue.", "Sure?"]


def test_chat_interrupt_stops_the_answer_and_not_the_program(daemon: FakeDaemon, state: dict[str, str]) -> None:
    """1. Ctrl-C in an answer. 2. Another question. Result: the first goes on as far as it came."""
    daemon.stream("POST", COMPLETIONS, chat_chunks("The sky")[:2], hold_open=True)
    with TerminalRun(daemon.socket_path, "chat", "light", env=state) as run:
        run.expect(">>> ")
        run.send("Why?\n")
        run.expect("The sky")
        run.interrupt(until="(stopped)")
        run.expect("(stopped)")
        run.expect(">>> ")
        assert daemon.client_left.wait(10)
        daemon.stream("POST", COMPLETIONS, chat_chunks("Yes."))
        run.send("Sure?\n")
        run.expect("Yes.")
        run.expect(">>> ")
        run.send("half a mess")
        run.expect("half a mess")
        run.interrupt(until=">>> ")
        run.expect(">>> ")
        run.send("/exit\n")
        assert run.wait() == 0
    assert [message["content"] for message in messages(daemon)[1]] == ["Why?", "The sky", "Sure?"]


def test_chat_takes_a_message_of_several_lines(daemon: FakeDaemon, state: dict[str, str]) -> None:
    '''Between `"""` line breaks are part of the message.'''
    with TerminalRun(daemon.socket_path, "chat", "light", env=state) as run:
        run.expect(">>> ")
        run.send('"""one\n')
        run.expect("... ")
        run.send('two"""\n')
        run.expect("The sky is blue.")
        run.send("/exit\n")
        assert run.wait() == 0
    assert messages(daemon)[0][-1]["content"] == "one\ntwo"


def test_chat_goes_on_after_an_error(daemon: FakeDaemon, state: dict[str, str]) -> None:
    """A refusal is told, and the conversation is as it was before."""
    daemon.error("POST", COMPLETIONS, "the queue is full", status=503, code="queue_full")
    with TerminalRun(daemon.socket_path, "chat", "light", env=state) as run:
        run.expect(">>> ")
        run.send("Why?\n")
        run.expect("the queue is full")
        daemon.stream("POST", COMPLETIONS, chat_chunks("Yes."))
        run.send("Again?\n")
        run.expect("Yes.")
        run.send("/exit\n")
        assert run.wait() == 0
    assert [message["content"] for message in messages(daemon)[-1]] == ["Again?"]


def test_chat_commands_work_from_a_pipe(daemon: FakeDaemon, tmp_path: Path) -> None:
    """Settings and system message go out with the next question; `/save` writes the conversation."""
    script = ["/system Be brief.", "/set top_k 4", "/set temperature 3", "Why?", f"/save {tmp_path / 'talk.json'}"]
    ended = llmctl(daemon.socket_path, "chat", "light", stdin="\n".join(script).encode())
    assert "temperature goes from 0 to 2" in ended.stderr
    request = as_object(daemon.asked("POST", COMPLETIONS)[0])
    assert request["messages"][0] == {"role": "system", "content": "Be brief."}
    assert request["top_k"] == 4
    assert "temperature" not in request
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert [message["role"] for message in saved["messages"]] == ["system", "user", "assistant"]


def test_chat_from_a_pipe_fails_when_an_answer_fails(daemon: FakeDaemon) -> None:
    """A script can tell by the exit code."""
    daemon.error("POST", COMPLETIONS, "no", status=503, code="queue_full")
    assert llmctl(daemon.socket_path, "chat", "light", stdin=b"hi\n").code == 1


def test_chat_without_a_model_takes_the_first_that_is_loaded(daemon: FakeDaemon) -> None:
    """A model that is down is passed over, and so is one that is not loaded while another is."""
    found = [
        fake.model("down", state="error"),
        fake.model("idle", state="not_loaded"),
        fake.model("up", state="busy", id="heavy/up"),
    ]
    daemon.items("/llm/models", found)
    llmctl(daemon.socket_path, "chat", stdin=b"hi\n")
    assert as_object(daemon.asked("POST", COMPLETIONS)[0])["model"] == "heavy/up"


def test_chat_history_is_its_owners_alone(daemon: FakeDaemon, state: dict[str, str]) -> None:
    """Questions are kept for the next time, in a file that nobody else may read."""
    with TerminalRun(daemon.socket_path, "chat", "light", env=state) as run:
        run.expect(">>> ")
        run.send("a secret\n")
        run.expect("blue.")
        run.expect(">>> ")
        run.send("\x04")
        assert run.wait() == 0
    path = Path(state["XDG_STATE_HOME"]) / "llmvisor" / "chat_history"
    assert "a secret" in path.read_text()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_chat_of_an_unknown_model_ends_at_once(daemon: FakeDaemon) -> None:
    """Exit code 4 before the first question."""
    daemon.error("GET", "/llm/models/nope", "no model 'nope'; did you mean light?", status=404, code="model_not_found")
    ended = llmctl(daemon.socket_path, "chat", "nope", stdin=b"hi\n")
    assert ended.code == 4
    assert "did you mean light?" in ended.stderr
