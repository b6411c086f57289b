"""Which backends there are, and whether their engines can be used: each is imported in a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress

import msgspec

from llmvisor import limits
from llmvisor.control.api import BackendProbe, BackendStatus
from llmvisor.supervision.workers.spawn import worker_environment

OWN = ("flag", "llamacpp", "mlx", "mock")
"""The backends that come with llmvisor, each an extra of its package but for the mock."""


async def inventory(names: Iterable[str], python: Callable[[str], str]) -> list[BackendStatus]:
    """The state of each backend, in order of name; `python` gives the interpreter of a backend's workers."""
    return [await _backend(name, python(name)) for name in sorted({*names, *OWN})]


async def _backend(name: str, python: str) -> BackendStatus:
    probe = await _probe(name, python)
    usable = probe.error is None
    return BackendStatus(
        name=name,
        python=python,
        installed=not probe.missing,
        usable=usable,
        version=probe.version,
        protocol_version=probe.protocol_version,
        devices=probe.devices,
        error=probe.error,
        hint=None if usable else _hint(name, python, probe),
    )


def _hint(name: str, python: str, probe: BackendProbe) -> str:
    pip = "pip" if python == sys.executable else f"{python} -m pip"
    if name in OWN:
        return f"{pip} install {'' if probe.missing else '--force-reinstall '}'llmvisor[{name}]'"
    if probe.missing:
        return f"install the package that brings it, and llmvisor, into {python}"
    return f"see what it says: {python} -P -m llmvisor_runtimes.probe {name}"


async def _probe(name: str, python: str) -> BackendProbe:
    try:
        process = await asyncio.create_subprocess_exec(
            *(python, "-P", "-m", "llmvisor_runtimes.probe", name),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=worker_environment(os.environ, {}),
            start_new_session=True,
        )
    except OSError as error:
        return BackendProbe(missing=True, error=f"{python}: {error.strerror}")
    try:
        async with asyncio.timeout(limits.probe_seconds_max):
            output, errors = await process.communicate()
    except TimeoutError:
        return BackendProbe(error=f"importing it took over {limits.probe_seconds_max:.0f} seconds")
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its session: an interpreter may be a script that starts one
            await process.wait()
    try:
        return msgspec.json.decode(output.strip().rpartition(b"\n")[2], type=BackendProbe)
    except msgspec.DecodeError:
        return BackendProbe(missing=b"No module named" in errors, error=_end(process.returncode or 0, errors))


def _end(code: int, errors: bytes) -> str:
    lines = [line for line in errors.decode(errors="replace").splitlines() if line.strip()]
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return f"importing it ended with {how}: {lines[-1].strip() if lines else 'it said nothing'}"
