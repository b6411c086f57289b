"""Starts a worker process: its argument list, its environment, its pipes.

A worker is a session of its own, so that one signal reaches all it starts and none of the daemon's terminal. It
inherits exactly five descriptors: /dev/null, two log pipes, and by number the two pipes that carry frames.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import ClassVar, Protocol

import msgspec

from llmvisor import limits
from llmvisor.errors import ModelLoadFailed
from llmvisor.supervision.handover import LogPipe
from llmvisor.supervision.workers.confinement import Confinement

INHERITED_NAMES = frozenset(
    {
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "LD_LIBRARY_PATH",
        "DYLD_LIBRARY_PATH",
        "DYLD_FALLBACK_LIBRARY_PATH",
        "VIRTUAL_ENV",
        "HF_HOME",
        "HF_HUB_CACHE",
        "HF_HUB_OFFLINE",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
    }
)
"""Variables of the daemon that a worker gets: places, languages and libraries."""

INHERITED_PREFIXES = (
    "LC_",
    "XDG_",
    "CUDA_",
    "NVIDIA_",
    "HIP_",
    "ROCR_",
    "HSA_",
    "GPU_",
    "GGML_",
    "LLAMA_",
    "METAL_",
    "MLX_",
    "OMP_",
    "GOMP_",
    "KMP_",
    "MKL_",
    "OPENBLAS_",
    "BLIS_",
    "VECLIB_",
    "TORCH_",
    "PYTORCH_",
)
"""Families of variables that engines and their libraries read."""

SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL")
"""A name with one of these in it is kept back even where its family is let through."""

KEPT_BACK = frozenset({"KMP_DUPLICATE_LIB_OK"})
"""Of these families: two OpenMP runtimes in one process are a bug, and not to be hidden."""

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Large allocations (a KV cache, the buffers of a graph, weights that are not mapped) ask for huge pages, where the
kernel gives them to those who ask: a step then misses the TLB less, and takes some percent less time."""

NONCE_VARIABLE = "LLMVISOR_WORKER_NONCE"
"""Carries the nonce to all that a worker starts, so that what outlives it can be told from a stranger."""

_STDERR_FD = 2
_SPAWN_FDS = 8
"""What starting a process takes for itself: three ends of stdio, a pipe for its error and one for the signal."""
_FOR_NOW = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class WorkerSpec(msgspec.Struct, frozen=True):
    """What it takes to start a worker."""

    model: str
    backend: str
    python: str
    """The interpreter, which may be another environment's than the daemon's."""
    env: dict[str, str] = {}
    """Variables for this worker alone, over what it inherits."""
    confinement: Confinement | None = None
    """What it may use of the machine; None = whatever this user may."""


class SpawnFailed(ModelLoadFailed):
    """The process could not be started; `errno_name` says why (`ENOENT`, `EACCES`, `E2BIG`, …)."""

    def __init__(self, message: str, *, errno_name: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.errno_name = errno_name


class SpawnRefused(SpawnFailed):
    """The machine has no room for a process or its pipes at the moment (`EAGAIN`, `EMFILE`, `ENFILE`, `ENOMEM`)."""

    retryable: ClassVar[bool] = True


class ChildProcess(Protocol):
    """The part of `asyncio.subprocess.Process` that a worker needs."""

    @property
    def pid(self) -> int: ...

    async def wait(self) -> int: ...


class Spawned(msgspec.Struct, frozen=True):
    """A process that runs, and the daemon's ends of its pipes, which now belong to the caller."""

    process: ChildProcess
    nonce: str
    command_fd: int
    report_fd: int
    logs: list[LogPipe]
    unread: bytes | None = None
    """Of a report, read by an earlier run of this daemon; None for a worker that is new."""
    unsent: bytes = b""
    """Commands that an earlier run could not write."""


def worker_environment(daemon: Mapping[str, str], extra: Mapping[str, str]) -> dict[str, str]:
    """What a worker's environment holds: the allowlisted part of the daemon's own, `extra` over it.

    Parsers of untrusted weights run there, so nothing secret is in it, nor what speaks for the daemon
    (NOTIFY_SOCKET, LISTEN_FDS).
    """
    inherited = {name: value for name, value in daemon.items() if _is_inherited(name)}
    return HUGE_PAGES | inherited | dict(extra) | {"PYTHONUNBUFFERED": "1"}


def _is_inherited(name: str) -> bool:
    if name in KEPT_BACK or any(word in name.upper() for word in SECRET_WORDS):
        return False
    return name in INHERITED_NAMES or name.startswith(INHERITED_PREFIXES)


def worker_arguments(spec: WorkerSpec, *, nonce: str, read_fd: int, write_fd: int, parent_pid: int) -> list[str]:
    """The worker's argument list. `-P` keeps the daemon's working folder off its import path."""
    return [
        *(spec.python, "-P", "-m", "llmvisor_runtimes", spec.backend),
        *("--read-fd", str(read_fd)),
        *("--write-fd", str(write_fd)),
        *("--parent-pid", str(parent_pid)),
        *("--nonce", nonce),
        *("--oom-score-adj", str(limits.worker_oom_score_adj)),
        *("--open-files-max", str(limits.worker_open_files_max)),
        *(spec.confinement.arguments() if spec.confinement is not None else ()),
    ]


async def spawn(spec: WorkerSpec, *, nonce: str) -> Spawned:
    """Start a worker's process.

    Belongs on the main thread's loop: the worker asks to die with the thread that forked it. Raises `SpawnFailed`,
    with nothing left open.
    """
    assert threading.current_thread() is threading.main_thread(), "the worker would die with this thread"
    try:
        return await _spawn(spec, nonce)
    except (OSError, ValueError) as error:
        raise _failure(spec, error) from error


async def _spawn(spec: WorkerSpec, nonce: str) -> Spawned:
    with ExitStack() as ours, ExitStack() as theirs:
        command_read, command_write = pipe_ends(reads=theirs, writes=ours)
        report_read, report_write = pipe_ends(reads=ours, writes=theirs)
        stdout_read, stdout_write = pipe_ends(reads=ours, writes=theirs)
        stderr_read, stderr_write = pipe_ends(reads=ours, writes=theirs)
        _widen(report_read)
        for fd in (command_write, report_read, stdout_read, stderr_read):
            os.set_blocking(fd, False)
        seal_descriptors()
        arguments = worker_arguments(
            spec, nonce=nonce, read_fd=command_read, write_fd=report_write, parent_pid=os.getpid()
        )
        environment = worker_environment(os.environ, spec.env) | {NONCE_VARIABLE: nonce}
        _check_strings(arguments, environment)
        require_descriptors(_SPAWN_FDS)
        # No preexec_fn: uvloop blocks its loop for one. Ends of our own instead of PIPE: with those the standard
        # library's `wait()` hangs for as long as a grandchild holds them.
        process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=stdout_write,
            stderr=stderr_write,
            env=environment,
            pass_fds=(command_read, report_write),
            close_fds=True,
            start_new_session=True,
        )
        ours.pop_all()
        return Spawned(process, nonce, command_write, report_read, [LogPipe(stdout_read), LogPipe(stderr_read)])


def _check_strings(arguments: list[str], environment: dict[str, str]) -> None:
    """Raises ValueError for what the kernel cannot take; uvloop cuts such a string short and says nothing."""
    if any("\0" in text for text in (*arguments, *environment, *environment.values())):
        raise ValueError("a null byte in an argument or in the environment")
    if any("=" in name or not name for name in environment):
        raise ValueError("a variable's name that is empty or holds an equals sign")


def pipe_ends(*, reads: ExitStack, writes: ExitStack) -> tuple[int, int]:
    """A pipe whose two ends close with the stacks that own them."""
    read_fd, write_fd = os.pipe()
    reads.callback(os.close, read_fd)
    writes.callback(os.close, write_fd)
    return read_fd, write_fd


def require_descriptors(count: int) -> None:
    """Raises OSError where fewer can be opened: uvloop would leave open what it had got before it ran out."""
    with ExitStack() as held:
        for _ in range(count):
            held.callback(os.close, os.dup(_STDERR_FD))


def seal_descriptors() -> None:
    """Make no descriptor inheritable but stdin, stdout and stderr.

    uvloop takes `close_fds` and closes nothing: what the daemon itself was started with (a service manager's sockets,
    a shell's pipes) would go on to every worker.
    """
    for name in os.listdir("/dev/fd"):
        if int(name) > _STDERR_FD:
            with suppress(OSError):  # the listing's own, closed by now
                os.set_inheritable(int(name), False)


def _widen(fd: int) -> None:
    """Ask for a larger pipe; a refusal (other platforms, a user's quota) costs only wake-ups."""
    if sys.platform == "linux":
        with suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, limits.report_pipe_bytes)


def _failure(spec: WorkerSpec, error: OSError | ValueError) -> SpawnFailed:
    number = error.errno if isinstance(error, OSError) and error.errno is not None else errno.EINVAL
    name = errno.errorcode.get(number, str(number))
    reason = os.strerror(number) if isinstance(error, OSError) else str(error)
    message = f"the worker of {spec.model} cannot be started with {spec.python}: {reason} ({name})"
    if number in _FOR_NOW:
        return SpawnRefused(message, errno_name=name)
    hint = f"check the interpreter of backend {spec.backend}" if number in {errno.ENOENT, errno.EACCES} else None
    return SpawnFailed(message, errno_name=name, hint=hint)
