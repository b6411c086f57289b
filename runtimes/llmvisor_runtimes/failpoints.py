"""The language in which the mock is told what goes wrong, and when.

    failpoints = rule (";" rule)*
    rule       = operation "=" term ("->" term)*
    term       = [count "*"] verb ["(" argument ")"]
    operation  = load | generate | embed | tokenize | detokenize | apply_template | close

An operation has steps: a load its ten steps of progress, `generate` its tokens (over all choices), the others one.
Before each step the next term acts, `count` times (once where there is none), and then the step goes on. A last term
without a count acts for ever; after one with a count nothing more happens. What is used up stays so for the operations
after this one. `generate=3*token->kill(9)` gives three tokens and dies; `load=1*delay(2000)->ok` loads two
seconds later; `generate=2*ok->1*hang` answers two requests and hangs in the third.

    ok            the rest of this operation           token(n=1)      n steps pass
    delay(ms)     sleep, the engine's thread           hang            sleep for ever
    spin, spin(gil)  compute for ever; hold the GIL    stop            SIGSTOP to itself
    exit(n)  kill(sig)  panic (an exception)           error(text), refuse(text)  fail, fail for good
    garbage(hex)  malformed(name)  badid  afterend  dupready    wrong bytes or frames (names: `malformed.SEEDS`)
    flood(mb)     so much in frames                    logflood(mb)    so much in one line of the log
    alloc(mb)     take memory and keep it              ignoreterm      ignore SIGTERM from now on
    fork, holdpipe   start a process that sleeps; one that leaves the process group and holds the pipes for 30 s

A request brings its own with `[[failpoint: generate=2*token->kill(9)]]` in its prompt or last user message.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Mapping
from typing import Literal, cast, get_args

import msgspec

from llmvisor_runtimes import limits
from llmvisor_runtimes.malformed import SEEDS
from llmvisor_runtimes.protocol import ChatPrompt, Prompt, TextPrompt

Operation = Literal["load", "generate", "embed", "tokenize", "detokenize", "apply_template", "close"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)
REQUEST_OPERATIONS: tuple[Operation, ...] = ("generate", "embed", "tokenize", "apply_template")
"""What a request's own failpoints may name."""

Argument = int | bytes | str | None


class FailpointError(ValueError):
    """A text that is no failpoint, with the position (in characters from 0) where that shows."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(f"{message} at position {position}")
        self.position = position


class Term(msgspec.Struct, frozen=True):
    """What happens `count` times, or for ever where it is None."""

    verb: str
    argument: Argument
    count: int | None


Rules = Mapping[Operation, tuple[Term, ...]]


class _Verb(msgspec.Struct, frozen=True):
    argument: Callable[[str | None], Argument]
    """Gives the argument's value; raises ValueError with what it must be."""
    operations: tuple[Operation, ...] = OPERATIONS


# ------------------------------------------------------------------------------------------------------- arguments


def _none(text: str | None) -> None:
    if text is not None:
        raise ValueError("no argument")


def _number(default: int | None, least: int, most: int) -> Callable[[str | None], int]:
    def parse(text: str | None) -> int:
        if text is None and default is not None:
            return default
        digits = (text or "").strip()
        if not digits.isascii() or not digits.isdigit() or len(digits) > 12 or not least <= int(digits) <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return int(digits)

    return parse


def _signal_number(text: str | None) -> int:
    known = {name: int(each) for each in signal.Signals for name in (each.name, str(each.value))}
    if text is None or text.strip() not in known:
        raise ValueError("a signal's number or name")
    return known[text.strip()]


def _hex(text: str | None) -> bytes:
    try:
        return bytes.fromhex(text or "")
    except ValueError:
        raise ValueError("bytes in hexadecimal") from None


def _text(text: str | None) -> str:
    return text or "injected"


def _one_of(*allowed: str | None) -> Callable[[str | None], str | None]:
    def parse(text: str | None) -> str | None:
        if text not in allowed:
            raise ValueError("one of: " + ", ".join(sorted(name or "nothing" for name in allowed)))
        return text

    return parse


_MEGABYTES = _number(None, 1, 1_000_000)
_VERBS: dict[str, _Verb] = {
    "ok": _Verb(_none),
    "token": _Verb(_number(1, 1, 1_000_000_000)),
    "delay": _Verb(_number(None, 0, 86_400_000)),
    "hang": _Verb(_none),
    "spin": _Verb(_one_of(None, "gil")),
    "stop": _Verb(_none),
    "exit": _Verb(_number(None, 0, 255)),
    "kill": _Verb(_signal_number),
    "panic": _Verb(_none),
    "error": _Verb(_text),
    "refuse": _Verb(_text),
    "garbage": _Verb(_hex),
    "malformed": _Verb(_one_of(*SEEDS)),
    "badid": _Verb(_none),
    "afterend": _Verb(_none, ("generate",)),
    "dupready": _Verb(_none, ("generate", "tokenize", "detokenize", "apply_template", "close")),
    "flood": _Verb(_MEGABYTES),
    "logflood": _Verb(_MEGABYTES),
    "alloc": _Verb(_MEGABYTES),
    "fork": _Verb(_none),
    "holdpipe": _Verb(_none),
    # Only the main thread may set a signal's disposition.
    "ignoreterm": _Verb(_none, ("load", "generate", "close")),
}

# --------------------------------------------------------------------------------------------------------- parsing

_OPERATION = re.compile(r"\s*([A-Za-z_]+)\s*=")
_TERM = re.compile(r"\s*(?:(\d{1,9})\s*\*)?\s*([A-Za-z]+)\s*(?:\(([^()]*)\))?\s*")
_IN_PROMPT = re.compile(r"\[\[failpoint:(.*?)\]\]", re.DOTALL)


def parse(text: str, operations: tuple[Operation, ...] = OPERATIONS, *, offset: int = 0) -> Rules:
    """The rules that a text gives; an empty one gives none. Positions in errors count from `offset`.

    Raises `FailpointError`.
    """
    if len(text) > limits.failpoints_characters_max:
        raise FailpointError(f"failpoints are over {limits.failpoints_characters_max} characters", offset)
    rules: dict[Operation, tuple[Term, ...]] = {}
    at = 0
    while text[at:].strip():
        operation, terms_at = _operation(text, at, operations, offset)
        if operation in rules:
            raise FailpointError(f"{operation} is given twice", offset + at)
        rules[operation], at = _terms(text, terms_at, operation, offset)
    return rules


def in_prompt(prompt: Prompt) -> Rules:
    """The rules that a request brings in its own text; token prompts bring none. Raises `FailpointError`."""
    if isinstance(prompt, TextPrompt):
        text = prompt.text
    elif isinstance(prompt, ChatPrompt):
        text = next((message.content for message in reversed(prompt.messages) if message.role == "user"), "")
    else:
        return {}
    found = _IN_PROMPT.search(text) if "[[failpoint:" in text else None
    return parse(found[1], REQUEST_OPERATIONS, offset=found.start(1)) if found else {}


def _operation(text: str, at: int, operations: tuple[Operation, ...], offset: int) -> tuple[Operation, int]:
    found = _OPERATION.match(text, at)
    if found is None:
        raise FailpointError("expected OPERATION=", offset + at)
    if found[1] not in operations:
        raise FailpointError(f"no operation {found[1]!r} here, only {', '.join(operations)}", offset + found.start(1))
    return cast("Operation", found[1]), found.end()


def _terms(text: str, at: int, operation: Operation, offset: int) -> tuple[tuple[Term, ...], int]:
    """The terms from `at` on, and where the next rule begins."""
    found: list[tuple[int | None, str, Argument]] = []
    while True:
        match = _TERM.match(text, at)
        if match is None:
            raise FailpointError("expected [COUNT*]VERB[(ARGUMENT)]", offset + at)
        at = match.end()
        if text.startswith("(", at):
            raise FailpointError("this '(' has no ')'", offset + at)
        found.append(_checked(match, operation, offset))
        if not text.startswith("->", at):
            break
        at += 2
    if at < len(text) and text[at] != ";":
        raise FailpointError("expected '->', ';' or the end", offset + at)
    last = len(found) - 1
    terms = [
        Term(verb, argument, 1 if count is None and index < last else count)
        for index, (count, verb, argument) in enumerate(found)
    ]
    return tuple(terms), at + 1


def _checked(match: re.Match[str], operation: Operation, offset: int) -> tuple[int | None, str, Argument]:
    count, name, argument = match.groups()
    verb = _VERBS.get(name)
    position = offset + match.start(2)
    if verb is None:
        raise FailpointError(f"no verb {name!r}, only {', '.join(_VERBS)}", position)
    if operation not in verb.operations:
        raise FailpointError(f"{name} cannot happen in {operation}", position)
    try:
        value = verb.argument(argument)
    except ValueError as error:
        raise FailpointError(f"{name} takes {error}", position) from None
    return None if count is None else int(count), name, value


# --------------------------------------------------------------------------------------------------------- running


class Cursor:
    """How far the terms of one operation are used up."""

    def __init__(self, terms: tuple[Term, ...] = ()) -> None:
        self._terms = terms
        self._index = 0
        self._used = 0

    def take(self) -> Term | None:
        """The term that acts now; None once they are used up."""
        while self._index < len(self._terms):
            term = self._terms[self._index]
            if term.count is None:
                return term
            if self._used < term.count:
                self._used += 1
                return term
            self._index += 1
            self._used = 0
        return None


class Passage:
    """One operation on its way through its steps."""

    __slots__ = ("_cursor", "_passes", "free")

    def __init__(self, cursor: Cursor) -> None:
        self.free = False
        """Nothing more happens in this operation."""
        self._cursor = cursor
        self._passes = 0

    def fault(self) -> Term | None:
        """What happens before the next step; None lets it pass."""
        if self.free:
            return None
        if self._passes:
            self._passes -= 1
            return None
        term = self._cursor.take()
        if term is None or term.verb == "ok":
            self.free = True
            return None
        if term.verb == "token":
            assert isinstance(term.argument, int)
            self._passes = term.argument - 1
            return None
        return term


class Failpoints:
    """The rules of one model or of one request, with what of them is used up."""

    def __init__(self, rules: Rules) -> None:
        self._cursors = {operation: Cursor(terms) for operation, terms in rules.items()}

    def __contains__(self, operation: Operation) -> bool:
        return operation in self._cursors

    def begin(self, operation: Operation) -> Passage:
        """Begin an operation."""
        return Passage(self._cursors.get(operation) or Cursor())
