"""Workers that die, hang, lie or never start: what the daemon makes of it, on real processes.

Each test has a victim and a monitor: the monitor is a stream of another model that must not notice anything.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

import pytest
from tests.support.daemon import Daemon, Json, alive, mock_model, stream, text_of
from tests.support.leaks import no_leaks
from tests.support.polling import eventually_sync

RESUME_OFF = {"X-LLMVISOR-Resume": "off"}
WITH_USAGE = {"include_usage": True}
QUICK_RESTARTS = {"max": 5, "window": 60, "backoff": [0.05, 0.2]}


@pytest.fixture(scope="module")
def daemon() -> Generator[Daemon]:
    models = {
        "victim": mock_model(token_delay_ms=20, restart={**QUICK_RESTARTS, "max": 1000}, stall_timeout=3),
        "heavy": mock_model(token_delay_ms=20, load_seconds=1, restart={**QUICK_RESTARTS, "max": 1000}),
        "encoder": mock_model(restart={**QUICK_RESTARTS, "max": 1000}),
        "monitor": mock_model(token_delay_ms=10),
        "looping": mock_model(failpoints="load=panic", restart=QUICK_RESTARTS),
        "hopeless": mock_model(failpoints="load=exit(78)", restart=QUICK_RESTARTS),
    }
    with no_leaks(), Daemon({"models": models}) as one:
        yield one


ALONE: dict[tuple[str, int], Json] = {}


def undisturbed(daemon: Daemon, model: str, tokens: int) -> Json:
    """What a model answers when nothing goes wrong; asked for once."""
    if (model, tokens) not in ALONE:
        _, ALONE[model, tokens] = daemon.complete(model, max_tokens=tokens)
    return ALONE[model, tokens]


@contextmanager
def monitored(daemon: Daemon) -> Generator[None]:
    """A stream of another model runs all along, and is whole at the end."""
    events: list[str] = []

    def read() -> None:
        with stream(daemon, "monitor", max_tokens=150) as client:
            events.extend(client.events())

    thread = threading.Thread(target=read)
    thread.start()
    eventually_sync(lambda: events, 10)
    yield
    thread.join(30)
    assert events[-1] == "[DONE]"
    assert text_of(events) == undisturbed(daemon, "monitor", 150)["choices"][0]["text"]


def test_sigkill_mid_stream_is_a_pause_and_others_go_on(daemon: Daemon) -> None:
    """1. Two models stream. 2. One worker gets SIGKILL. Result: its stream goes on in another one, each token once, the
    usage right; the other model's goes on untouched."""
    alone = undisturbed(daemon, "victim", 150)
    with monitored(daemon), stream(daemon, "victim", max_tokens=150, stream_options=WITH_USAGE) as client:
        events = [client.next_event()]
        pid = daemon.worker_pid("victim")
        os.kill(pid, signal.SIGKILL)
        events += list(client.events())
        assert events[-1] == "[DONE]"
        assert text_of(events) == alone["choices"][0]["text"]
        last = json.loads(events[-2])
        assert last["usage"] == alone["usage"]
        assert last["timings"]["resumed"] == 1
        assert daemon.worker_pid("victim") != pid
        assert not alive(pid)


def test_worker_killed_from_outside_before_the_first_token_is_no_fault_of_the_request(daemon: Daemon) -> None:
    """1. A request's prompt is being read, alone in its worker. 2. SIGKILL, three times. Result: it is answered."""
    answers: list[int] = []
    prompt = "[[failpoint: generate=delay(1000)]]"
    daemon.complete("victim", max_tokens=1)
    thread = threading.Thread(target=lambda: answers.append(daemon.complete("victim", prompt, max_tokens=3)[0]))
    thread.start()
    pids = [daemon.worker_pid("victim")]
    for _ in range(3):
        eventually_sync(lambda: daemon.runtime("victim")["slots_busy"] == 1, 10)
        os.kill(pids[-1], signal.SIGKILL)
        pids.append(daemon.worker_pid("victim", other_than=pids[-1]))
    thread.join(30)
    assert answers == [200]


def test_several_choices_go_on_each_where_it_was(daemon: Daemon) -> None:
    """n=3, killed three times; every choice is whole, and counted once."""
    _, alone = daemon.complete("victim", max_tokens=60, n=3)
    with stream(daemon, "victim", max_tokens=60, n=3, stream_options=WITH_USAGE) as client:
        events: list[str] = []
        for _ in range(3):
            os.kill(daemon.worker_pid("victim"), signal.SIGKILL)
            # What the dead worker had written, and some of the next one's.
            events += [client.next_event() for _ in range(20)]
        events += list(client.events())
    chunks = [json.loads(event) for event in events if event != "[DONE]"]
    texts = ["", "", ""]
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        texts[choice["index"]] += choice["text"]
    assert texts == [choice["text"] for choice in alone["choices"]]
    assert chunks[-1]["usage"]["completion_tokens"] == alone["usage"]["completion_tokens"] == 180
    assert chunks[-1]["usage"]["prompt_tokens"] == alone["usage"]["prompt_tokens"]
    assert chunks[-1]["timings"]["resumed"] == 3


def test_kills_while_the_next_worker_loads_lose_nothing(daemon: Daemon) -> None:
    """1. A stream runs. 2. Its worker is killed, and so are the next two while they load. 3. A request comes meanwhile.
    Result: the stream is whole, and the request is answered."""
    _, alone = daemon.complete("heavy", max_tokens=60)
    answers: list[int] = []
    with stream(daemon, "heavy", max_tokens=60) as client:
        events = [client.next_event()]
        pids = [daemon.worker_pid("heavy")]
        os.kill(pids[0], signal.SIGKILL)
        thread = threading.Thread(target=lambda: answers.append(daemon.complete("heavy", max_tokens=3)[0]))
        thread.start()
        for _ in range(2):
            eventually_sync(lambda: daemon.runtime("heavy")["pid"] not in {None, *pids}, 10)
            runtime = daemon.runtime("heavy")
            assert runtime["state"] == "loading"
            pids.append(runtime["pid"])
            os.kill(pids[-1], signal.SIGKILL)
        events += list(client.events())
    thread.join(30)
    assert text_of(events) == alone["choices"][0]["text"]
    assert answers == [200]


def test_who_wants_an_error_gets_one(daemon: Daemon) -> None:
    """`X-LLMVISOR-Resume: off`: a status and when to come again before the first byte, an error event after it."""
    body = {"model": "victim", "prompt": "[[failpoint: generate=kill(9)]]"}
    status, answer = daemon.request("POST", "/v1/completions", body, **RESUME_OFF)
    assert (status, answer["error"]["code"]) == (503, "runtime_crashed")
    with stream(daemon, "victim", "[[failpoint: generate=3*token->kill(9)]]", headers=RESUME_OFF) as client:
        events = list(client.events())
    assert json.loads(events[-1])["error"]["code"] == "runtime_crashed"
    assert "SIGKILL" in json.loads(events[-1])["error"]["message"]
    assert daemon.complete("victim", max_tokens=1)[0] == 200


@pytest.mark.parametrize("fault", ["kill(11)", "exit(3)", "garbage(ffffffff00)"])
def test_request_that_ends_two_workers_is_refused_with_its_like(daemon: Daemon, fault: str) -> None:
    """1. A request ends each worker that it runs in, beside one that does not. Result: 422, and for the same request
    again at once; the other one is whole, and who waits is served."""
    alone = undisturbed(daemon, "victim", 100)
    restarts = daemon.runtime("victim")["restarts"]
    poison = f"[[failpoint: generate=2*token->{fault}]]"
    with stream(daemon, "victim", max_tokens=100) as client:
        first = client.next_event()
        status, answer = daemon.complete("victim", poison)
        assert (status, answer["error"]["code"]) == (422, "poison_request"), answer
        assert "llmctl postmortem victim" in answer["error"]["message"]
        again = daemon.complete("victim", poison)
        assert (again[0], again[1]["error"]["code"]) == (422, "poison_request")
        assert daemon.complete("victim", poison + " another")[1]["error"]["code"] != "model_unavailable"
        assert text_of([first, *client.events()]) == alone["choices"][0]["text"]
    assert daemon.runtime("victim")["restarts"] - restarts <= 6


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": ["one", "two [[failpoint: embed=1*delay(1500)]]"]}),
        ("/v1/rerank", {"query": "one [[failpoint: embed=1*delay(1500)]]", "documents": ["two", "three"]}),
    ],
)
def test_vectors_and_scores_come_from_the_next_worker(daemon: Daemon, path: str, body: Json) -> None:
    """1. Texts are being embedded, or scored. 2. SIGKILL. Result: the answer is that of an undisturbed run."""
    asked = {"model": "encoder", **body}
    status, alone = daemon.request("POST", path, asked)
    assert status == 200, alone
    answers: list[Json] = []
    thread = threading.Thread(target=lambda: answers.append(daemon.request("POST", path, asked)[1]))
    thread.start()
    eventually_sync(lambda: daemon.runtime("encoder")["state"] == "busy", 10)
    os.kill(daemon.worker_pid("encoder"), signal.SIGKILL)
    thread.join(30)
    assert answers[0].get("data", answers[0].get("results")) == alone.get("data", alone.get("results"))
    assert daemon.runtime("encoder")["restarts"] >= 1


def test_crash_leaves_a_postmortem_without_what_was_said(daemon: Daemon) -> None:
    """How it ended, the last frames, the memory, the requests inside as hashes; nothing of prompt and answer."""
    canary = "canary-4711"
    daemon.complete("victim", f"{canary} [[failpoint: generate=5*token->kill(11)]]")
    status, found = daemon.control("GET", "/llm/runtimes/victim/postmortems")
    assert status == 200
    newest = found["data"][0]
    assert (newest["signal"], newest["state"], newest["requests"][0]["fate"]) == (11, "loaded", "poison")
    assert found["data"][1]["requests"][0]["fate"] == "resumed"
    assert newest["requests"][0]["sha256"] == found["data"][1]["requests"][0]["sha256"]
    assert newest["requests"][0]["tokens_new"] == 5
    assert {"Generate", "Step"} <= {frame["kind"] for frame in newest["frames"]}
    assert canary not in json.dumps(found)
    assert daemon.control("GET", "/llm/postmortems")[1]["data"][0] == newest


def test_idle_worker_that_is_killed_is_started_again(daemon: Daemon) -> None:
    """A loaded model comes back although nobody asks for it."""
    daemon.complete("victim", max_tokens=1)
    pid = daemon.worker_pid("victim")
    os.kill(pid, signal.SIGKILL)
    assert alive(daemon.worker_pid("victim", other_than=pid))


def test_queued_requests_survive_a_crash(daemon: Daemon) -> None:
    """Nothing is lost: what was inside goes on in the next worker, and who waits is served by it."""
    answers: list[int] = []

    def ask() -> None:
        answers.append(daemon.complete("victim", max_tokens=20)[0])

    daemon.complete("victim", max_tokens=1)
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    eventually_sync(lambda: daemon.runtime("victim")["queued"] == 4, 10)
    os.kill(daemon.worker_pid("victim"), signal.SIGKILL)
    for thread in threads:
        thread.join(30)
    assert answers == [200] * 8


def test_stopped_worker_is_replaced_and_the_daemon_stays_responsive(daemon: Daemon) -> None:
    """1. A worker gets SIGSTOP while it streams. Result: lack of progress is noticed within `stall_timeout`, the stream
    goes on in a new worker, and /health answers quickly all along."""
    alone = undisturbed(daemon, "victim", 150)
    with monitored(daemon), stream(daemon, "victim", max_tokens=150) as client:
        events = [client.next_event()]
        pid = daemon.worker_pid("victim")
        os.kill(pid, signal.SIGSTOP)
        slowest = 0.0
        while alive(pid):
            begun = time.monotonic()
            assert daemon.request("GET", "/health")[0] == 200
            slowest = max(slowest, time.monotonic() - begun)
        events += list(client.events())
        assert text_of(events) == alone["choices"][0]["text"]
        # A bound that a blocked loop would miss by seconds; `benchmarks/` measures the latency itself.
        assert slowest < 1.0
        assert alive(daemon.worker_pid("victim", other_than=pid))
    assert "no progress for 3 s" in daemon.control("GET", "/llm/runtimes/victim/postmortems")[1]["data"][0]["reason"]


def test_engine_that_hangs_in_native_code_is_replaced(daemon: Daemon) -> None:
    """A worker that holds the GIL, and one that sleeps in its engine, tick or do not tick: neither makes progress. The
    request that is inside each time is refused at the second."""
    for how in ("spin", "hang"):
        status, answer = daemon.complete("victim", f"[[failpoint: generate=2*token->{how}]]")
        assert (status, answer["error"]["code"]) == (422, "poison_request"), how
        assert daemon.complete("victim", max_tokens=1)[0] == 200


@pytest.mark.parametrize("fault", ["garbage(ffffffff00)", "garbage(05000000c1c1c1c1c1)", "badid", "dupready"])
def test_worker_that_breaks_the_protocol_is_replaced(daemon: Daemon, fault: str) -> None:
    """Oversized, undecodable, for unknown requests or out of order: the worker is replaced, nobody else notices."""
    with monitored(daemon):
        status, answer = daemon.complete("victim", f"[[failpoint: generate=2*token->{fault}]]")
        assert (status, answer["error"]["code"]) == (422, "poison_request"), answer
        assert daemon.complete("victim", max_tokens=1)[0] == 200


def test_crash_loop_ends_unavailable_with_the_last_lines(daemon: Daemon) -> None:
    """A model that crashes at each load is given up after its budget; requests then fail at once and say why, and a
    restart by a person gives it the whole budget again."""
    answer: Json = {}
    for _ in range(20):
        status, answer = daemon.complete("looping")
        assert status == 503
        if answer["error"]["code"] == "model_unavailable":
            break
        assert answer["error"]["code"] == "model_load_failed"
        eventually_sync(lambda: daemon.runtime("looping")["state"] != "error", 10)
    runtime = daemon.runtime("looping")
    assert (runtime["state"], runtime["restarts"]) == ("unavailable", 5)
    assert "exited with code 70" in runtime["error"]
    assert "RuntimeError: injected panic" in runtime["last_lines"]
    assert "llmctl restart looping" in answer["error"]["message"]


def test_permanent_failure_is_not_tried_again(daemon: Daemon) -> None:
    """A worker that exits with 78 says that another try is of no use."""
    assert daemon.complete("hopeless")[1]["error"]["code"] == "model_load_failed"
    runtime = daemon.wait_for_state("hopeless", "unavailable")
    assert runtime["restarts"] == 0


def test_client_that_leaves_frees_its_place(daemon: Daemon) -> None:
    """Queued, or streaming: the slot comes free and the count returns to zero."""
    with stream(daemon, "victim", max_tokens=5000) as client:
        client.next_event()
        assert daemon.runtime("victim")["slots_busy"] == 1
    eventually_sync(lambda: daemon.runtime("victim")["slots_busy"] == 0, 5)
