"""What is left of a choice that another worker began: shared by all engines. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.protocol import Generate, Resumed
from llmvisor_runtimes.toolcalls import call_id

NOTHING_SENT = Resumed()


class Sent(NamedTuple):
    """The tokens of a choice that the client has, by where they come from."""

    echoed: int
    """So many of the prompt's tokens, in an echo."""
    written: list[int]
    """Those that the model wrote."""


def sent_before(request: Generate, index: int) -> Resumed:
    """What has been sent of this choice; of most requests nothing."""
    return request.resumed[index] if index < len(request.resumed) else NOTHING_SENT


def sent_tokens(request: Generate, resumed: Resumed, prompt: Sequence[int]) -> Sent:
    """The tokens sent, taken apart. Raises `RequestError` where an echo is none of this prompt."""
    if not request.echo:
        return Sent(0, resumed.tokens)
    echoed = min(len(resumed.tokens), len(prompt))
    if resumed.tokens[:echoed] != list(prompt[:echoed]):
        raise not_resumable("the echo that has been sent is not this prompt's")
    return Sent(echoed, resumed.tokens[echoed:])


def ids_of_calls(resumed: Resumed) -> Callable[[], str]:
    """Gives the ids of tool calls: those that have begun keep theirs, those after them get fresh ones."""
    known = iter(resumed.tool_call_ids)
    return lambda: next(known, None) or call_id()


def check_resumed(request: Generate, *, resumes: bool) -> None:
    """Raises `RequestError` where more choices have begun than there are, or the backend knows only beginnings."""
    if not resumes and any(resumed != NOTHING_SENT for resumed in request.resumed):
        raise not_resumable("this backend only begins")
    if len(request.resumed) > request.n:
        raise not_resumable(f"{len(request.resumed)} choices have begun of a request for {request.n}")


def not_resumable(message: str) -> RequestError:
    """What a request fails with that cannot be gone on with: no client is to blame for it."""
    return RequestError("internal_error", f"it cannot go on where it broke off: {message}")
