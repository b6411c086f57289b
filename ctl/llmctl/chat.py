"""`llmctl chat`: reads, asks, writes; Ctrl-C stops the answer, Ctrl-D ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from llmctl import limits
from llmctl.client import decode, decode_list, segment
from llmctl.completion import answering
from llmctl.conversation import SETTINGS, Conversation
from llmctl.errors import DONE, FAILED, CtlError, NotFound
from llmctl.follow import load_first
from llmctl.session import Session
from llmctl.terminal import printable
from llmvisor.control.api import ModelStatus

QUOTES = '"""'
HELP = f"""\
/model [NAME]        the model, or another one from here on
/system [TEXT]       the system message, or a new one; /system off takes it away
/set [NAME VALUE]    settings: {", ".join(list(SETTINGS)[:4])},
                     {", ".join(list(SETTINGS)[4:])}
                     (the value `default` takes one back)
/stats [on|off]      tokens and speed after each answer
/clear               forget the conversation
/save FILE           as Markdown (.md), or as JSON
/exit                or Ctrl-D

Ctrl-C stops the answer. {QUOTES} begins and ends a message of several lines.
A message that begins with a slash: write two of them."""


class _Ended(Exception):
    """The person is done."""


def converse(session: Session) -> int:
    """Talk until the end of the input. Raises `NotFound` for an unknown model, `NotRunning` without a daemon."""
    args = session.args
    model = find_model(session, cast("str | None", args.model))
    talk = _Talk(session, Conversation(model.id, system=cast("str | None", args.system)))
    for name in ("temperature", "max_tokens", "seed"):
        if (value := getattr(args, name)) is not None:
            talk.conversation.set(name, str(value))
    talk.stats = bool(args.stats)
    if not talk.interactive:
        return talk.read_all()
    load_first(session, model)
    session.out.line(f"{session.out.paint(model.id, 'bold')}, {_context(model)}/help lists the commands, Ctrl-D ends")
    with _History(os.environ):
        return talk.read_all()


def find_model(session: Session, name: str | None) -> ModelStatus:
    """The model of that name; without a name the first that is loaded, else the first that could be."""
    if name is not None:
        return decode(session.client.get(f"/llm/models/{segment(name)}"), ModelStatus)
    models = decode_list(session.client.get_list("/llm/models", {}), ModelStatus)
    usable = [model for model in models if model.state not in {"error", "unavailable"} and model.type in {"llm", "vlm"}]
    if not usable:
        raise NotFound("there is no model to talk to", hint="see: llmctl status")
    return next((model for model in usable if model.state in {"loaded", "busy"}), usable[0])


def _context(model: ModelStatus) -> str:
    length = model.n_ctx or model.context_length
    return f"context {length}; " if length else ""


class _Talk:
    def __init__(self, session: Session, conversation: Conversation) -> None:
        self._session = session
        self._out = session.out
        self.conversation = conversation
        self.stats = False
        self.interactive = sys.stdin.isatty() and session.out.interactive
        self._failed = False

    def read_all(self) -> int:
        """Until Ctrl-D or `/exit`. From a pipe: exit code 1 if an answer failed."""
        while True:
            try:
                self._turn()
            except (EOFError, _Ended):
                break
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                self._out.line()
            except CtlError as error:
                self._failed = True
                self._out.note(f"{error.message}" + (f" ({error.hint})" if error.hint else ""), "red")
        return FAILED if self._failed and not self.interactive else DONE

    def _turn(self) -> None:
        text = self._read().strip()
        if not text:
            return
        if text.startswith("/") and not text.startswith("//"):
            self._command(text)
        else:
            self._ask(text.removeprefix("/") if text.startswith("//") else text)

    def _read(self) -> str:
        line = self._line(">>> ")
        if not line.lstrip().startswith(QUOTES):
            return line
        lines = [line.lstrip().removeprefix(QUOTES)]
        while not lines[-1].rstrip().endswith(QUOTES):
            lines.append(self._line("... "))
        lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
        return "\n".join(lines)

    def _line(self, prompt: str) -> str:
        return input(prompt if self.interactive else "")

    def _ask(self, prompt: str) -> None:
        said: list[str] = []
        try:
            statistics = self._stream(prompt, said)
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            self._out.line(self._out.paint("(stopped)", "dim"))
        else:
            if self.stats:
                self._out.note(statistics, "dim")
        if said:
            self.conversation.add(prompt, "".join(said))

    def _stream(self, prompt: str, said: list[str]) -> str:
        """Write the answer as it comes, and keep it in `said`, however it ends; gives its statistics."""
        try:
            with answering(self._session.client, self.conversation.request(prompt)) as answer:
                for text in answer:
                    said.append(text)
                    self._out.write(text)
            return answer.statistics.text()
        finally:
            if said and not said[-1].endswith("\n"):
                self._out.line()
            self._out.stdout.flush()

    def _command(self, text: str) -> None:
        name, _, rest = text[1:].partition(" ")
        commands: Mapping[str, Callable[[str], None]] = {
            "help": lambda _: self._out.line(HELP),
            "model": self._model,
            "system": self._system,
            "set": self._set,
            "stats": self._stats,
            "clear": self._clear,
            "save": self._save,
            "exit": self._exit,
            "quit": self._exit,
        }
        command = commands.get(name)
        if command is None:
            raise CtlError(f"no command /{printable(name)}; /help lists them")
        command(rest.strip())

    def _model(self, name: str) -> None:
        if name:
            self.conversation.model = find_model(self._session, name).id
        self._out.line(self.conversation.model)

    def _system(self, text: str) -> None:
        if text:
            self.conversation.system = None if text == "off" else text
        self._out.line(self.conversation.system or "no system message")

    def _set(self, text: str) -> None:
        if text:
            name, _, value = text.partition(" ")
            self.conversation.set(name, value.strip())
        settings = self.conversation.settings
        self._out.lines(
            [f"{name} {value:g}" for name, value in settings.items()] or ["every setting is the model's own"]
        )

    def _stats(self, text: str) -> None:
        if text not in {"", "on", "off"}:
            raise CtlError("/stats takes on or off")
        self.stats = text == "on" if text else not self.stats
        self._out.line(f"stats are {'on' if self.stats else 'off'}")

    def _clear(self, _: str) -> None:
        self.conversation.clear()
        self._out.line("forgotten")

    def _save(self, name: str) -> None:
        if not name:
            raise CtlError("/save needs a FILE")
        path = Path(name).expanduser()
        try:
            with path.open("x", encoding="utf-8", errors="replace") as file:
                file.write(self.conversation.saved(markdown=path.suffix == ".md"))
        except OSError as error:
            raise CtlError(f"{path} is not saved: {error.strerror}") from None
        self._out.line(f"saved as {path}")

    def _exit(self, _: str) -> None:
        raise _Ended


class _History:
    """readline's editing and history; the file is for its owner's eyes. Absent where Python has no readline."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        base = environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
        self._path = Path(base) / "llmvisor" / "chat_history"

    def __enter__(self) -> None:
        try:
            import readline  # noqa: PLC0415 - absent on some systems

            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            readline.read_history_file(self._path)
            readline.set_history_length(limits.history_lines_max)
        except (ImportError, OSError):
            return

    def __exit__(self, *exc: object) -> None:
        try:
            import readline  # noqa: PLC0415 - as above

            readline.write_history_file(self._path)
        except (ImportError, OSError):
            return
