"""Models whose configuration changes while they serve: nobody who asks them notices."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from openai import OpenAI
from tests.support.daemon import Daemon, mock_model, starter_model, stream, text_of
from tests.support.polling import eventually_sync

Json = dict[str, Any]

SLOW = {"token_delay_ms": 20, "reply_tokens": 40}


def models(**changes: Json) -> Json:
    """Two models, with these instead of them or beside them."""
    return {"models": {"mock": mock_model(**SLOW), "other": mock_model(reply_tokens=3)} | changes}


@pytest.fixture
def daemon() -> Generator[Daemon]:
    with Daemon(models()) as running:
        yield running


def config_status(daemon: Daemon) -> Json:
    return daemon.control("GET", "/llm/status")[1]["config"]


def reload(daemon: Daemon, config: Json) -> Json:
    """Write it and have it read."""
    daemon.reconfigure(config)
    status, report = daemon.control("POST", "/config/reload")
    assert status == 200, report
    return report


def eventually(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    eventually_sync(lambda: bool(condition()), seconds, what)


def test_reload_keeps_pids_of_unchanged_models(daemon: Daemon) -> None:
    """One model changes: the other keeps its worker, and a stream of the changed one goes on to its end."""
    assert [daemon.complete(model)[0] for model in ("mock", "other")] == [200, 200]
    old, unchanged = daemon.worker_pid("mock"), daemon.worker_pid("other")
    with stream(daemon, "mock", max_tokens=40) as running:
        first = running.next_event()
        report = reload(daemon, models(mock=mock_model(**SLOW, n_ctx=4096)))
        assert report["outcome"] == "applied"
        assert report["models_replaced"] == ["mock"]
        new = daemon.worker_pid("mock", other_than=old)
        assert daemon.runtime("mock")["id"] == "mock"
        events = [first, *running.events()]
    assert events[-1] == "[DONE]"
    assert len(text_of(events).split()) == 40
    assert daemon.worker_pid("mock") == new
    assert daemon.worker_pid("other") == unchanged
    eventually(lambda: len(daemon.descendants()) == 2, "the old worker ends")


def test_new_worker_loads_beside_the_old_one_which_serves_meanwhile(daemon: Daemon) -> None:
    """Requests that come while the new worker loads are answered at once, by the old one."""
    daemon.complete("mock")
    old = daemon.worker_pid("mock")
    reload(daemon, models(mock=mock_model(reply_tokens=2, load_seconds=3.0)))
    assert config_status(daemon)["replacing"] == ["mock"]
    assert daemon.complete("mock", max_tokens=3)[1]["usage"]["completion_tokens"] == 3
    assert daemon.worker_pid("mock") == old
    assert daemon.worker_pid("mock", other_than=old) != old
    assert daemon.complete("mock")[1]["usage"]["completion_tokens"] == 2
    assert "replacing" not in config_status(daemon)


def test_old_worker_that_is_killed_while_it_finishes_is_a_pause_for_its_streams(daemon: Daemon) -> None:
    """They go on in another worker of the old configuration; the new one is not touched."""
    daemon.complete("mock", max_tokens=1)
    old = daemon.worker_pid("mock")
    with stream(daemon, "mock", max_tokens=40) as running:
        events = [running.next_event()]
        reload(daemon, models(mock=mock_model(reply_tokens=2)))
        new = daemon.worker_pid("mock", other_than=old)
        os.kill(old, signal.SIGKILL)
        events += running.events()
    words = text_of(events).split()
    assert [word.lstrip("abcdefghijklmnopqrstuvwxyz") for word in words] == [str(number) for number in range(40)]
    assert daemon.worker_pid("mock") == new
    eventually(lambda: len(daemon.descendants()) == 1, "what finished has gone")


def test_old_worker_finishes_first_where_memory_has_no_room_for_two() -> None:
    """Requests that come meanwhile wait, and are answered by the new one; none fails."""
    big = {"memory": "600MiB"}
    with Daemon(models(mock=mock_model(**SLOW, **big)) | {"memory": {"limit": "1GiB"}}) as daemon:
        daemon.complete("mock", max_tokens=1)
        old = daemon.worker_pid("mock")
        with stream(daemon, "mock", max_tokens=40) as running, ThreadPoolExecutor(1) as pool:
            first = running.next_event()
            reload(daemon, models(mock=mock_model(reply_tokens=2, **big)) | {"memory": {"limit": "1GiB"}})
            daemon.wait_for_state("mock", "draining")
            assert config_status(daemon)["replacing"] == ["mock"], "what `config reload --wait` waits for"
            waiting: Future[tuple[int, Any]] = pool.submit(daemon.complete, "mock")
            events = [first, *running.events()]
            assert len(text_of(events).split()) == 40
            status, body = waiting.result(30)
            assert not config_status(daemon).get("replacing")
        assert (status, body["usage"]["completion_tokens"]) == (200, 2)
        assert daemon.worker_pid("mock", other_than=old) != old


def test_model_that_grows_comes_back_in_the_place_of_an_idle_one() -> None:
    """No request waits for it, but it was loaded before its reload; nor does it go back to what it was."""

    def sized(reply_tokens: int, memory: str) -> Json:
        changed = models(mock=mock_model(reply_tokens=reply_tokens, memory=memory))
        changed["models"]["other"] = mock_model(memory="300MiB")
        return changed | {"memory": {"limit": "1GiB", "wait_timeout": 5, "min_residency": 1}}

    with Daemon(sized(2, "600MiB")) as daemon:
        old, _ = [daemon.complete(name) and daemon.worker_pid(name) for name in ("mock", "other")]
        reload(daemon, sized(3, "900MiB"))
        daemon.worker_pid("mock", other_than=old)
        daemon.wait_for_state("mock", "loaded")
        assert daemon.runtime("other")["state"] == "not_loaded"
        assert not config_status(daemon).get("stayed")
        assert daemon.complete("mock")[1]["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("limit", ["80%", "1GiB"], ids=["side by side", "one after the other"])
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("refuse(the weights are bad)", "the weights are bad"),
        ("kill(9)", "SIGKILL"),
        ("hang", "no progress"),
    ],
    ids=["refused", "killed", "hung"],
)
def test_model_that_cannot_be_loaded_as_configured_stays_as_it_was(limit: str, fault: str, said: str) -> None:
    """The error is shown, requests are answered as before, and the next reload tries again."""
    big = {"memory": "600MiB"}
    memory = {"memory": {"limit": limit}}
    broken = mock_model(failpoints=f"load={fault}", stall_timeout=1.0, **big)
    with Daemon(models(mock=mock_model(reply_tokens=5, **big)) | memory) as daemon:
        daemon.complete("mock")
        report = reload(daemon, models(mock=broken) | memory)
        assert report["models_replaced"] == ["mock"]
        assert daemon.complete("mock")[1]["usage"]["completion_tokens"] == 5
        eventually(lambda: said in str(config_status(daemon).get("stayed")), "the error is shown")
        assert daemon.complete("mock")[1]["usage"]["completion_tokens"] == 5
        assert said in str(daemon.request("GET", "/health")[1])
        if limit == "80%":
            died = daemon.control("GET", "/llm/runtimes/mock/postmortems")[1]["data"]
            assert said in died[0]["reason"], "what happened to the new worker is told with the old one's"
        assert reload(daemon, models(mock=broken) | memory)["models_replaced"] == ["mock"]
        reload(daemon, models(mock=mock_model(reply_tokens=7, **big)) | memory)
        eventually(lambda: daemon.complete("mock")[1]["usage"]["completion_tokens"] == 7, "the new one serves")
        assert not config_status(daemon).get("stayed")


def test_sampling_limits_and_timeouts_change_without_a_new_worker(daemon: Daemon) -> None:
    """The worker stays, and names and defaults are the new ones at once."""
    daemon.complete("mock", max_tokens=1)
    pid = daemon.worker_pid("mock")
    report = reload(daemon, models(mock=mock_model(**SLOW, max_tokens=3, aliases=["mine"], idle_timeout=1000)))
    assert report["models_updated"] == ["mock"]
    status, body = daemon.request("POST", "/v1/chat/completions", {"model": "mine", "messages": [_hello()]})
    assert (status, body["usage"]["completion_tokens"]) == (200, 3)
    assert daemon.worker_pid("mock") == pid
    assert daemon.runtime("mock")["idle_left_seconds"] > 300


def _hello() -> Json:
    return {"role": "user", "content": "hello"}


def test_model_that_is_taken_out_finishes_what_it_has(daemon: Daemon) -> None:
    """Its stream goes on, its name is nobody's at once, and its worker ends; one that comes is there at once."""
    daemon.complete("mock", max_tokens=1)
    with stream(daemon, "mock", max_tokens=40) as running:
        first = running.next_event()
        config = models(new=mock_model(reply_tokens=4, preload=True))
        del config["models"]["mock"]
        report = reload(daemon, config)
        assert (report["models_added"], report["models_removed"]) == (["new"], ["mock"])
        assert daemon.complete("mock")[0] == 404
        assert daemon.worker_pid("new")
        events = [first, *running.events()]
    assert len(text_of(events).split()) == 40
    eventually(lambda: len(daemon.descendants()) == 1, "the removed model's worker ends")
    listed = daemon.request("GET", "/v1/models")[1]["data"]
    assert {model["id"] for model in listed} == {"other", "new"}


def test_model_that_is_taken_out_and_put_back_serves_while_the_old_one_finishes(daemon: Daemon) -> None:
    """The two share nothing but the name."""
    daemon.complete("mock", max_tokens=1)
    with stream(daemon, "mock", max_tokens=40) as running:
        first = running.next_event()
        reload(daemon, {"models": {"other": mock_model()}})
        reload(daemon, models(mock=mock_model(reply_tokens=2)))
        assert daemon.complete("mock")[1]["usage"]["completion_tokens"] == 2
        assert len(text_of([first, *running.events()]).split()) == 40


def test_reload_while_a_model_loads_gives_its_requests_to_the_next_worker() -> None:
    """Mid-load: what waits for the model is answered by it as it is configured now."""
    with Daemon(models(mock=mock_model(load_seconds=30.0))) as daemon, ThreadPoolExecutor(1) as pool:
        waiting: Future[tuple[int, Any]] = pool.submit(daemon.complete, "mock")
        daemon.wait_for_state("mock", "loading")
        reload(daemon, models(mock=mock_model(reply_tokens=2)))
        status, body = waiting.result(20)
        assert (status, body["usage"]["completion_tokens"]) == (200, 2)


def test_reloads_one_upon_another_end_with_the_last_one(daemon: Daemon) -> None:
    """A new worker that is not wanted any more while it loads goes; a change that was taken back leaves the old one."""
    daemon.complete("mock", max_tokens=1)
    pid = daemon.worker_pid("mock")
    for seconds in (5.0, 6.0, 7.0):
        reload(daemon, models(mock=mock_model(load_seconds=seconds)))
    reload(daemon, models())
    assert daemon.worker_pid("mock") == pid
    eventually(lambda: len(daemon.descendants()) == 1, "the others have gone")
    reload(daemon, models(mock=mock_model(load_seconds=5.0)))
    reload(daemon, models(mock=mock_model(reply_tokens=2)))
    daemon.worker_pid("mock", other_than=pid)
    assert daemon.complete("mock")[1]["usage"]["completion_tokens"] == 2
    eventually(lambda: len(daemon.descendants()) == 1, "one worker is left")


def test_no_request_fails_under_load_while_a_model_is_replaced_again_and_again(daemon: Daemon) -> None:
    """Four clients ask without a pause, and every answer is whole."""
    wrong: list[object] = []
    done = threading.Event()
    served: list[int] = []

    def ask() -> None:
        while not done.is_set():
            status, body = daemon.complete("mock", max_tokens=6)
            served.append(status)
            if status != 200 or body["usage"]["completion_tokens"] != 6:
                wrong.append(body)

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        for n_ctx in (1024, 2048, 4096, 8192):
            before = len(served)
            reload(daemon, models(mock=mock_model(token_delay_ms=5, reply_tokens=40, n_ctx=n_ctx)))
            eventually(lambda: not config_status(daemon).get("replacing"), "the new worker serves")
            eventually(lambda before=before: len(served) > before + 8, "requests go on")
    finally:
        done.set()
        for client in clients:
            client.join(30)
    assert wrong == []


def test_real_model_is_replaced_in_the_middle_of_a_stream() -> None:
    """`n_ctx` changes: the openai client's stream goes on, and the next question goes to the new worker."""
    small = {"n_threads": 1, "parallel": 1}
    with Daemon({"models": {"light": starter_model(n_ctx=512, **small)}}) as daemon:
        client = OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0)
        asked = client.completions.create(model="light", prompt="One, two,", max_tokens=80, temperature=0, stream=True)
        chunks = iter(asked)
        text = next(chunks).choices[0].text
        old = daemon.worker_pid("light")
        reload(daemon, {"models": {"light": starter_model(n_ctx=1024, **small)}})
        text += "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
        new = daemon.worker_pid("light", other_than=old, seconds=60)
        again = client.completions.create(model="light", prompt="One, two,", max_tokens=80, temperature=0)
        assert daemon.worker_pid("light") == new
        assert "n_ctx=1024" in daemon.console()
        assert len(text) > 40
        assert again.choices[0].text[:20] == text[:20]
