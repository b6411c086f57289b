"""`llmctl completion` and `man`, and what the completion scripts call."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, cast

from llmctl.complete import Candidate, Candidates, candidates, split_line
from llmctl.errors import DONE
from llmctl.terminal import Terminal, printable

if TYPE_CHECKING:
    # It brings HTTP and msgspec, which TAB does not wait for.
    from llmctl.session import Session

FILES = 10
"""Exit code that tells the script to complete names of files."""
_ABOUT_LENGTH_MAX = 70


def completion(session: Session) -> int:
    """The script for one shell, to stdout."""
    name = f"llmctl.{cast('str', session.args.shell)}"
    session.out.line(files("llmctl").joinpath("shells", name).read_text(encoding="utf-8").rstrip("\n"))
    return DONE


def complete(words: Sequence[str], out: Terminal) -> int:
    """Called by the scripts: the shell, then its words; bash, which cuts words at colons, gives the whole line."""
    shell, *rest = words or ["fish"]
    typed = split_line(rest[0]) if shell == "bash" and rest else rest

    def live(kind: str, current: str) -> Iterable[Candidate]:
        if kind not in {"MODEL", "ID", "KEY"}:
            return ()
        from llmctl.live import ask  # noqa: PLC0415 - commands and options are completed without HTTP

        return ask(typed, kind, current)

    found = candidates(typed, live)
    out.lines(_lines(shell, typed[-1] if typed else "", found))
    return FILES if found.files else DONE


def man(session: Session) -> int:
    """The manual: on a terminal through `man`, in a pipe as roff."""
    from llmctl.arguments import build_parser  # noqa: PLC0415 - argparse's parsers for every command
    from llmctl.manual import manual  # noqa: PLC0415 - as above
    from llmvisor import __version__  # noqa: PLC0415 - as above

    text = manual(build_parser(__version__, ()), __version__)
    program = shutil.which("man")
    if not session.out.interactive or program is None:
        session.out.line(text.rstrip("\n"))
        return DONE
    with tempfile.TemporaryDirectory(prefix="llmctl-") as folder:
        path = Path(folder) / "llmctl.1"
        path.write_text(text, encoding="utf-8")
        return subprocess.run([program, str(path)], check=False, env=dict(os.environ)).returncode


def _lines(shell: str, current: str, found: Candidates) -> list[str]:
    if shell == "bash":
        # Readline replaces what stands behind the last colon or equals sign alone.
        cut = max(current.rfind(":"), current.rfind("=")) + 1
        return [word[cut:] for word, _ in found.words]
    about = [(word, printable(text.replace("\n", " "))[:_ABOUT_LENGTH_MAX]) for word, text in found.words]
    if shell == "zsh":
        return [word.replace(":", "\\:") + (f":{text}" if text else "") for word, text in about]
    return [f"{word}\t{text}" if text else word for word, text in about]
