"""Files of a host that behaves: each arrives whole and checked, over as many connections and as fast as it may, and
what is not the file that was asked for is never seen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from itertools import pairwise
from pathlib import Path

import pytest
from tests.support.downloads import CONTENT, SHA256, Place, open_place
from tests.support.polling import eventually
from tests.support.range_host import Fault

from llmvisor.fetch.download import open_session
from llmvisor.fetch.protocol import FetchedFile, FetchProgress


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Place]:
    async with open_place(tmp_path, monkeypatch) as it:
        yield it


async def test_download_brings_a_file_whole_and_checked(place: Place) -> None:
    """Its name appears with all of its bytes, and the answer says size and checksum."""
    assert await place.fetch() == [FetchedFile("model.gguf", len(CONTENT), SHA256)]
    assert place.content == CONTENT
    assert place.visible() == ["model.gguf"]
    assert place.progress[-1] == FetchProgress("verifying", 1_000_000, 1_000_000, "model.gguf", 1, 1)


async def test_wrong_checksum_is_never_visible(place: Place) -> None:
    """What arrives whole and is something else is an error, and nothing of it stays."""
    problem = await place.fails(place.file(sha256="0" * 64))
    assert (problem.kind, SHA256 in problem.message) == ("wrong_checksum", True)
    assert place.visible() == []
    assert not (place.staging / "model.gguf.partial.json").exists()


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
