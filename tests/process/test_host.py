"""Worker processes over real pipes: how they serve, how they fail, and that none outlives its daemon."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from tests.support import loud_backend
from tests.support.leaks import no_leaks
from tests.support.polling import eventually_sync
from tests.support.worker_client import GREEDY, Worker, WorkerEnded, load_of, text_request

from llmvisor_runtimes import limits
from llmvisor_runtimes.malformed import SEEDS
from llmvisor_runtimes.protocol import (
    PROTOCOL_VERSION,
    ApplyTemplate,
    Cancel,
    ChatMessage,
    ChatPrompt,
    Close,
    Detokenize,
    Failed,
    Generate,
    Hello,
    Loaded,
    LoadFailed,
    LoadProgress,
    Pause,
    ProtocolViolation,
    Resume,
    Step,
    Text,
    TextPrompt,
    Tick,
    Tokenize,
    TokenPrompt,
    Tokens,
    encode,
)

REPOSITORY = Path(__file__).parents[2]
linux = pytest.mark.skipif(sys.platform != "linux", reason="the promise rests on Linux's prctl or /proc")


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """Every test here gives back its processes and descriptors."""
    with no_leaks():
        yield


def gone(pid: int) -> bool:
    """Whether a process has ended, be it reaped or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


# --------------------------------------------------------------------------------------------------------- serving


def test_worker_greets_loads_and_generates() -> None:
    """1. Hello comes before anything is asked. 2. Load gives progress, then Loaded. 3. A request gives its reply."""
    with Worker() as worker:
        hello = worker.receive()
        assert isinstance(hello, Hello)
        assert (hello.protocol_version, hello.backend, hello.pid) == (PROTOCOL_VERSION, "mock", worker.pid)
        worker.send(load_of(load_seconds=0.2))
        assert isinstance(worker.receive(), LoadProgress)
        loaded = worker.receive_until(Loaded)
        assert loaded.info.architecture == "mock"
        reply = worker.generate(text_request(1, "hello", max_tokens=8))[1]
        assert len(reply.tokens()) == 8
        assert reply.done is not None
        assert reply.done.prompt_tokens == 5


def test_worker_answers_tokenizer_calls() -> None:
    """Tokenize with the bytes of each token, Detokenize, ApplyTemplate; each carries its id."""
    chat = ChatPrompt([ChatMessage("user", "hé")])
    with Worker() as worker:
        worker.load()
        worker.send(Tokenize(1, TextPrompt("hé")), Detokenize(2, [104, 105]), ApplyTemplate(3, chat))
        assert worker.receive_until(Tokens) == Tokens(1, [104, 0xC3, 0xA9], [b"h", b"\xc3", b"\xa9"])
        assert worker.receive_until(Text) == Text(2, "hi")
        assert worker.receive_until(Text) == Text(3, "<|user|>hé\n<|assistant|>")
        worker.send(Detokenize(4, [-1]))
        assert worker.receive_until(Failed).kind == "invalid_value"


def test_requests_share_the_frames_of_a_step() -> None:
    """Two requests decode together: one `Step` carries the deltas of both."""
    with Worker() as worker:
        worker.load(token_delay_ms=1)
        worker.send(text_request(1, "a", max_tokens=50), text_request(2, "b", max_tokens=50))
        together = 0
        ended = 0
        while ended < 2:
            step = worker.receive_until(Step)
            together += {delta.id for delta in step.deltas} == {1, 2}
            ended += len(step.done)
        assert together > 0


def test_frames_larger_than_the_pipe_come_whole() -> None:
    """Commands and reports of several megabytes cross a pipe that holds 64 KiB."""
    text = "0123456789abcdef" * 65_536
    with Worker() as worker:
        worker.load()
        worker.send(Tokenize(1, TextPrompt(text)))
        tokens = worker.receive_until(Tokens)
        assert bytes(tokens.tokens).decode() == text


def test_token_prompt_and_text_prompt_give_the_same() -> None:
    """A prompt that needs no tokenizer takes a shorter way, to the same reply."""
    with Worker() as worker:
        worker.load()
        tokens = Generate(2, "req", TokenPrompt(list(b"hello")), GREEDY)
        replies = worker.generate(text_request(1, "hello"), tokens)
        assert replies[1].text() == replies[2].text() != ""


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": limits.choices_max + 1}, "n"),
        ({"n": 0}, "n"),
        ({"stop": ["x"] * (limits.stop_strings_max + 1)}, "stop"),
        ({"logprobs": limits.top_logprobs_max + 1}, "logprobs"),
        ({"max_tokens": -1}, "max_tokens"),
    ],
)
def test_worker_keeps_its_own_bounds(fields: dict[str, object], param: str) -> None:
    """Whatever the daemon let through: over a bound is one request's error, at the bound it is served."""
    at_bound = {"n": limits.choices_max, "stop": ["x"] * limits.stop_strings_max, "logprobs": limits.top_logprobs_max}
    with Worker() as worker:
        worker.load()
        replies = worker.generate(
            text_request(1, "hello", **fields), text_request(2, "hello", max_tokens=2, **at_bound)
        )
        failed = replies[1].failed
        assert failed is not None
        assert (failed.kind, failed.param) == ("invalid_value", param)
        assert replies[2].done is not None


def test_request_before_a_model_is_there_fails() -> None:
    """The daemon never does it; the worker says so and lives."""
    with Worker() as worker:
        worker.receive_until(Hello)
        worker.send(text_request(1, "hello"), Tokenize(2, TextPrompt("x")))
        assert worker.receive_until(Failed).id == 1
        assert worker.receive_until(Failed).id == 2
        worker.send(load_of())
        worker.receive_until(Loaded)
        assert worker.generate(text_request(3, "hello"))[3].done is not None


# ------------------------------------------------------------------------------------------- cancel, pause, resume


def test_cancel_of_a_prompt_that_waits_for_the_tokenizer_is_answered_at_once() -> None:
    """1. One prompt occupies the prompt thread. 2. One behind it is cancelled: it ends with all counts zero, long
    before its turn. 3. The first is served."""
    with Worker() as worker:
        worker.load()
        worker.send(text_request(1, "[[failpoint: tokenize=1*delay(1500)]]", max_tokens=3))
        worker.send(text_request(2, "hello", n=2), Cancel(2))
        replies = worker.collect([1, 2])
        assert [(delta.index, delta.finish) for delta in replies[2].deltas] == [(0, "cancelled"), (1, "cancelled")]
        done = replies[2].done
        assert done is not None
        assert (done.prompt_tokens, done.completion_tokens) == (0, 0)
        assert len(replies[1].tokens()) == 3


def test_cancel_of_a_prompt_inside_the_tokenizer_is_answered_before_it_is_through() -> None:
    """The answer does not wait for the tokenizer, and nothing more comes for the request."""
    with Worker() as worker:
        worker.load()
        worker.send(text_request(1, "[[failpoint: tokenize=1*delay(700)]]"), Cancel(1), text_request(2, "x"))
        first = worker.receive_until(Step)
        assert [(delta.id, delta.finish) for delta in first.deltas] == [(1, "cancelled")]
        assert worker.collect([2])[2].finish() == "length"


def test_cancel_of_a_running_request_ends_it() -> None:
    """Also while it is paused, when nothing else would wake the engine."""
    with Worker() as worker:
        worker.load(token_delay_ms=5)
        worker.send(text_request(1, "a", max_tokens=5000), text_request(2, "b", max_tokens=5000))
        worker.receive_until(Step)
        worker.send(Cancel(1), Pause(2), Cancel(2))
        replies = worker.collect([1, 2])
        assert [replies[id].finish() for id in (1, 2)] == ["cancelled"] * 2


def test_pause_right_behind_a_request_is_not_lost() -> None:
    """It holds from the first token on, until Resume."""
    with Worker() as worker:
        worker.load()
        worker.send(text_request(1, "a", max_tokens=9), Pause(1), text_request(2, "b", max_tokens=9))
        # The second request came later on the same way, so the first has been in the engine all along.
        first = worker.receive_until(Step)
        while not first.done:
            assert {delta.id for delta in first.deltas} == {2}
            first = worker.receive_until(Step)
        worker.send(Resume(1))
        assert len(worker.collect([1])[1].tokens()) == 9


# ----------------------------------------------------------------------------------------------------------- ticks


@pytest.mark.parametrize("where", ["load", "generate"])
def test_ticks_come_while_native_code_hangs(where: str) -> None:
    """An engine that hangs without the GIL is seen by ticks whose step number stands still."""
    with Worker() as worker:
        worker.receive_until(Hello)
        worker.send(load_of(failpoints=f"{where}=1*token->hang"))
        if where == "generate":
            worker.receive_until(Loaded)
            worker.send(text_request(1, "hello"))
        ticks = [worker.receive_until(Tick) for _ in range(3)]
        assert {tick.phase for tick in ticks[1:]} == {"load" if where == "load" else "decode"}
        assert ticks[1].step == ticks[2].step > 0
        assert ticks[2].rss_bytes > 5_000_000


def test_no_tick_comes_while_the_gil_is_held() -> None:
    """A worker that holds the GIL is silent: that, too, the daemon can tell."""
    with Worker() as worker:
        worker.load()
        worker.send(text_request(1, "[[failpoint: generate=1*token->spin(gil)]]"))
        worker.receive_until(Step)
        with pytest.raises(TimeoutError):
            worker.receive_until(Tick, seconds=2.5 * limits.tick_interval_seconds)


def test_ticks_count_tokens_once() -> None:
    """Each token is in one tick, prompt and reply alike."""
    with Worker() as worker:
        worker.load()
        worker.send(text_request(1, "hello", max_tokens=20))
        first, second = worker.receive_until(Tick), worker.receive_until(Tick)
        assert (first.tokens, second.tokens) == (25, 0)
        assert (second.phase, second.active) == ("idle", 0)


# ------------------------------------------------------------------------------------------------- the end, wanted


@pytest.mark.parametrize("hang_up", [False, True])
def test_close_frees_the_model_and_exits_0(hang_up: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Also where the daemon ends the pipe right behind Close."""
    with Worker() as worker:
        worker.load(failpoints="close=1*delay(300)")
        worker.send(Close())
        if hang_up:
            worker.close_commands()
        assert worker.wait() == 0


def test_close_ends_a_load_that_hangs() -> None:
    """Nothing interrupts an engine that loads; the worker exits around it."""
    with Worker() as worker:
        worker.send(load_of(failpoints="load=hang"))
        worker.receive_until(LoadProgress)
        worker.send(Close())
        assert worker.wait() == 0


def test_sigterm_ends_a_worker_and_sigint_does_not() -> None:
    """Ctrl-C in a terminal is for the daemon alone; SIGTERM has its default effect."""
    with Worker() as worker:
        worker.load()
        os.kill(worker.pid, signal.SIGINT)
        assert worker.generate(text_request(1, "hello"))[1].done is not None
        os.kill(worker.pid, signal.SIGTERM)
        assert worker.wait() == -signal.SIGTERM


def test_sigabrt_leaves_every_threads_stack_in_the_log() -> None:
    """What a worker hung in is told by its last lines."""
    with Worker() as worker:
        worker.load()
        worker.send(text_request(1, "[[failpoint: generate=1*token->hang]]"))
        worker.receive_until(Step)
        os.kill(worker.pid, signal.SIGABRT)
        assert worker.wait() == -signal.SIGABRT
        log = worker.log()
    assert "Fatal Python error: Aborted" in log
    assert log.count("Thread 0x") >= 4
    assert "_hang" in log


# ------------------------------------------------------------------------------------------- the end, not wanted


@linux
@pytest.mark.parametrize("state", ["", "spin(gil)", "stop", "spin", "hang"])
def test_no_worker_outlives_its_killed_parent(state: str) -> None:
    """SIGKILL of the parent ends the worker within two seconds, idle, computing, hung, holding the GIL or stopped."""
    argv = [sys.executable, "-m", "tests.support.worker_parent", state]
    with subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        try:
            assert not gone(pid)
            parent.kill()
            eventually_sync(lambda: gone(pid), 2, "the worker's end")
        finally:
            parent.kill()
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_end_of_the_command_pipe_ends_the_worker_and_what_it_started() -> None:
    """Where the kernel tells nothing, the pipe does: the whole process group goes."""
    with Worker() as worker:
        worker.load(failpoints="generate=1*fork->ok")
        worker.generate(text_request(1, "hello"))
        (child,) = children(worker.pid)
        worker.close_commands()
        assert worker.wait() == -signal.SIGKILL
        eventually_sync(lambda: gone(child.pid), 2, "the grandchild's end")


def test_worker_that_nobody_reads_ends() -> None:
    """A closed report pipe is the daemon's end, too."""
    with Worker() as worker:
        worker.load()
        worker.close_reports()
        worker.send(text_request(1, "hello"))
        assert worker.wait() == -signal.SIGKILL


@pytest.mark.parametrize("name", ["http_request", "unknown_tag", "bad_utf8", "deep_nesting", "oversize", "nil"])
def test_garbage_on_the_command_pipe_ends_the_worker(name: str) -> None:
    """A daemon that sends no frames cannot be trusted with the next one."""
    with Worker() as worker:
        worker.load()
        worker.write(SEEDS[name])
        assert worker.wait() == -signal.SIGKILL
        assert "the command pipe is broken" in worker.log()


def test_cut_frame_at_the_end_of_the_command_pipe_ends_the_worker() -> None:
    """The daemon died inside a write."""
    with Worker() as worker:
        worker.load()
        worker.write(SEEDS["cut_body"])
        worker.close_commands()
        assert worker.wait() == -signal.SIGKILL


@pytest.mark.parametrize("what", ["load", "id"])
def test_command_out_of_order_ends_the_worker(what: str) -> None:
    """A second Load, and an id that waits already, are no protocol."""
    with Worker() as worker:
        worker.load()
        slow = text_request(1, "[[failpoint: tokenize=1*delay(5000)]]")
        worker.write(encode(load_of()) if what == "load" else encode(slow) + encode(slow))
        assert worker.wait() == -signal.SIGKILL
        assert "twice" in worker.log()


# -------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("options", "reason", "permanent"),
    [
        ({"tokken_delay_ms": 5}, "tokken_delay_ms", True),
        ({"failpoints": "load=fly"}, "position 5", True),
        ({"failpoints": "load=error(no room)"}, "no room", False),
    ],
)
def test_failed_load_is_told_and_the_worker_waits_to_be_closed(
    options: dict[str, object],
    reason: str,
    permanent: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """LoadFailed says why and whether to try again; ticks go on; Close ends it with 0."""
    with Worker() as worker:
        worker.send(load_of(**options))
        failed = worker.receive_until(LoadFailed)
        assert reason in failed.reason
        assert failed.permanent is permanent
        assert worker.receive_until(Tick).phase == "start"
        worker.send(Close())
        assert worker.wait() == 0


def test_engine_that_raises_crashes_with_its_traceback() -> None:
    """An exception out of `step` is exit code 70, and the last lines say where."""
    with Worker() as worker:
        worker.load()
        worker.send(text_request(1, "[[failpoint: generate=2*token->panic]]"))
        with pytest.raises(WorkerEnded):
            worker.receive_until(Failed)
        assert worker.wait() == os.EX_SOFTWARE
        assert "RuntimeError: injected panic" in worker.log()


def test_request_that_a_backend_chokes_on_fails_alone(tmp_path: Path) -> None:
    """An unexpected exception for one request is its `internal_error`, with the traceback in the log."""
    with Worker("loud", env=loud_backend.install(tmp_path)) as worker:
        worker.load()
        replies = worker.generate(text_request(1, "break"), text_request(2, "fine", max_tokens=2))
        assert replies[1].failed is not None
        assert replies[1].failed.kind == "internal_error"
        assert "does not like breaks" in replies[1].failed.message
        assert replies[2].done is not None
        worker.send(Close())
        assert worker.wait() == 0
        assert "Traceback" in worker.log()


@pytest.mark.parametrize(
    ("failpoint", "code"), [("exit(3)", 3), ("kill(9)", -9), ("kill(SIGSEGV)", -signal.SIGSEGV)]
)
def test_worker_dies_as_told_after_exactly_so_many_tokens(failpoint: str, code: int) -> None:
    """The tokens before the fault all come; other requests' too."""
    with Worker() as worker:
        worker.load(tokens_per_step=5)
        worker.send(text_request(1, f"[[failpoint: generate=3*token->{failpoint}]]", n=2))
        tokens = 0
        with pytest.raises(WorkerEnded):
            while True:
                tokens += sum(len(delta.tokens) for delta in worker.receive_until(Step).deltas)
        assert tokens == 3
        assert worker.wait() == code


@pytest.mark.parametrize("failpoint", ["garbage(ffffffff00)", "malformed(unknown_tag)", "malformed(short_delta)"])
def test_wrong_bytes_reach_the_daemon_as_told(failpoint: str) -> None:
    """The daemon's reader finds the tokens before them, then a violation."""
    with Worker() as worker:
        worker.load()
        worker.send(text_request(1, f"[[failpoint: generate=2*token->1*{failpoint}->hang]]"))
        with pytest.raises(ProtocolViolation):
            worker.collect([1])


def test_frames_that_are_wrong_in_meaning_are_sent_as_told() -> None:
    """An id that nobody asked for, a second Loaded, and deltas after a request's end."""
    with Worker() as worker:
        worker.load()
        worker.send(text_request(1, "[[failpoint: generate=badid->1*dupready->1*afterend->hang]]"))
        assert worker.receive_until(Step).deltas[0].id not in {0, 1}
        assert isinstance(worker.receive_until(Loaded), Loaded)
        steps = [worker.receive_until(Step) for _ in range(4)]
        ended = next(index for index, step in enumerate(steps) if step.done)
        assert ended < 3
        assert any(delta.id == 1 for step in steps[ended + 1 :] for delta in step.deltas)


def test_floods_are_as_large_as_told() -> None:
    """So many megabytes in frames for the request, and in one line of the log."""
    with Worker() as worker:
        worker.load()
        worker.send(text_request(1, "[[failpoint: generate=1*flood(3)->ok]]", max_tokens=1))
        assert 3 * 2**20 <= len(worker.collect([1])[1].text()) < 4 * 2**20
    with Worker() as worker:
        worker.load(failpoints="close=1*logflood(2)")
        worker.send(Close())
        assert worker.wait() == 0
        assert len(max(worker.log().split("\n"), key=len)) == 2 * 2**20


@linux
def test_alloc_takes_the_memory_and_keeps_it() -> None:
    """Resident memory rises by what was told."""
    with Worker() as worker:
        worker.load()
        before = psutil.Process(worker.pid).memory_info().rss
        worker.generate(text_request(1, "[[failpoint: generate=1*alloc(64)->ok]]"))
        assert psutil.Process(worker.pid).memory_info().rss - before > 60 * 2**20


def test_worker_ignores_sigterm_where_told() -> None:
    """Then only SIGKILL is left."""
    with Worker() as worker:
        worker.load(failpoints="generate=1*ignoreterm->ok")
        worker.generate(text_request(1, "hello"))
        os.kill(worker.pid, signal.SIGTERM)
        assert worker.generate(text_request(2, "hello"))[2].done is not None


@linux
def test_held_pipes_stay_open_after_the_worker() -> None:
    """`holdpipe` leaves a process, outside the group, that holds frames and log; `fork` one that holds none."""
    with Worker() as worker:
        worker.load(failpoints="generate=1*fork->1*holdpipe->ok")
        worker.generate(text_request(1, "hello"))
        pipes = {Path(f"/proc/{worker.pid}/fd/{fd}").readlink() for fd in worker.inherited_fds}
        held = {child.pid: pipes & _open_files(child.pid) for child in children(worker.pid)}
        assert sorted(map(len, held.values())) == [0, 2]
        holder = max(held, key=lambda pid: len(held[pid]))
        assert os.getpgid(holder) != worker.pid
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
        assert not gone(holder)
        os.kill(holder, signal.SIGKILL)


def _open_files(pid: int) -> set[Path]:
    return {entry.readlink() for entry in Path(f"/proc/{pid}/fd").iterdir()}


# ----------------------------------------------------------------------------------------------------- the process


def test_printing_backend_does_not_corrupt_frames(tmp_path: Path) -> None:
    """A third party's backend, found by its entry point, prints on every way there is: it all goes to the log."""
    with Worker("loud", env=loud_backend.install(tmp_path)) as worker:
        worker.load()
        reply = worker.generate(text_request(1, "hello", max_tokens=50))[1]
        assert len(reply.tokens()) == 50
        worker.send(Close())
        assert worker.wait() == 0
        log = worker.log()
    for line in ("print: stepping", "print: to stderr", "to stdout", "native: to stderr"):
        assert log.count(line) >= 50


def test_unknown_backend_is_permanent_and_names_the_known_ones() -> None:
    """Exit code 78, and a line that says what there is."""
    with Worker("mok") as worker:
        assert worker.wait() == os.EX_CONFIG
        log = worker.log()
    assert "'mok'" in log
    assert "llamacpp, mock" in log


def test_backend_that_cannot_be_imported_is_permanent(tmp_path: Path) -> None:
    """Its package is registered but not whole."""
    with Worker("absent", env=loud_backend.install(tmp_path)) as worker:
        assert worker.wait() == os.EX_CONFIG
        assert "no_such_module" in worker.log()


@pytest.mark.parametrize("extra", [["--colour"], ["--open-files-max", "many"], ["--read-fd", "0"], ["--read-fd", "999"]])
def test_wrong_command_line_is_permanent(extra: list[str]) -> None:
    """Frames never use stdin, stdout or stderr, nor a descriptor that is not there."""
    with Worker(extra=extra) as worker:
        assert worker.wait() == os.EX_CONFIG
        assert "usage:" in worker.log()


def test_worker_of_another_parent_exits_at_once() -> None:
    """A daemon that died while its worker started leaves nothing."""
    with Worker(extra=["--parent-pid", "1"]) as worker:
        with pytest.raises(WorkerEnded):
            worker.receive()
        assert worker.wait() == os.EX_SOFTWARE
        assert "parent" in worker.log()


@linux
def test_worker_sets_its_limits() -> None:
    """Open files and core size are limited, and the kernel would rather kill it than the daemon."""
    with Worker(extra=["--open-files-max", "200", "--oom-score-adj", "500"]) as worker:
        worker.load()
        assert resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)[0] == 200
        assert resource.prlimit(worker.pid, resource.RLIMIT_CORE) == (0, 0)
        assert Path(f"/proc/{worker.pid}/oom_score_adj").read_text().strip() == "500"


def test_host_imports_msgspec_and_the_standard_library_alone() -> None:
    """Whatever else is installed: no import of it, so that a worker starts fast and engines meet nothing."""
    program = "import sys, llmvisor_runtimes.process, llmvisor_runtimes.mock; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True).stdout
    packages = {name.partition(".")[0] for name in modules.split()}
    # The interpreter's own start-up imports what environments and editable installs put in their .pth files.
    bare = subprocess.run([sys.executable, "-P", "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True)
    packages -= {name.partition(".")[0] for name in bare.stdout.split()}
    assert packages - sys.stdlib_module_names - {"typing_extensions"} == {"llmvisor_runtimes", "msgspec"}
