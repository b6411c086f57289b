"""The command line: a parser made from the table of commands."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn, cast

from llmctl import options
from llmctl.command_table import COMMANDS
from llmctl.errors import UsageError

_EXIT_CODES = """exit codes:
  0 done   1 failed   2 usage   3 the daemon is not running   4 not found
  5 timeout   130 interrupted"""


class _Parser(argparse.ArgumentParser):
    """Ends through `UsageError`, so that one place decides how llmctl ends."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"see: {self.prog} --help")


def build_parser(version: str, argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser for this command line. Only the commands that it names get parsers of their own: that is faster."""
    every = [command for _, members in COMMANDS for command in members]
    named = [command for command in every if command.name in argv]
    parser = _Parser(
        prog="llmctl",
        usage="llmctl [--socket PATH] COMMAND ...",
        description=f"Manages a running llmvisor.\n\n{_overview()}",
        epilog=_examples(("llmctl status", 'llmctl run light "Hello!"', "llmctl load --help")) + "\n\n" + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    options.common(parser)
    parser.add_argument("--version", action="version", version=f"llmctl {version}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", help=argparse.SUPPRESS, prog="llmctl")
    for command in named or every:
        child = commands.add_parser(
            command.name,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
            epilog=_examples(command.examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.arguments(child)
        if command.name != "config":
            options.common(child)
        child.set_defaults(entry=command.entry)
    return parser


def actions_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """What a parser takes; argparse has no public way to ask."""
    return parser._actions  # noqa: SLF001


def parsers_below(action: argparse.Action) -> dict[str, argparse.ArgumentParser]:
    """The parsers among which this action chooses; empty for any other kind."""
    choices = action.choices
    return cast("dict[str, argparse.ArgumentParser]", choices) if isinstance(choices, dict) else {}


def _overview() -> str:
    lines: list[str] = []
    for title, members in COMMANDS:
        lines += [f"{title}:", *(f"  {command.name:<11} {command.summary}" for command in members)]
    return "\n".join(lines)


def _examples(examples: Sequence[str]) -> str:
    return "examples:\n" + "\n".join(f"  {example}" for example in examples)
