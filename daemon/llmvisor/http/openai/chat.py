"""`POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from aiohttp import web
from msgspec import Meta

from llmvisor import limits
from llmvisor.control.api import ModelStatus
from llmvisor.errors import InvalidRequest, UnsupportedOperation
from llmvisor.http.answers import json_answer
from llmvisor.http.body import read_struct
from llmvisor.http.choice import finish_reason
from llmvisor.http.decode import BodyDecoder
from llmvisor.http.front import FRONT, MODEL, REQUEST_ID, Front
from llmvisor.http.generation import answer_events, collect, finished, pump, serving_headers
from llmvisor.http.openai.answers import Timings, Usage, system_fingerprint, timings, usage
from llmvisor.http.openai.chat_stream import DONE_EVENT, ChatChunks
from llmvisor.http.openai.logprobs import ChatLogprobs, chat_logprobs
from llmvisor.http.openai.messages import Messages, TemplateKwargs, chat_prompt
from llmvisor.http.openai.request import GenerationFields, MaxTokens, Top, is_set
from llmvisor.http.sse import EventStream
from llmvisor.services.service import Generation, Stream


class ResponseFormat(msgspec.Struct):
    type: str


class ChatRequest(GenerationFields, kw_only=True):
    """Fields that change nothing here (`user`, `metadata`, `store`, `service_tier`, …) are ignored, as unknown ones."""

    messages: Messages
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Top | None = None
    reasoning_effort: Annotated[str, Meta(max_length=limits.reasoning_effort_chars_max)] | None = None
    chat_template_kwargs: TemplateKwargs | None = None
    add_generation_prompt: bool | None = None
    response_format: ResponseFormat | None = None
    modalities: list[str] | None = None
    tools: list[msgspec.Raw] | None = None
    tool_choice: msgspec.Raw = msgspec.Raw()
    functions: list[msgspec.Raw] | None = None

    def generation(self, request_id: str) -> Generation:
        """Raises `InvalidRequest`, `UnsupportedOperation`."""
        self._check_supported()
        return Generation(
            request_id=request_id,
            prompt=chat_prompt(
                self.messages,
                add_generation_prompt=self.add_generation_prompt,
                template_kwargs=self.chat_template_kwargs,
                reasoning_effort=self.reasoning_effort,
            ),
            sampling=self.sampling(),
            n=self.n or 1,
            max_tokens=self.max_completion_tokens or self.max_tokens,
            stop=self.stop_strings(),
            logprobs=self._logprobs(),
            ignore_eos=bool(self.ignore_eos),
            cache_prompt=self.cache_prompt is not False,
            keep_alive_seconds=self.keep_alive_seconds(),
        )

    def _logprobs(self) -> int | None:
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("top_logprobs: expected logprobs to be true as well", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    def _check_supported(self) -> None:
        self.check_supported()
        choice = bytes(self.tool_choice)
        if choice != b'"none"' and (self.tools or self.functions):
            param = "tools" if self.tools else "functions"
            raise UnsupportedOperation(
                f'{param}: tools are not supported by this model; leave them out or send "tool_choice": "none"',
                param=param,
            )
        if is_set(self.tool_choice) and choice not in {b'"none"', b'"auto"'}:
            raise UnsupportedOperation("tool_choice: tools are not supported by this model", param="tool_choice")
        if self.response_format and self.response_format.type != "text":
            raise UnsupportedOperation(
                f"response_format: only text is supported by this model, not {self.response_format.type[:40]!r}",
                param="response_format",
            )
        if self.modalities and self.modalities != ["text"]:
            raise UnsupportedOperation("modalities: this model answers in text alone", param="modalities")


class ChatAnswerMessage(msgspec.Struct, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: str | None = None


class ChatChoice(msgspec.Struct):
    index: int
    message: ChatAnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChatAnswer(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    timings: Timings


_DECODER = BodyDecoder(ChatRequest)


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """A conversation, continued."""
    front = request.app[FRONT]
    asked = await read_struct(request, _DECODER, front.settings)
    generation = asked.generation(request[REQUEST_ID])
    model = front.model(asked.model, capability="chat")
    request[MODEL] = model.name
    stream = front.service.generate(model.name, generation)
    if asked.stream:
        return await _answer_stream(request, front, model, asked, stream)
    return await _answer_whole(front, model, generation, stream)


async def _answer_whole(front: Front, model: ModelStatus, generation: Generation, stream: Stream) -> web.Response:
    choices = await collect(stream, generation.n)
    done = finished(stream)
    answer = ChatAnswer(
        id=front.ids.new("chatcmpl-"),
        created=front.unix_seconds(),
        model=model.id,
        system_fingerprint=system_fingerprint(model),
        choices=[
            ChatChoice(
                index=index,
                message=ChatAnswerMessage(content=choice.text),
                logprobs=None if generation.logprobs is None else chat_logprobs(choice.logprobs),
                finish_reason=finish_reason(choice.finish),
            )
            for index, choice in enumerate(choices)
        ],
        usage=usage(done),
        timings=timings(done),
    )
    return json_answer(answer, headers=serving_headers(model, [stream]))


async def _answer_stream(
    request: web.Request, front: Front, model: ModelStatus, asked: ChatRequest, stream: Stream
) -> web.StreamResponse:
    chunks = ChatChunks(
        id=front.ids.new("chatcmpl-"),
        created=front.unix_seconds(),
        model=model.id,
        system_fingerprint=system_fingerprint(model),
        choices_count=asked.n or 1,
        include_usage=asked.include_usage(),
    )

    async def produce(events: EventStream) -> None:
        done = await pump(stream, events, chunks.encode)
        await events.write(chunks.last(done) + DONE_EVENT)

    return await answer_events(
        request, front, lambda: serving_headers(model, [stream] if chunks.begun else []), produce
    )
