"""One choice of a generation, as it was collected. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmvisor.errors import ModelUnavailable
from llmvisor_runtimes.protocol import FinishReason, TokenLogprob


@dataclass(slots=True)
class Choice:
    """One choice, whole."""

    texts: list[str] = field(default_factory=list[str])
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    tokens: int = 0
    finish: FinishReason | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)


def finish_reason(finish: FinishReason | None) -> str:
    """Raises `ModelUnavailable` for a choice that did not come to its end: an answer is never cut in silence."""
    if finish is None or finish == "cancelled":
        raise ModelUnavailable("the generation was cancelled before its end")
    return finish
