"""What the verbs of the failpoint language do to this very process."""

# ruff: noqa: ARG001 - every act is called alike

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NoReturn

import msgspec

from llmvisor_runtimes.failpoints import Term
from llmvisor_runtimes.malformed import SEEDS
from llmvisor_runtimes.pipes import Pipes
from llmvisor_runtimes.protocol import Delta, Done, Loaded, LoadProgress, ModelInfo, Report, Step

_MIB = 1024 * 1024
_FLOOD_TEXT = "flood " * 10_922
_HOLD_SECONDS = 30
_kept: list[mmap.mmap | subprocess.Popen[bytes]] = []
"""What lives as long as the process."""


class InjectedError(Exception):
    """What the verbs `error` and `refuse` make of an operation."""

    def __init__(self, message: str, *, permanent: bool) -> None:
        super().__init__(message)
        self.permanent = permanent


class Scene(msgspec.Struct, frozen=True):
    """Where a fault happens."""

    pipes: Pipes | None
    """None where no host drives the mock: faults of frames are then an error."""
    id: int | None
    """The request under way."""
    info: ModelInfo | None


def act(term: Term, scene: Scene) -> None:
    """Do what a term says. Raises `InjectedError` for `error` and `refuse`, RuntimeError for `panic`."""
    _ACTS[term.verb](term, scene)


def _number(term: Term) -> int:
    assert isinstance(term.argument, int)
    return term.argument


# ------------------------------------------------------------------------------------------------- time and signals


def _delay(term: Term, scene: Scene) -> None:
    time.sleep(_number(term) / 1000)


def _hang(term: Term, scene: Scene) -> None:
    # As an engine hangs: in native code, without the GIL.
    native = ctypes.CDLL(None)
    while True:
        native.sleep(3600)


def _spin(term: Term, scene: Scene) -> None:
    # PyDLL keeps the GIL while libc sleeps: no other thread of this process runs any more.
    holding_gil = ctypes.PyDLL(None) if term.argument == "gil" else None
    while True:
        if holding_gil is not None:
            holding_gil.sleep(3600)


def _stop(term: Term, scene: Scene) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _exit(term: Term, scene: Scene) -> None:
    sys.stderr.flush()
    os._exit(_number(term))


def _kill(term: Term, scene: Scene) -> None:
    os.kill(os.getpid(), _number(term))


def _ignore_term(term: Term, scene: Scene) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


# ---------------------------------------------------------------------------------------------------------- errors


def _panic(term: Term, scene: Scene) -> NoReturn:
    raise RuntimeError("injected panic")


def _error(term: Term, scene: Scene) -> NoReturn:
    raise InjectedError(str(term.argument), permanent=False)


def _refuse(term: Term, scene: Scene) -> NoReturn:
    raise InjectedError(str(term.argument), permanent=True)


# ---------------------------------------------------------------------------------------------------------- frames


def _pipes(scene: Scene) -> Pipes:
    if scene.pipes is None:
        raise RuntimeError("this fault needs the host's pipes")
    return scene.pipes


def _garbage(term: Term, scene: Scene) -> None:
    assert isinstance(term.argument, bytes)
    _pipes(scene).write(term.argument)


def _malformed(term: Term, scene: Scene) -> None:
    _pipes(scene).write(SEEDS[str(term.argument)])


def _bad_id(term: Term, scene: Scene) -> None:
    _pipes(scene).send([Step([Delta(2**62, 0, "for nobody", [0])])])


def _after_end(term: Term, scene: Scene) -> None:
    assert scene.id is not None
    ended = Step([Delta(scene.id, 0, "", [], "stop")], [Done(scene.id, 0, 0, 0, 0.0, 0.0)])
    _pipes(scene).send([ended, Step([Delta(scene.id, 0, "too late", [0])]), ended])


def _duplicate_ready(term: Term, scene: Scene) -> None:
    assert scene.info is not None
    _pipes(scene).send([Loaded(scene.info)])


def _flood(term: Term, scene: Scene) -> None:
    for index in range(_number(term) * _MIB // len(_FLOOD_TEXT) + 1):
        report: Report
        if scene.id is None:
            report = LoadProgress(_FLOOD_TEXT, index, 0, "steps")
        else:
            report = Step([Delta(scene.id, 0, _FLOOD_TEXT, [0])])
        _pipes(scene).send([report])


# ------------------------------------------------------------------------------------------------------- resources


def _log_flood(term: Term, scene: Scene) -> None:
    for _ in range(_number(term)):
        sys.stderr.write("x" * _MIB)
    sys.stderr.flush()


def _alloc(term: Term, scene: Scene) -> None:
    memory = mmap.mmap(-1, _number(term) * _MIB)
    for at in range(0, len(memory), mmap.PAGESIZE):
        memory[at] = 1
    _kept.append(memory)


def _fork(term: Term, scene: Scene) -> None:
    quiet = subprocess.DEVNULL
    _kept.append(subprocess.Popen(["/bin/sleep", "3600"], stdin=quiet, stdout=quiet, stderr=quiet))


def _hold_pipe(term: Term, scene: Scene) -> None:
    pipes = _pipes(scene)
    fds = (pipes.read_fd, pipes.write_fd)
    _kept.append(subprocess.Popen(["/bin/sleep", str(_HOLD_SECONDS)], pass_fds=fds, start_new_session=True))


_ACTS: dict[str, Callable[[Term, Scene], None]] = {
    "delay": _delay,
    "hang": _hang,
    "spin": _spin,
    "stop": _stop,
    "exit": _exit,
    "kill": _kill,
    "panic": _panic,
    "error": _error,
    "refuse": _refuse,
    "garbage": _garbage,
    "malformed": _malformed,
    "badid": _bad_id,
    "afterend": _after_end,
    "dupready": _duplicate_ready,
    "flood": _flood,
    "logflood": _log_flood,
    "alloc": _alloc,
    "fork": _fork,
    "holdpipe": _hold_pipe,
    "ignoreterm": _ignore_term,
}
