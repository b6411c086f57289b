"""What a hub refuses, and what is refused of a hub: each has its kind, its words and the next step.

Gated, unknown and offline are told apart. Pickles, names that lead out and files that are no model are not taken, and
a login in the hub's address is not told.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import huggingface_hub
import pytest
from aiohttp import web
from tests.support import gguf_bytes
from tests.support.http_double import Fault
from tests.support.hub_double import TOKEN, HubDouble, Repository
from tests.support.hub_trial import CONFIG, Trial, hub_without_login
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


@pytest.mark.parametrize(
    ("status", "headers", "kind", "words"),
    [
        (403, {"X-Error-Message": "Access to this resource is disabled."}, "forbidden", "disabled"),
        (403, {"X-Error-Message": "no"}, "forbidden", "no"),
        (401, {}, "not_found", "private"),
        (404, {}, "not_found", "refuses"),
        (400, {}, "invalid", "refuses"),
        (500, {}, "network", "cannot answer"),
    ],
)
async def test_refusals_of_the_hub_have_their_kind(
    hub: HubDouble, trial: Trial, status: int, headers: dict[str, str], kind: str, words: str
) -> None:
    """What may pass is told from what will not."""
    hub.faults["/api/models/"] = [Fault(status=status, headers=headers)]
    problem = await trial.problem("hf:o/m")
    assert problem.kind == kind
    assert words in problem.message


async def test_offline_mode_is_named(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person who forbade the hub is told so."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    problem = await trial.problem("hf:o/m")
    assert (problem.kind, problem.hint) == ("refused", "unset HF_HUB_OFFLINE")


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"<html>", b'{"id": 5}', b'{"id": "o/m", "siblings": 7}', b"\xff"])
async def test_answer_that_is_no_listing_is_told(
    hub: HubDouble, trial: Trial, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy's page, or another server: nothing of it is an error of ours."""

    def told(*_: object) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    monkeypatch.setattr(hub, "_info", told)
    problem = await trial.problem("hf:o/m")
    assert problem.kind in {"invalid", "not_found"}
    assert len(problem.message) < 500


@pytest.mark.parametrize(
    ("token", "kind", "words", "hint"),
    [
        (None, "forbidden", "gated", "HF_TOKEN"),
        (TOKEN, "forbidden", "no access", "ask for access"),
        ("hf_wrong", "forbidden", "does not know your token", "HF_TOKEN"),
    ],
)
async def test_gated_repository_says_what_to_do(
    hub: HubDouble,
    trial: Trial,
    gguf: bytes,
    monkeypatch: pytest.MonkeyPatch,
    token: str | None,
    kind: str,
    words: str,
    hint: str,
) -> None:
    """Without a token, with one that has no access, and with a wrong one; nothing is fetched."""
    hub.repositories["o/m"] = Repository({"m-Q4_0.gguf": gguf}, gated="manual")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    problem = await trial.problem("hf:o/m")
    assert problem.kind == kind
    assert words in problem.message
    assert hint in (problem.hint or "")
    assert trial.files() == {}
    assert hub.asked_of("/cdn/") == []


async def test_unknown_repository_file_and_quantization_are_told_apart(
    hub: HubDouble, trial: Trial, gguf: bytes
) -> None:
    """Each names what is not there, and the quantisation what there is instead."""
    hub.repositories["o/m"] = Repository({"m-Q4_0.gguf": gguf, "m-Q8_0.gguf": gguf})
    for source, words in (("hf:o/none", "there is no o/none"), ("hf:o/m:x.gguf", "x.gguf"), ("hf:o/m:Q5_1", "Q5_1")):
        problem = await trial.problem(source)
        assert problem.kind == "not_found"
        assert words in problem.message
    absent = await trial.problem("hf:o/m", quantization="Q6_K")
    assert "Q4_0, Q8_0" in (absent.hint or "")


async def test_repository_of_pickles_is_refused_with_the_reason(hub: HubDouble, trial: Trial) -> None:
    """Where there are only `.bin` and `.pt`, nothing is taken, and why is said."""
    hub.repositories["o/m"] = Repository({"config.json": CONFIG, "pytorch_model.bin": b"x" * 2000, "a.pt": b"y"})
    for source in ("hf:o/m", "hf:o/m:pytorch_model.bin"):
        problem = await trial.problem(source)
        assert problem.kind == "refused"
        assert "pickles" in problem.message
        assert "pytorch_model.bin" in problem.message
    assert trial.files() == {}


@pytest.mark.parametrize(
    "name",
    [
        "../up-Q4_0.gguf",
        "/abs-Q4_0.gguf",
        "a\0b-Q4_0.gguf",
        "a\\b-Q4_0.gguf",
        "x" * 10_000 + "-Q4_0.gguf",
        "a/\u202eb.gguf",
    ],
)
async def test_names_that_lead_out_are_refused(hub: HubDouble, trial: Trial, name: str) -> None:
    """Whatever a hub calls its files, they stay in the model's folder or do not come."""
    hub.repositories["o/m"] = Repository({}, names_told=[name])
    problem = await trial.problem("hf:o/m")
    assert problem.kind == "refused"
    assert len(problem.message) < 500
    assert problem.message.isprintable()
    assert list(trial.staging.parent.rglob("*.gguf")) == []


@pytest.mark.parametrize(
    "source",
    ["hf:", "hf:m", "hf:../etc/m", "hf:o/..", "hf:o/m:a\0b", "hf:o/m\n", "hf:o/" + "m" * 10_000, "hf:o//m", "hf:/o/m"],
)
async def test_sources_that_name_no_repository_are_refused_unasked(hub: HubDouble, trial: Trial, source: str) -> None:
    """They never reach the hub."""
    problem = await trial.problem(source)
    assert problem.kind == "invalid"
    assert len(problem.message) < 500
    assert hub.asked == []


async def test_file_that_is_no_gguf_is_refused(hub: HubDouble, trial: Trial) -> None:
    """A header that lies is found out before anybody counts on the file."""
    hub.repositories["o/m"] = Repository({"m-Q4_0.gguf": b"GGUF" + bytes(5000)})
    problem = await trial.problem("hf:o/m")
    assert problem.kind == "invalid"
    assert "m-Q4_0.gguf" in problem.message


async def test_file_that_only_goes_with_a_model_is_refused(hub: HubDouble, trial: Trial) -> None:
    """Its header says so, whatever its name does."""
    adapter = gguf_bytes.gguf({**gguf_bytes.METADATA, "general.type": gguf_bytes.string("adapter")})
    hub.repositories["o/m"] = Repository({"m-Q4_0.gguf": adapter})
    problem = await trial.problem("hf:o/m")
    assert (problem.kind, "adapter" in problem.message) == ("invalid", True)


async def test_login_in_the_hubs_address_is_not_told(hub: HubDouble, trial: Trial) -> None:
    """Where it cannot be reached, and where it has no such repository."""
    for address in ("http://me:PASS@127.0.0.1:1", hub.url.replace("//", "//me:PASS@")):
        problem = await trial.problem("hf:o/none", huggingface_endpoint=address)
        assert "PASS" not in f"{problem.message} {problem.hint}"
