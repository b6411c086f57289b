"""What `llmctl doctor` looks at. Each check gives findings; those that run programs bound them in time.

Engines are imported in a process of their own (`llmvisor_runtimes.probe`), so that one that crashes is a finding.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from llmctl import limits, render
from llmctl.client import Client
from llmvisor.control.api import BackendProbe, Confinement
from llmvisor.control.paths import data_dir, starter_model_path

PYTHON_MIN = (3, 11)
BACKENDS_GROUP = "llmvisor.runtimes"
"""The entry points that backends are."""
_GGUF_MAGIC = b"GGUF"
_COMPILERS = ("cc", "gcc", "clang")
_CONFIG_HINT = "llmctl config init"


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at. A `note` is worth knowing and hinders nothing."""

    subject: str
    level: Literal["ok", "note", "problem"]
    text: str
    fix: str | None = None


class Place(NamedTuple):
    """Where the doctor looks."""

    environ: Mapping[str, str]
    client: Client


class Ran(NamedTuple):
    """How a program ended; `code` None = it is not there, or took too long."""

    code: int | None
    stdout: str
    stderr: str


def examine(place: Place) -> Iterator[Finding]:
    """Every check, the quick ones first."""
    from llmctl.doctor_daemon import daemon_checks  # noqa: PLC0415 - it imports from here

    yield python_version()
    yield from backends()
    yield compiler()
    yield from gpus()
    yield sandbox()
    yield memory()
    yield disk(place.environ)
    yield starter_model(place.environ)
    yield from daemon_checks(place)


def python_version() -> Finding:
    text = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info[:2] < PYTHON_MIN:
        return Finding("Python", "problem", text, "install Python 3.11 or newer, and llmvisor into it")
    return Finding("Python", "ok", text)


def backends() -> Iterator[Finding]:
    """Whether each registered backend's engine can be imported, and its version."""
    from importlib.metadata import entry_points  # noqa: PLC0415 - this check alone

    names = sorted({entry.name for entry in entry_points(group=BACKENDS_GROUP)})
    if not names:
        yield Finding("backends", "problem", "none is registered", "install llmvisor again: pip install llmvisor")
    for name in names:
        yield backend(name)


def backend(name: str) -> Finding:
    """Import one backend in a process of its own."""
    subject = f"backend {name}"
    ran = run([sys.executable, "-P", "-m", "llmvisor_runtimes.probe", name])
    fix = f"pip install 'llmvisor[{name}]'"
    try:
        answer = msgspec.json.decode(ran.stdout.strip().rpartition("\n")[2], type=BackendProbe)
    except msgspec.DecodeError:
        end = "took too long" if ran.code is None else f"ended with exit code {ran.code}"
        return Finding(subject, "problem", f"importing it {end}: {_last_line(ran.stderr)}", f"{fix} --force-reinstall")
    if answer.missing:
        return Finding(subject, "note", f"not installed: {answer.error}", fix)
    if answer.error is not None:
        return Finding(subject, "problem", answer.error, fix)
    return Finding(subject, "ok", answer.version or "importable")


def compiler() -> Finding:
    """An engine without a ready wheel for this machine is compiled when it is installed."""
    found = next((path for name in _COMPILERS if (path := shutil.which(name))), None)
    if found is None:
        return Finding("compiler", "note", "none; one is needed only to install an engine that has no wheel")
    version = run([found, "--version"]).stdout.partition("\n")[0]
    return Finding("compiler", "ok", version or found)


def gpus() -> Iterator[Finding]:
    """What the drivers' own programs tell of GPUs."""
    found = [finding for finding in (_nvidia(), _rocm(), _metal()) if finding is not None]
    yield from found or [Finding("GPU", "note", "none found: models run on the CPU")]


def _nvidia() -> Finding | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    ran = run([program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"])
    if ran.code != 0 or not ran.stdout.strip():
        said = _last_line(ran.stdout + ran.stderr)
        return Finding("GPU", "problem", f"nvidia-smi fails: {said}", "load or reinstall the NVIDIA driver")
    return Finding("GPU", "ok", ran.stdout.strip())


def _rocm() -> Finding | None:
    program = shutil.which("rocm-smi")
    if program is None:
        return None
    ran = run([program, "--showproductname", "--csv"])
    if ran.code != 0:
        fix = "load the amdgpu driver, and be in the groups render and video"
        return Finding("GPU", "problem", f"rocm-smi fails: {_last_line(ran.stdout + ran.stderr)}", fix)
    return Finding("GPU", "ok", _last_line(ran.stdout))


def _metal() -> Finding | None:
    if sys.platform != "darwin":
        return None
    if platform.machine() != "arm64":
        return Finding("GPU", "note", "an Intel Mac: models run on the CPU")
    return Finding("GPU", "ok", "Metal (Apple silicon)")


def sandbox() -> Finding:
    """What holds workers back on this system, as one finds that has it done to itself."""
    ran = run([sys.executable, "-P", "-m", "llmvisor_runtimes.confinement"])
    try:
        found = msgspec.json.decode(ran.stdout, type=Confinement)
    except msgspec.DecodeError:
        said = f"it cannot be tried: {_last_line(ran.stderr)}"
        return Finding("sandbox", "problem", said, "install llmvisor again: pip install --force-reinstall llmvisor")
    if found.missing:
        held = f"; in force: {', '.join(found.in_force)}" if found.in_force else ""
        fix = "use a kernel from 6.12 on (5.13: for a part), and in a container let Landlock through (newer engines do)"
        return Finding("sandbox", "note", f"workers lack {'; '.join(found.missing)}{held}", fix)
    return Finding("sandbox", "ok", f"workers are held by {', '.join(found.in_force)}")


def memory() -> Finding:
    """Free memory, of the machine or of the cgroup where that is less."""
    import psutil  # noqa: PLC0415 - this check alone

    machine = psutil.virtual_memory()
    limit = cgroup_memory_max()
    total = min(machine.total, limit) if limit else machine.total
    text = f"{render.long_size(machine.available)} available of {render.long_size(total)}"
    text += " (a cgroup's limit)" if limit and limit < machine.total else ""
    if min(machine.available, total) < limits.memory_free_bytes_min:
        return Finding("memory", "problem", text, "close programs, or unload models: llmctl unload MODEL")
    return Finding("memory", "ok", text)


def cgroup_memory_max(path: Path = Path("/sys/fs/cgroup/memory.max")) -> int | None:
    """The limit of the container that we may run in; None = no limit is known."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def disk(environ: Mapping[str, str]) -> Finding:
    """Room for models."""
    folder = data_dir(environ)
    existing = nearest_existing(folder)
    try:
        free = shutil.disk_usage(existing).free
    except OSError as error:
        return Finding("disk", "problem", f"{folder}: {error.strerror}", "set LLMVISOR_DATA_DIR to a folder of yours")
    text = f"{render.long_size(free)} free at {folder}"
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding("disk", "problem", f"{existing} cannot be written to", "chown it, or set LLMVISOR_DATA_DIR")
    if free < limits.disk_free_bytes_min:
        return Finding("disk", "problem", text, "free some space, or set LLMVISOR_DATA_DIR to another disk")
    return Finding("disk", "ok", text)


def nearest_existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def starter_model(environ: Mapping[str, str]) -> Finding:
    """The model that is served where nothing is configured."""
    path = starter_model_path(environ)
    fix = "make model   (in llmvisor's source tree)"
    try:
        with path.open("rb") as file:
            magic = file.read(len(_GGUF_MAGIC))
    except FileNotFoundError:
        if (config := config_file(environ)) is not None:
            return Finding("starter model", "note", f"not there, and not needed with {config}")
        return Finding("starter model", "problem", f"not at {path}", f"{fix}, or configure a model: {_CONFIG_HINT}")
    except OSError as error:
        return Finding("starter model", "problem", f"{path}: {error.strerror}", f"make it readable: chmod u+r {path}")
    if magic != _GGUF_MAGIC:
        return Finding("starter model", "problem", f"{path} is no GGUF file", f"rm {path}, then {fix}")
    return Finding("starter model", "ok", f"{path} ({render.long_size(path.stat().st_size)})")


def config_file(environ: Mapping[str, str]) -> Path | None:
    """The configuration file that the daemon would take; None = built-in defaults."""
    if explicit := environ.get("LLMVISOR_CONFIG"):
        return Path(explicit)
    home = Path(environ.get("HOME") or Path.home())
    places = (Path("config.yaml"), home / ".config/llmvisor/config.yaml", Path("/etc/llmvisor/config.yaml"))
    return next((path for path in places if path.is_file()), None)


def run(command: list[str]) -> Ran:
    """A program's output, within `probe_seconds_max`."""
    try:
        ended = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=limits.probe_seconds_max,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Ran(None, "", str(error))
    return Ran(ended.returncode, ended.stdout, ended.stderr)


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it said nothing")
