"""Installed models in a running daemon: served from their folders, updated and removed under load."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from tests.support.daemon import Daemon, mock_model, stream
from tests.support.installed import publish_by_hand
from tests.support.polling import eventually_sync
from tests.support.tiny_gguf import write_tiny_gguf


@pytest.fixture
def daemon() -> Generator[Daemon]:
    """One with a configured model beside the installed one `tiny`."""
    daemon = Daemon({"models": {"mock": mock_model()}})
    publish_by_hand(daemon.models_folder, "tiny", tier="heavy")
    with daemon:
        yield daemon


def ended_job(daemon: Daemon, type: str, **params: object) -> dict[str, Any]:
    """A job, once it has ended."""
    status, job = daemon.control("POST", "/jobs", {"type": type, "params": params})
    assert status == 202, job

    def ended() -> bool:
        job.update(daemon.control("GET", f"/jobs/{job['id']}")[1])
        return job["ended_at"] is not None

    eventually_sync(ended, 30, f"the job to {type} ends")
    return job


def test_model_that_lies_in_its_folder_is_served_after_a_start(daemon: Daemon) -> None:
    """By name and tier, also by a request that comes before the folders were looked at; the configured one as well."""
    assert daemon.complete("tiny", max_tokens=2)[0] == 200
    assert daemon.complete("heavy/tiny", max_tokens=2)[0] == 200
    assert daemon.complete("heavy", max_tokens=2)[1]["model"] == "heavy/tiny"
    assert daemon.complete("mock")[0] == 200
    status, shown = daemon.control("GET", "/llm/models/tiny")
    assert (status, shown["source"], shown["architecture"]) == (200, "file:/by/hand", "llama")
    assert [model["id"] for model in daemon.control("GET", "/llm/models")[1]["data"]] == ["mock", "heavy/tiny"]


def test_model_that_is_imported_while_the_daemon_runs_is_served_at_once(daemon: Daemon) -> None:
    """Without a restart; and after one as well."""
    path = write_tiny_gguf(daemon.folder / "other.gguf", seed=2)
    assert ended_job(daemon, "import", path=str(path), name="other")["state"] == "succeeded"
    answer = daemon.complete("other", max_tokens=4, temperature=0)
    assert answer[0] == 200
    daemon.kill()
    daemon.port_file.unlink()
    daemon.start()
    again = daemon.complete("other", max_tokens=4, temperature=0)
    assert again[1]["choices"] == answer[1]["choices"]


def test_split_model_is_installed_with_all_its_parts(daemon: Daemon) -> None:
    """By its first file; what is shown of it counts all of them, before and after it is loaded."""
    path = write_tiny_gguf(daemon.folder / "big.gguf", split_tensors=8)
    assert ended_job(daemon, "import", path=str(path), name="big")["state"] == "succeeded"
    parts = list(daemon.models_folder.glob("big/*/big-*-of-00003.gguf"))
    assert len(parts) == 3
    before = daemon.control("GET", "/llm/models/big")[1]
    assert daemon.complete("big", max_tokens=2)[0] == 200
    after = daemon.control("GET", "/llm/models/big")[1]
    for shown in (before, after):
        assert shown["size"] == sum(part.stat().st_size for part in parts)
    assert before["parameters"] == after["parameters"]


def test_configured_model_wins_over_an_installed_one_of_its_name() -> None:
    """What a person wrote down counts."""
    daemon = Daemon({"models": {"tiny": mock_model()}})
    publish_by_hand(daemon.models_folder, "tiny")
    with daemon:
        assert daemon.control("GET", "/llm/models/tiny")[1]["backend"] == "mock"
        assert len(daemon.control("GET", "/llm/models")[1]["data"]) == 1


@pytest.mark.parametrize("configured", [{"tiny": mock_model()}, {"mock": mock_model(aliases=["tiny"])}])
def test_installed_model_whose_name_the_configuration_took_can_be_deleted(configured: dict[str, Any]) -> None:
    """By its name, also where that is an alias; and by force without any harm to the configured one."""
    daemon = Daemon({"models": configured})
    publish_by_hand(daemon.models_folder, "tiny")
    with daemon:
        assert daemon.complete("tiny")[0] == 200
        pid = daemon.worker_pid(next(iter(configured)))
        job = ended_job(daemon, "delete", model="tiny", force=True)
        assert job["state"] == "succeeded", job
        assert not (daemon.models_folder / "tiny").exists()
        assert daemon.complete("tiny")[0] == 200
        assert daemon.worker_pid(next(iter(configured))) == pid


def test_update_lets_what_runs_finish_and_serves_the_new_revision(daemon: Daemon) -> None:
    """The stream under way is whole, what waits gets the new worker, and the old revision goes once that has loaded."""
    path = write_tiny_gguf(daemon.folder / "model.gguf", seed=2)
    assert ended_job(daemon, "import", path=str(path), name="model")["state"] == "succeeded"
    before = daemon.complete("model", max_tokens=4, temperature=0)[1]["choices"]
    pid = daemon.worker_pid("model")
    write_tiny_gguf(path, seed=3)
    with stream(daemon, "model", max_tokens=900, ignore_eos=True) as client:
        events = client.events()
        next(events)
        job = ended_job(daemon, "update", model="model")
        assert job["state"] == "succeeded", job
        rest = list(events)
    assert rest[-1] == "[DONE]"
    assert daemon.complete("model", max_tokens=4, temperature=0)[1]["choices"] != before
    assert daemon.worker_pid("model") != pid
    folder = daemon.models_folder / "model"
    eventually_sync(lambda: len(list(folder.iterdir())) == 1, 10, "the old revision is removed")


def test_rollback_serves_the_revision_before(daemon: Daemon) -> None:
    """As long as the new one has not loaded."""
    path = write_tiny_gguf(daemon.folder / "model.gguf", seed=2)
    ended_job(daemon, "import", path=str(path), name="model")
    before = daemon.complete("model", max_tokens=4, temperature=0)[1]["choices"]
    write_tiny_gguf(path, seed=3)
    assert ended_job(daemon, "update", model="model")["state"] == "succeeded"
    assert ended_job(daemon, "update", model="model", rollback=True)["state"] == "succeeded"
    assert daemon.complete("model", max_tokens=4, temperature=0)[1]["choices"] == before


def test_delete_of_a_loaded_model_needs_force_and_ends_its_requests(daemon: Daemon) -> None:
    """Refused with who uses it; by force the stream ends with an error, and the name is nobody's."""
    with stream(daemon, "tiny", max_tokens=900, ignore_eos=True) as client:
        events = client.events()
        next(events)
        refused = ended_job(daemon, "delete", model="tiny")
        assert (refused["state"], refused["error_code"]) == ("failed", "conflict")
        job = ended_job(daemon, "delete", model="tiny", force=True)
        assert job["state"] == "succeeded", job
        assert "error" in list(events)[-1]
    assert daemon.complete("tiny")[0] == 404
    assert list(daemon.models_folder.glob("[!.]*")) == []
    status = daemon.control("GET", "/llm/status")[1]
    assert [runtime["model"] for runtime in status["runtimes"]] == ["mock"]


def test_files_that_the_configuration_names_are_not_deleted() -> None:
    """An installed model whose file a configured one has is in use, loaded or not."""
    daemon = Daemon({"models": {"mock": mock_model()}})
    path = publish_by_hand(daemon.models_folder, "tiny")
    daemon.reconfigure({"models": {"mine": {"path": str(path)}}})
    with daemon:
        refused = ended_job(daemon, "delete", model="tiny")
        assert "the configuration's model 'mine' has its files" in refused["error"]
        assert refused["hint"] == "take it out of the configuration, or say --force"
        assert path.exists()


def test_model_whose_files_are_gone_is_listed_as_unavailable(daemon: Daemon) -> None:
    """Told in the list and by a request, and it can be deleted."""
    assert daemon.complete("tiny", max_tokens=2)[0] == 200
    daemon.kill()
    for file in daemon.models_folder.glob("tiny/*/*"):
        file.unlink()
    daemon.port_file.unlink()
    daemon.start()
    listed = daemon.control("GET", "/llm/models/tiny")[1]
    assert listed["state"] == "unavailable"
    assert "gone" in listed["error"]
    status, body = daemon.complete("tiny")
    assert (status, body["error"]["code"]) == (503, "model_load_failed")
    assert "no such file" in body["error"]["message"]
    assert ended_job(daemon, "delete", model="tiny", force=True)["state"] == "succeeded"
    assert daemon.complete("tiny")[0] == 404
