"""The manual page, as roff, made from the same tables as `--help`. Pure."""

from __future__ import annotations

import argparse
import re

from llmctl.arguments import actions_of, parsers_below
from llmctl.command_table import COMMANDS, EXIT_CODES, Command

_SIGNS = {"\\": "\\e", "-": "\\-", "`": "\\(ga", "'": "\\(aq", "…": "...", "·": "\\(bu"}
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ENVIRONMENT = (
    ("LLMVISOR_SOCKET", "The daemon's Unix socket, where --socket does not name it."),
    ("NO_COLOR", "Set to anything: no colours (no-color.org). There are none in a pipe either."),
    ("XDG_RUNTIME_DIR, XDG_DATA_HOME, XDG_STATE_HOME", "Where the socket and the history of chat are looked for."),
)


def manual(parser: argparse.ArgumentParser, version: str) -> str:
    """`llmctl.1`, of a parser that has every command."""
    commands = next(below for action in actions_of(parser) if (below := parsers_below(action)))
    lines = [
        f'.TH LLMCTL 1 "" "llmvisor {version}" "llmvisor"',
        ".SH NAME",
        "llmctl \\- manages a running llmvisor",
        ".SH SYNOPSIS",
        ".B llmctl",
        "[\\fIOPTIONS\\fR] \\fICOMMAND\\fR [\\fIARGUMENTS\\fR]",
        ".SH DESCRIPTION",
        _escaped(
            "llmvisor keeps language models running: one daemon supervises one worker process for each loaded model "
            "and serves them behind one port that speaks OpenAI's API. llmctl talks to that daemon over a Unix socket. "
            "Tables are for a terminal; in a pipe they are plain, and with --json every command prints the objects "
            "of the daemon's own API."
        ),
        ".SH OPTIONS",
        "Each command takes these; they may stand before it or after it.",
        *_options(parser),
        ".SH COMMANDS",
    ]
    for title, members in COMMANDS:
        lines += [".SS " + _escaped(title), *(line for one in members for line in _command(one, commands[one.name]))]
    lines += [".SH EXIT STATUS", *_terms([(str(code), meaning) for code, meaning in EXIT_CODES])]
    lines += [".SH ENVIRONMENT", *_terms(_ENVIRONMENT)]
    lines += [".SH SEE ALSO", _escaped("llmvisor --help, llmctl COMMAND --help")]
    return "\n".join(lines) + "\n"


def _command(command: Command, parser: argparse.ArgumentParser) -> list[str]:
    lines = [".PP", f".B llmctl {_escaped(command.name)}", ".br", _escaped(parser.description or ""), ".RS"]
    lines += [".PP", _usage(parser), *_options(parser)]
    for action in actions_of(parser):
        for name, below in parsers_below(action).items():
            lines += [".PP", f".B {_escaped(f'{command.name} {name}')}", ".br", _escaped(below.description or "")]
            lines += [".RS", *_options(below), ".RE"]
    lines += [".PP", "Examples:", ".PP", ".nf", *(_escaped(f"    {example}") for example in command.examples), ".fi"]
    return [*lines, ".RE"]


def _usage(parser: argparse.ArgumentParser) -> str:
    # Python 3.14 colours it on a terminal.
    return _escaped(" ".join(_COLOUR.sub("", parser.format_usage()).removeprefix("usage:").split()))


def _options(parser: argparse.ArgumentParser) -> list[str]:
    """What a parser takes, without what every command takes (unless it is the main one) and without `--help`."""
    every = {"--json", "--socket", "--timeout"} if parser.prog != "llmctl" else set[str]()
    shown = [
        action
        for action in actions_of(parser)
        if "--help" not in action.option_strings
        and not every & set(action.option_strings)
        and not parsers_below(action)
    ]
    return _terms([(_head(action), action.help or "") for action in shown])


def _head(action: argparse.Action) -> str:
    word = str(action.metavar or action.dest)
    if not action.option_strings:
        return word
    takes_value = action.nargs is None
    return ", ".join(action.option_strings) + (f" {word}" if takes_value else "")


def _terms(pairs: list[tuple[str, str]] | tuple[tuple[str, str], ...]) -> list[str]:
    return [line for head, text in pairs for line in (".TP", f".B {_escaped(head)}", _escaped(text) or "\\&")]


def _escaped(text: str) -> str:
    """Text that roff prints as it is; a line that begins with a dot or a quote would be a request."""
    changed = "".join(_SIGNS.get(sign, sign) for sign in text)
    return f"\\&{changed}" if changed.startswith((".", "'")) else changed
