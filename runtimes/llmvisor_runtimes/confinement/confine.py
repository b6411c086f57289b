"""Applies all that the system has to confine this process, and tells what is in force."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

import msgspec

from llmvisor_runtimes.confinement import landlock, places, privileges, seatbelt, seccomp
from llmvisor_runtimes.protocol import Confined


class Wanted(msgspec.Struct, frozen=True):
    """What a worker needs beside the system's own."""

    read: list[str] = []
    """Files and folders of its model."""
    write: list[str] = []
    """Folders of its own; those that are not there are made."""


def confine(wanted: Wanted) -> Confined:
    """Confine this process for good; whatever the system does not have is said and left out. Never raises OSError.

    For a process of one thread: Landlock holds the thread that asks, and those that it starts.
    """
    for folder in wanted.write:
        with suppress(OSError):
            os.makedirs(folder, mode=0o700, exist_ok=True)
    in_force: list[str] = []
    missing: list[str] = []
    for name, apply in _measures(wanted):
        try:
            in_force.append(apply() or name)
        except (OSError, ValueError) as error:
            missing.append(f"{name}: {getattr(error, 'strerror', None) or error}")
    return Confined(in_force, missing)


def _measures(wanted: Wanted) -> Iterator[tuple[str, Callable[[], str | None]]]:
    if sys.platform == "darwin":
        yield "sandbox", lambda: _apply_profile(wanted)
        return
    if sys.platform != "linux":
        return
    gpus = places.devices()
    abi = landlock.abi_version()
    # The kernel takes both only from those who can gain nothing by it.
    yield "no_new_privs", privileges.forbid_new_privileges
    yield "capabilities", privileges.drop_capabilities
    yield "processes", privileges.bound_processes
    yield "landlock", lambda: _restrict_files(wanted, gpus, abi)
    if 0 < abi < landlock.HOLDS_SIGNALS:
        yield "signals", lambda: _without_signals(abi)
    # A GPU's driver talks to its daemons, and to itself, over Unix sockets.
    yield "seccomp", lambda: seccomp.install(unix_sockets=bool(gpus))


def _apply_profile(wanted: Wanted) -> None:
    read = [*places.python_places(os.environ), *places.model_places(wanted.read)]
    home = os.path.expanduser("~")
    caches = [path for path in (_darwin_folder("DARWIN_USER_CACHE_DIR"),) if path]
    write = [os.path.realpath(path) for path in (*wanted.write, *caches)]
    seatbelt.apply(seatbelt.profile(home=os.path.realpath(home), read=[*map(os.path.realpath, read)], write=write))


def _darwin_folder(name: str) -> str | None:
    """Where Metal keeps compiled shaders."""
    with suppress(OSError, ValueError):
        # _CS_DARWIN_USER_CACHE_DIR; Python knows no name for it.
        return os.confstr(65538) if name else None
    return None


def _without_signals(abi: int) -> None:
    raise OSError(f"Landlock {abi} does not hold them, {landlock.HOLDS_SIGNALS} does (Linux 6.12)")


def _restrict_files(wanted: Wanted, gpus: list[str], abi: int) -> str:
    if abi == 0:
        raise OSError("this kernel has none, or does not let this process use it")
    # Held open on purpose: the kernel's rule is for this very inode, which /proc would make anew.
    os.open(places.OWN_PROCESS, os.O_PATH | os.O_CLOEXEC)
    landlock.restrict(_rules(wanted, gpus), abi=abi)
    return f"landlock {abi}"


def _rules(wanted: Wanted, gpus: list[str]) -> Iterator[tuple[str, int]]:
    for path in (*places.SYSTEM, *places.python_places(os.environ)):
        yield path, landlock.PROGRAMS
    for path in (*places.SYSTEM_FACTS, *places.model_places(wanted.read)):
        yield path, landlock.READ
    for path in ("/dev/null", "/dev/zero", "/dev/full", places.OWN_PROCESS):
        yield path, landlock.WRITE_ONLY
    for path in wanted.write:
        yield path, landlock.OWN
    for path in (*gpus, *(places.OF_DRIVERS if gpus else ())):
        yield path, landlock.DEVICE if path in gpus else landlock.OWN
