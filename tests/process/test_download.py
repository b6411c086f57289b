"""Bytes from a host that misbehaves as hosts do: every file arrives whole, or the error says what to do."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import aiohttp
import pytest
from tests.support.polling import eventually
from tests.support.range_host import Fault, RangeHost, range_host

from llmvisor.fetch import limits, transfer
from llmvisor.fetch import partial as partial_module
from llmvisor.fetch.download import RemoteFile, download, open_session
from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.partial import PartialFile
from llmvisor.fetch.protocol import FetchedFile, FetchProgress, FetchRequest

CONTENT = hashlib.shake_256(b"weights").digest(1_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Place:
    """A host, a staging folder, and a client between them."""

    host: RangeHost
    staging: Path
    session: aiohttp.ClientSession
    progress: list[FetchProgress] = field(default_factory=list[FetchProgress])

    def file(self, path: str = "model.gguf", **fields: object) -> RemoteFile:
        known: dict[str, object] = {"url": self.host.url(f"/{path}"), "path": path, **fields}
        return RemoteFile(**known)  # pyright: ignore[reportArgumentType] - by name, as a test writes them

    async def fetch(self, *files: RemoteFile, connections: int = 1, rate: int = 0) -> list[FetchedFile]:
        request = FetchRequest("hf:x/y", str(self.staging), connections=connections, bytes_per_second_max=rate)
        wanted = files or (self.file(sha256=SHA256),)
        return await download(self.session, wanted, self.staging, request=request, report=self.progress.append)

    async def fails(self, *files: RemoteFile, connections: int = 1) -> FetchProblem:
        with pytest.raises(FetchProblem) as caught:
            await self.fetch(*files, connections=connections)
        assert caught.value.hint
        return caught.value

    @property
    def content(self) -> bytes:
        return (self.staging / "model.gguf").read_bytes()

    @property
    def starts(self) -> list[int]:
        return [asked.start for asked in self.host.asked]

    def visible(self) -> list[str]:
        return sorted(path.name for path in self.staging.iterdir() if ".partial" not in path.name)


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Place]:
    monkeypatch.setattr(limits, "fetch_backoff_seconds", 0.01)
    monkeypatch.setattr(limits, "fetch_piece_bytes", 128 * 1024)
    monkeypatch.setattr(limits, "fetch_progress_bytes_min", 16 * 1024)
    async with range_host() as host, open_session() as session:
        host.files["/model.gguf"] = CONTENT
        yield Place(host, tmp_path, session)


# ---------------------------------------------------------------------------------------------------- what arrives


async def test_download_brings_a_file_whole_and_checked(place: Place) -> None:
    """Its name appears with all of its bytes, and the answer says size and checksum."""
    assert await place.fetch() == [FetchedFile("model.gguf", len(CONTENT), SHA256)]
    assert place.content == CONTENT
    assert place.visible() == ["model.gguf"]
    assert place.progress[-1] == FetchProgress("verifying", 1_000_000, 1_000_000, "model.gguf", 1, 1)


async def test_download_shares_a_large_file_between_connections(place: Place) -> None:
    """Four connections at once ask for each byte once."""
    place.host.pause_seconds = 0.01
    await place.fetch(connections=4)
    assert place.content == CONTENT
    assert place.host.open_most == 4
    assert sorted(place.starts) == list(range(0, len(CONTENT), 128 * 1024))
    assert place.host.sent_bytes == len(CONTENT)


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("says_length", [True, False])
async def test_download_from_a_host_without_ranges(place: Place, connections: int, says_length: bool) -> None:
    """One connection brings the whole file, whether or not the host says how long it is."""
    place.host.takes_ranges, place.host.says_length = False, says_length
    await place.fetch(connections=connections)
    assert place.content == CONTENT
    assert len(place.host.asked) == 1


async def test_download_brings_several_files_into_folders(place: Place) -> None:
    """In their order, with the total in the progress; an empty one is a file as well."""
    place.host.files |= {"/a/b.json": b"{}", "/empty.txt": b""}
    files = [place.file(sha256=SHA256, size=len(CONTENT)), place.file("a/b.json", size=2), place.file("empty.txt")]
    fetched = await place.fetch(*files)
    assert [(file.path, file.size) for file in fetched] == [
        ("model.gguf", 1_000_000),
        ("a/b.json", 2),
        ("empty.txt", 0),
    ]
    assert (place.staging / "a/b.json").read_bytes() == b"{}"
    assert (place.staging / "empty.txt").read_bytes() == b""
    last = place.progress[-1]
    assert (last.bytes_done, last.bytes_total, last.files_done, last.files_total) == (1_000_002, 1_000_002, 3, 3)


async def test_download_of_an_empty_file_asks_for_nothing(place: Place) -> None:
    """Where the source says that it is empty."""
    await place.fetch(place.file("none.txt", size=0))
    assert (place.staging / "none.txt").read_bytes() == b""
    assert place.host.asked == []


async def test_download_keeps_to_the_bandwidth(place: Place) -> None:
    """A megabyte at four megabytes a second takes a fifth of a second at least, over all connections together.

    It flows: a tenth of a second's bytes at a time.
    """
    began = time.monotonic()
    await place.fetch(connections=4, rate=4_000_000)
    assert time.monotonic() - began >= 0.2
    done = [each.bytes_done for each in place.progress]
    assert max(after - before for before, after in pairwise(done)) <= 400_000


async def test_download_does_not_show_a_login_to_another_host(place: Place) -> None:
    """`Authorization` goes to the source, and not to where it redirects."""
    async with range_host() as other:
        other.files["/blob"] = CONTENT
        place.host.redirects["/model.gguf"] = other.url("/blob", host="localhost")
        await place.fetch(place.file(sha256=SHA256, headers={"Authorization": "Bearer secret"}))
        assert place.host.asked[0].headers["Authorization"] == "Bearer secret"
        assert all("Authorization" not in asked.headers for asked in other.asked)
    assert place.content == CONTENT


async def test_download_asks_the_source_once_where_it_redirects(place: Place) -> None:
    """Every further piece comes from where the first one came, without the source."""
    async with range_host() as other:
        other.files["/blob"] = CONTENT
        place.host.redirects["/model.gguf"] = other.url("/blob?signed=1")
        await place.fetch(connections=2)
        assert len(place.host.asked) == 1
        assert len(other.asked) == len(CONTENT) // (128 * 1024) + 1
    assert place.content == CONTENT


async def test_download_asks_the_source_again_where_a_redirect_is_over(place: Place) -> None:
    """1. A signed address that is good for two requests. Result: the source signs another one."""
    async with range_host() as other:
        other.files["/blob"] = CONTENT
        other.faults.extend([None, None, Fault(status=403)])
        place.host.redirects["/model.gguf"] = other.url("/blob")
        await place.fetch(connections=2)
    # The other connection may ask before the first one has the new address.
    assert 2 <= len(place.host.asked) <= 3
    assert place.content == CONTENT


async def test_download_asks_the_source_again_where_a_redirects_host_is_gone(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. The host that it was sent to cuts, and is away. Result: the source is asked, and names another one."""

    def backoff_seconds(failures: int, _: Callable[[], float]) -> float:
        return 1.0 if failures == 1 else 0.01  # the first one is long enough for the host to go

    monkeypatch.setattr(transfer, "backoff_seconds", backoff_seconds)
    async with range_host() as other:
        other.files["/cdn"] = CONTENT
        other.faults.append(Fault(cut_after_bytes=60_000))
        place.host.redirects["/model.gguf"] = other.url("/cdn")
        fetching = asyncio.create_task(place.fetch())
        await eventually(lambda: other.asked and other.open == 0)
    place.host.files["/here"] = CONTENT
    place.host.redirects["/model.gguf"] = place.host.url("/here", "localhost")
    await fetching
    assert place.content == CONTENT
    assert "/here" in [asked.path for asked in place.host.asked]


async def test_errors_do_not_show_a_signed_address(place: Place) -> None:
    """Where the host that it was sent to talks nonsense, or the way to it has no end."""
    place.host.redirects["/model.gguf"] = place.host.url("/cdn?signature=SECRET", "localhost")
    place.host.files["/cdn"] = CONTENT
    place.host.faults.extend([Fault(headers={"Location": "SECRET" + "x" * 20_000})] * 20)
    problem = await place.fails()
    assert (problem.kind, "SECRET" in problem.message) == ("network", False)
    place.host.redirects["/cdn"] = place.host.url("/cdn?signature=SECRET")
    problem = await place.fails()
    assert (problem.kind, "SECRET" in problem.message) == ("invalid", False)


async def test_download_brings_small_files_side_by_side(place: Place) -> None:
    """As many at a time as there may be connections; the answer has them in the order that was asked for."""
    contents = {f"{number}.json": bytes([number]) * 1000 for number in range(20)}
    place.host.files |= {f"/{name}": content for name, content in contents.items()}
    place.host.pause_seconds = 0.02
    fetched = await place.fetch(*(place.file(name, size=1000) for name in contents), connections=4)
    assert [file.path for file in fetched] == list(contents)
    assert all((place.staging / name).read_bytes() == content for name, content in contents.items())
    assert place.host.open_most == 4


async def test_one_file_that_fails_ends_the_others(place: Place) -> None:
    """With its own error, and nothing goes on behind it."""
    place.host.files |= {f"/{number}.json": bytes(1000) for number in range(8)}
    place.host.pause_seconds = 0.05
    files = [place.file(f"{number}.json", size=1000) for number in range(8)]
    problem = await place.fails(*files, place.file("absent.json", size=10), connections=4)
    assert (problem.kind, "absent.json" in problem.message) == ("not_found", True)
    await eventually(lambda: place.host.open == 0)


# ------------------------------------------------------------------------------------------------- what goes wrong


async def test_download_goes_on_after_a_cut_from_the_last_byte(place: Place) -> None:
    """1. The connection breaks at 100,000 bytes, twice. Result: the next request begins there, and nothing twice."""
    place.host.piece_bytes = 10_000
    place.host.faults.extend([Fault(cut_after_bytes=100_000), Fault(cut_after_bytes=20_000)])
    await place.fetch(place.file(sha256=SHA256, size=len(CONTENT)))
    assert place.content == CONTENT
    assert place.starts == [0, 100_000, 120_000]


@pytest.mark.parametrize("takes_ranges", [True, False])
async def test_download_gives_up_on_a_host_that_always_cuts(place: Place, takes_ranges: bool) -> None:
    """After some tries in a row it is an error of the network, and what came is kept."""
    place.host.takes_ranges = takes_ranges
    cut = 10_000 if takes_ranges else 500_000
    place.host.faults.extend([Fault(cut_after_bytes=cut)] * 50)
    assert (await place.fails()).kind == "network"
    assert len(place.host.asked) == limits.fetch_tries_max
    assert place.visible() == []
    assert (place.staging / "model.gguf.partial").stat().st_size > 0


async def test_download_of_the_next_try_goes_on(place: Place) -> None:
    """1. A fetch is cancelled at half. 2. Another one. Result: it asks for the rest alone."""
    place.host.pause_seconds = 0.02
    task = asyncio.create_task(place.fetch(connections=2))
    await eventually(lambda: place.host.sent_bytes >= 500_000, what="half is sent")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    there = sum(file.stat().st_blocks * 512 for file in place.staging.glob("*.partial"))
    assert there >= 400_000
    place.host.asked.clear()
    await place.fetch(connections=2)
    assert place.content == CONTENT
    assert place.host.sent_bytes <= len(CONTENT) - 300_000


async def test_download_that_is_done_asks_for_nothing(place: Place) -> None:
    """What lies whole in the staging folder is not fetched again, and is there again if only its name was missing."""
    await place.fetch()
    place.host.asked.clear()
    (place.staging / "model.gguf").rename(place.staging / "model.gguf.partial")
    await place.fetch()
    assert place.content == CONTENT
    assert place.host.asked == []


async def test_download_of_another_content_begins_again(place: Place) -> None:
    """A partial of a file that has another checksum by now is worth nothing."""
    place.host.faults.extend([Fault(cut_after_bytes=100_000), *[Fault(status=500)] * 20])
    await place.fails()
    place.host.faults.clear()
    place.host.asked.clear()
    place.host.files["/model.gguf"] = new = CONTENT[::-1]
    await place.fetch(place.file(sha256=hashlib.sha256(new).hexdigest()))
    assert place.content == new
    assert place.starts[0] == 0


async def test_end_of_a_longer_file_does_not_outlast_it(place: Place) -> None:
    """1. A try at a long file. 2. By now it is another one, and shorter. Result: that one, with its checksum."""
    place.host.files["/model.gguf"] = CONTENT + bytes(500_000)
    place.host.faults.extend([None, Fault(cut_after_bytes=1_200_000), *[Fault(status=500)] * 20])
    await place.fails(place.file(etag="one"))
    place.host.faults.clear()
    assert (place.staging / "model.gguf.partial").stat().st_size > len(CONTENT)
    place.host.files["/model.gguf"] = CONTENT
    assert await place.fetch(place.file(etag="two")) == [FetchedFile("model.gguf", len(CONTENT), SHA256)]
    assert place.content == CONTENT


async def test_file_that_is_shorter_than_what_is_there_is_another_one(place: Place) -> None:
    """1. A host that says no length, and breaks off. 2. It has fewer bytes by now, and says so."""
    place.host.takes_ranges = place.host.says_length = False
    place.host.faults.extend([*[Fault(status=500)] * 5, Fault(cut_after_bytes=600_000)])
    await place.fails(place.file())
    place.host.faults.clear()
    place.host.takes_ranges = True
    place.host.files["/model.gguf"] = shorter = CONTENT[::-1][:300_000]
    (fetched,) = await place.fetch(place.file())
    assert fetched == FetchedFile("model.gguf", 300_000, hashlib.sha256(shorter).hexdigest())
    assert place.content == shorter


async def test_download_repairs_what_an_earlier_try_has_damaged(place: Place) -> None:
    """1. A partial whose first bytes are wrong. Result: the checksum tells, and the file is fetched once more."""
    place.host.faults.extend([Fault(cut_after_bytes=100_000), *[Fault(status=500)] * 20])
    await place.fails()
    place.host.faults.clear()
    with (place.staging / "model.gguf.partial").open("r+b") as file:
        file.write(bytes(1000))
    await place.fetch()
    assert place.content == CONTENT


async def test_download_after_a_power_cut_trusts_what_was_synced(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. Bytes that were noted and never synced. 2. The machine starts again. Result: they are fetched again."""
    place.host.faults.extend([Fault(cut_after_bytes=100_000), *[Fault(status=500)] * 20])
    await place.fails()
    place.host.faults.clear()
    place.host.asked.clear()
    monkeypatch.setattr(partial_module, "boot_id", lambda: "another start")
    await place.fetch()
    assert place.content == CONTENT
    assert place.starts[0] == 0


async def test_download_notices_a_file_that_changes(place: Place) -> None:
    """Without a checksum the host's own ETag tells; nothing is put together of two files."""
    place.host.etags["/model.gguf"] = '"one"'
    place.host.faults.extend([Fault(cut_after_bytes=60_000), *[Fault(status=500)] * 20])
    await place.fails(place.file())
    place.host.faults.clear()
    place.host.etags["/model.gguf"], place.host.files["/model.gguf"] = '"two"', CONTENT[::-1]
    await place.fetch(place.file())
    assert place.content == CONTENT[::-1]


async def test_download_gives_up_on_a_file_that_always_changes(place: Place) -> None:
    """It is begun again a few times, and then left for later."""
    place.host.faults.extend(Fault(headers={"ETag": f'"{number}"'}) for number in range(100))
    assert (await place.fails(place.file())).kind == "network"


async def test_wrong_checksum_is_never_visible(place: Place) -> None:
    """What arrives whole and is something else is an error, and nothing of it stays."""
    problem = await place.fails(place.file(sha256="0" * 64))
    assert (problem.kind, SHA256 in problem.message) == ("wrong_checksum", True)
    assert place.visible() == []
    assert not (place.staging / "model.gguf.partial.json").exists()


@pytest.mark.parametrize(
    "fault",
    [
        Fault(shift=10),
        Fault(extra=b"more"),
        Fault(headers={"Content-Encoding": "gzip"}),
        Fault(cut_after_bytes=0),
        *(Fault(status=status) for status in (408, 429, 500, 502, 503, 504)),
    ],
    ids=str,
)
@pytest.mark.parametrize("connections", [1, 3])
async def test_download_survives_an_answer_that_is_wrong_once(place: Place, fault: Fault, connections: int) -> None:
    """Whatever a host or a proxy gets wrong once is asked for again."""
    place.host.faults.extend([None, fault])
    place.host.pause_seconds = 0.001
    await place.fetch(connections=connections)
    await place.fetch(place.file(sha256=SHA256, url=place.host.url("/model.gguf?again"), path="again"))
    assert place.content == CONTENT


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, "forbidden"),
        (403, "forbidden"),
        (404, "not_found"),
        (410, "not_found"),
        (400, "invalid"),
        (451, "invalid"),
    ],
)
async def test_refusals_end_a_download_at_once(place: Place, status: int, kind: str) -> None:
    """What no second try changes is told with its kind."""
    place.host.faults.append(Fault(status=status))
    assert (await place.fails()).kind == kind
    assert len(place.host.asked) == 1


async def test_download_waits_as_long_as_the_host_wants(place: Place) -> None:
    """A short `Retry-After` is waited for."""
    place.host.faults.append(Fault(status=429, headers={"Retry-After": "1"}))
    began = time.monotonic()
    await place.fetch()
    assert time.monotonic() - began >= 1


async def test_download_leaves_a_long_wait_to_the_job(place: Place) -> None:
    """A long one ends the fetch, and is told."""
    place.host.faults.append(Fault(status=503, headers={"Retry-After": "3600"}))
    problem = await place.fails()
    assert (problem.kind, problem.retry_after_seconds) == ("network", 3600)


async def test_download_uses_fewer_connections_where_the_host_is_busy(place: Place) -> None:
    """Of three connections those that are turned away leave the rest to the others."""
    place.host.faults.extend([None, Fault(status=429, headers={"Retry-After": "3600"})] * 2)
    place.host.pause_seconds = 0.01
    await place.fetch(connections=3)
    assert place.content == CONTENT


async def test_size_that_is_another_than_the_sources_is_refused(place: Place) -> None:
    """A manifest that lies about sizes brings nothing."""
    for size in (len(CONTENT) - 1, len(CONTENT) + 1):
        assert (await place.fails(place.file(size=size))).kind == "invalid"
    place.host.takes_ranges = False
    assert (await place.fails(place.file(size=5))).kind == "invalid"
    assert place.visible() == []


async def test_host_that_never_stops_sending_is_stopped(place: Place) -> None:
    """More bytes than the source says, from a host that does not say how many come."""
    place.host.takes_ranges = place.host.says_length = False
    assert (await place.fails(place.file(size=1000))).kind == "network"
    assert sum(path.stat().st_size for path in place.staging.glob("*.partial")) <= 1000
    assert place.visible() == []


@pytest.mark.parametrize(("code", "kind"), [(errno.ENOSPC, "no_space"), (errno.EIO, "disk")])
async def test_disk_that_fails_a_sync_is_no_error_of_the_network(
    place: Place, monkeypatch: pytest.MonkeyPatch, code: int, kind: str
) -> None:
    """Some disks say only then that they are full; the host is not asked again and again for it."""

    def fsync(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(limits, "fetch_sync_seconds", 0.0)
    monkeypatch.setattr(partial_module.os, "fsync", fsync)
    assert (await place.fails()).kind == kind
    assert len(place.host.asked) == 1


async def test_bytes_of_a_host_without_ranges_are_held_against_its_next_answer(place: Place) -> None:
    """1. It says no length, and breaks off. 2. It takes ranges by now, and has another file. Result: only that one."""
    place.host.takes_ranges = place.host.says_length = False
    place.host.etags["/model.gguf"] = '"one"'
    place.host.faults.extend([*[Fault(status=500)] * 5, Fault(cut_after_bytes=600_000)])
    await place.fails(place.file())
    place.host.faults.clear()
    place.host.takes_ranges = True
    place.host.etags["/model.gguf"], place.host.files["/model.gguf"] = '"two"', CONTENT[::-1]
    await place.fetch(place.file())
    assert place.content == CONTENT[::-1]


async def test_redirects_in_circles_end(place: Place) -> None:
    """With an error of their own, which does not name the address: it may be signed."""
    place.host.redirects["/model.gguf"] = place.host.url("/model.gguf?signature=secret")
    problem = await place.fails()
    assert problem.kind == "invalid"
    assert "secret" not in problem.message


async def test_no_host_at_all_is_an_error_of_the_network(place: Place) -> None:
    """Nobody listens there."""
    assert (await place.fails(RemoteFile("http://127.0.0.1:9/x", "x"))).kind == "network"


async def test_download_gives_back_what_it_took(place: Place, leak_check: None) -> None:
    """Descriptors, threads and tasks, after a success, a failure and a cancellation."""
    place.host.pause_seconds = 0.01
    for number, fault in enumerate((None, Fault(status=404), "cancelled")):
        place.host.faults.extend([fault] if isinstance(fault, Fault) else [])
        staging = place.staging / str(number)
        staging.mkdir()
        async with open_session() as session:
            again = Place(place.host, staging, session)
            task = asyncio.create_task(again.fetch(connections=3))
            if fault == "cancelled":
                await eventually(lambda: any(each.bytes_done for each in again.progress))  # noqa: B023
                task.cancel()
            await asyncio.wait([task])
            assert task.cancelled() == (fault == "cancelled")
            assert task.cancelled() or (task.exception() is None) == (fault is None)
    await asyncio.get_running_loop().shutdown_default_executor()


# ----------------------------------------------------------------------------------------------------- the disk


async def test_space_is_checked_before_anything_is_asked_for(place: Place) -> None:
    """A size that cannot fit ends at once, with how much is missing."""
    problem = await place.fails(place.file(size=10**15))
    assert (problem.kind, place.host.asked) == ("no_space", [])
    assert "free 9" in (problem.hint or "")


async def test_space_is_checked_once_the_host_says_the_size(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the source does not say it before."""
    monkeypatch.setattr(limits, "fetch_spare_bytes", 10**15)
    assert (await place.fails(place.file())).kind == "no_space"


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.ENOSPC, "no_space"), (errno.EDQUOT, "no_space"), (errno.EIO, "disk")]
)
async def test_disk_that_fails_keeps_what_it_has(
    place: Place, monkeypatch: pytest.MonkeyPatch, code: int, kind: str
) -> None:
    """1. The disk is full at half. 2. There is room again. Result: an error of its kind, and then the rest."""
    real = os.pwrite

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        if offset > 500_000:
            raise OSError(code, os.strerror(code))
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    assert (await place.fails()).kind == kind
    monkeypatch.setattr(os, "pwrite", real)
    place.host.asked.clear()
    await place.fetch()
    assert place.content == CONTENT
    assert place.starts[0] >= 400_000


@pytest.mark.parametrize(
    "path",
    [
        *("", ".", "..", "/etc/passwd", "a/../../b", "a//b", "a/", "./a", "a\0b", "a\nb", "a\\b", "..\\b", "a/.git/x"),
        *(".hidden", "x" * 201, "a/" * 20 + "b", "x/" * 600, "\u202efdp.exe", "\u200b", "a.partial", "b.partial.json"),
        "\ud800",
    ],
)
async def test_names_never_lead_out_of_the_staging_folder(place: Place, path: str) -> None:
    """A file of such a name is refused before anything is asked for."""
    assert (await place.fails(place.file(sha256=SHA256), RemoteFile(place.host.url(), path))).kind == "refused"
    assert place.host.asked == []
    assert list(place.staging.iterdir()) == []


async def test_two_files_of_one_name_are_refused(place: Place) -> None:
    """Also where only capitals tell them apart."""
    assert (await place.fails(place.file(), place.file())).kind == "invalid"
    assert (await place.fails(place.file(), place.file("MODEL.gguf"))).kind == "invalid"


@pytest.mark.parametrize("note", [b"", b"{", b'{"identity":1}', b"\xff", b"[]"], ids=repr)
async def test_a_damaged_note_is_no_note(place: Place, note: bytes) -> None:
    """What cannot be read means that nothing is there."""
    (place.staging / "model.gguf.partial.json").write_bytes(note)
    (place.staging / "model.gguf.partial").write_bytes(b"anything")
    await place.fetch()
    assert place.content == CONTENT


async def test_a_note_of_a_whole_file_that_is_gone_is_no_note(place: Place) -> None:
    """1. A file of unknown checksum is fetched. 2. It vanishes, its note stays. Result: it is fetched again, not made
    of nothing."""
    notes: list[bytes] = []

    def keep(self: PartialFile) -> None:
        save(self)
        notes.append((place.staging / "model.gguf.partial.json").read_bytes())

    save = PartialFile.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartialFile, "save", keep)
        await place.fetch(place.file())
    assert SHA256.encode() in notes[-1]
    (place.staging / "model.gguf").unlink()
    (place.staging / "model.gguf.partial.json").write_bytes(notes[-1])
    await place.fetch(place.file())
    assert place.content == CONTENT


async def test_a_link_in_the_place_of_a_partial_is_not_followed(place: Place) -> None:
    """Nothing outside is ever written to."""
    target = place.staging.parent / "outside"
    target.write_bytes(b"untouched")
    (place.staging / "model.gguf.partial").symlink_to(target)
    await place.fetch()
    assert place.content == CONTENT
    assert target.read_bytes() == b"untouched"
