"""The real `llmctl` and the real daemon: models that come and go, jobs, settings, measurements."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path

import msgspec
import pytest
from tests.support.daemon import Daemon, mock_model
from tests.support.llmctl_process import Ended, TerminalRun, llmctl
from tests.support.polling import eventually_sync
from tests.support.tiny_gguf import write_tiny_gguf

from llmctl.bench import BenchAnswer

MODELS = {
    "mock": mock_model(token_delay_ms=2, reply_tokens=20, tier="light", aliases=["parrot"]),
    "slow": mock_model(load_seconds=1, tier="heavy"),
    "slower": mock_model(load_seconds=1.5, tier="medium"),
}


@pytest.fixture(scope="module")
def daemon() -> Generator[Daemon]:
    with Daemon({"models": MODELS}) as one:
        yield one


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("weights") / "Tiny-Model.gguf")


def ctl(daemon: Daemon, *arguments: str) -> Ended:
    return llmctl(daemon.socket_path, *arguments, cwd=daemon.folder)


def done(daemon: Daemon, *arguments: str) -> str:
    """What a command that succeeds prints."""
    ended = ctl(daemon, *arguments)
    assert ended.code == 0, ended
    return ended.stdout


def test_a_model_is_imported_shown_and_deleted(daemon: Daemon, tiny: Path) -> None:
    """1. Its file is taken in. 2. It is listed with its tier. 3. A name that is taken is refused. 4. It is gone."""
    assert done(daemon, "import", str(tiny), "--name", "tiny", "--tier", "embedding").startswith("tiny is installed")
    assert "embedding/tiny" in done(daemon, "models", "--search", "tin")
    shown = done(daemon, "show", "tiny")
    assert "architecture  llama" in shown
    assert "source        file:" in shown
    assert "embedding/tiny" in done(daemon, "__complete", "bash", "llmctl delete emb")
    again = ctl(daemon, "import", str(tiny), "--name", "tiny")
    assert again.code == 1
    assert "tiny" in again.stderr
    assert tiny.exists()
    assert "are free again" in done(daemon, "delete", "tiny", "--yes")
    assert ctl(daemon, "show", "tiny").code == 4
    assert list(daemon.models_folder.glob("tiny/*")) == []


def test_a_file_that_is_no_model_is_refused_with_the_reason(daemon: Daemon, tmp_path: Path) -> None:
    """Exit code 1, and the job keeps the reason."""
    (tmp_path / "fake.gguf").write_bytes(b"no model at all" * 10)
    ended = ctl(daemon, "import", str(tmp_path / "fake.gguf"))
    assert ended.code == 1
    assert "GGUF" in ended.stderr
    jobs = json.loads(done(daemon, "jobs", "--type", "import", "--state", "failed", "--json"))["data"]
    assert jobs[0]["error"] in ended.stderr


def test_two_loads_are_watched_at_once(daemon: Daemon) -> None:
    """Both have a bar, both end, and `jobs prune` forgets them."""
    for name in ("slow", "slower"):
        assert done(daemon, "load", name, "--no-wait").startswith("job_")
    with TerminalRun(daemon.socket_path, "jobs", "watch", columns=100) as run:
        run.expect("load slow")
        run.expect("succeeded")
        assert run.wait() == 0
    assert run.text.rpartition("JOB")[2].count("succeeded") == 2
    assert "forgotten" in done(daemon, "jobs", "prune")
    assert done(daemon, "jobs") == ""


def test_bench_measures_and_usage_counts(daemon: Daemon) -> None:
    """The speeds of the mock model; the requests are among those that `usage` sums up."""
    shown = done(daemon, "bench", "light", "-c", "2", "--prompt-tokens", "30", "--max-tokens", "10", "--json")
    answer = msgspec.json.decode(shown, type=BenchAnswer)
    assert [row.concurrency for row in answer.rows] == [1, 2]
    assert all(1 < row.decode_tokens_per_second_each < 1000 for row in answer.rows)

    def counted() -> bool:
        rows = json.loads(done(daemon, "usage", "--by", "model", "--json"))["data"]
        return [row["requests"] for row in rows if "mock" in row["model"]] == [1 + 1 + 2]

    # They are written down in batches.
    eventually_sync(counted, 20, "four requests are counted")


def test_a_setting_is_checked_written_and_in_effect() -> None:
    """1. A wrong value is refused by the daemon. 2. A right one is written, and holds. 3. The next start has it."""
    with Daemon({"models": {"mock": mock_model()}}) as daemon:
        before = daemon.config_file.read_text()
        refused = ctl(daemon, "config", "set", "server.max_body_mb", "0")
        assert refused.code == 1
        assert "server.max_body_mb" in refused.stderr
        assert daemon.config_file.read_text() == before
        assert "models.mock.n_ctx is 512" in done(daemon, "config", "set", "models.mock.n_ctx", "512")
        assert "models.mock.n_ctx: 512" in done(daemon, "config", "show")
        done(daemon, "shutdown", "--wait")
        daemon.wait()
        daemon.start()
        assert "models.mock.n_ctx: 512" in done(daemon, "config", "show")
