"""The folders for workers' temporary files: made for them alone, removed with them, and swept at the next start."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.support.polling import eventually_sync

from llmvisor.supervision.workers import confinement
from llmvisor.supervision.workers.confinement import make_scratch, remove_scratch, sweep_scratch

NONCE, OTHER = "a" * 32, "b" * 32


def noexec(_: Path) -> SimpleNamespace:
    return SimpleNamespace(f_flag=os.ST_NOEXEC)


@pytest.fixture(params=["in the run folder", "where the run folder is noexec"])
def run_dir(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if request.param != "in the run folder":
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        monkeypatch.setattr(confinement.os, "statvfs", noexec)
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    return folder


def test_scratch_is_for_its_worker_alone(run_dir: Path) -> None:
    """0700, never one that is there already, and gone with the worker whatever it left."""
    folder = make_scratch(run_dir, NONCE)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with pytest.raises(FileExistsError):
        make_scratch(run_dir, NONCE)
    (folder / "deep").mkdir()
    (folder / "deep" / "file").write_text("left")
    (folder / "link").symlink_to(run_dir)
    remove_scratch(run_dir, NONCE)
    eventually_sync(lambda: not folder.exists(), 5)
    remove_scratch(run_dir, NONCE)
    assert run_dir.exists()


def test_scratch_of_the_living_is_spared(run_dir: Path, tmp_path: Path) -> None:
    """A start removes what is left, but not what adopted workers use, what is another daemon's, what links lead to."""
    mine, spared = make_scratch(run_dir, NONCE), make_scratch(run_dir, OTHER)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    others = make_scratch(elsewhere, NONCE)
    link = mine.with_name(mine.name[:-1] + "c")
    link.symlink_to(elsewhere)
    sweep_scratch(run_dir, {OTHER})
    assert not mine.exists()
    assert spared.exists()
    assert others.exists()
    assert elsewhere.exists()
