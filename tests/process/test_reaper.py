"""How a worker ends: told once and truthfully, in bounded time, with nothing left of it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from tests.support.polling import eventually
from tests.support.workers import executable, start

from llmvisor import limits
from llmvisor.supervision.workers import worker as worker_module
from llmvisor.supervision.workers.reaper import RUNGS, ProcessGroup, Reaper, Rung, WorkerExit
from llmvisor_runtimes.framing import encode
from llmvisor_runtimes.protocol import Detokenize, Hello, Report, Step, Text

pytestmark = [pytest.mark.both_loops, pytest.mark.usefixtures("leak_check")]


@pytest.fixture(autouse=True)
def short_graces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ladder's times, short enough to climb it in a test."""
    for name in ("close_grace_seconds", "terminate_grace_seconds", "abort_grace_seconds", "hang_up_grace_seconds"):
        monkeypatch.setattr(limits, name, 0.2)
    monkeypatch.setattr(limits, "pipe_drain_seconds_max", 0.3)


def gone(pid: int) -> bool:
    """Whether a process has ended; nobody may be there to reap a grandchild in a container."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def freeze(pid: int) -> None:
    """Stop a process; a signal that is sent before it has stopped may overtake SIGSTOP."""
    os.kill(pid, signal.SIGSTOP)
    await eventually(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)


# ------------------------------------------------------------------------------------------------- it ends by itself


@pytest.mark.parametrize(
    ("counted", "told"),
    [
        ((7, 7), "neither by llmvisor nor by the kernel for want of memory"),
        ((7, 8), "not by llmvisor; perhaps out of memory"),
        ((None, None), "not by llmvisor; perhaps out of memory"),
    ],
)
async def test_sigkill_of_a_worker_is_reported_once_as_possible_oom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: tuple[int | None, int | None], told: str
) -> None:
    """1. A worker serves. 2. It is killed. Result: one exit with the signal, and a hint of what it may be: the kernel's
    own count of those that it has killed tells, where there is one."""
    counts = iter(counted)
    monkeypatch.setattr(worker_module, "oom_kills", lambda: next(counts, counted[1]))
    recorded = await start(tmp_path, "serve")
    await recorded.hello()
    await eventually(lambda: "warned" in recorded.lines)
    os.kill(recorded.pid, signal.SIGKILL)
    ended = await recorded.exit()
    assert (ended.code, ended.signal, ended.requested, ended.violation) == (None, signal.SIGKILL, False, None)
    assert ended.possible_oom == ("perhaps" in told)
    assert ended.describe() == f"killed by SIGKILL ({told})"
    assert sorted(ended.last_lines) == ["ready", "warned"]


@pytest.mark.parametrize("code", [0, 1, 70, 78])
async def test_exit_code_of_a_worker_is_reported(tmp_path: Path, code: int) -> None:
    """A worker that leaves by itself was not asked to, whatever its code; its last words say why."""
    recorded = await start(tmp_path, f"exit {code}")
    ended = await recorded.exit()
    assert (ended.code, ended.signal, ended.requested) == (code, None, False)
    assert ended.describe() == (f"exited with code {code}: leaving" if code else "exited with code 0")
    assert ended.last_lines == ["leaving"]
    assert not ended.possible_oom


def test_last_words_stand_above_the_dump_of_an_abort() -> None:
    """What an engine said before it gave up is the reason, not the stacks that follow."""
    lines = [
        "loading",
        "ggml.c:42: GGML_ASSERT(n > 0) failed",
        "",
        "Fatal Python error: Aborted",
        "Extension modules: x",
    ]
    exit = WorkerExit(code=None, signal=signal.SIGABRT, requested=False, violation=None, last_lines=lines)
    assert exit.describe() == "killed by SIGABRT: ggml.c:42: GGML_ASSERT(n > 0) failed"


async def test_crash_by_a_signal_is_named(tmp_path: Path) -> None:
    """A segmentation fault is called by its name, and is not taken for a lack of memory."""
    ended = await (await start(tmp_path, f"die {signal.SIGSEGV}")).exit()
    assert ended.describe() == "killed by SIGSEGV"
    assert not ended.possible_oom


async def test_last_reports_before_a_crash_are_delivered(tmp_path: Path) -> None:
    """What a worker wrote before it died is reported before its end is."""
    said = "".join(encode(Text(number, "x" * 50)).hex() for number in range(500))
    recorded = await start(tmp_path, f"write-exit {said}")
    await recorded.exit()
    assert [report.id for report in recorded.reports if isinstance(report, Text)] == list(range(500))


async def test_grandchild_that_holds_stdout_does_not_hold_up_the_exit(tmp_path: Path) -> None:
    """1. A worker starts a child that shares its stdout. 2. It leaves. Result: its end is told, the child is killed."""
    recorded = await start(tmp_path, "leave-child")
    grandchild = int(await recorded.text())
    ended = await recorded.exit(seconds=5)
    assert ended.code == 0
    assert gone(grandchild)


async def test_grandchild_in_another_session_holds_up_the_exit_for_a_bounded_time(tmp_path: Path) -> None:
    """A child that left the group and holds the pipes cannot keep the worker's end from being told."""
    recorded = await start(tmp_path, "leave-child detached")
    grandchild = int(await recorded.text())
    try:
        ended = await recorded.exit(seconds=5)
        assert ended.code == 0
    finally:
        os.kill(grandchild, signal.SIGKILL)


async def test_hundred_quick_exits_leave_no_zombie(tmp_path: Path) -> None:
    """A hundred workers that leave at once are each reported; the leak check counts zombies and descriptors."""
    python = executable(tmp_path / "quick", "exit 3")
    for _ in range(10):
        batch = [await start(tmp_path, "none", python=python) for _ in range(10)]
        assert [(await recorded.exit()).code for recorded in batch] == [3] * 10
        assert psutil.Process().children() == []


# ---------------------------------------------------------------------------------------------------- it is asked to


@pytest.mark.parametrize(
    ("rung", "code", "number"),
    [("close", 0, None), ("terminate", None, signal.SIGTERM), ("kill", None, signal.SIGKILL)],
)
async def test_stop_ends_a_well_behaved_worker_at_its_rung(
    tmp_path: Path, rung: Rung, code: int | None, number: int | None
) -> None:
    """A worker that obeys is ended by the rung that was asked for, and no other."""
    recorded = await start(tmp_path, "serve")
    await recorded.hello()
    recorded.stop(rung, "idle for 5 minutes")
    ended = await recorded.exit()
    assert (ended.code, ended.signal, ended.requested) == (code, number, True)
    assert not ended.possible_oom
    assert ended.describe().startswith("stopped: idle for 5 minutes (")


async def test_abort_brings_the_stacks_of_a_hung_worker(tmp_path: Path) -> None:
    """A hung worker is aborted so that its last lines say where it hung."""
    recorded = await start(tmp_path, "traceback")
    await recorded.text()
    recorded.stop("abort", "no progress for 30 s")
    ended = await recorded.exit()
    assert ended.signal == signal.SIGABRT
    assert any(line.startswith("Fatal Python error: Aborted") for line in ended.last_lines)
    assert any("in hang" in line for line in ended.last_lines)


@pytest.mark.parametrize("rung", RUNGS)
async def test_stop_is_bounded_for_a_worker_that_ignores_everything(tmp_path: Path, rung: Rung) -> None:
    """A worker deaf to its pipe, SIGTERM and SIGABRT is killed at the top of the ladder, from wherever it began."""
    recorded = await start(tmp_path, "ignore SIGTERM SIGABRT")
    await recorded.text()
    recorded.stop(rung)
    ended = await recorded.exit(seconds=5)
    assert (ended.signal, ended.requested) == (signal.SIGKILL, True)


async def test_stop_takes_the_child_of_a_worker_with_it(tmp_path: Path) -> None:
    """What a worker started goes with it, also when the worker closes in good order."""
    recorded = await start(tmp_path, "child")
    grandchild = int(await recorded.text())
    recorded.stop("close")
    assert (await recorded.exit()).code == 0
    assert gone(grandchild)


async def test_stronger_stop_does_not_wait_for_the_weaker_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. A worker is asked to close and does not. 2. It is to be killed. Result: it is, without the grace's end."""
    monkeypatch.setattr(limits, "close_grace_seconds", 1000.0)
    recorded = await start(tmp_path, "ignore SIGTERM")
    await recorded.text()
    recorded.stop("close", "unload")
    await asyncio.sleep(0)
    recorded.stop("kill", "shutdown")
    ended = await recorded.exit(seconds=5)
    assert ended.signal == signal.SIGKILL
    assert ended.reason == "unload"


async def test_weaker_stop_does_not_slow_the_stronger_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking again, and for less, changes nothing."""
    monkeypatch.setattr(limits, "close_grace_seconds", 1000.0)
    recorded = await start(tmp_path, "ignore SIGTERM")
    await recorded.text()
    recorded.stop("kill")
    for rung in ("abort", "terminate", "close"):
        recorded.stop(rung)
    assert (await recorded.exit(seconds=5)).signal == signal.SIGKILL


async def test_stop_of_a_worker_that_has_gone_changes_nothing(tmp_path: Path) -> None:
    """A stop that comes after the crash does not turn it into an exit that was asked for."""
    recorded = await start(tmp_path, "exit 5")
    ended = await recorded.exit()
    for rung in RUNGS:
        recorded.stop(rung)
    assert ended.code == 5
    assert not ended.requested
    assert len(recorded.exits) == 1


async def test_stop_while_the_pipes_of_a_dead_worker_are_drained_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The crash came first, although its telling waits for a pipe that something else holds."""
    monkeypatch.setattr(limits, "pipe_drain_seconds_max", 1.0)
    recorded = await start(tmp_path, "leave-child and detached")
    child, detached = map(int, (await recorded.text()).split())
    await eventually(lambda: gone(child))  # the worker's end is known, and its group killed
    assert recorded.exits == []
    recorded.stop("kill", "too late")
    ended = await recorded.exit()
    os.kill(detached, signal.SIGKILL)
    assert (ended.code, ended.requested, ended.reason) == (0, False, None)


async def test_stop_before_hello_ends_a_worker(tmp_path: Path) -> None:
    """A worker that is still starting can be stopped as well."""
    recorded = await start(tmp_path, "none", python=executable(tmp_path / "slow", "exec sleep 1000"))
    recorded.stop("close")
    assert (await recorded.exit(seconds=5)).signal == signal.SIGTERM


async def test_stop_in_a_callback_is_taken(tmp_path: Path) -> None:
    """The actor may stop a worker, and send to it, from inside the report that made it decide so."""
    recorded = await start(tmp_path, "serve")

    def on_report(report: Report) -> None:
        if isinstance(report, Text):
            recorded.stop("kill", "seen enough")

    await recorded.hello()
    recorded.heard = on_report
    for number in range(100):
        recorded.send(Detokenize(number, [number]))
    assert (await recorded.exit()).reason == "seen enough"


# --------------------------------------------------------------------------------------------- it is stopped, or hangs


async def test_stopped_worker_blocks_no_send_and_can_be_killed(tmp_path: Path) -> None:
    """1. A worker is frozen. 2. Far more is sent than a pipe holds. Result: sends return at once, SIGKILL ends it."""
    recorded = await start(tmp_path, "serve")
    await recorded.hello()
    await freeze(recorded.pid)
    started = time.monotonic()
    for number in range(50):
        recorded.send(Detokenize(number, [70_000] * 20_000))
    assert time.monotonic() - started < 2
    recorded.stop("kill")
    assert (await recorded.exit()).signal == signal.SIGKILL


@pytest.mark.parametrize(("rung", "number"), [("close", signal.SIGTERM), ("abort", signal.SIGABRT)])
async def test_stopped_worker_is_woken_to_take_its_signal(tmp_path: Path, rung: Rung, number: int) -> None:
    """A frozen worker need not be killed to end: it is continued with the signal that ends it."""
    recorded = await start(tmp_path, "serve")
    await recorded.hello()
    await freeze(recorded.pid)
    recorded.stop(rung)
    assert (await recorded.exit()).signal == number


async def test_worker_that_never_reads_is_killed_past_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands wait up to a bound; past it the worker counts as broken, and memory is given back."""
    monkeypatch.setattr(limits, "command_bytes_buffered_max", 1_000_000)
    recorded = await start(tmp_path, "ignore SIGTERM")
    await recorded.text()
    for number in range(20):
        recorded.send(Detokenize(number, [70_000] * 20_000))
    ended = await recorded.exit()
    assert ended.violation is not None
    assert ended.violation.startswith("does not read its commands: 1")
    assert not ended.requested
    assert not ended.possible_oom


async def test_worker_that_closes_its_pipe_and_goes_on_is_ended(tmp_path: Path) -> None:
    """Nothing can be heard of it any more, so it is no worker any more."""
    ended = await (await start(tmp_path, "mute")).exit()
    assert ended.violation == "closed its report pipe and went on running"
    assert ended.describe() == ended.violation


class Immortal:
    """A process that sits in the kernel: nothing ends it."""

    def __init__(self) -> None:
        self.end = asyncio.get_running_loop().create_future()

    async def wait(self) -> int:
        return await self.end


async def test_unkillable_process_ends_the_ladder_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process in an uninterruptible sleep is given up, and not called gone."""
    monkeypatch.setattr(limits, "kill_wait_seconds_max", 0.2)
    process = Immortal()
    child = await asyncio.create_subprocess_exec("sleep", "1000", start_new_session=True)
    group = ProcessGroup(child.pid)
    for name in ("signal", "signal_group"):
        monkeypatch.setattr(group, name, signal.Signals)  # reaches nobody
    reaper = Reaper(process, group, close_commands=lambda: None)
    reaper.stop("close")
    assert await asyncio.wait_for(reaper.reap(), 5) is None
    process.end.set_result(0)
    child.kill()
    await child.wait()
    group.close()
    ended = WorkerExit(code=None, signal=None, requested=True, violation=None, last_lines=[], reason="r")
    assert ended.describe() == "could not be killed within 0.2 s, and may still run"


async def test_cancelled_life_kills_the_group(tmp_path: Path) -> None:
    """When the loop ends its tasks, no worker is left behind, and no descriptor."""
    recorded = await start(tmp_path, "child")
    grandchild = int(await recorded.text())
    (life,) = (task for task in asyncio.all_tasks() if task.get_name() == f"worker tiny {recorded.pid}")
    life.cancel()
    await asyncio.gather(life, return_exceptions=True)
    await eventually(lambda: gone(recorded.pid) and gone(grandchild))
    assert recorded.exits == []
    for entry in (tmp_path / "run").iterdir():
        entry.unlink()  # the sweep's work


@pytest.mark.parametrize("seed", [1, 2])
async def test_lives_of_any_kind_that_end_at_any_moment_are_each_told_once(tmp_path: Path, seed: int) -> None:
    """Workers of every temper, stopped and killed at random moments: each ends once, and nothing is left."""
    chance = random.Random(seed)
    tempers = ["serve", "exit 3", "child", "leave-child", "mute", "no-hello", "write 00", "ignore SIGTERM", "lines 50"]

    async def live(temper: str) -> WorkerExit:
        recorded = await start(tmp_path, temper)
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(chance.random() * 0.3)
            recorded.send(Detokenize(1, [1]))
            recorded.stop(chance.choice(RUNGS), "chance")
        with suppress(ProcessLookupError):
            if not recorded.exits and chance.random() < 0.5:
                os.kill(recorded.pid, chance.choice([signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV]))
        recorded.stop("close", "the end")
        return await recorded.exit(seconds=30)

    exits = await asyncio.gather(*(live(temper) for temper in tempers))
    assert all((ended.code is None) != (ended.signal is None) for ended in exits)


# ---------------------------------------------------------------------------------------------- it breaks the protocol

TEXT = encode(Text(1, "ab"))
GARBAGE = {
    "noise": "ff" * 100,
    "oversized": "01000004" + "00" * 100,
    "unknown tag": encode(Hello(1, "a", "b", 1)).hex().replace(b"hello".hex(), b"hallo".hex()),
    "empty frame": "00000000",
    "bad utf-8": TEXT.hex().replace(b"ab".hex(), "fffe"),
    "deep nesting": (50_000).to_bytes(4, "little").hex() + "91" * 50_000,
    "a second hello": encode(Hello(1, "a", "b", 1)).hex(),
    "a command": encode(Detokenize(1, [1])).hex(),
    "trailing bytes": (len(encode(Text(1, "ab"))) - 3).to_bytes(4, "little").hex()
    + encode(Text(1, "ab"))[4:].hex()
    + "c0",
}


@pytest.mark.parametrize("seed", GARBAGE)
async def test_garbage_is_a_violation_and_ends_the_worker(tmp_path: Path, seed: str) -> None:
    """Bytes that are no frame: the worker is killed, and the exit says what it did."""
    recorded = await start(tmp_path, f"write {GARBAGE[seed]}")
    ended = await recorded.exit()
    assert ended.violation is not None
    assert ended.violation.startswith("sent garbage: ")
    assert ended.describe() == ended.violation
    assert (ended.signal, ended.requested, ended.possible_oom) == (signal.SIGKILL, False, False)


async def test_worker_that_does_not_say_hello_first_is_a_violation(tmp_path: Path) -> None:
    """Any first frame but Hello means that the other side is no worker of ours."""
    recorded = await start(tmp_path, "no-hello")
    assert (await recorded.exit()).violation == "sent garbage: the first frame is no hello"
    assert recorded.reports == []


async def test_nothing_is_reported_after_garbage(tmp_path: Path) -> None:
    """What follows a broken frame in the same read is not trusted any more."""
    recorded = await start(tmp_path, f"write {encode(Text(1, 'good')).hex()}00000000{encode(Text(2, 'bad')).hex()}")
    await recorded.exit()
    assert [report.id for report in recorded.reports if isinstance(report, Text)] == [1]


async def test_cut_frame_before_a_good_exit_is_a_violation(tmp_path: Path) -> None:
    """A worker that leaves with code 0 has written whole frames."""
    ended = await (await start(tmp_path, f"write-exit {encode(Step([])).hex()[:-2]}")).exit()
    assert ended.violation is not None
    assert "bytes into a frame" in ended.violation


async def test_cut_frame_of_a_crash_is_told_as_the_crash(tmp_path: Path) -> None:
    """A worker that was killed while it wrote did not break the protocol."""
    recorded = await start(tmp_path, f"write {encode(Step([])).hex()[:-2]}")
    await recorded.hello()
    os.kill(recorded.pid, signal.SIGKILL)
    ended = await recorded.exit()
    assert (ended.violation, ended.signal) == (None, signal.SIGKILL)
