"""`POST /tokenize`, `/detokenize` and `/apply-template`, for clients of llama.cpp's server and of vLLM alike."""

from __future__ import annotations

from typing import Annotated

import msgspec
from aiohttp import web
from msgspec import Meta

from llmvisor import limits
from llmvisor.errors import InvalidRequest
from llmvisor.http.answers import json_answer
from llmvisor.http.body import read_struct
from llmvisor.http.decode import BodyDecoder
from llmvisor.http.front import FRONT, MODEL, Front
from llmvisor.http.openai.messages import Fetched, Message, Messages, TemplateKwargs, chat_prompt, remote_media
from llmvisor.http.openai.request import ModelName, TokenId
from llmvisor.http.openai.tools import ToolSpecs, tool_use
from llmvisor_runtimes.protocol import Prompt, TextPrompt, Tokens


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """One of `content` (llama.cpp), `prompt` (vLLM), `text` or `messages`."""

    model: ModelName | None = None
    content: str | None = None
    prompt: str | None = None
    text: str | None = None
    messages: Messages | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: TemplateKwargs | None = None
    tools: ToolSpecs | None = None
    add_special: bool | None = None
    """Whether the model's leading token is put before. Not unless asked for, as llama.cpp has it; `prompt` does."""
    add_special_tokens: bool | None = None
    """vLLM's name of the same."""
    parse_special: bool | None = None
    with_pieces: bool | None = None
    return_token_strs: bool | None = None

    def tokenized(self, fetched: Fetched | None = None) -> Prompt:
        """Raises `InvalidRequest`."""
        texts = [text for text in (self.content, self.prompt, self.text) if text is not None]
        if len(texts) + (self.messages is not None) != 1:
            raise InvalidRequest("expected one of content, prompt, text and messages", param="content")
        if self.messages is None:
            return TextPrompt(texts[0])
        return chat_prompt(
            self.messages,
            add_generation_prompt=self.add_generation_prompt,
            template_kwargs=self.chat_template_kwargs,
            use=tool_use(self.tools, None, parallel=True),
            fetched=fetched,
        )

    def adds_special(self) -> bool:
        for given in (self.add_special, self.add_special_tokens):
            if given is not None:
                return given
        return self.prompt is not None


class Piece(msgspec.Struct):
    id: int
    piece: str | list[int]
    """Text, or bytes where the token is a part of a character."""


class TokenizeAnswer(msgspec.Struct):
    tokens: list[int] | list[Piece]
    count: int
    max_model_len: int | None
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct):
    tokens: Annotated[list[TokenId], Meta(max_length=limits.prompt_tokens_max)]
    model: ModelName | None = None


class DetokenizeAnswer(msgspec.Struct):
    content: str
    prompt: str
    """vLLM's name of the same."""


class ApplyTemplateRequest(msgspec.Struct):
    messages: Messages
    model: ModelName | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: TemplateKwargs | None = None
    tools: ToolSpecs | None = None


class ApplyTemplateAnswer(msgspec.Struct):
    prompt: str


_TOKENIZE = BodyDecoder(TokenizeRequest)
_DETOKENIZE = BodyDecoder(DetokenizeRequest)
_APPLY_TEMPLATE = BodyDecoder(ApplyTemplateRequest)


async def tokenize(request: web.Request) -> web.Response:
    """Text or a conversation → token ids."""
    front = request.app[FRONT]
    asked = await read_struct(request, _TOKENIZE, front.settings)
    prompt = asked.tokenized(await _fetched(front, asked.messages or []))
    model = await front.model(asked.model, capability="tokenize")
    request[MODEL] = model
    tokens = await front.service.tokenize(
        model.name, prompt, add_special=asked.adds_special(), parse_special=asked.parse_special is not False
    )
    answer = TokenizeAnswer(
        tokens=_pieces(tokens) if asked.with_pieces else tokens.tokens,
        count=len(tokens.tokens),
        max_model_len=model.n_ctx,
        token_strs=[piece.decode(errors="replace") for piece in tokens.pieces] if asked.return_token_strs else None,
    )
    return json_answer(answer, headers={"X-LLMVISOR-Model": model.id})


async def detokenize(request: web.Request) -> web.Response:
    """Token ids → text."""
    front = request.app[FRONT]
    asked = await read_struct(request, _DETOKENIZE, front.settings)
    model = await front.model(asked.model, capability="tokenize")
    request[MODEL] = model
    text = await front.service.detokenize(model.name, asked.tokens)
    return json_answer(DetokenizeAnswer(content=text, prompt=text), headers={"X-LLMVISOR-Model": model.id})


async def apply_template(request: web.Request) -> web.Response:
    """A conversation → the text that the model would read."""
    front = request.app[FRONT]
    asked = await read_struct(request, _APPLY_TEMPLATE, front.settings)
    prompt = chat_prompt(
        asked.messages,
        add_generation_prompt=asked.add_generation_prompt,
        template_kwargs=asked.chat_template_kwargs,
        use=tool_use(asked.tools, None, parallel=True),
        fetched=await _fetched(front, asked.messages),
    )
    model = await front.model(asked.model, capability="chat")
    request[MODEL] = model
    text = await front.service.apply_template(model.name, prompt)
    return json_answer(ApplyTemplateAnswer(text), headers={"X-LLMVISOR-Model": model.id})


async def _fetched(front: Front, messages: list[Message]) -> Fetched:
    return await front.media.fetch(front.media.allowed(remote_media(messages)))


def _pieces(tokens: Tokens) -> list[Piece]:
    return [Piece(id=token, piece=_readable(piece)) for token, piece in zip(tokens.tokens, tokens.pieces, strict=True)]


def _readable(piece: bytes) -> str | list[int]:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)
