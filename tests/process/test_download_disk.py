"""The disk under a download: its space is checked first, its errors are told as its own, and no name leads out of the
staging folder."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from tests.support.downloads import CONTENT, SHA256, Place, open_place

from llmvisor.fetch import limits
from llmvisor.fetch import partial as partial_module
from llmvisor.fetch.download import RemoteFile


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Place]:
    async with open_place(tmp_path, monkeypatch) as it:
        yield it


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


# ---------------------------------------------------------------------------------------------------------------- names


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


async def test_a_link_in_the_place_of_a_partial_is_not_followed(place: Place) -> None:
    """Nothing outside is ever written to."""
    target = place.staging.parent / "outside"
    target.write_bytes(b"untouched")
    (place.staging / "model.gguf.partial").symlink_to(target)
    await place.fetch()
    assert place.content == CONTENT
    assert target.read_bytes() == b"untouched"
