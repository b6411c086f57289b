"""Requests that nobody waits for any more, and models that nobody uses: what they held is free again."""

from __future__ import annotations

import json
import os
import select
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager

import pytest
from tests.support.daemon import Daemon, alive, mock_model, starter_model, stream
from tests.support.leaks import no_leaks
from tests.support.polling import eventually_sync

FREE_SECONDS_MAX = 3.0
"""One second is what is promised; a machine that runs other tests beside this one is slower."""


@pytest.fixture(scope="module")
def daemon() -> Generator[Daemon]:
    models = {
        # One thread: llama.cpp's threads wait for each other by spinning, which a busy machine makes very slow.
        "smol": starter_model(n_ctx=8192, parallel=4, n_threads=1),
        "slow": mock_model(token_delay_ms=20, parallel=2),
        "brief": mock_model(idle_timeout=0.3),
        "loading": mock_model(load_seconds=3),
    }
    with no_leaks(), Daemon({"models": models}) as one:
        yield one


@contextmanager
def asking(daemon: Daemon, model: str, prompt: str = "hello", **fields: object) -> Generator[socket.socket]:
    """A request that is sent and not waited for; the client leaves with the block."""
    body = json.dumps({"model": model, "prompt": prompt, **fields}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{daemon.port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", daemon.port), 10) as client:
        client.sendall(head.encode() + body)
        yield client


def answered(client: socket.socket) -> bool:
    """Whether a byte of an answer has come."""
    return bool(select.select([client], [], [], 0)[0])


def seconds_until_free(daemon: Daemon, model: str) -> float:
    """From now until none of the model's sequences is taken."""
    begun = time.monotonic()
    eventually_sync(lambda: daemon.runtime(model)["slots_busy"] == 0, 60)
    return time.monotonic() - begun


def long_prompt(seed: int) -> str:
    """Some 7,000 tokens, with no beginning in common with another seed's."""
    return " ".join(f"{seed + 7 * number}" for number in range(1000))


# ------------------------------------------------------------------------------------------------------------ clients


@pytest.mark.model
@pytest.mark.parametrize("streamed", [True, False])
def test_client_that_leaves_during_a_long_prefill_frees_its_sequence(daemon: Daemon, streamed: bool) -> None:
    """1. A prompt of some 7,000 tokens is being computed. 2. Its client leaves. Result: the sequence is free long
    before the prompt would have been computed, and the worker rests and serves the next one."""
    assert daemon.complete("smol", max_tokens=1)[0] == 200
    prompt = long_prompt(100_000 if streamed else 200_000)
    _, tokenized = daemon.request("POST", "/tokenize", {"model": "smol", "content": prompt})
    assert 6000 < len(tokenized["tokens"]) < 8000
    eventually_sync(lambda: daemon.runtime("smol")["phase"] == "idle", 10)
    with asking(daemon, "smol", prompt, stream=streamed, max_tokens=1000) as client:
        eventually_sync(lambda: daemon.runtime("smol")["phase"] == "prefill", 30)
        assert daemon.runtime("smol")["slots_busy"] == 1
        assert not answered(client)
    seconds = seconds_until_free(daemon, "smol")
    print(f"{len(tokenized['tokens'])} tokens: free {seconds:.3f} s after the client left")
    assert seconds < FREE_SECONDS_MAX
    eventually_sync(lambda: daemon.runtime("smol")["phase"] == "idle", 10)
    status, answer = daemon.complete("smol", "1, 2, 3,", max_tokens=3, temperature=0)
    assert (status, answer["choices"][0]["text"][:3]) == (200, " 4,")


@pytest.mark.model
def test_client_that_leaves_a_prefill_beside_a_stream_disturbs_nobody(daemon: Daemon) -> None:
    """The stream goes on token by token while a long prompt comes and goes."""
    with stream(daemon, "smol", "Once upon a time", max_tokens=2000, ignore_eos=True) as running:
        running.next_event()
        with asking(daemon, "smol", long_prompt(300_000), max_tokens=10) as client:
            eventually_sync(lambda: daemon.runtime("smol")["slots_busy"] == 2, 30)
            for _ in range(5):
                assert "error" not in running.next_event()
            assert not answered(client)
        eventually_sync(lambda: daemon.runtime("smol")["slots_busy"] == 1, 30)
        for _ in range(5):
            assert "error" not in running.next_event()
    assert seconds_until_free(daemon, "smol") < FREE_SECONDS_MAX


@pytest.mark.parametrize("streamed", [True, False])
def test_client_that_leaves_while_tokens_come_frees_its_sequence(daemon: Daemon, streamed: bool) -> None:
    """Whether it reads a stream, or waits for the whole answer."""
    with asking(daemon, "slow", stream=streamed, max_tokens=5000) as client:
        eventually_sync(lambda: daemon.runtime("slow")["slots_busy"] == 1, 10)
        if streamed:
            assert client.recv(20).startswith(b"HTTP/1.1 200")
    assert seconds_until_free(daemon, "slow") < FREE_SECONDS_MAX


def test_client_that_leaves_the_queue_is_not_served(daemon: Daemon) -> None:
    """1. Two streams hold both places, a third request waits. 2. Its client leaves. Result: it is out of the queue at
    once, and the two go on."""
    with stream(daemon, "slow", max_tokens=5000) as one, stream(daemon, "slow", max_tokens=5000) as other:
        one.next_event()
        other.next_event()
        with asking(daemon, "slow", max_tokens=5000):
            eventually_sync(lambda: daemon.runtime("slow")["queued"] == 1, 10)
        eventually_sync(lambda: daemon.runtime("slow")["queued"] == 0, FREE_SECONDS_MAX)
        assert daemon.runtime("slow")["slots_busy"] == 2
        assert "error" not in one.next_event()
        assert "error" not in other.next_event()
    assert seconds_until_free(daemon, "slow") < FREE_SECONDS_MAX


def test_client_that_leaves_during_a_load_is_not_served(daemon: Daemon) -> None:
    """The load goes on and nothing is generated after it."""
    with asking(daemon, "loading", max_tokens=5000):
        eventually_sync(lambda: daemon.runtime("loading")["queued"] == 1, 10)
        assert daemon.runtime("loading")["state"] == "loading"
    eventually_sync(lambda: daemon.runtime("loading")["queued"] == 0, FREE_SECONDS_MAX)
    assert daemon.wait_for_state("loading", "loaded")["slots_busy"] == 0


def test_every_prompt_of_a_request_ends_with_its_client(daemon: Daemon) -> None:
    """A request of six prompts holds places and queues; all of it goes."""
    with asking(daemon, "slow", max_tokens=5000) as client:
        eventually_sync(lambda: daemon.runtime("slow")["slots_busy"] == 1, 10)
        body = json.dumps({"model": "slow", "prompt": ["a"] * 6, "max_tokens": 5000}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost:{daemon.port}\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", daemon.port), 10) as many:
            many.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            eventually_sync(lambda: daemon.runtime("slow")["queued"] == 5, 10)
        eventually_sync(lambda: daemon.runtime("slow")["queued"] == 0, FREE_SECONDS_MAX)
        assert not answered(client)
    assert seconds_until_free(daemon, "slow") < FREE_SECONDS_MAX


# ------------------------------------------------------------------------------------------------------------ models


def test_idle_model_is_unloaded_and_comes_back_with_the_next_request(daemon: Daemon) -> None:
    """After `idle_timeout` its process is gone; who asks then sees a pause and nothing else."""
    status, first = daemon.complete("brief", max_tokens=5)
    assert status == 200
    pid = daemon.runtime("brief")["pid"]
    daemon.wait_for_state("brief", "not_loaded")
    assert pid is None or not alive(pid)
    status, again = daemon.complete("brief", max_tokens=5)
    assert status == 200
    assert again["choices"] == first["choices"]
    assert daemon.runtime("brief")["restarts"] == 0


@pytest.mark.model
def test_keep_alive_of_zero_unloads_the_model_and_the_next_request_loads_it(daemon: Daemon) -> None:
    """Its memory is the machine's again as soon as the answer is out."""
    assert daemon.complete("smol", max_tokens=1)[0] == 200
    pid = daemon.worker_pid("smol")
    assert daemon.complete("smol", max_tokens=1, keep_alive=0)[0] == 200
    runtime = daemon.wait_for_state("smol", "not_loaded")
    assert (runtime["pid"], runtime["memory"]) == (None, None)
    assert not alive(pid)
    assert not os.path.exists(f"/proc/{pid}")
    status, answer = daemon.complete("smol", "1, 2, 3,", max_tokens=3, temperature=0, keep_alive="5m")
    assert (status, answer["choices"][0]["text"][:3]) == (200, " 4,")
    assert 250 < daemon.runtime("smol")["idle_left_seconds"] <= 300
