"""The official `openai` client, as it is and without retries, while everything happens to the daemon that may.

A worker is killed, a reload gives the model another context, another model wants its memory, the daemon runs its
program anew: no request raises an exception, and every text is whole. The mock numbers its tokens, so a gap or a repeat
would show.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from openai import OpenAI
from tests.support.daemon import Daemon, Json, mock_model, starter_model
from tests.support.leaks import no_leaks
from tests.support.polling import eventually_sync
from tests.support.upgrades import await_upgrade_waits, begin_upgrade, ended_upgrade, upgrade

from llmvisor_runtimes.mock_text import Reply

RESTARTS: Json = {"max": 1000, "backoff": [0.01, 0.1]}
HALF = "60MiB"
"""Of the memory that the models may have together: two do not fit."""


def configuration(*, n_ctx: int = 4096) -> Json:
    streamed = mock_model(token_delay_ms=20, n_ctx=n_ctx, memory=HALF, restart=RESTARTS)
    return {
        "models": {"streamed": streamed, "other": mock_model(memory=HALF)},
        "memory": {"limit": "100MiB", "min_residency": 1},
    }


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with no_leaks(), Daemon(configuration()) as one:
        yield one


def client_of(daemon: Daemon) -> OpenAI:
    return OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0, timeout=120)


class Stream:
    """A completion that is read as it comes."""

    def __init__(self, client: OpenAI, model: str, prompt: str, tokens: int) -> None:
        self.text = ""
        self.finish: str | None = None
        self.pieces = 0
        for chunk in client.completions.create(
            model=model, prompt=prompt, max_tokens=tokens, temperature=0, stream=True
        ):
            self.take(chunk.choices[0].text, chunk.choices[0].finish_reason)

    def take(self, text: str, finish: str | None) -> None:
        self.text += text
        self.pieces += 1
        self.finish = finish


def is_whole(stream: Stream, prompt: str, tokens: int) -> bool:
    """Whether a mock's text is exactly what it would have been without a fault."""
    return (stream.text, stream.finish) == (Reply([*prompt.encode()], None).run(0, tokens)[0], "length")


class Running(Stream):
    """A stream that another thread reads."""

    def __init__(self, pool: ThreadPoolExecutor, client: OpenAI, model: str, prompt: str, tokens: int) -> None:
        self.text, self.finish, self.pieces = "", None, 0
        self._ended: Future[None] = pool.submit(Stream.__init__, self, client, model, prompt, tokens)

    def brings_more(self, pieces: int = 3) -> None:
        """Wait until it has brought so many pieces more."""
        before = self.pieces
        eventually_sync(lambda: self._ended.done() or self.pieces >= before + pieces, 60, "the stream goes on")
        assert not self._ended.done(), "the stream has ended before all has happened to it"

    def wait(self) -> None:
        self._ended.result(120)


def kill_worker(daemon: Daemon, model: str, *, other_than: int | None = None) -> int:
    pid = daemon.worker_pid(model, other_than=other_than)
    os.kill(pid, signal.SIGKILL)
    return pid


def reload(daemon: Daemon, config: Json) -> None:
    daemon.reconfigure(config)
    status, report = daemon.control("POST", "/config/reload")
    assert (status, report["outcome"]) == (200, "applied"), report
    assert report["models_replaced"] == ["streamed"]


def test_one_stream_goes_through_kill_reload_eviction_and_upgrade(daemon: Daemon) -> None:
    """1. A stream runs. 2. Its worker is killed. 3. A reload changes n_ctx. 4. A model is asked for that does not fit
    beside it. 5. The daemon is upgraded. Result: the stream is whole, and so is what the others asked for."""
    with client_of(daemon) as client, ThreadPoolExecutor(2) as pool:
        stream = Running(pool, client, "streamed", "one", 500)
        stream.brings_more()
        killed = kill_worker(daemon, "streamed")
        stream.brings_more()
        assert daemon.worker_pid("streamed", other_than=killed)
        reload(daemon, configuration(n_ctx=8192))
        stream.brings_more()
        other = Running(pool, client, "other", "two", 20)
        stream.brings_more()
        begin_upgrade(daemon)
        await_upgrade_waits(daemon, "streamed")
        stream.wait()
        other.wait()
        assert is_whole(stream, "one", 500)
        assert is_whole(other, "two", 20)
        assert ended_upgrade(daemon)["completed"] == 1
        assert is_whole(Stream(client, "streamed", "three", 30), "three", 30)
    assert "evicted" in daemon.console()
    assert daemon.control("GET", "/llm/models/streamed")[1]["n_ctx"] == 8192


def test_many_clients_go_through_all_of_it_again_and_again(daemon: Daemon) -> None:
    """Four clients stream from one model without a pause, one from another, while it all happens three times."""
    stop = threading.Event()

    def asks(name: int) -> int:
        count = 0
        with client_of(daemon) as client:
            while not stop.is_set():
                prompt, model = f"{name} {count}", "other" if name == 0 else "streamed"
                assert is_whole(Stream(client, model, prompt, 25), prompt, 25)
                count += 1
        return count

    with ThreadPoolExecutor(5) as pool:
        clients = [pool.submit(asks, name) for name in range(5)]
        try:
            for turn in range(3):
                kill_worker(daemon, "streamed")
                reload(daemon, configuration(n_ctx=5000 + turn))
                upgrade(daemon)
        finally:
            stop.set()
        counts = [client.result(120) for client in clients]
    assert all(counts)


@pytest.mark.model
def test_real_model_streams_through_kill_reload_and_upgrade() -> None:
    """The greedy text of the starter model is that of a run without a fault: what it counts is beyond doubt."""
    prompt, tokens = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10,", 60

    def real(n_ctx: int) -> Json:
        # One thread: llama.cpp's threads wait for each other by spinning.
        return {"models": {"streamed": starter_model(n_ctx=n_ctx, n_threads=1, parallel=2, restart=RESTARTS)}}

    with no_leaks(), Daemon(real(1024)) as daemon, client_of(daemon) as client, ThreadPoolExecutor(1) as pool:
        undisturbed = Stream(client, "streamed", prompt, tokens)
        assert undisturbed.text.startswith(" 11, 12, 13, 14")
        stream = Running(pool, client, "streamed", prompt, tokens)
        stream.brings_more()
        kill_worker(daemon, "streamed")
        stream.brings_more()
        reload(daemon, real(2048))
        stream.brings_more()
        begin_upgrade(daemon)
        stream.wait()
        assert (stream.text, stream.finish) == (undisturbed.text, undisturbed.finish)
        assert ended_upgrade(daemon)["completed"] == 1
        pid = daemon.worker_pid("streamed")
        upgrade(daemon)
        again = Stream(client, "streamed", prompt, tokens)
        assert again.text == undisturbed.text
        assert daemon.worker_pid("streamed") == pid
