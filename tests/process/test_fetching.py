"""The fetch process as the daemon runs it: what it is told, what it says, and every way in which it can end."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.daemon import alive
from tests.support.polling import eventually
from tests.support.workers import nonce

from llmvisor import limits
from llmvisor.clock import SystemClock
from llmvisor.errors import LlmvisorError
from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.protocol import Fetched, FetchProgress, FetchRequest, Found, SearchRequest
from llmvisor.jobs.ending import FetchCrashed
from llmvisor.jobs.fetching import FetchRunner, fetch_environment
from llmvisor.supervision.workers.orphans import OrphanJournal, sweep

pytestmark = [pytest.mark.both_loops, pytest.mark.usefixtures("leak_check")]

REQUEST = FetchRequest("starter", "/nowhere")
FETCHED: dict[str, object] = {"type": "fetched", "source": "s", "revision": "r", "files": [], "main": "", "name": "n"}
FAILED = {"type": "failed", "kind": "network", "message": "no route", "hint": "look", "retry_after_seconds": 7.0}
PREAMBLE = """
import json, os, signal, sys, time
request = json.loads(sys.stdin.readline())
def say(line): print(json.dumps(line), flush=True)
"""


def runner(tmp_path: Path, script: str, *, silent_seconds: float = 30.0) -> FetchRunner:
    return FetchRunner(
        command=[sys.executable, "-P", "-c", PREAMBLE + script],
        environment=fetch_environment(os.environ),
        journal=lambda: OrphanJournal(tmp_path / "run"),
        nonce_source=nonce,
        clock=SystemClock(),
        silent_seconds_max=silent_seconds,
    )


async def fetched(tmp_path: Path, script: str, **options: float) -> object:
    return await runner(tmp_path, script, **options).fetch(REQUEST, on_progress=lambda _: None)


async def running(processes: FetchRunner, on_progress: Callable[[FetchProgress], None]) -> asyncio.Task[object]:
    return asyncio.ensure_future(processes.fetch(REQUEST, on_progress=on_progress))


async def test_request_goes_in_and_progress_and_the_answer_come_out(tmp_path: Path) -> None:
    """In order, and the process is gone afterwards."""
    script = f"""
for done in (1, 2): say({{"type": "progress", "stage": request["source"], "bytes_done": done}})
say({FETCHED!r})
"""
    seen: list[FetchProgress] = []
    answer = await runner(tmp_path, script).fetch(REQUEST, on_progress=seen.append)
    assert isinstance(answer, Fetched)
    assert [(one.stage, one.bytes_done) for one in seen] == [("starter", 1), ("starter", 2)]


async def test_nothing_is_heard_after_the_answer(tmp_path: Path) -> None:
    """A process that goes on and on fills nobody's memory: its pipe is shut."""
    script = f"""
say({FETCHED!r})
try:
    while True: say("more" * 10_000)
except BrokenPipeError:
    open({str(tmp_path / "shut")!r}, "w").close()
    os._exit(0)
"""
    assert isinstance(await fetched(tmp_path, script), Fetched)
    assert (tmp_path / "shut").exists()


async def test_search_gives_what_is_found(tmp_path: Path) -> None:
    """Through the same process."""
    found = {"type": "found", "models": [{"registry": "huggingface", "id": "a/b", "source": "hf:a/b"}]}
    answer = await runner(tmp_path, f"say({found!r})").search(SearchRequest("q", "huggingface"))
    assert isinstance(answer, Found)
    assert answer.models[0].id == "a/b"


async def test_failure_is_raised_with_all_that_it_says(tmp_path: Path) -> None:
    """Kind, next step, and when to ask again."""
    with pytest.raises(FetchProblem, match="no route") as caught:
        await fetched(tmp_path, f"say({FAILED!r})")
    assert (caught.value.kind, caught.value.hint, caught.value.retry_after_seconds) == ("network", "look", 7.0)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("sys.exit(3)", "ended with code 3"),
        ("raise ValueError('odd bytes')", "odd bytes"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
        ("print('{half', flush=True)", "should not"),
        ("print('no json at all', flush=True); time.sleep(60)", "should not"),
        ("say({'type': 'dance'})", "should not"),
        ("say({'type': 'progress', 'stage': 'x'})", "ended with code 0"),
        ("say({'type': 'found', 'models': []})", "answered with Found"),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN); print('x', flush=True); time.sleep(60)", "should not"),
    ],
)
async def test_process_that_breaks_off_is_an_error_with_its_reason(tmp_path: Path, script: str, reason: str) -> None:
    """Whatever it does, it is gone afterwards."""
    with pytest.raises(FetchCrashed, match=reason):
        await fetched(tmp_path, script)


async def test_line_without_end_is_cut_and_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes no more memory than a line may."""
    monkeypatch.setattr(limits, "fetch_line_bytes_max", 1000)
    with pytest.raises(FetchCrashed):
        await fetched(tmp_path, "while True: sys.stdout.write('x' * 5000)")


async def test_silent_process_is_ended(tmp_path: Path) -> None:
    """One that hangs holds its job up for so long and no longer; what it says meanwhile counts."""
    with pytest.raises(FetchCrashed, match=r"said nothing for 0\.5 s"):
        await fetched(tmp_path, "time.sleep(60)", silent_seconds=0.5)


async def test_cancelled_fetch_takes_all_that_it_started_with_it(tmp_path: Path) -> None:
    """1. A fetch has started a process of its own and ignores SIGTERM. 2. It is cancelled. Result: both are gone."""
    script = """
import subprocess
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "60"])
say({"type": "progress", "stage": str(child.pid)})
time.sleep(60)
"""
    seen: list[FetchProgress] = []
    task = await running(runner(tmp_path, script), seen.append)
    await eventually(lambda: seen, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: not alive(int(seen[0].stage)))


async def test_fetch_is_in_the_journal_while_it_runs_and_can_be_swept(tmp_path: Path) -> None:
    """A daemon that was killed leaves it to the next one, also what it started in a session of its own."""
    script = """
import subprocess
child = subprocess.Popen(["sleep", "60"], start_new_session=True)
say({"type": "progress", "stage": str(child.pid)})
time.sleep(60)
"""
    seen: list[FetchProgress] = []
    task = await running(runner(tmp_path, script), seen.append)
    await eventually(lambda: seen, 20)
    assert [entry.model for entry in sweep(tmp_path / "run").killed] == ["fetch"]
    with pytest.raises(FetchCrashed, match="SIGKILL"):
        await task
    await eventually(lambda: not alive(int(seen[0].stage)))


async def test_command_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """And nothing is left open."""
    it = FetchRunner(
        command=[str(tmp_path / "nothing")],
        environment={},
        journal=lambda: OrphanJournal(tmp_path / "run"),
        nonce_source=nonce,
        clock=SystemClock(),
    )
    with pytest.raises(LlmvisorError, match="cannot be started"):
        await it.fetch(REQUEST, on_progress=lambda _: None)


async def test_process_gets_the_hubs_token_and_no_other_secret(tmp_path: Path) -> None:
    """And how this machine reaches the network; nothing else of the environment, no descriptor of ours."""
    around = {
        "PATH": "/bin",
        "HF_TOKEN": "hf_1",
        "https_proxy": "http://p",
        "PIP_INDEX_URL": "http://i",
        "OPENAI_API_KEY": "k",
        "AWS_SECRET_ACCESS_KEY": "k",
        "LLMVISOR__X": "1",
        "NOTIFY_SOCKET": "/x",
    }
    environment = fetch_environment(around)
    assert {name for name in around if name in environment} == {"PATH", "HF_TOKEN", "https_proxy", "PIP_INDEX_URL"}
    script = "say({'type': 'progress', 'stage': json.dumps([LINKS, os.getpid() == os.getsid(0)])})"
    links = "[os.readlink('/dev/fd/' + name) for name in os.listdir('/dev/fd') if os.path.exists('/dev/fd/' + name)]"
    seen: list[FetchProgress] = []
    inherited = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(inherited, True)
    try:
        with pytest.raises(FetchCrashed):
            await runner(tmp_path, script.replace("LINKS", links)).fetch(REQUEST, on_progress=seen.append)
    finally:
        os.close(inherited)
    descriptors, own_session = json.loads(seen[0].stage)
    assert len(descriptors) >= 3
    assert str(tmp_path) not in descriptors
    assert own_session
