"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
from aiohttp import web
from msgspec import Meta

from llmvisor import limits
from llmvisor.control.api import ModelStatus
from llmvisor.errors import InvalidRequest, UnsupportedOperation
from llmvisor.http.answers import json_answer
from llmvisor.http.body import read_struct
from llmvisor.http.cache_control import cache_use
from llmvisor.http.choice import Choice, finish_reason
from llmvisor.http.decode import BodyDecoder
from llmvisor.http.front import FRONT, MODEL, REQUEST_ID, Front
from llmvisor.http.generation import answer_events, collect, finished, pump, serving_headers
from llmvisor.http.openai.answers import Timings, Usage, system_fingerprint, timings, usage
from llmvisor.http.openai.chat_stream import DONE_EVENT, ChatChunks
from llmvisor.http.openai.grammar import is_set
from llmvisor.http.openai.logprobs import ChatLogprobs, chat_logprobs
from llmvisor.http.openai.messages import Fetched, Messages, TemplateKwargs, chat_prompt, media_needs, remote_media
from llmvisor.http.openai.request import GenerationFields, MaxTokens, Top, check_capable
from llmvisor.http.openai.tools import ToolChoice, ToolSpecs, tool_use
from llmvisor.http.sse import EventStream
from llmvisor.http.terms import terms_of
from llmvisor.services.service import DEFAULT_TERMS, CacheUse, Generation, Stream, Terms


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
    modalities: list[str] | None = None
    tools: ToolSpecs | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: list[msgspec.Raw] | None = None
    function_call: msgspec.Raw = msgspec.Raw()

    def generation(
        self,
        request_id: str,
        cache: CacheUse = "use",
        fetched: Fetched | None = None,
        terms: Terms = DEFAULT_TERMS,
    ) -> Generation:
        """`fetched` is what `remote_media` named. Raises `InvalidRequest`, `UnsupportedOperation`."""
        self._check_supported()
        use = tool_use(self.tools, self.tool_choice, parallel=self.parallel_tool_calls is not False)
        asked = self.asked_grammar
        if asked and use.callable:
            message = f"{asked.param}: an answer cannot be held to a form and call tools; set tool_choice to none"
            raise InvalidRequest(message, param=asked.param)
        return Generation(
            request_id=request_id,
            prompt=chat_prompt(
                self.messages,
                add_generation_prompt=self.add_generation_prompt,
                template_kwargs=self.chat_template_kwargs,
                reasoning_effort=self.reasoning_effort,
                use=use,
                fetched=fetched,
            ),
            sampling=self.sampling(),
            n=self.n or 1,
            max_tokens=self.max_completion_tokens or self.max_tokens,
            stop=self.stop_strings(),
            logprobs=self._logprobs(),
            ignore_eos=bool(self.ignore_eos),
            cache_prompt=self.cache_prompt is not False,
            keep_alive_seconds=self.keep_alive_seconds(),
            cache=cache,
            grammar=asked.grammar if asked else None,
            adapters=self.adapter_scales(),
            speculative=self.speculative,
            terms=terms,
        )

    def needs(self) -> Iterator[tuple[str, str]]:
        """What the model has to be able to do beside `chat`, each with the field that asks for it."""
        if asked := self.asked_grammar:
            yield "structured_output", asked.param
        if self.tools and self.tool_choice != "none":
            yield "tools", "tools"
        yield from media_needs(self.messages)

    def _logprobs(self) -> int | None:
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("top_logprobs: expected logprobs to be true as well", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    def _check_supported(self) -> None:
        calls = bytes(self.function_call)
        if is_set(self.function_call) and calls not in {b'"none"', b'"auto"'}:
            raise UnsupportedOperation("function_call: its successor tool_choice is served", param="function_call")
        if self.functions and calls != b'"none"':
            raise UnsupportedOperation("functions: their successor tools is served", param="functions")
        if self.modalities and self.modalities != ["text"]:
            raise UnsupportedOperation("modalities: models here answer in text alone", param="modalities")


class AnswerFunction(msgspec.Struct):
    name: str
    arguments: str


class AnswerToolCall(msgspec.Struct, kw_only=True):
    id: str
    type: Literal["function"] = "function"
    function: AnswerFunction


class ChatAnswerMessage(msgspec.Struct, kw_only=True):
    """Fields that are unset are left out, as OpenAI does."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    """Null where the answer is calls and nothing else."""
    refusal: str | None = None
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[AnswerToolCall] | msgspec.UnsetType = msgspec.UNSET


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
    terms = terms_of(request)
    fetched = await _fetched(front, asked)
    generation = asked.generation(request[REQUEST_ID], cache_use(request.headers), fetched, terms)
    model = await front.model(asked.model, capability="chat")
    check_capable(model, asked.needs())
    request[MODEL] = model
    stream = front.service.generate(model.name, generation)
    if asked.stream:
        return await _answer_stream(request, front, model, asked, stream)
    with asked.own_names():
        return await _answer_whole(front, model, generation, stream)


async def _fetched(front: Front, asked: ChatRequest) -> Fetched:
    """Everything that the conversation names by URL; nothing is fetched for a model that could not read it."""
    remote = front.media.allowed(remote_media(asked.messages))
    if remote:
        check_capable(await front.model(asked.model, capability="chat"), asked.needs())
    return await front.media.fetch(remote)


async def _answer_whole(front: Front, model: ModelStatus, generation: Generation, stream: Stream) -> web.Response:
    choices = await collect(stream, generation.n)
    done = finished(stream)
    answer = ChatAnswer(
        id=front.ids.new("chatcmpl-"),
        created=front.unix_seconds(),
        model=model.id,
        system_fingerprint=system_fingerprint(front.loaded(model)),
        choices=[
            ChatChoice(
                index=index,
                message=_message(choice),
                logprobs=None if generation.logprobs is None else chat_logprobs(choice.logprobs),
                finish_reason=finish_reason(choice.finish),
            )
            for index, choice in enumerate(choices)
        ],
        usage=usage(done),
        timings=timings(done),
    )
    return json_answer(answer, headers=serving_headers(model, [stream]))


def _message(choice: Choice) -> ChatAnswerMessage:
    calls = [
        AnswerToolCall(id=call.id, function=AnswerFunction(call.name, call.arguments)) for call in choice.tool_calls
    ]
    return ChatAnswerMessage(
        content=choice.text or (None if calls else ""),
        reasoning_content=choice.reasoning or msgspec.UNSET,
        tool_calls=calls or msgspec.UNSET,
    )


async def _answer_stream(
    request: web.Request, front: Front, model: ModelStatus, asked: ChatRequest, stream: Stream
) -> web.StreamResponse:
    chunks = ChatChunks(
        id=front.ids.new("chatcmpl-"),
        created=front.unix_seconds(),
        model=model.id,
        system_fingerprint=lambda: system_fingerprint(front.loaded(model)),
        choices_count=asked.n or 1,
        include_usage=asked.include_usage(),
    )

    async def produce(events: EventStream) -> None:
        with asked.own_names():
            done = await pump(stream, events, chunks.encode)
        await events.write(chunks.last(done) + DONE_EVENT)

    return await answer_events(
        request, front, lambda: serving_headers(model, [stream] if chunks.begun else []), produce, stream.waits_for
    )
