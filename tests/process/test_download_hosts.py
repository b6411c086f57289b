"""Hosts that misbehave as hosts do: what is wrong once is asked for again, a refusal ends the download with its kind,
and no host decides how long or how much is fetched."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from tests.support.downloads import CONTENT, SHA256, Place, open_place
from tests.support.range_host import Fault

from llmvisor.fetch.download import RemoteFile


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Place]:
    async with open_place(tmp_path, monkeypatch) as it:
        yield it


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


async def test_no_host_at_all_is_an_error_of_the_network(place: Place) -> None:
    """Nobody listens there."""
    assert (await place.fails(RemoteFile("http://127.0.0.1:9/x", "x"))).kind == "network"


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
