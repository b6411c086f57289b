"""What a worker does to its own process before it serves: limits, signals, log output, and finding its backend."""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import importlib
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from typing import NoReturn

from llmvisor_runtimes import limits, parent_death
from llmvisor_runtimes.backend import ENTRY_POINT_GROUP, Backend
from llmvisor_runtimes.confinement import Wanted, confine
from llmvisor_runtimes.host import EXIT_CRASHED, Host
from llmvisor_runtimes.pipes import Pipes

OWN_BACKENDS = {
    "flag": "llmvisor_runtimes.flag:FlagBackend",
    "llamacpp": "llmvisor_runtimes.llamacpp:LlamaCppBackend",
    "mlx": "llmvisor_runtimes.mlx:MlxBackend",
    "mock": "llmvisor_runtimes.mock:MockBackend",
}
"""What this package registers: a look through all that is installed would take a worker longer than its other imports.
A test holds the table to the registered ones."""

EXIT_PERMANENT = os.EX_CONFIG
"""Starting this worker again with the same command is of no use."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EXIT_PERMANENT, f"{self.prog}: {message}\n")


def main(argv: list[str]) -> int:
    """Run one worker; gives its exit code."""
    arguments = _parser().parse_args(argv)
    if not parent_death.parent_is(arguments.parent_pid):
        _log(f"process {arguments.parent_pid} is not (or no longer) the parent")
        return EXIT_CRASHED
    _set_limits(open_files_max=arguments.open_files_max, oom_score_adj=arguments.oom_score_adj)
    _set_signals()
    _send_output_to_log()
    confined = None
    if arguments.sandbox is not None:
        # Before anything else is imported: threads that engines start by then would go free.
        _set_places(arguments.write)
        confined = confine(Wanted(arguments.read, arguments.write))
        if arguments.sandbox == "required" and confined.missing:
            _log(f"the sandbox is required, and not all of it can be had: {'; '.join(confined.missing)}")
            return EXIT_PERMANENT
    pipes = Pipes(read_fd=arguments.read_fd, write_fd=arguments.write_fd)
    backend = _find_backend(arguments.backend)
    if backend is None:
        return EXIT_PERMANENT
    code = Host(backend, pipes, confined).run()
    sys.stderr.flush()
    # Not `sys.exit`: an interpreter that shuts down around an engine's own threads can hang or crash.
    os._exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="llmvisor_runtimes", description="One worker process of llmvisor.", allow_abbrev=False)
    parser.add_argument("backend")
    parser.add_argument("--read-fd", type=_pipe_fd, required=True, help="commands come in here")
    parser.add_argument("--write-fd", type=_pipe_fd, required=True, help="reports go out here")
    parser.add_argument("--parent-pid", type=int, required=True, help="end at once if this is not the parent")
    parser.add_argument("--nonce", required=True, help="tells this process from a later one with the same pid")
    parser.add_argument("--oom-score-adj", type=int, help="see proc(5)")
    parser.add_argument("--open-files-max", type=int, help="soft limit of open files")
    parser.add_argument("--sandbox", choices=("auto", "required"), help="give up what a worker does not need")
    parser.add_argument("--read", action="append", default=[], help="a file or folder of the model")
    parser.add_argument("--write", action="append", default=[], help="a folder of this worker's own")
    return parser


def _pipe_fd(text: str) -> int:
    fd = int(text)
    if fd <= 2:
        raise argparse.ArgumentTypeError("frames never use stdin, stdout or stderr")
    try:
        os.fstat(fd)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"file descriptor {fd}: {error.strerror}") from error
    return fd


def _set_limits(*, open_files_max: int | None, oom_score_adj: int | None) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if open_files_max is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        soft = open_files_max if hard == resource.RLIM_INFINITY else min(open_files_max, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if oom_score_adj is not None:
        # Lowering it needs a privilege, and other systems have none of it.
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
            score.write(str(oom_score_adj))


def _set_places(own: list[str]) -> None:
    """Keep libraries from the network, and from folders that are not the worker's: it could not write there."""
    temporary = tempfile.gettempdir()
    # What is compiled for a GPU takes minutes: it is kept where the first folder is.
    os.environ.setdefault("CUDA_CACHE_PATH", os.path.join(own[0] if own else temporary, "cuda"))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for name, folder in (("HF_MODULES_CACHE", "modules"), ("TRITON_CACHE_DIR", "triton"), ("MPLCONFIGDIR", "mpl")):
        os.environ.setdefault(name, os.path.join(temporary, folder))


def _set_signals() -> None:
    # A parent's ignored signals are inherited.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Ctrl-C in a terminal is for the daemon, which ends its workers in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # SIGABRT of a worker that hangs leaves every thread's stack in the log.
    faulthandler.enable(file=sys.stderr, all_threads=True)
    sys.setswitchinterval(limits.thread_switch_interval_seconds)


def _send_output_to_log() -> None:
    """One log: what engines print on stdout goes where stderr goes, line by line."""
    sys.stdout.flush()
    os.dup2(2, 1)
    for stream in (sys.stdout, sys.stderr):
        # pytest and the like put streams of another kind there.
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(line_buffering=True, errors="backslashreplace")


def _find_backend(name: str) -> Backend | None:
    """The backend that is registered under this name, or None with the reason in the log."""
    try:
        make = _own(name) or _registered(name)
        return None if make is None else make()
    except ImportError as error:
        _log(f"the backend {name!r} cannot be imported: {error}")
        return None


def _own(name: str) -> Callable[[], Backend] | None:
    if name not in OWN_BACKENDS:
        return None
    module, _, attribute = OWN_BACKENDS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def _registered(name: str) -> Callable[[], Backend] | None:
    """Another package's backend."""
    from importlib.metadata import entry_points  # noqa: PLC0415 - for other packages' backends alone

    registered = {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in registered:
        _log(f"no backend is named {name!r}; there are: {', '.join(sorted(registered)) or 'none'}")
        return None
    return registered[name].load()


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
