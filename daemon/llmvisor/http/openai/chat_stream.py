"""Deltas → `chat.completion.chunk` events. Pure, and the hottest path of the daemon.

What is the same in every chunk of a choice is encoded once; for each delta only its text is.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from llmvisor.http.choice import finish_reason
from llmvisor.http.openai.answers import timings, usage
from llmvisor.http.openai.logprobs import chat_logprobs
from llmvisor_runtimes.protocol import Delta, Done

DONE_EVENT = b"data: [DONE]\n\n"
_END = b"\n\n"
_encode = msgspec.json.Encoder().encode


class ChatChunks:
    """The chunks of one answer."""

    def __init__(
        self,
        *,
        id: str,
        created: int,
        model: str,
        system_fingerprint: str,
        choices_count: int,
        include_usage: bool,
    ) -> None:
        head = b'data: {"id":%b,"object":"chat.completion.chunk","created":%d,"model":%b,' % (
            _encode(id),
            created,
            _encode(model),
        )
        head += b'"system_fingerprint":%b,"choices":[' % _encode(system_fingerprint)
        self._head = head
        self._include_usage = include_usage
        self._tail = b'],"usage":null}' + _END if include_usage else b"]}" + _END
        self._choices = [head + b'{"index":%d,"delta":' % index for index in range(choices_count)]
        self._texts = [choice + b'{"content":' for choice in self._choices]
        self._text_tail = b'},"logprobs":null,"finish_reason":null}' + self._tail
        self.begun = False
        """Whether the first deltas have come."""
        self._unfinished = choices_count

    def encode(self, deltas: Sequence[Delta]) -> bytes:
        """Whole events. Raises `ModelUnavailable` for a choice that was cut short."""
        parts = [] if self.begun else self._roles()
        texts, tail = self._texts, self._text_tail
        for delta in deltas:
            if delta.finish is None and not delta.logprobs:
                if delta.text:
                    parts += (texts[delta.index], _encode(delta.text), tail)
            else:
                self._add_rare(parts, delta)
        return b"".join(parts)

    def last(self, done: Done) -> bytes:
        """The usage chunk, where it was asked for. Raises `ModelUnavailable` if a choice has no end."""
        if self._unfinished:
            finish_reason(None)
        if not self._include_usage:
            return b""
        return b'%b],"usage":%b,"timings":%b}\n\n' % (self._head, _encode(usage(done)), _encode(timings(done)))

    def _roles(self) -> list[bytes]:
        self.begun = True
        role = b'{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}'
        return [choice + role + self._tail for choice in self._choices]

    def _add_rare(self, parts: list[bytes], delta: Delta) -> None:
        """A delta with log-probabilities, or the last of its choice."""
        if delta.text or delta.logprobs:
            logprobs = _encode(chat_logprobs(delta.logprobs)) if delta.logprobs else b"null"
            parts += (self._texts[delta.index], _encode(delta.text), b'},"logprobs":', logprobs)
            parts += (b',"finish_reason":null}', self._tail)
        if delta.finish is not None:
            self._unfinished -= 1
            finish = _encode(finish_reason(delta.finish))
            parts += (self._choices[delta.index], b'{},"logprobs":null,"finish_reason":', finish, b"}", self._tail)
