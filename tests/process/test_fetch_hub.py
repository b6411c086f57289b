"""Models from a hub, through the real huggingface_hub, against a double that speaks the hub's protocol."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Generator
from pathlib import Path

import huggingface_hub
import msgspec
import pytest
from aiohttp import web
from tests.support import gguf_bytes
from tests.support.http_double import Fault
from tests.support.hub_double import COMMIT, TOKEN, HubDouble, Repository, git_blob_id
from tests.support.leaks import no_leaks
from tests.support.tiny_gguf import write_tiny_gguf

from llmvisor.fetch.download import open_session
from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.huggingface import fetch
from llmvisor.fetch.protocol import Fetched, FetchProgress, FetchRequest, Unchanged
from llmvisor.models.folders import read_folder

CONFIG = json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}).encode()


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Generator[HubDouble]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
    with HubDouble() as double:
        yield double
    huggingface_hub.close_session()


class Trial:
    """One fetch after another into the same staging folder."""

    def __init__(self, hub: HubDouble, staging: Path) -> None:
        staging.mkdir()
        self._hub = hub
        self.staging = staging
        self.progress: list[FetchProgress] = []

    async def run(self, source: str, **settings: object) -> Fetched | Unchanged:
        fields = {"huggingface_endpoint": self._hub.url, "connections": 2, **settings}
        request = FetchRequest(source, str(self.staging), **fields)  # pyright: ignore[reportArgumentType]
        async with open_session() as session:
            return await fetch(request, session=session, report=self.progress.append)

    async def fetched(self, source: str, **settings: object) -> Fetched:
        got = await self.run(source, **settings)
        assert isinstance(got, Fetched)
        return got

    async def problem(self, source: str, **settings: object) -> FetchProblem:
        with pytest.raises(FetchProblem) as caught:
            await self.run(source, **settings)
        assert caught.value.hint
        return caught.value

    def files(self) -> dict[str, bytes]:
        """What lies in the staging folder under its own name."""
        found = [path for path in self.staging.rglob("*") if path.is_file() and ".partial" not in path.name]
        return {path.relative_to(self.staging).as_posix(): path.read_bytes() for path in found}


@pytest.fixture
def trial(hub: HubDouble, tmp_path: Path) -> Trial:
    return Trial(hub, tmp_path / "staging")


async def test_gguf_comes_whole_with_its_source_name_and_revision(hub: HubDouble, trial: Trial, gguf: bytes) -> None:
    """The default quantisation is fetched, and what is told of it is enough to fetch it again."""
    files = {"Tiny-Q8_0.gguf": gguf + b"8", "Tiny-Q4_K_M.gguf": gguf, "README.md": b"#", ".gitattributes": b"x"}
    hub.repositories["Some-Org/Tiny-Instruct-GGUF"] = Repository(files)
    got = await trial.fetched("hf:Some-Org/Tiny-Instruct-GGUF")
    assert trial.files() == {"Tiny-Q4_K_M.gguf": gguf}
    assert got.main == "Tiny-Q4_K_M.gguf"
    assert got.source == "hf:Some-Org/Tiny-Instruct-GGUF:Tiny-Q4_K_M.gguf"
    assert (got.name, got.publisher) == ("tiny-instruct", "Some-Org")
    assert [(one.path, one.size, one.sha256) for one in got.files] == [
        ("Tiny-Q4_K_M.gguf", len(gguf), hashlib.sha256(gguf).hexdigest())
    ]
    assert trial.progress[0].stage == "resolving"
    again = await trial.run(got.source, known_revision=got.revision)
    assert again == Unchanged(got.revision)


async def test_bytes_come_from_the_contents_host_without_the_token(
    hub: HubDouble, trial: Trial, gguf: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub sees the token, and the host that it redirects to does not."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.repositories["o/m"] = Repository({"m-Q4_0.gguf": gguf}, private=True)
    await trial.fetched("hf:o/m")
    resolved = hub.asked_of("/o/m/resolve/")
    assert {one.headers.get("Authorization") for one in resolved} == {f"Bearer {TOKEN}"}
    assert all(one.path.startswith(f"/o/m/resolve/{COMMIT}/") for one in resolved)
    served = hub.asked_of("/cdn/", "GET")
    assert served
    assert all("Authorization" not in one.headers for one in served)


async def test_login_file_of_the_library_is_enough(
    hub: HubDouble, trial: Trial, gguf: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever ran `hf auth login` needs no HF_TOKEN."""
    login = tmp_path / "token"
    login.write_text(TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(login))
    hub.repositories["o/m"] = Repository({"m-Q4_0.gguf": gguf}, gated="manual", granted=True)
    await trial.fetched("hf:o/m")
    assert trial.files() == {"m-Q4_0.gguf": gguf}


async def test_split_gguf_comes_with_all_parts_and_its_projector(hub: HubDouble, trial: Trial, gguf: bytes) -> None:
    """Asked by quantisation, in a folder of its own name; the first part is the one to load."""
    parts = {f"Q8_0/Big-00{n:03}-of-00003.gguf": gguf + bytes([n]) for n in (1, 2, 3)}
    files = {**parts, "mmproj-Big-F16.gguf": gguf + b"p", "mmproj-Big-F32.gguf": gguf + b"q", "Big-Q2_K.gguf": gguf}
    hub.repositories["o/big-GGUF"] = Repository({**files, "imatrix.gguf": gguf})
    got = await trial.fetched("hf:o/big-GGUF", quantization="q8_0")
    assert trial.files() == {**parts, "mmproj-Big-F16.gguf": gguf + b"p"}
    assert got.main == "Q8_0/Big-00001-of-00003.gguf"
    assert {name: msgspec.json.decode(value) for name, value in got.options.items()} == {
        "mmproj": "mmproj-Big-F16.gguf"
    }


async def test_mlx_folder_comes_whole_without_what_is_for_others(hub: HubDouble, trial: Trial) -> None:
    """Safetensors, JSON and the tokenizer's files, whatever else lies beside them."""
    wanted = {
        "config.json": CONFIG,
        "model-00001-of-00002.safetensors": b"a" * 5000,
        "model-00002-of-00002.safetensors": b"b" * 5000,
        "model.safetensors.index.json": b"{}",
        "tokenizer.json": b'{"t":1}',
        "merges.txt": b"a b",
        "chat_template.jinja": b"{{ messages }}",
        "1_Pooling/config.json": b"{}",
    }
    unwanted = ("pytorch_model.bin", "model.py", "onnx/model.onnx", "onnx/config.json", "README.md", ".hidden.json")
    hub.repositories["mlx-community/tiny-4bit"] = Repository(
        {**wanted, **dict.fromkeys(unwanted, b"x" * 2000), "manifest.json": b"{}"}
    )
    got = await trial.fetched("hf:mlx-community/tiny-4bit")
    assert trial.files() == wanted
    assert (got.main, got.source, got.name) == ("", "hf:mlx-community/tiny-4bit", "tiny-4bit")
    assert {one.path for one in got.files} == set(wanted)


async def test_revision_follows_the_files_and_not_the_commit(hub: HubDouble, trial: Trial, gguf: bytes) -> None:
    """A commit that touches only the description brings nothing; one that touches the weights does."""
    hub.repositories["o/m"] = Repository({"m-Q4_0.gguf": gguf, "README.md": b"a"})
    first = await trial.fetched("hf:o/m")
    hub.repositories["o/m"] = Repository({"m-Q4_0.gguf": gguf, "README.md": b"b"}, commit="a" * 40)
    assert await trial.run("hf:o/m", known_revision=first.revision) == Unchanged(first.revision)
    hub.repositories["o/m"] = Repository({"m-Q4_0.gguf": gguf + b"2"}, commit="b" * 40)
    second = await trial.fetched("hf:o/m", known_revision=first.revision)
    assert second.revision != first.revision
    assert trial.files() == {"m-Q4_0.gguf": gguf + b"2"}


async def test_revision_in_the_source_is_the_one_that_is_listed(hub: HubDouble, trial: Trial, gguf: bytes) -> None:
    """`hf:org/repo@commit` stays at that commit, and the source that is kept says so too."""
    hub.repositories["o/m"] = Repository({"m-Q4_0.gguf": gguf})
    got = await trial.fetched(f"hf:o/m@{COMMIT}")
    assert got.source == f"hf:o/m@{COMMIT}:m-Q4_0.gguf"
    problem = await trial.problem("hf:o/m@v9")
    assert problem.kind == "not_found"


async def test_encoder_comes_as_a_folder_that_its_backend_knows(hub: HubDouble, trial: Trial) -> None:
    """An embedding model as FlagEmbedding and sentence-transformers keep it, without pickled heads."""
    files = {
        "config.json": json.dumps({"architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta"}).encode(),
        "model.safetensors": b"w" * 5000,
        "modules.json": json.dumps([{"type": "sentence_transformers.models.Pooling"}]).encode(),
        "1_Pooling/config.json": b"{}",
        "sentencepiece.bpe.model": b"s" * 3000,
        "tokenizer_config.json": b"{}",
    }
    hub.repositories["o/encoder"] = Repository({**files, "colbert_linear.pt": b"p" * 2000, "onnx/model.onnx": b"o"})
    await trial.fetched("hf:o/encoder")
    assert trial.files() == files
    folder = read_folder(trial.staging)
    assert (folder.backend, folder.type) == ("flag", "embeddings")


async def test_renamed_repository_is_found_by_its_old_name(hub: HubDouble, trial: Trial, gguf: bytes) -> None:
    """The hub redirects, for its listing and its files."""
    hub.repositories["new/m"] = Repository({"m-Q4_0.gguf": gguf})
    hub.renamed["old/m"] = "new/m"
    await trial.fetched("hf:old/m")
    assert trial.files() == {"m-Q4_0.gguf": gguf}


async def test_quantization_stands_in_the_source_as_elsewhere(hub: HubDouble, trial: Trial, gguf: bytes) -> None:
    """`hf:org/repo:Q8_0`; the source that is kept names the file."""
    hub.repositories["o/m"] = Repository({"m-Q4_K_M.gguf": gguf, "m-Q8_0.gguf": gguf + b"8"})
    got = await trial.fetched("hf:o/m:Q8_0")
    assert (got.source, got.main) == ("hf:o/m:m-Q8_0.gguf", "m-Q8_0.gguf")


# ------------------------------------------------------------------------------------------------------------ refusals


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


# ------------------------------------------------------------------------------------------------------------- faults


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
