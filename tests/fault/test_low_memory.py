"""The machine runs low on memory, as a file says that stands for it: caches, idle models, then the worst offender."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.support.daemon import Daemon, mock_model, stream
from tests.support.leaks import no_leaks
from tests.support.polling import eventually_sync

LOW, VERY_LOW, ENOUGH = "400MiB", "100MiB", "8GiB"
"""Of 10 GiB: below the soft line (5 %), below the hard one (2 %), above both."""


class Machine:
    """A daemon on a machine of 10 GiB of which so much is free."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "memory"
        self.env = {"LLMVISOR_FAULT_MEMORY_FILE": str(self._file)}
        self.free(ENOUGH)

    def free(self, size: str) -> None:
        part = self._file.with_suffix(".part")
        part.write_text(f"total 10GiB\navailable {size}\n")
        os.replace(part, self._file)


def said(daemon: Daemon, text: str) -> bool:
    return text in daemon.console()


def test_low_memory_unloads_idle_models_and_leaves_busy_and_pinned_ones(tmp_path: Path) -> None:
    """1. One model is busy, one pinned, one idle. 2. Memory falls below the soft line. Result: caches are given up, the
    idle one is unloaded, and neither of the others notices."""
    machine = Machine(tmp_path)
    models = {
        "busy": mock_model(token_delay_ms=20),
        "pinned": mock_model(pinned=True),
        "idle": mock_model(),
    }
    with no_leaks(), Daemon({"models": models}, env=machine.env) as daemon:
        for name in models:
            assert daemon.complete(name, max_tokens=1)[0] == 200
        with stream(daemon, "busy", max_tokens=400) as client:
            client.next_event()
            # Nobody is unloaded before it has told its memory.
            eventually_sync(lambda: all(daemon.runtime(name)["memory"] for name in models), 10)
            machine.free(LOW)
            daemon.wait_for_state("idle", "not_loaded", seconds=15)
            assert said(daemon, "gives up its caches")
            assert sum(1 for _ in client.events()) > 300
        assert daemon.runtime("pinned")["state"] == "loaded"
        assert daemon.runtime("busy")["restarts"] == 0


def test_worker_above_its_estimate_is_stopped_before_the_kernel_does_it(tmp_path: Path) -> None:
    """1. Two models stream, one of them takes far more than was expected of it. 2. Memory falls below the hard line.
    Result: that one's worker is stopped; its stream goes on in the next one, whole, once there is memory again."""
    machine = Machine(tmp_path)
    leak = {**mock_model(token_delay_ms=20, failpoints="load=1*alloc(60)->ok"), "memory": "20MiB"}
    models = {"leak": leak, "good": mock_model(token_delay_ms=20)}
    with (
        no_leaks(),
        Daemon({"models": models}, env=machine.env) as daemon,
        stream(daemon, "leak", max_tokens=300) as leaking,
        stream(daemon, "good", max_tokens=300) as good,
    ):
        leaking.next_event()
        good.next_event()
        pid = daemon.worker_pid("leak")
        eventually_sync(lambda: (daemon.runtime("leak")["memory"] or 0) > 60 * 2**20, 10)
        machine.free(VERY_LOW)
        eventually_sync(lambda: daemon.runtime("leak")["pid"] != pid, 15)
        assert said(daemon, "stopped before the machine runs out of memory")
        machine.free(ENOUGH)
        assert daemon.runtime("good")["restarts"] == 0
        for client in (leaking, good):
            events = [json.loads(event) for event in client.events() if event != "[DONE]"]
            assert [event for event in events if "error" in event] == []
            assert events[-1]["choices"][0]["finish_reason"] == "length"
            assert tokens(events) > 250


def tokens(events: list[dict[str, Any]]) -> int:
    return len([event for event in events if event["choices"][0]["text"]])


def test_load_waits_until_another_program_gives_its_memory_back(tmp_path: Path) -> None:
    """1. Others have nearly all memory. 2. They end while a request waits. Result: it is served. Where they do not end,
    it is told soon what is free and who holds the rest."""
    machine = Machine(tmp_path)
    config = {"models": {"a": {**mock_model(), "memory": "1GiB"}}, "memory": {"wait_timeout": 4}}
    with no_leaks(), Daemon(config, env=machine.env) as daemon, ThreadPoolExecutor(1) as pool:
        machine.free("700MiB")
        status, answer = daemon.complete("a", max_tokens=1)
        assert (status, answer["error"]["code"]) == (503, "insufficient_memory")
        # What keeps the machine above the soft line is for nobody.
        assert "and 188 MiB is free on the machine; no model is loaded" in answer["error"]["message"]
        waiting = pool.submit(daemon.complete, "a", max_tokens=1)
        daemon.wait_for_state("a", "loading")
        machine.free(ENOUGH)
        assert waiting.result(20)[0] == 200


def test_show_tells_what_was_predicted_and_what_was_measured(tmp_path: Path) -> None:
    """Before the first load nothing is known of a model without a file; after it, what its worker took, and a restart
    of the daemon keeps that."""
    machine = Machine(tmp_path)
    with no_leaks(), Daemon({"models": {"a": mock_model()}}, env=machine.env) as daemon:
        assert daemon.control("GET", "/llm/models/a")[1].get("memory_measured") is None
        assert daemon.complete("a", max_tokens=1)[0] == 200

        def measured() -> int:
            return daemon.control("GET", "/llm/models/a")[1].get("memory_measured") or 0

        eventually_sync(lambda: measured() > 0, 10)
        found = measured()
        model = daemon.control("GET", "/llm/models/a")[1]
        assert found < model["memory_estimated"] < 1.2 * found
        daemon.signal(15)
        assert daemon.wait() == 0
        daemon.start()
        eventually_sync(lambda: measured() >= found, 10)
