"""One choice of a generation, as it was collected. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmvisor.errors import InternalError, ModelUnavailable
from llmvisor_runtimes.protocol import Delta, FinishReason, TokenLogprob, ToolCall, ToolCallDelta


@dataclass(slots=True)
class _Call:
    id: str
    name: str
    arguments: list[str]


@dataclass(slots=True)
class Choice:
    """One choice, whole."""

    texts: list[str] = field(default_factory=list[str])
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    tokens: int = 0
    finish: FinishReason | None = None
    thoughts: list[str] = field(default_factory=list[str])
    calls: list[_Call] = field(default_factory=list[_Call])

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def reasoning(self) -> str:
        return "".join(self.thoughts)

    @property
    def tool_calls(self) -> list[ToolCall]:
        return [ToolCall(call.id, call.name, "".join(call.arguments)) for call in self.calls]

    def add(self, delta: Delta) -> None:
        """What came next. Raises `InternalError` for more of a tool call that never began."""
        self.texts.append(delta.text)
        self.tokens += len(delta.tokens)
        if delta.logprobs:
            self.logprobs += delta.logprobs
        if delta.reasoning:
            self.thoughts.append(delta.reasoning)
        for call in delta.tool_calls:
            self._add_call(call)
        if delta.finish is not None:
            self.finish = delta.finish

    def _add_call(self, delta: ToolCallDelta) -> None:
        if delta.index == len(self.calls) and delta.id is not None and delta.name is not None:
            self.calls.append(_Call(delta.id, delta.name, [delta.arguments]))
        elif 0 <= delta.index < len(self.calls):
            self.calls[delta.index].arguments.append(delta.arguments)
        else:
            raise InternalError(f"the worker sent more of the tool call {delta.index}, which never began")


def finish_reason(finish: FinishReason | None) -> str:
    """Raises `ModelUnavailable` for a choice that did not come to its end: an answer is never cut in silence."""
    if finish is None or finish == "cancelled":
        raise ModelUnavailable("the generation was cancelled before its end")
    return finish
