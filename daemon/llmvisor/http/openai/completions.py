"""`POST /v1/completions`, OpenAI's legacy endpoint.

`max_tokens` is 16 unless it is set, as OpenAI has it: this endpoint has no other natural end on a base model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from aiohttp import web
from msgspec import Meta

from llmvisor import limits
from llmvisor.control.api import ModelStatus
from llmvisor.errors import InvalidRequest
from llmvisor.http.answers import json_answer
from llmvisor.http.body import read_struct
from llmvisor.http.cache_control import cache_use
from llmvisor.http.choice import Choice, finish_reason
from llmvisor.http.decode import BodyDecoder
from llmvisor.http.front import FRONT, MODEL, REQUEST_ID, Front
from llmvisor.http.generation import answer_events, collect, finished, first_wait, pump, serving_headers
from llmvisor.http.openai.answers import Timings, Usage, system_fingerprint, timings, total, usage
from llmvisor.http.openai.chat_stream import DONE_EVENT
from llmvisor.http.openai.completions_stream import CompletionChunks, CompletionHead
from llmvisor.http.openai.logprobs import LegacyLogprobs, LegacyLogprobsWriter
from llmvisor.http.openai.request import Choices, GenerationFields, TokenId, Top, check_capable
from llmvisor.http.sse import EventStream
from llmvisor.http.terms import terms_of
from llmvisor.services.service import DEFAULT_TERMS, CacheUse, Generation, Stream, Terms
from llmvisor_runtimes.protocol import Done, InfillPrompt, Prompt, TextPrompt, TokenPrompt

T = TypeVar("T")
R = TypeVar("R")
TokenList = Annotated[list[TokenId], Meta(min_length=1, max_length=limits.prompt_tokens_max)]
_MAX_TOKENS_DEFAULT = 16


class CompletionRequest(GenerationFields, kw_only=True):
    prompt: str | Annotated[list[str | TokenId | TokenList], Meta(min_length=1, max_length=limits.prompt_tokens_max)]
    max_tokens: Annotated[int, Meta(ge=0, le=limits.tokens_max)] | None = None
    logprobs: Top | None = None
    echo: bool | None = None
    best_of: Choices | None = None
    suffix: str | None = None

    def generations(self, request_id: str, cache: CacheUse = "use", terms: Terms = DEFAULT_TERMS) -> list[Generation]:
        """One for each prompt. Raises `InvalidRequest`, `UnsupportedOperation`."""
        self._check()
        asked = self.asked_grammar
        template = Generation(
            request_id=request_id,
            prompt=TextPrompt(""),
            sampling=self.sampling(),
            n=self.best_of or self.n or 1,
            max_tokens=_MAX_TOKENS_DEFAULT if self.max_tokens is None else self.max_tokens,
            stop=self.stop_strings(),
            logprobs=(self.logprobs or 0) if self.chooses() else self.logprobs,
            echo=bool(self.echo),
            ignore_eos=bool(self.ignore_eos),
            cache_prompt=self.cache_prompt is not False,
            keep_alive_seconds=self.keep_alive_seconds(),
            grammar=asked.grammar if asked else None,
            adapters=self.adapter_scales(),
            speculative=self.speculative,
            cache=cache,
            terms=terms,
        )
        return [msgspec.structs.replace(template, prompt=prompt) for prompt in self.prompts()]

    def needs(self) -> Iterator[tuple[str, str]]:
        """What the model has to be able to do beside `completions`, each with the field that asks for it."""
        if asked := self.asked_grammar:
            yield "structured_output", asked.param
        if self.suffix:
            yield "infill", "suffix"

    def chooses(self) -> bool:
        """Whether fewer choices are answered than are generated."""
        return (self.best_of or 0) > (self.n or 1)

    def prompts(self) -> list[Prompt]:
        """Raises `InvalidRequest`."""
        if isinstance(self.prompt, str):
            return [InfillPrompt(self.prompt, self.suffix) if self.suffix else TextPrompt(self.prompt)]
        texts = [item for item in self.prompt if isinstance(item, str)]
        ids = [item for item in self.prompt if isinstance(item, int)]
        lists = [item for item in self.prompt if isinstance(item, list)]
        if len(ids) == len(self.prompt):
            return [TokenPrompt(ids)]
        prompts: list[Prompt] = [TextPrompt(text) for text in texts] or [TokenPrompt(tokens) for tokens in lists]
        if len(prompts) != len(self.prompt):
            raise InvalidRequest(
                "prompt: expected strings, token ids or lists of those, found a mixture", param="prompt"
            )
        if len(prompts) > limits.prompts_max:
            raise InvalidRequest(
                f"prompt: expected at most {limits.prompts_max} prompts, found {len(prompts)}", param="prompt"
            )
        return prompts

    def _check(self) -> None:
        if self.suffix and (self.echo or not isinstance(self.prompt, str)):
            raise InvalidRequest("suffix: expected one text as the prompt, and no echo", param="suffix")
        if self.max_tokens == 0 and not self.echo:
            raise InvalidRequest("max_tokens: expected at least 1, or 0 with echo, found 0", param="max_tokens")
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise InvalidRequest(f"best_of: expected at least n ({self.n or 1}), found {self.best_of}", param="best_of")
        if self.chooses() and self.stream:
            raise InvalidRequest("best_of: cannot be streamed", param="best_of")


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: LegacyLogprobs | None
    finish_reason: str


class CompletionAnswer(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    """By prompt, then by choice."""
    usage: Usage
    timings: Timings


_DECODER = BodyDecoder(CompletionRequest)


async def completions(request: web.Request) -> web.StreamResponse:
    """Texts, continued. Several prompts run side by side."""
    front = request.app[FRONT]
    asked = await read_struct(request, _DECODER, front.settings)
    generations = asked.generations(request[REQUEST_ID], cache_use(request.headers), terms_of(request))
    model = await front.model(asked.model, capability="completions")
    check_capable(model, asked.needs())
    request[MODEL] = model
    head = CompletionHead(
        id=front.ids.new("cmpl-"),
        created=front.unix_seconds(),
        model=model.id,
        system_fingerprint=lambda: system_fingerprint(front.loaded(model)),
    )
    if asked.stream:
        return await _answer_stream(request, model, asked, generations, head)
    return await _answer_whole(front, model, asked, generations, head)


async def _answer_whole(
    front: Front, model: ModelStatus, asked: CompletionRequest, generations: list[Generation], head: CompletionHead
) -> web.Response:
    streams: list[Stream] = []

    async def one(generation: Generation) -> tuple[list[Choice], Done]:
        stream = front.service.generate(model.name, generation)
        streams.append(stream)
        choices = await collect(stream, generation.n)
        done = finished(stream)
        return _best(choices, asked, done), done

    with asked.own_names():
        results = await side_by_side(one, generations)
    done = total([done for _, done in results])
    choices = [choice for chosen, _ in results for choice in chosen]
    answer = CompletionAnswer(
        id=head.id,
        created=head.created,
        model=head.model,
        system_fingerprint=head.system_fingerprint(),
        choices=[_choice(index, choice, asked.logprobs) for index, choice in enumerate(choices)],
        usage=usage(done),
        timings=timings(done),
    )
    return json_answer(answer, headers=serving_headers(model, streams))


async def _answer_stream(
    request: web.Request,
    model: ModelStatus,
    asked: CompletionRequest,
    generations: list[Generation],
    head: CompletionHead,
) -> web.StreamResponse:
    front = request.app[FRONT]
    n = asked.n or 1
    begun: list[Stream] = []
    streams: list[Stream] = []

    async def produce(events: EventStream) -> None:
        async def one(numbered: tuple[int, Generation]) -> Done:
            number, generation = numbered
            stream = front.service.generate(model.name, generation)
            streams.append(stream)
            chunks = CompletionChunks(
                head,
                first_index=number * n,
                choices_count=n,
                include_usage=asked.include_usage(),
                begun=lambda: begun.append(stream),
            )
            done = await pump(stream, events, chunks.encode)
            chunks.check_ended()
            return done

        with asked.own_names():
            done = await side_by_side(one, list(enumerate(generations)))
        await events.write((head.usage_event(total(done)) if asked.include_usage() else b"") + DONE_EVENT)

    return await answer_events(
        request, front, lambda: serving_headers(model, begun), produce, lambda: first_wait(streams)
    )


async def side_by_side(call: Callable[[T], Coroutine[Any, Any, R]], items: list[T]) -> list[R]:
    """The results in the order of `items`; the first error cancels the others and is raised."""
    if len(items) == 1:
        return [await call(items[0])]
    places = asyncio.Semaphore(limits.prompts_in_flight_max)

    async def placed(item: T) -> R:
        async with places:
            return await call(item)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(placed(item), name="prompt") for item in items]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _best(choices: list[Choice], asked: CompletionRequest, done: Done) -> list[Choice]:
    """The `n` likeliest of `best_of`, by the mean log-probability of what they added."""
    if not asked.chooses():
        return choices
    start = done.prompt_tokens if asked.echo else 0

    def likelihood(choice: Choice) -> float:
        logprobs = [token.logprob or 0.0 for token in choice.logprobs[start:]]
        return sum(logprobs) / len(logprobs) if logprobs else 0.0

    return sorted(choices, key=likelihood, reverse=True)[: asked.n or 1]


def _choice(index: int, choice: Choice, logprobs: int | None) -> CompletionChoice:
    return CompletionChoice(
        index=index,
        text=choice.text,
        logprobs=None if logprobs is None else LegacyLogprobsWriter().write(choice.logprobs),
        finish_reason=finish_reason(choice.finish),
    )
