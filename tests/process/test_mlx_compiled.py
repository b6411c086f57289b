"""Kernels that MLX compiles for the processor: kept from worker to worker, and those that were cut left out."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest
from tests.support.daemon import Daemon
from tests.support.mlx_models import tiny_folder

from llmvisor_runtimes.mlx.compiled import keep_compiled

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere MLX compiles nothing for the processor")


def kernels(folder: Path) -> dict[str, int]:
    """By name, when each was made."""
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.so")}


def test_kernels_are_compiled_once_for_all_workers_of_a_model(tmp_path: Path) -> None:
    """The second worker takes what the first has compiled; one that is cut is compiled again."""
    state = tmp_path / "state"
    config = {"models": {"tiny": {"path": str(tiny_folder()), "n_ctx": 1024}}, "cache": {"state_dir": str(state)}}
    with Daemon(config) as daemon:
        assert daemon.runtime("tiny")["state"] == "not_loaded"
        assert daemon.complete("tiny", max_tokens=4)[0] == 200
        if daemon.runtime("tiny")["sandbox"] is None:
            pytest.skip("workers are not confined here: MLX keeps its kernels in the shared folder")
        made = kernels(state)
        assert made
        daemon.control("POST", "/jobs", {"type": "unload", "params": {"model": "tiny"}})
        daemon.wait_for_state("tiny", "not_loaded")
        cut = next(path for path in state.rglob("*.so"))
        cut.write_bytes(cut.read_bytes()[:1000])
        assert daemon.complete("tiny", max_tokens=4)[0] == 200
        again = kernels(state)
        assert set(again) == set(made)
        assert {name for name in made if again[name] != made[name]} == {cut.name}


def test_temporary_files_that_others_share_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a model's own is put where everybody may look."""
    tmp_path.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    keep_compiled(str(tmp_path / "state"))
    assert list(tmp_path.iterdir()) == []
