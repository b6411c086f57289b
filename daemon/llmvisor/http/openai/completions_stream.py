"""Deltas → `text_completion` events. Pure; see `chat_stream` for why it is written so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from llmvisor.http.choice import finish_reason
from llmvisor.http.openai.answers import timings, usage
from llmvisor.http.openai.logprobs import LegacyLogprobsWriter
from llmvisor_runtimes.protocol import Delta, Done

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class CompletionHead:
    """What every event of one answer says."""

    id: str
    created: int
    model: str
    system_fingerprint: Callable[[], str]
    """Asked for once the model is loaded."""

    def event_head(self) -> bytes:
        """An event up to its list of choices."""
        return (
            b'data: {"id":%b,"object":"text_completion","created":%d,"model":%b,"system_fingerprint":%b,"choices":['
            % (_encode(self.id), self.created, _encode(self.model), _encode(self.system_fingerprint()))
        )

    def usage_event(self, done: Done) -> bytes:
        return b'%b],"usage":%b,"timings":%b}\n\n' % (self.event_head(), _encode(usage(done)), _encode(timings(done)))


class CompletionChunks:
    """The events of one prompt, whose choices stand at `first_index` and after. `begun` is called at the first."""

    def __init__(
        self,
        head: CompletionHead,
        *,
        first_index: int,
        choices_count: int,
        include_usage: bool,
        begun: Callable[[], None],
    ) -> None:
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._head = head
        self._indexes = range(first_index, first_index + choices_count)
        self._texts: list[bytes] = []
        self._text_tail = b',"logprobs":null,"finish_reason":null}' + self._tail
        self._logprobs = [LegacyLogprobsWriter() for _ in range(choices_count)]
        self._unfinished = choices_count
        self._begun: Callable[[], None] | None = begun

    def encode(self, deltas: Sequence[Delta]) -> bytes:
        """Whole events. Raises `ModelUnavailable` for a choice that was cut short."""
        if self._begun is not None:
            self._begun()
            self._begun = None
            start = self._head.event_head()
            self._texts = [start + b'{"index":%d,"text":' % index for index in self._indexes]
        parts: list[bytes] = []
        texts, tail = self._texts, self._text_tail
        for delta in deltas:
            if delta.finish is None and not delta.logprobs:
                if delta.text:
                    parts += (texts[delta.index], _encode(delta.text), tail)
            else:
                self._add_rare(parts, delta)
        return b"".join(parts)

    def check_ended(self) -> None:
        """Raises `ModelUnavailable` if a choice has no end."""
        if self._unfinished:
            finish_reason(None)

    def _add_rare(self, parts: list[bytes], delta: Delta) -> None:
        """A delta with log-probabilities, or the last of its choice."""
        logprobs = _encode(self._logprobs[delta.index].write(delta.logprobs)) if delta.logprobs else b"null"
        self._unfinished -= delta.finish is not None
        finish = _encode(None if delta.finish is None else finish_reason(delta.finish))
        parts += (self._texts[delta.index], _encode(delta.text), b',"logprobs":', logprobs)
        parts += (b',"finish_reason":', finish, b"}", self._tail)
