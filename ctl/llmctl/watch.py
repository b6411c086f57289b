"""`llmctl status --watch`: drawn again when an event comes, once a second at most."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from llmctl import limits
from llmctl.client import Client
from llmctl.commands.status import status_json, status_lines
from llmctl.errors import CtlError, NotRunning
from llmctl.session import Session


def watch(session: Session, model: str | None) -> int:
    """Until Ctrl-C. A daemon that goes away is waited for. Raises `NotFound` for an unknown model at the start."""
    del model
    if not session.out.interactive or session.json:
        return _print_changes(session)
    first = status_lines(session)
    from rich.console import Console  # noqa: PLC0415 - on a terminal alone
    from rich.live import Live  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    shown = first
    console = Console(file=session.out.stdout, no_color=not session.out.colour, highlight=False)
    try:
        with Live(Text.from_ansi("\n".join(shown)), console=console, auto_refresh=False, screen=True) as live:
            for shown in _screens(session):
                live.update(Text.from_ansi("\n".join(shown)), refresh=True)
    finally:
        session.out.lines(shown)
    return 0


def _screens(session: Session) -> Iterator[list[str]]:
    while True:
        try:
            changes = _Changes(session.client)
            while changes.live:
                yield status_lines(session)
                changes.wait()
            yield ["the daemon stopped; waiting for it", "", "Ctrl-C ends"]
        except NotRunning as gone:
            yield [gone.message, gone.hint or "", "", "waiting for it; Ctrl-C ends"]
        except CtlError as error:
            yield [error.message, "", "trying again; Ctrl-C ends"]
        time.sleep(limits.redraw_seconds_min)


def _print_changes(session: Session) -> int:
    """For pipes: the status after each change, as one JSON object a line or as text with a blank line between."""
    changes = _Changes(session.client)
    while True:
        if session.json:
            session.out.json_line(status_json(session))
        else:
            session.out.lines([*status_lines(session), ""])
            session.out.stdout.flush()
        changes.wait(always=False)
        if not changes.live:
            raise CtlError("the daemon ended the stream: it is stopping")


class _Changes:
    """Listens to events on a thread of its own, so that one can wait for them with a deadline."""

    def __init__(self, client: Client) -> None:
        self.live = True
        self._changed = threading.Event()
        self._thread = threading.Thread(target=self._listen, args=(client,), name="events", daemon=True)
        self._thread.start()

    def wait(self, *, always: bool = True) -> None:
        """Until something changed, and a second at least; with `always` no longer than `redraw_seconds_max`."""
        time.sleep(limits.redraw_seconds_min)
        self._changed.wait(limits.redraw_seconds_max - limits.redraw_seconds_min if always else None)
        self._changed.clear()

    def _listen(self, client: Client) -> None:
        try:
            with client.stream("GET", "/events") as events:
                for _ in events:
                    self._changed.set()
        except CtlError:
            pass
        finally:
            self.live = False
            self._changed.set()
