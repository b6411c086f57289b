"""`llmctl run` and `chat`."""

from __future__ import annotations

import argparse
from typing import cast

from llmctl import limits, standard_input
from llmctl.completion import COMPLETIONS_PATH, ChatRequest, Message, answering
from llmctl.errors import DONE, UsageError
from llmctl.session import Session


def run(session: Session) -> int:
    """One prompt, and the answer as it comes. As JSON: the whole answer at once."""
    args = session.args
    request = request_of(args, cast("str", args.model))
    request.messages.append(Message("user", _prompt(cast("list[str]", args.prompt))))
    if session.json:
        session.out.json(session.client.post(COMPLETIONS_PATH, request, timeout_seconds=limits.generation_seconds_max))
        return DONE
    if session.out.stderr_interactive:
        from llmctl.chat import find_model  # noqa: PLC0415 - scripts need none of it
        from llmctl.follow import load_first  # noqa: PLC0415 - as above

        load_first(session, find_model(session, request.model))
    last = "\n"
    with answering(session.client, request) as answer:
        try:
            for text in answer:
                session.out.write(text)
                last = text
        finally:
            if not last.endswith("\n"):
                session.out.line()
    if args.stats:
        session.out.note(answer.statistics.text(), "dim")
    return DONE


def chat(session: Session) -> int:
    """A conversation; see `/help` in it."""
    from llmctl.chat import converse  # noqa: PLC0415 - readline and all, for this alone

    return converse(session)


def request_of(args: argparse.Namespace, model: str) -> ChatRequest:
    """A request with the options of the command line, and the system message if there is one."""
    request = ChatRequest(
        model=model, messages=[], temperature=args.temperature, max_tokens=args.max_tokens, seed=args.seed
    )
    if args.system:
        request.messages.append(Message("system", args.system))
    return request


def _prompt(words: list[str]) -> str:
    """The words, with standard input in the place of `-`, or after them when something is piped in."""
    if "-" in words:
        index = words.index("-")
        parts = [" ".join(words[:index]), standard_input.read_text(), " ".join(words[index + 1 :])]
    else:
        parts = [" ".join(words), standard_input.read_text() if not words or standard_input.is_piped() else ""]
    prompt = "\n\n".join(part for part in parts if part.strip())
    if not prompt:
        raise UsageError("there is no prompt", hint='llmctl run MODEL "prompt", or pipe one in')
    return prompt
