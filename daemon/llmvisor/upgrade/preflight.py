"""Tries whether the next run of the daemon can start, in a child process that ends before the real one begins.

The child is the daemon's own command with `PREFLIGHT_VARIABLE` set: it reads the configuration, imports all that the
daemon is made of, and decodes the state.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress

from llmvisor import limits
from llmvisor.supervision.workers.spawn import require_descriptors, seal_descriptors
from llmvisor.upgrade.reexec import STATE_VARIABLE

PREFLIGHT_VARIABLE = "LLMVISOR_PREFLIGHT"
_SPAWN_FDS = 10
_TOLD_CHARS_MAX = 500


async def preflight(arguments: list[str], environment: Mapping[str, str], state_fd: int) -> str | None:
    """Why the next run could not start; None where it could."""
    seal_descriptors()
    tried = {**environment, PREFLIGHT_VARIABLE: "1", STATE_VARIABLE: str(state_fd)}
    try:
        require_descriptors(_SPAWN_FDS)
        process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=tried,
            pass_fds=(state_fd,),
            start_new_session=True,
        )
    except OSError as error:
        return f"{arguments[0]} cannot be started: {os.strerror(error.errno or 0)}"
    try:
        async with asyncio.timeout(limits.upgrade_preflight_seconds_max):
            output, _ = await process.communicate()
    except TimeoutError:
        return f"the new daemon did not say within {limits.upgrade_preflight_seconds_max:g} s that it can start"
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode == 0:
        return None
    return f"the new daemon cannot start (exit code {process.returncode}): {_told(output)}"


def _told(output: bytes) -> str:
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    # Of a traceback the last line is what tells; what the daemon says itself begins with the first.
    told = lines[-1:] if any(line.startswith("Traceback") for line in lines) else lines
    return " ".join(told)[:_TOLD_CHARS_MAX] or "it said nothing"
