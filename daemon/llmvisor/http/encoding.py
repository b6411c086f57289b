"""What every request for embeddings or scores has in common, whatever its dialect."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Annotated, Literal

import msgspec
from aiohttp import web
from msgspec import Meta

from llmvisor import limits
from llmvisor.control.api import ModelStatus
from llmvisor.errors import InvalidRequest, LlmvisorError
from llmvisor.http.durations import keep_alive_seconds
from llmvisor.http.openai.request import ModelName, TokenId
from llmvisor.http.terms import terms_of
from llmvisor.services.service import Embedded, Scored, Terms
from llmvisor_runtimes.protocol import Lane

PRIORITY_HEADER = "X-LLMVISOR-Priority"
Priority = Literal["interactive", "bulk"]
TokenList = Annotated[list[TokenId], Meta(min_length=1, max_length=limits.prompt_tokens_max)]
EmbeddingInput = (
    str | Annotated[list[str | TokenId | TokenList], Meta(min_length=1, max_length=limits.prompt_tokens_max)]
)
"""A text, texts, the token ids of one text, or those of several."""

_PARAM = re.compile(r"(?P<name>[a-z_0-9]+)(?P<rest>.*)", re.DOTALL)


class EncodingFields(msgspec.Struct, kw_only=True):
    """What all of these requests take beside their texts."""

    model: ModelName | None = None
    truncate: bool | None = None
    """Cut what is longer than the model takes; otherwise the request is refused."""
    user: str | None = None
    """Whose it is: clients take turns."""
    priority: Priority | None = None
    """`bulk` lets others go ahead; None goes by the number of texts."""
    keep_alive: float | str | None = None

    def keep_alive_seconds(self) -> float | None:
        """Raises `InvalidRequest`."""
        return keep_alive_seconds(self.keep_alive)

    def lane(self, request: web.Request, count: int) -> Lane:
        """Raises `InvalidRequest` for a header that says something else."""
        said = self.priority or request.headers.get(PRIORITY_HEADER)
        if said is None:
            return "bulk" if count >= limits.embedding_bulk_inputs_min else "interactive"
        if said not in {"interactive", "bulk"}:
            raise InvalidRequest(f"{PRIORITY_HEADER}: expected interactive or bulk, found {said!r:.60}")
        return "bulk" if said == "bulk" else "interactive"

    def terms(self, request: web.Request) -> Terms:
        """Raises `InvalidRequest`."""
        return terms_of(request, user=self.user)


def texts_of(given: EmbeddingInput, param: str) -> list[str | list[int]]:
    """Each text, or its token ids. Raises `InvalidRequest` for empty ones, too many, and mixtures."""
    if isinstance(given, str):
        inputs: list[str | list[int]] = [given]
    elif all(isinstance(item, int) for item in given):
        inputs = [[item for item in given if isinstance(item, int)]]
    else:
        inputs = [item for item in given if not isinstance(item, int)]
        if len(inputs) != len(given) or len({type(item) for item in inputs}) > 1:
            raise InvalidRequest(
                f"{param}: expected strings, token ids or lists of those, found a mixture", param=param
            )
    if len(inputs) > limits.embedding_inputs_max:
        raise InvalidRequest(
            f"{param}: expected at most {limits.embedding_inputs_max} texts, found {len(inputs)}", param=param
        )
    for number, text in enumerate(inputs):
        if not text:
            place = param if isinstance(given, str) else f"{param}[{number}]"
            raise InvalidRequest(f"{place}: expected a text that is not empty", param=place)
    return inputs


@contextmanager
def named_as(names: Mapping[str, str], *, single: bool = False) -> Generator[None]:
    """Errors of workers, with the field of this dialect that they are about; `single` where that is no list."""
    try:
        yield
    except LlmvisorError as error:
        match = _PARAM.fullmatch(error.param or "")
        if match is not None and match["name"] in names:
            param = names[match["name"]] + ("" if single else match["rest"])
            if error.message.startswith(match[0]):
                error.message = param + error.message.removeprefix(match[0])
            error.param = param
        raise


def encoding_headers(model: ModelStatus, answer: Embedded | Scored) -> dict[str, str]:
    """Who served, and how long that took to begin."""
    return {
        "X-LLMVISOR-Model": model.id,
        "X-LLMVISOR-Cache": answer.cache,
        "X-LLMVISOR-Queue-Ms": f"{answer.queue_ms:.3f}",
        "X-LLMVISOR-Load-Ms": f"{answer.load_ms:.3f}",
    }


async def join_slices(pieces: Iterable[tuple[bytes | None, int]], *, begin: bytes, end: bytes) -> bytes:
    """A JSON list out of its members, each with how many numbers it took to write; in between others get their turn.

    None is a member that is still being written.
    """
    written: list[bytes] = []
    numbers = 0
    for piece, count in pieces:
        if piece is not None:
            written.append(piece)
        numbers += count
        if numbers >= limits.answer_slice_floats:
            numbers = 0
            await asyncio.sleep(0)
    return begin + b",".join(written) + end


def json_bytes_answer(body: bytes, headers: Mapping[str, str]) -> web.Response:
    return web.Response(body=body, headers={"Content-Type": "application/json", **headers})
