"""Says on a terminal what is waited for, while it lasts."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from llmctl.terminal import Terminal


@contextmanager
def waiting_note(out: Terminal, text: str) -> Generator[None]:
    """A spinner on stderr; nothing where stderr is no terminal."""
    if not out.stderr_interactive:
        yield
        return
    from rich.console import Console  # noqa: PLC0415 - on a terminal alone
    from rich.status import Status  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    console = Console(file=out.stderr, no_color=not out.stderr_colour, highlight=False)
    with Status(Text(f"{text} …"), console=console):
        yield
