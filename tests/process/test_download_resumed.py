"""A download that was broken off goes on from its last byte, and nothing is ever put together of two files."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from tests.support.downloads import CONTENT, SHA256, Place, open_place
from tests.support.polling import eventually
from tests.support.range_host import Fault

from llmvisor.fetch import limits
from llmvisor.fetch import partial as partial_module
from llmvisor.fetch.partial import PartialFile
from llmvisor.fetch.protocol import FetchedFile


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Place]:
    async with open_place(tmp_path, monkeypatch) as it:
        yield it


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


# ------------------------------------------------------------------------------------ a file that is another one by now


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
