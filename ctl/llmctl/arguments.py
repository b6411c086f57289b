"""The command line: every command with its options, its help and its examples."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from llmctl.errors import UsageError

_STATES = ("not_loaded", "loading", "loaded", "busy", "draining", "unloading", "error", "unavailable")
_LEVELS = ("debug", "info", "warning", "error", "critical")
Parser = argparse.ArgumentParser


class Command(NamedTuple):
    """One command; `entry` is `module:function` below `llmctl.commands`."""

    name: str
    entry: str
    summary: str
    examples: Sequence[str]
    arguments: Callable[[Parser], None]


def _status(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="show this one in full")
    parser.add_argument("--watch", "-w", action="store_true", help="draw it again whenever something changes")


def _waiting(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a name, a tier, tier/name or an alias")
    wait = parser.add_mutually_exclusive_group()
    wait.add_argument("--wait", dest="wait", action="store_true", default=True, help="until it is done (the default)")
    wait.add_argument("--no-wait", dest="wait", action="store_false", help="print the job and return at once")
    parser.add_argument("--cancel-on-interrupt", action="store_true", help="Ctrl-C cancels the job too")


def _unload(parser: Parser) -> None:
    _waiting(parser)
    parser.add_argument("--force", action="store_true", help="do not wait for the requests that run")


def _models(parser: Parser) -> None:
    parser.add_argument("--type", metavar="TYPE", help="llm, vlm, embeddings or reranker")
    parser.add_argument("--state", choices=_STATES, metavar="STATE", help=", ".join(_STATES))
    parser.add_argument("--service", metavar="NAME", help="local, or an upstream service")
    parser.add_argument("--tier", metavar="TIER")
    parser.add_argument("--search", metavar="TEXT", help="part of a name")


def _one_model(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a name, a tier, tier/name or an alias")


def _sampling(parser: Parser) -> None:
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 to 2; 0 takes the likeliest token")
    parser.add_argument("--max-tokens", type=int, metavar="N")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same answer")
    parser.add_argument("--stats", action="store_true", help="tokens and speed after each answer, on stderr")


def _run(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a name, a tier, tier/name or an alias")
    parser.add_argument(
        "prompt", nargs="*", metavar="PROMPT", help="`-` is standard input; so is no prompt, when something is piped in"
    )
    _sampling(parser)


def _chat(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="without one: the first that is loaded")
    _sampling(parser)


def _logs(parser: Parser) -> None:
    parser.add_argument("--follow", "-f", action="store_true", help="go on with what comes")
    parser.add_argument("--model", "-m", metavar="MODEL", help="what this model's worker says, and what is said of it")
    parser.add_argument("--level", "-l", choices=_LEVELS, metavar="LEVEL", help="this level and above")


def _jobs(parser: Parser) -> None:
    parser.add_argument("action", nargs="?", choices=("list", "show", "watch", "cancel"), default="list")
    parser.add_argument("id", nargs="?", metavar="ID")


def _shutdown(parser: Parser) -> None:
    parser.add_argument("--wait", action="store_true", help="until the daemon is gone")


def _config(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="the values in effect", description="The values in effect, from the daemon.")
    show.add_argument("--origin", action="store_true", help="and who set each: layer, file and line")
    check = actions.add_parser(
        "check", help="tell every mistake of a file", description="Tell every mistake of a file."
    )
    check.add_argument("file", nargs="?", metavar="FILE", help="without one: the file that llmvisor would take")
    path = actions.add_parser(
        "path", help="which file is taken", description="Which configuration file llmvisor takes."
    )
    init = actions.add_parser("init", help="write a first file", description="Write a first configuration file.")
    init.add_argument("file", nargs="?", metavar="FILE")
    for action in (show, check, path, init):
        _common(action)


def _nothing(parser: Parser) -> None:
    """No arguments of its own."""
    del parser


COMMANDS: tuple[tuple[str, tuple[Command, ...]], ...] = (
    (
        "See",
        (
            Command(
                "status",
                "status:status",
                "the daemon, its models and what they do",
                ("llmctl status", "llmctl status light", "llmctl status --watch", "llmctl status --json | jq .health"),
                _status,
            ),
            Command(
                "models",
                "models:models",
                "every model, with type, size and state",
                ("llmctl models", "llmctl models --state loaded", "llmctl models --type llm --json"),
                _models,
            ),
            Command(
                "backends",
                "backends:backends",
                "the engines: installed, usable, version, devices",
                ("llmctl backends", "llmctl backends --json"),
                _nothing,
            ),
            Command(
                "show",
                "models:show",
                "all that is known of a model",
                ("llmctl show light", "llmctl show light --json"),
                _one_model,
            ),
            Command(
                "logs",
                "logs:logs",
                "what the daemon and its workers say",
                ("llmctl logs", "llmctl logs -f --level warning", "llmctl logs -f --model light"),
                _logs,
            ),
            Command(
                "events",
                "logs:events",
                "state changes as they happen",
                ("llmctl events", "llmctl events --json | jq .runtime.state"),
                _nothing,
            ),
            Command(
                "jobs",
                "jobs:jobs",
                "loads and unloads, running and ended",
                ("llmctl jobs", "llmctl jobs watch job_01", "llmctl jobs cancel job_01"),
                _jobs,
            ),
        ),
    ),
    (
        "Models",
        (
            Command(
                "load",
                "load:load",
                "load a model, and wait until it is ready",
                ("llmctl load light", "llmctl load light --no-wait", "llmctl load heavy --timeout 120"),
                _waiting,
            ),
            Command(
                "unload",
                "load:unload",
                "end a model's worker once its requests are done",
                ("llmctl unload light", "llmctl unload light --force"),
                _unload,
            ),
            Command(
                "restart",
                "load:restart",
                "a new worker, and earlier crashes forgotten",
                ("llmctl restart light",),
                _waiting,
            ),
        ),
    ),
    (
        "Talk",
        (
            Command(
                "run",
                "run:run",
                "one prompt, the answer as it comes",
                (
                    'llmctl run light "Why is the sky blue?"',
                    "git diff | llmctl run light -",
                    'cat notes.txt | llmctl run light "Summarise this:"',
                ),
                _run,
            ),
            Command(
                "chat",
                "run:chat",
                "a conversation in the terminal",
                ("llmctl chat", 'llmctl chat light --system "Answer in one sentence."', "then: /help"),
                _chat,
            ),
        ),
    ),
    (
        "Daemon",
        (
            Command("health", "daemon:health", "is it well? (exit code 1: no)", ("llmctl health",), _nothing),
            Command(
                "port",
                "daemon:port",
                "the TCP port that it is bound to",
                ("curl http://127.0.0.1:$(llmctl port)/v1/models",),
                _nothing,
            ),
            Command(
                "config",
                "config:config",
                "show, check, path, init",
                ("llmctl config show --origin", "llmctl config check config.yaml", "llmctl config init"),
                _config,
            ),
            Command(
                "doctor",
                "doctor:doctor",
                "look for what is wrong, and say how to mend it",
                ("llmctl doctor", "llmctl doctor --json"),
                _nothing,
            ),
            Command(
                "shutdown",
                "daemon:shutdown",
                "let running requests end, then stop",
                ("llmctl shutdown", "llmctl shutdown --wait"),
                _shutdown,
            ),
        ),
    ),
)

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
    _common(parser)
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
            _common(child)
        child.set_defaults(entry=command.entry)
    return parser


def _common(parser: Parser) -> None:
    # Defaults are left out, so that an option before the command is not overwritten by the command's own parser.
    skip = argparse.SUPPRESS
    parser.add_argument("--json", action="store_true", default=skip, help="the API's own objects, for programs")
    parser.add_argument("--socket", type=Path, metavar="PATH", default=skip, help="else $LLMVISOR_SOCKET, else found")
    parser.add_argument(
        "--timeout", type=_seconds, metavar="SECONDS", default=skip, help="give up after this (exit code 5)"
    )


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is no time to wait")
    return value


def _overview() -> str:
    lines: list[str] = []
    for title, members in COMMANDS:
        lines += [f"{title}:", *(f"  {command.name:<9} {command.summary}" for command in members)]
    return "\n".join(lines)


def _examples(examples: Sequence[str]) -> str:
    return "examples:\n" + "\n".join(f"  {example}" for example in examples)
