"""Signals in the moment in which the daemon executes itself anew: none is lost, whichever thread is given it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager

import pytest
from tests.support.polling import eventually

from llmvisor.signals import HANDLED, HeldSignals

EXECUTED = """
import asyncio, os, signal, sys, threading, uvloop
from llmvisor.signals import HANDLED, HeldSignals, handle_signals
from llmvisor.upgrade.reexec import execute

threading.Thread(target=threading.Event().wait, daemon=True).start()  # it blocks no signal, and is given them
after = "import signal; print(*sorted(n.name for n in signal.sigpending()))"

async def main():
    handle_signals(stop=lambda: None, reload=lambda: None, upgrade=lambda: None)
    with HeldSignals() as held:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), number)
        execute([sys.executable, "-c", after], os.environ, [], held)

asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main())
"""


def test_signals_of_the_last_moment_wait_for_the_new_program() -> None:
    """A stop that comes just then stops the new program: it is pending there, although another thread was given it."""
    done = subprocess.run([sys.executable, "-c", EXECUTED], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["SIGHUP", "SIGTERM"]), done


@contextmanager
def idle_thread() -> Generator[None]:
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    yield
    over.set()
    thread.join()


@pytest.mark.both_loops
async def test_signals_that_were_held_are_handled_where_nothing_is_executed(leak_check: None) -> None:
    """Once each, by the loop that has its handlers; the mask is what it was."""
    loop, told = asyncio.get_running_loop(), list[str]()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    loop.add_signal_handler(signal.SIGHUP, told.append, "hup")
    try:
        with idle_thread():
            with HeldSignals():
                assert signal.pthread_sigmask(signal.SIG_BLOCK, []) >= HANDLED
                os.kill(os.getpid(), signal.SIGHUP)
                await asyncio.sleep(0.05)
                assert told == []
            await eventually(lambda: told == ["hup"])
            os.kill(os.getpid(), signal.SIGHUP)
            await eventually(lambda: told == ["hup", "hup"])
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
