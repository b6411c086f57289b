"""What the daemon keeps in its store: each kind of row, there and back, and how many of them there can be."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from tests.support.fake_control import job

from llmvisor import limits
from llmvisor.clock import SystemClock
from llmvisor.control.api import InstalledModel, Job, JobParams, UsageRow
from llmvisor.fetch.protocol import FoundModel
from llmvisor.models.installed import Installed
from llmvisor.store import limits as store_limits
from llmvisor.store.jobs import JobRows, SavedJob
from llmvisor.store.measures import LoadKey, LoadMeasure, MeasureRows
from llmvisor.store.models import ModelRows
from llmvisor.store.registry import RegistryRows
from llmvisor.store.store import Store
from llmvisor.store.usage import CANCELLED, EndedRequest, UsageRows

if TYPE_CHECKING:
    from sqlite_utils import Database

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncGenerator[Store]:
    store = Store(tmp_path / "llmvisor.db", SystemClock())
    await store.open()
    yield store
    await store.close()


# --------------------------------------------------------------------------------------------------------------- jobs


async def test_job_comes_back_as_it_was(store: Store) -> None:
    """Every field of a job is there again but its speed, and the key that it was asked for under."""
    whole = Job(
        id="job_1",
        type="install",
        params=JobParams(source="hf:org/repo:Q4_K_M", name="model", tier="light", quantization="Q4_K_M"),
        state="failed",
        progress=0.25,
        stage="downloading",
        done=10,
        total=40,
        unit="bytes",
        created_at="2026-05-01T12:00:00+00:00",
        started_at="2026-05-01T12:00:01+00:00",
        ended_at="2026-05-01T12:00:02+00:00",
        error="no network",
        error_code="fetch_failed",
        hint="try again",
        attempts=3,
        retry_at="2026-05-01T12:00:03+00:00",
        result="none",
    )
    bare = job("job_2")
    rows = JobRows(store)
    await rows.save(msgspec.structs.replace(whole, bytes_per_second=5.0), key="a key")
    await rows.save(bare)
    assert await rows.all() == [SavedJob(whole, "a key"), SavedJob(bare, None)]


async def test_job_is_saved_over_itself_and_deleted(store: Store) -> None:
    """A job has one row, the last that was written, in the place where it came."""
    rows = JobRows(store)
    for name in ("job_1", "job_2"):
        await rows.save(job(name, created_at=f"2026-05-01T12:00:0{name[-1]}"))
    later = job("job_1", state="succeeded", progress=1.0, created_at="2026-05-01T12:00:01")
    await rows.save(later)
    assert [saved.job.id for saved in await rows.all()] == ["job_1", "job_2"]
    assert (await rows.all())[0].job == later
    await rows.delete("job_1")
    assert [saved.job.id for saved in await rows.all()] == ["job_2"]


async def test_ended_jobs_are_bounded_and_others_are_not(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest ended ones go; what has not ended stays whatever its age."""
    monkeypatch.setattr(limits, "jobs_ended_kept_max", 2)
    rows = JobRows(store)
    await rows.save(job("job_running", created_at="2026-05-01T11:00:00"))
    for number in range(4):
        time = f"2026-05-01T12:00:0{number}"
        await rows.save(job(f"job_{number}", state="succeeded", created_at=time, ended_at=time))
    assert [saved.job.id for saved in await rows.all()] == ["job_running", "job_2", "job_3"]


# ------------------------------------------------------------------------------------------------------------- models


def installed(name: str) -> Installed:
    model = InstalledModel(
        name=name,
        source="hf:org/repo:model-Q4_K_M.gguf",
        revision="abc123",
        path=f"/models/{name}/abc123/model.gguf",
        folder=f"/models/{name}/abc123",
        size=98_000_000,
        sha256="0" * 64,
        backend="llamacpp",
        type="llm",
        installed_at="2026-05-01T12:00:00+00:00",
        tier="light",
        previous_revision="abc122",
        has_loaded=True,
        linked=True,
        architecture="llama",
        quantization="Q4_K_M",
        parameters=135_000_000,
        context_length=8192,
        publisher="org",
        description="A model.",
        modified_at="2026-04-01T12:00:00+00:00",
        capabilities=["chat", "tools"],
    )
    return Installed(
        model, {"chat_template": msgspec.Raw(b'"{{ messages }}"')}, {"temperature": 0.5, "n_ctx": 4096, "tier": "x"}
    )


async def test_model_comes_back_as_it_was(store: Store) -> None:
    """Every field of an installed model is there again, with its options and settings."""
    rows = ModelRows(store)
    bare = Installed(
        InstalledModel("bare", "file:/a", "1", "/a", "/b", 1, None, "flag", "embeddings", "2026-05-01T12:00:00+00:00")
    )
    await rows.put([installed("whole"), bare])
    assert await rows.get("whole") == installed("whole")
    assert await rows.all() == [bare, installed("whole")]
    assert await rows.get("none") is None


async def test_models_row_has_what_the_table_is_for(store: Store) -> None:
    """The key is `service~name`, and abilities stand in columns of their own."""
    await ModelRows(store).put([installed("whole")])
    sql = "SELECT name, upstream_model_name, service, instructed, tooling, coding, is_gguf, is_mlx FROM llm_models"
    row = await store.read(lambda database: database.conn.execute(sql).fetchone())
    assert row == ("local~whole", "whole", "local", 1, 1, 0, 1, 0)


async def test_models_are_listed_in_pages_and_removed(store: Store) -> None:
    """Pages follow one another by name; what is removed is in none."""
    rows = ModelRows(store)
    await rows.put([installed(f"m{number}") for number in range(5)])
    await rows.remove(["m1", "m9"])
    first = await rows.page(after=None, limit=2)
    second = await rows.page(after=first[-1].model.name, limit=10)
    assert [each.model.name for each in first] == ["m0", "m2"]
    assert [each.model.name for each in second] == ["m3", "m4"]


# ----------------------------------------------------------------------------------------------------------- registry


def hit(id: str, **changes: object) -> FoundModel:
    return msgspec.structs.replace(FoundModel("huggingface", id, f"hf:{id}"), **changes)


async def test_search_is_remembered_for_a_while(store: Store) -> None:
    """What a search has found comes back in its order, and only while it is young enough."""
    rows = RegistryRows(store)
    found = [
        hit("org/b", likes=5, trending_score=0.5, tags=["gguf", "text"], is_gguf=True, gated=True, size=10),
        hit("org/a", description="A model."),
    ]
    await rows.put("huggingface", "smol", found, fetched_at=NOW)
    again = await rows.search("huggingface", "smol", since=NOW - timedelta(minutes=1))
    assert again is not None
    assert [row.model for row in again] == found
    assert again[0].fetched_at == NOW.isoformat()
    assert await rows.search("huggingface", "smol", since=NOW + timedelta(minutes=1)) is None
    assert await rows.search("ollama", "smol", since=NOW - timedelta(minutes=1)) is None
    one = await rows.get("huggingface", "org/a")
    assert one is not None
    assert one.model == found[1]


async def test_registry_may_claim_anything(store: Store) -> None:
    """A size beyond what the file can hold, and text that is none, cost no other row."""
    rows = RegistryRows(store)
    found = [hit("org/huge", size=2**64 - 1, description="half \udcff a name"), hit("org/other")]
    await rows.put("huggingface", "q", found, fetched_at=NOW)
    huge, other = await rows.search("huggingface", "q", since=NOW) or []
    assert (huge.model.size, huge.model.description) == (2**63 - 1, "half ? a name")
    assert other.model == found[1]


async def test_search_without_a_hit_is_remembered_too(store: Store) -> None:
    """A search that found nothing need not be made again."""
    rows = RegistryRows(store)
    await rows.put("ollama", "nothing", [], fetched_at=NOW)
    assert await rows.search("ollama", "nothing", since=NOW) == []


async def test_registry_rows_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The models and searches fetched longest ago go; a search whose models have gone gives those that are left."""
    monkeypatch.setattr(store_limits, "registry_rows_max", 3)
    monkeypatch.setattr(store_limits, "registry_searches_max", 2)
    rows = RegistryRows(store)
    for number in range(3):
        time = NOW + timedelta(minutes=number)
        await rows.put("huggingface", f"q{number}", [hit(f"{number}/a"), hit(f"{number}/b")], fetched_at=time)
    assert await rows.search("huggingface", "q0", since=NOW) is None
    counts = [
        len(found) if (found := await rows.search("huggingface", f"q{number}", since=NOW)) is not None else None
        for number in range(3)
    ]
    assert counts == [None, 1, 2]


# -------------------------------------------------------------------------------------------------------------- usage


def ended(**changes: object) -> EndedRequest:
    request = EndedRequest(
        time="2026-05-01T12:00:00+00:00",
        request_id="req_1",
        model="smol",
        service="local",
        tier="light",
        task_type="chat",
        prompt_tokens=10,
        cached_tokens=4,
        completion_tokens=5,
        first_token_ms=20.0,
        total_ms=100.0,
    )
    return msgspec.structs.replace(request, **changes)


async def test_usage_is_summed_by_what_is_asked(store: Store) -> None:
    """Tokens and costs are added up, times are means, and what failed counts as an error but what was left does not."""
    rows = UsageRows(store)
    await rows.add(
        [
            ended(),
            ended(first_token_ms=40.0, total_ms=200.0, cost=0.5),
            ended(status=CANCELLED, first_token_ms=None, total_ms=0.0),
            ended(model="other", tier=None, time="2026-05-02T00:00:00+00:00", status="runtime_crashed"),
        ]
    )
    assert await rows.sums([]) == [
        UsageRow(4, 1, 40, 16, 20, first_token_ms=80 / 3, total_ms=100.0, cost=0.5),
    ]
    assert await rows.sums(["day", "model", "day"]) == [
        UsageRow(3, 0, 30, 12, 15, first_token_ms=30.0, total_ms=100.0, cost=0.5, model="smol", day="2026-05-01"),
        UsageRow(1, 1, 10, 4, 5, first_token_ms=20.0, total_ms=100.0, cost=0.0, model="other", day="2026-05-02"),
    ]
    assert [row.tier for row in await rows.sums(["tier"])] == [None, "light"]
    assert [row.requests for row in await rows.sums(["service"], since="2026-05-02")] == [1]
    assert [row.first_token_ms for row in await rows.sums([], since="2026-06-01")] == []


async def test_usage_of_very_many_days_is_that_of_the_last(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an answer would be too long the oldest days are left out, and the others are in their order."""
    monkeypatch.setattr(store_limits, "usage_sums_max", 3)
    rows = UsageRows(store)
    await rows.add([ended(time=f"2026-05-0{day}T12:00:00", model=model) for day in (1, 2, 3) for model in ("a", "b")])
    assert [(row.day, row.model) for row in await rows.sums(["day", "model"])] == [
        ("2026-05-02", "a"),
        ("2026-05-03", "a"),
        ("2026-05-03", "b"),
    ]
    assert [row.day for row in await rows.sums(["model", "day"])] == ["2026-05-02", "2026-05-03", "2026-05-03"]


async def test_damaged_numbers_spoil_no_sum(store: Store) -> None:
    """A number that cannot be, or a text in its place, is added up like any other: the question is answered."""
    rows = UsageRows(store)
    await rows.add([ended(), ended(), ended()])

    def damage(database: Database) -> None:
        database.conn.execute("UPDATE usage SET prompt_tokens = 9223372036854775807, completion_tokens = 'many'")
        database.conn.execute("UPDATE usage SET cached_tokens = 1.5, model = x'ff' WHERE id = 1")

    await store.run(damage)
    (row,) = await rows.sums([])
    assert (row.requests, row.completion_tokens) == (3, 0)
    assert [(row.model, row.requests) for row in await rows.sums(["model"])] == [("smol", 2)]
    assert len(await rows.recent(10)) == 0


async def test_last_requests_are_there_one_by_one(store: Store) -> None:
    """The newest first, as they were written."""
    rows = UsageRows(store)
    await rows.add([ended(request_id=f"req_{number}") for number in range(5)])
    assert await rows.recent(2) == [ended(request_id="req_4"), ended(request_id="req_3")]


async def test_usage_that_nobody_caused_is_empty(store: Store) -> None:
    """Without a request there is no row, not one of zeros."""
    assert await UsageRows(store).sums([]) == []


async def test_requests_are_kept_one_by_one_only_for_a_while(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old requests become sums by day: the table stays small, and no sum changes."""
    monkeypatch.setattr(store_limits, "usage_rows_max", 10)
    monkeypatch.setattr(store_limits, "usage_rows_slack", 5)
    rows = UsageRows(store)
    for day in range(1, 9):
        await rows.add([ended(time=f"2026-05-0{day}T12:00:00", tier=None, first_token_ms=None), ended(model="b")] * 5)
        assert (await rows.sums([]))[0].requests == day * 10
    single = await store.read(lambda database: database.conn.execute("SELECT count(*) FROM usage").fetchone()[0])
    assert single <= 15
    (sums,) = await rows.sums([])
    assert (sums.prompt_tokens, sums.completion_tokens, sums.first_token_ms, sums.total_ms) == (800, 400, 20.0, 100.0)
    assert next(row.requests for row in await rows.sums(["day"])) == 45
    assert {row.model: row.requests for row in await rows.sums(["model"])} == {"smol": 40, "b": 40}


async def test_sums_by_day_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums of the oldest days go in the end."""
    monkeypatch.setattr(store_limits, "usage_rows_max", 0)
    monkeypatch.setattr(store_limits, "usage_rows_slack", 0)
    monkeypatch.setattr(store_limits, "usage_day_rows_max", 3)
    rows = UsageRows(store)
    for day in range(1, 7):
        await rows.add([ended(time=f"2026-05-0{day}T12:00:00")])
    days = [row.day for row in await rows.sums(["day"])]
    assert days[-1] == "2026-05-06"
    assert "2026-05-01" not in days
    assert len(days) <= 4


# ----------------------------------------------------------------------------------------------------------- measures


async def test_measures_of_loads_come_together(store: Store) -> None:
    """One row for each model, backend and options: the last load's time, the longest, and the most memory ever."""
    rows = MeasureRows(store)
    key = LoadKey("smol", "llamacpp", "a" * 64)
    await rows.add_load(key, load_seconds=4.0, rss_bytes=100, now=NOW)
    await rows.raise_peak(key, 500)
    await rows.raise_peak(key, 300)
    await rows.add_load(key, load_seconds=2.0, rss_bytes=50, now=NOW + timedelta(hours=1))
    await rows.add_load(LoadKey("smol", "llamacpp", "b" * 64), load_seconds=1.0, rss_bytes=0, now=NOW)
    assert await rows.all() == [
        LoadMeasure(
            model="smol",
            backend="llamacpp",
            options_sha256="a" * 64,
            loads=2,
            load_seconds=2.0,
            load_seconds_max=4.0,
            rss_bytes_peak=500,
            measured_at=(NOW + timedelta(hours=1)).isoformat(),
        ),
        LoadMeasure(
            model="smol",
            backend="llamacpp",
            options_sha256="b" * 64,
            loads=1,
            load_seconds=1.0,
            load_seconds_max=1.0,
            rss_bytes_peak=0,
            measured_at=NOW.isoformat(),
        ),
    ]


async def test_measures_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The measures that are oldest go."""
    monkeypatch.setattr(store_limits, "load_measures_max", 2)
    rows = MeasureRows(store)
    for number in range(4):
        key = LoadKey(f"m{number}", "mock", "a" * 64)
        await rows.add_load(key, load_seconds=1.0, rss_bytes=0, now=NOW + timedelta(hours=number))
    assert [measure.model for measure in await rows.all()] == ["m2", "m3"]
