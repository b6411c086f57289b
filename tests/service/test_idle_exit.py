"""The end for idleness: what counts as somebody, and that nobody who has come is turned away."""

from __future__ import annotations

import json
import socket
import time

import pytest
from tests.support.daemon import Daemon, mock_model
from tests.support.leaks import no_leaks
from tests.support.polling import eventually_sync
from tests.support.service_manager import Activated

BODY = json.dumps({"model": "slow", "prompt": "hello", "max_tokens": 1}).encode()
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
CONFIG = {"models": {"slow": mock_model()}, "server": {"shutdown_timeout": 0.3}}
LONGER_SECONDS = 1.5
"""Than `shutdown_timeout`, several looks of the daemon over."""


@pytest.mark.parametrize("sent", [0, 20, len(WHOLE) - 5], ids=["connected", "half a head", "half a body"])
def test_client_that_has_not_asked_yet_is_waited_for(sent: int) -> None:
    """1. A client connects and sends nothing, or a part. 2. The time for idleness passes. 3. It sends the rest. Result:
    it is answered, and then the daemon ends."""
    with no_leaks(), Daemon(CONFIG) as daemon:
        with socket.create_connection(("127.0.0.1", daemon.port), 30) as client:
            client.sendall(WHOLE[:sent])
            time.sleep(LONGER_SECONDS)  # what is shown is that nothing happens
            assert daemon.running, daemon.console()
            client.sendall(WHOLE[sent:])
            assert client.recv(100).startswith(b"HTTP/1.1 200 ")
        assert daemon.wait(20) == 0


def test_connection_that_is_kept_alive_holds_up_nothing() -> None:
    """It has its answer: the daemon ends, and the client sees its connection closed, not a reset."""
    with no_leaks(), Daemon(CONFIG) as daemon, socket.create_connection(("127.0.0.1", daemon.port), 30) as client:
        client.sendall(WHOLE)
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert daemon.wait(10) == 0
        while client.recv(65536):
            pass


def test_follower_of_the_log_holds_up_nothing() -> None:
    """Nor does whoever follows events: they ask for no model."""
    with no_leaks(), Daemon(CONFIG) as daemon:
        connection = daemon.control_connection()
        connection.request("GET", "/logs?follow=true")
        answer = connection.getresponse()
        assert answer.readline() == b": open\n"
        assert daemon.wait(10) == 0
        answer.read()
        connection.close()


def test_daemon_that_thought_better_of_it_accepts_again() -> None:
    """1. Somebody is connected each time that it would end. 2. Another client comes. Result: it is served by the same
    daemon, which had stopped accepting for a moment each time."""
    with no_leaks(), Activated(CONFIG) as daemon:
        daemon.spawn()
        eventually_sync(daemon.port_file.exists, 20)
        with socket.create_connection(("127.0.0.1", daemon.port), 30):
            time.sleep(LONGER_SECONDS)
            for _ in range(3):
                assert daemon.complete("slow", max_tokens=1)[0] == 200
                time.sleep(0.5)
            assert daemon.running
            assert daemon.control("GET", "/llm/status")[1]["pid"] == daemon.pid
        assert daemon.wait(20) == 0
        assert daemon.starts == 1
