"""The command `llmctl`: reads the command line, imports the one command that it names, gives its exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

from llmctl.errors import DONE, INTERRUPTED, CtlError, UsageError
from llmctl.terminal import Terminal, standard_terminal

if TYPE_CHECKING:
    from llmctl.session import Session

SOCKET_VARIABLE = "LLMVISOR_SOCKET"
COMPLETE_COMMAND = "__complete"
"""What the completion scripts call."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit code (see `errors`)."""
    # Either is None where the shell closed it: `llmctl load light >&-`.
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open until the end
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as above
    for stream in (sys.stdout, sys.stderr):
        # What a model says may be more than an old terminal's character set holds.
        stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType] - TextIO lacks it, the standard streams have it
    out = standard_terminal()
    try:
        code = _guarded(sys.argv[1:] if argv is None else argv, out)
        sys.stdout.flush()
    except BrokenPipeError:
        # `llmctl logs | head`: the reader has enough.
        _write_no_more(sys.stdout, sys.stderr)
        code = DONE
    except OSError as error:
        # `llmctl models > /full/disk/list`
        _write_no_more(sys.stdout)
        code = _report(CtlError(f"what was asked for cannot be written: {error.strerror or error}"), out)
    return code


def _write_no_more(*streams: TextIO) -> None:
    """What is still buffered must not meet the same fault again at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(nowhere, stream.fileno())


def _guarded(argv: Sequence[str], out: Terminal) -> int:
    try:
        return _run(argv, out)
    except CtlError as error:
        return _report(error, out)
    except UnicodeEncodeError:
        return _report(UsageError("an argument is not UTF-8"), out)
    except KeyboardInterrupt:
        out.note("")
        return INTERRUPTED


def _run(argv: Sequence[str], out: Terminal) -> int:
    if argv[:1] == [COMPLETE_COMMAND]:
        from llmctl.commands.shell import complete  # noqa: PLC0415 - for shells alone

        return complete(argv[1:], out)
    from llmctl.arguments import build_parser  # noqa: PLC0415 - inside the `try` that reports its errors

    parser = build_parser(_version(), argv)
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help(sys.stderr)
        return UsageError.exit_code
    session = _session(args, out)
    module, function = cast("str", args.entry).split(":")
    command = cast("Callable[[Session], int]", getattr(import_module(f"llmctl.commands.{module}"), function))
    return command(session)


def _session(args: argparse.Namespace, out: Terminal) -> Session:
    from llmctl.client import Client  # noqa: PLC0415 - `--help` needs neither HTTP nor msgspec
    from llmctl.connection import remote_of  # noqa: PLC0415 - as above
    from llmctl.session import Session  # noqa: PLC0415 - as above

    timeout = cast("float | None", getattr(args, "timeout", None))
    remote = remote_of(getattr(args, "url", None), getattr(args, "key_file", None), os.environ)
    socket = socket_path(getattr(args, "socket", None), os.environ)
    client = Client(socket, timeout_seconds=timeout, remote=remote)
    return Session(client, out, args, json=bool(getattr(args, "json", False)))


def socket_path(given: Path | None, environ: Mapping[str, str]) -> Path:
    """`--socket`, else $LLMVISOR_SOCKET, else where the daemon puts it by default."""
    from llmvisor.control.paths import default_socket_path  # noqa: PLC0415 - `--help` does not need it

    if given is not None:
        return given
    return Path(environ[SOCKET_VARIABLE]) if environ.get(SOCKET_VARIABLE) else default_socket_path(environ)


def _report(error: CtlError, out: Terminal) -> int:
    out.note(f"llmctl: {error.message}", "red")
    if error.hint:
        out.note(f"  {error.hint}")
    return error.exit_code


def _version() -> str:
    from llmvisor import __version__  # noqa: PLC0415 - as the others

    return __version__
