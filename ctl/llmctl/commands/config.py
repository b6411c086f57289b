"""`llmctl config`: `show` and `reload` ask the daemon; `check`, `set`, `path` and `init` work without one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import cast

import msgspec

from llmctl.client import decode_list
from llmctl.errors import DONE
from llmctl.session import Session
from llmctl.table import Cell, Column, table
from llmctl.terminal import Style, printable
from llmvisor.control.api import ConfigCheckAnswer, ConfigValue

_COLUMNS = (Column("KEY"), Column("VALUE", fold=True), Column("SET BY"), Column("WHERE", fold=True))

_YAML_WORDS = ("true", "false", "null", "yes", "no", "on", "off", "y", "n")
"""Words that YAML takes for something else than text."""


class _Path(msgspec.Struct):
    path: str


def config(session: Session) -> int:
    """Show, check, reload, set, path or init."""
    action = cast("str", session.args.action)
    if action == "show":
        return _show(session)
    if action == "reload":
        from llmctl.commands.config_reload import config_reload  # noqa: PLC0415 - for this alone

        return config_reload(session)
    if action == "set":
        from llmctl.commands.config_set import config_set  # noqa: PLC0415 - reads and writes YAML, for this alone

        return config_set(session)
    file = cast("str | None", getattr(session.args, "file", None))
    # The daemon's own program does it, in a process of its own: llmctl imports nothing of its configuration.
    words = [action, *([file] if file else [])]
    if session.json:
        return _as_json(session, words)
    session.out.stdout.flush()
    return subprocess.run([sys.executable, "-m", "llmvisor", "config", *words], check=False).returncode


def ask_program(words: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
    """What `llmvisor config …` says, in UTF-8 whatever the terminal's character set is."""
    command = [sys.executable, "-X", "utf8", "-m", "llmvisor", "config", *words]
    return subprocess.run(command, check=False, capture_output=True)


def _show(session: Session) -> int:
    body = session.client.get("/config")
    values = decode_list(body, ConfigValue)
    if session.json:
        session.out.json(body)
    elif session.args.origin:
        rows = [[Cell(v.path), Cell(_text(v)), Cell(v.layer, _layer_style(v)), Cell(v.origin)] for v in values]
        session.out.lines(table(_COLUMNS, rows, width=session.out.width, paint=session.out.paint))
    else:
        session.out.lines([f"{printable(value.path)}: {_text(value)}" for value in values])
    return DONE


def _text(value: ConfigValue) -> str:
    """JSON, which is YAML too; plain words without their quotes."""
    text = bytes(value.value).decode(errors="replace")
    word = text[1:-1]
    is_plain = word[:1].isalpha() and word.replace("_", "").replace("-", "").isalnum() and word not in _YAML_WORDS
    return printable(word if text.startswith('"') and is_plain else text)


def _layer_style(value: ConfigValue) -> Style:
    return "dim" if value.layer == "default" else ""


def _as_json(session: Session, words: list[str]) -> int:
    ended = ask_program(words)
    said = (ended.stdout + ended.stderr).decode(errors="replace").strip()
    if words[0] == "check":
        problems = [line for line in said.splitlines() if line.strip()] if ended.returncode else []
        session.out.json(msgspec.json.encode(ConfigCheckAnswer(not problems, problems)))
    elif ended.returncode == 0:
        session.out.json(msgspec.json.encode(_Path(said)))
    else:
        session.out.note(said)
    return ended.returncode
