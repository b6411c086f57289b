"""A hub that breaks off, is busy or away, or lies: what was fetched goes on from its last byte, or is not kept.

A file is seen once its size and its checksum are those of the listing, and a fetch that fails leaves nothing open.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator
from pathlib import Path

import huggingface_hub
import pytest
from tests.support.http_double import Fault
from tests.support.hub_double import HubDouble, Repository, git_blob_id
from tests.support.hub_trial import CONFIG, Trial, hub_without_login
from tests.support.leaks import no_leaks
from tests.support.tiny_gguf import write_tiny_gguf


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Generator[HubDouble]:
    with hub_without_login(monkeypatch, tmp_path) as double:
        yield double


@pytest.fixture
def trial(hub: HubDouble, tmp_path: Path) -> Trial:
    return Trial(hub, tmp_path / "staging")


async def test_cut_connections_are_resumed(hub: HubDouble, trial: Trial, gguf: bytes) -> None:
    """A content whose connection breaks twice comes whole, and is not begun again."""
    hub.repositories["o/m"] = Repository({"m-Q4_0.gguf": gguf})
    hub.faults["/cdn/"] = [Fault(cut_after_bytes=50_000), Fault(cut_after_bytes=10_000)]
    await trial.fetched("hf:o/m", connections=1)
    assert trial.files() == {"m-Q4_0.gguf": gguf}
    starts = [int(one.headers["Range"].removeprefix("bytes=").split("-")[0]) for one in hub.asked_of("/cdn/", "GET")]
    assert starts[0] == 0
    assert all(start > 0 for start in starts[1:])


async def test_mirror_that_names_contents_in_its_own_way_is_enough(hub: HubDouble, trial: Trial, gguf: bytes) -> None:
    """Its bytes are held against the listing's checksum all the same."""
    hub.repositories["o/m"] = Repository({"m-Q4_0.gguf": gguf})
    hub.etag_told = '"5f3e-mirror"'
    await trial.fetched("hf:o/m")
    assert trial.files() == {"m-Q4_0.gguf": gguf}


async def test_busy_hub_is_told_as_network_with_its_own_wait(hub: HubDouble, trial: Trial, gguf: bytes) -> None:
    """A listing that is refused with 429 or 503 can be tried again, when the hub says."""
    hub.repositories["o/m"] = Repository({"m-Q4_0.gguf": gguf})
    for headers, seconds in (
        ({"Retry-After": "7"}, 7.0),
        ({"ratelimit": '"api";r=0;t=55'}, 55.0),
        ({"Retry-After": "soon"}, None),
    ):
        hub.faults["/api/models/o/m"] = [Fault(status=429, headers=headers)]
        problem = await trial.problem("hf:o/m")
        assert (problem.kind, problem.retry_after_seconds) == ("network", seconds)
    hub.faults["/api/models/o/m"] = [Fault(status=503)]
    assert (await trial.problem("hf:o/m")).kind == "network"
    await trial.fetched("hf:o/m")
    assert trial.files() == {"m-Q4_0.gguf": gguf}


async def test_hub_that_is_away_is_a_network_problem(trial: Trial) -> None:
    """Nobody listens there."""
    problem = await trial.problem("hf:o/m", huggingface_endpoint="http://127.0.0.1:9")
    assert problem.kind == "network"
    assert "127.0.0.1:9" in problem.message


async def test_wrong_content_is_not_kept(hub: HubDouble, trial: Trial, gguf: bytes) -> None:
    """A content of the right size whose checksum is another one leaves nothing behind under its name."""
    hub.repositories["o/m"] = Repository({"m-Q4_0.gguf": gguf})
    hub.faults["/cdn/"] = [Fault(content=bytes(len(gguf)))] * 4
    problem = await trial.problem("hf:o/m", connections=1)
    assert problem.kind == "wrong_checksum"
    assert trial.files() == {}


async def test_small_files_are_checked_by_gits_checksum(hub: HubDouble, trial: Trial) -> None:
    """Those outside LFS have no SHA-256 in the listing, and are held against git's name of their content."""
    hub.repositories["o/m"] = Repository({"config.json": CONFIG, "model.safetensors": b"w" * 5000})
    hub.faults["/api/resolve-cache/"] = [Fault(content=b" " * len(CONFIG))]
    problem = await trial.problem("hf:o/m")
    assert problem.kind == "wrong_checksum"
    assert "config.json" in problem.message
    assert "config.json" not in trial.files()
    await trial.fetched("hf:o/m")
    assert trial.files()["config.json"] == CONFIG


def test_fetches_that_fail_leave_nothing_open(hub: HubDouble, trial: Trial, gguf: bytes) -> None:
    """No descriptor, thread or child, after each kind of failure; each fetch has a loop of its own."""
    hub.repositories["o/m"] = Repository({"m-Q4_0.gguf": gguf})
    faults = {
        "/cdn/": Fault(content=bytes(len(gguf))),
        "/api/models/": Fault(status=503),
        "/o/m/resolve/": Fault(status=403),
    }
    asyncio.run(trial.problem("hf:o/none"))  # what libraries open once and keep
    with no_leaks():
        for path, fault in faults.items():
            hub.faults[path] = [fault]
            problem = asyncio.run(trial.problem("hf:o/m", connections=1))
            assert problem.kind in {"wrong_checksum", "network", "forbidden"}
        huggingface_hub.close_session()


@pytest.mark.parametrize("size", [-1, 10**18])
async def test_listing_that_lies_about_sizes_is_refused(hub: HubDouble, trial: Trial, gguf: bytes, size: int) -> None:
    """Sizes that cannot be never reach the disk."""
    hub.repositories["o/m"] = Repository({"m-Q4_0.gguf": gguf}, sizes_told={"m-Q4_0.gguf": size})
    assert (await trial.problem("hf:o/m")).kind == "refused"
    assert os.listdir(trial.staging) == []


async def test_size_that_is_not_the_contents_is_refused(hub: HubDouble, trial: Trial, gguf: bytes) -> None:
    """A listing of one size, and a content of another."""
    hub.repositories["o/m"] = Repository({"m-Q4_0.gguf": gguf}, sizes_told={"m-Q4_0.gguf": len(gguf) + 10})
    assert (await trial.problem("hf:o/m", connections=1)).kind in {"invalid", "network"}
    assert trial.files() == {}


async def test_digest_that_is_not_the_contents_is_refused(hub: HubDouble, trial: Trial, gguf: bytes) -> None:
    """A listing with a SHA-256 that is another one's, or none at all."""
    for digest, kind in (("../../etc", "invalid"), ("xyz", "invalid"), ("0" * 64, "wrong_checksum")):
        hub.repositories["o/m"] = Repository({"m-Q4_0.gguf": gguf}, digests_told={"m-Q4_0.gguf": digest})
        problem = await trial.problem("hf:o/m")
        assert problem.kind == kind
        assert trial.files() == {}
        assert bool(hub.asked_of("/cdn/")) == (kind == "wrong_checksum")


def test_git_blob_id_is_gits() -> None:
    """As `git hash-object` has it for an empty file."""
    assert git_blob_id(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
