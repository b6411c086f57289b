"""Deltas → `chat.completion.chunk` events. Pure, and the hottest path of the daemon.

What is the same in every chunk of a choice is encoded once; for each delta only its text is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from llmvisor.http.choice import finish_reason
from llmvisor.http.openai.answers import timings, usage
from llmvisor.http.openai.logprobs import chat_logprobs
from llmvisor_runtimes.protocol import Delta, Done, ToolCallDelta

DONE_EVENT = b"data: [DONE]\n\n"
_END = b"\n\n"
_encode = msgspec.json.Encoder().encode


class ChunkFunction(msgspec.Struct):
    arguments: str
    name: str | msgspec.UnsetType = msgspec.UNSET


class ChunkToolCall(msgspec.Struct):
    index: int
    function: ChunkFunction
    id: str | msgspec.UnsetType = msgspec.UNSET
    type: str | msgspec.UnsetType = msgspec.UNSET


class ChunkDelta(msgspec.Struct):
    """What is new in a choice; fields without news are left out."""

    content: str | msgspec.UnsetType
    reasoning_content: str | msgspec.UnsetType
    tool_calls: list[ChunkToolCall] | msgspec.UnsetType


class ChatChunks:
    """The chunks of one answer."""

    def __init__(
        self,
        *,
        id: str,
        created: int,
        model: str,
        system_fingerprint: Callable[[], str],
        choices_count: int,
        include_usage: bool,
    ) -> None:
        self._system_fingerprint = system_fingerprint
        self._head = b'data: {"id":%b,"object":"chat.completion.chunk","created":%d,"model":%b,' % (
            _encode(id),
            created,
            _encode(model),
        )
        self._include_usage = include_usage
        self._tail = b'],"usage":null}' + _END if include_usage else b"]}" + _END
        self._choices: list[bytes] = []
        self._texts: list[bytes] = []
        self._thoughts: list[bytes] = []
        self._text_tail = b'},"logprobs":null,"finish_reason":null}' + self._tail
        self.begun = False
        """Whether the first deltas have come."""
        self._choices_count = self._unfinished = choices_count

    def encode(self, deltas: Sequence[Delta]) -> bytes:
        """Whole events. Raises `ModelUnavailable` for a choice that was cut short."""
        parts = [] if self.begun else self._begin()
        texts, tail = self._texts, self._text_tail
        for delta in deltas:
            text = delta.text
            if delta.finish is not None or delta.logprobs or delta.tool_calls:
                self._add_rare(parts, delta)
            elif delta.reasoning:
                self._add_reasoning(parts, delta)
            elif text:
                parts += (texts[delta.index], _encode(text), tail)
        return b"".join(parts)

    def last(self, done: Done) -> bytes:
        """The usage chunk, where it was asked for. Raises `ModelUnavailable` if a choice has no end."""
        if self._unfinished:
            finish_reason(None)
        if not self._include_usage:
            return b""
        return b'%b],"usage":%b,"timings":%b}\n\n' % (self._head, _encode(usage(done)), _encode(timings(done)))

    def _begin(self) -> list[bytes]:
        """The roles, in events whose beginnings are known by now: the model is loaded."""
        self.begun = True
        self._head += b'"system_fingerprint":%b,"choices":[' % _encode(self._system_fingerprint())
        self._choices = [self._head + b'{"index":%d,"delta":' % index for index in range(self._choices_count)]
        self._texts = [choice + b'{"content":' for choice in self._choices]
        self._thoughts = [choice + b'{"reasoning_content":' for choice in self._choices]
        role = b'{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}'
        return [choice + role + self._tail for choice in self._choices]

    def _add_reasoning(self, parts: list[bytes], delta: Delta) -> None:
        parts += (self._thoughts[delta.index], _encode(delta.reasoning), self._text_tail)
        if delta.text:
            parts += (self._texts[delta.index], _encode(delta.text), self._text_tail)

    def _add_rare(self, parts: list[bytes], delta: Delta) -> None:
        """A delta with log-probabilities or tool calls, or the last of its choice."""
        said = ChunkDelta(
            content=delta.text or msgspec.UNSET,
            reasoning_content=delta.reasoning or msgspec.UNSET,
            tool_calls=[_chunk_call(call) for call in delta.tool_calls] or msgspec.UNSET,
        )
        if delta.logprobs and not (delta.text or delta.reasoning or delta.tool_calls):
            said.content = ""  # a part of a character, or of a marker
        choice = self._choices[delta.index]
        if delta.text or delta.reasoning or delta.tool_calls or delta.logprobs:
            logprobs = _encode(chat_logprobs(delta.logprobs)) if delta.logprobs else b"null"
            parts += (choice, _encode(said), b',"logprobs":', logprobs, b',"finish_reason":null}', self._tail)
        if delta.finish is not None:
            self._unfinished -= 1
            finish = _encode(finish_reason(delta.finish))
            parts += (choice, b'{},"logprobs":null,"finish_reason":', finish, b"}", self._tail)


def _chunk_call(call: ToolCallDelta) -> ChunkToolCall:
    """The first of a call says its id and name, the others are pieces of its arguments."""
    if call.id is None:
        return ChunkToolCall(call.index, ChunkFunction(call.arguments))
    function = ChunkFunction(call.arguments, msgspec.UNSET if call.name is None else call.name)
    return ChunkToolCall(call.index, function, call.id, "function")
