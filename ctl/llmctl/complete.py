"""What could stand where the cursor is: decided from the parser's own tables, with models and jobs from the daemon."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from llmctl.arguments import actions_of, build_parser, parsers_below

SOURCES = (
    ("starter", "the starter model"),
    ("hf:", "Hugging Face: hf:org/repo[:file]"),
    ("ollama:", "Ollama's registry: ollama:name[:tag]"),
)
_FILE_WORDS = frozenset({"PATH", "FILE"})
_SAFE = re.compile(r"[\w./~:@+,=%-]+")
"""What a shell takes for one plain word: nothing else is ever put on somebody's command line."""


class Candidate(NamedTuple):
    word: str
    about: str = ""


class Candidates(NamedTuple):
    words: list[Candidate]
    files: bool = False
    """Names of files instead."""


Live = Callable[[str, str], Iterable[Candidate]]
"""Gives what the daemon has: of a kind (MODEL, ID, KEY), beginning with a text."""


def candidates(words: Sequence[str], live: Live) -> Candidates:
    """For the words behind `llmctl`, the last of which is being typed."""
    *before, current = words or [""]
    parser, positionals, option = _walked(build_parser("", before), before)
    if option is not None:
        return _values(option, current, live)
    name, equals, value = current.partition("=")
    if equals and name.startswith("--"):
        action = _option(parser, name)
        found = _values(action, value, live) if action is not None else Candidates([])
        return Candidates([Candidate(f"{name}={word}", about) for word, about in found.words], found.files)
    if current.startswith("-"):
        return Candidates(_beginning(_options(parser), current))
    if not positionals:
        return Candidates([])
    return _values(positionals[0], current, live)


def split_line(line: str) -> list[str]:
    """A command line up to the cursor in words, without the program's; the last may be empty, or lack its quote."""
    for end in ("", "\\", '"', "'"):
        try:
            words = shlex.split(line + end, comments=False)
        except ValueError:
            continue
        return [*words[1:], *([""] if line[-1:].isspace() and not end else [])] or [""]
    return [""]


def _walked(
    parser: argparse.ArgumentParser, words: Sequence[str]
) -> tuple[argparse.ArgumentParser, list[argparse.Action], argparse.Action | None]:
    """Where the words lead: the parser, the positionals that are left, and an option that waits for its value."""
    positionals = _positionals(parser)
    waiting: argparse.Action | None = None
    for word in words:
        if waiting is not None:
            waiting = None
        elif word.startswith("-") and word != "-":
            action = _option(parser, word)
            waiting = action if action is not None and action.nargs is None and "=" not in word else None
        elif positionals:
            below = parsers_below(positionals[0])
            if below:
                parser = below.get(word, parser)
                positionals = _positionals(parser) if word in below else []
            elif positionals[0].nargs not in {"*", "+"}:
                positionals = positionals[1:]
    return parser, positionals, waiting


def _values(action: argparse.Action, current: str, live: Live) -> Candidates:
    if below := parsers_below(action):
        return Candidates(_beginning(_commands(below), current))
    if action.choices is not None:
        return Candidates(_beginning((Candidate(str(choice)) for choice in action.choices), current))
    kind = str(action.metavar or "")
    if kind in _FILE_WORDS:
        return Candidates([], files=True)
    if kind == "SOURCE":
        return Candidates(_beginning((Candidate(*source) for source in SOURCES), current))
    return Candidates(_beginning(live(kind, current), current))


def _commands(below: dict[str, argparse.ArgumentParser]) -> Iterable[Candidate]:
    return [Candidate(name, (parser.description or "").partition(".")[0]) for name, parser in below.items()]


def _beginning(found: Iterable[Candidate], current: str) -> list[Candidate]:
    kept = {one.word: one for one in found if one.word.startswith(current) and _SAFE.fullmatch(one.word)}
    return list(kept.values())


def _positionals(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in actions_of(parser) if not action.option_strings]


def _options(parser: argparse.ArgumentParser) -> Iterable[Candidate]:
    for action in actions_of(parser):
        for name in action.option_strings:
            if name.startswith("--"):
                yield Candidate(name, action.help or "")


def _option(parser: argparse.ArgumentParser, word: str) -> argparse.Action | None:
    name = word.partition("=")[0]
    return next((action for action in actions_of(parser) if name in action.option_strings), None)
