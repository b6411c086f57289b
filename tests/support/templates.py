"""Chat templates rendered with short conversations, and what they are refused with."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.protocol import ChatMessage, ChatPrompt
from llmvisor_runtimes.template import ChatTemplate

HELLO = [ChatMessage("user", "Hello")]
TURNS = [ChatMessage("user", "Hi"), ChatMessage("assistant", "Yes? "), ChatMessage("user", "Bye")]


def render(
    source: str,
    messages: Sequence[ChatMessage] = HELLO,
    *,
    add_generation_prompt: bool = True,
    template_kwargs: bytes = b"{}",
) -> str:
    """What a template makes of a conversation, with `<s>` and `</s>` for its special tokens, on 20 November 2026."""
    template = ChatTemplate(
        source, bos_token="<s>", eos_token="</s>", now=lambda: datetime(2026, 11, 20, 12, 30, tzinfo=UTC)
    )
    return template.render(ChatPrompt(list(messages), add_generation_prompt, template_kwargs))


def refused(source: str, *args: Sequence[ChatMessage], **kwargs: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        render(source, *args, **kwargs)  # pyright: ignore[reportArgumentType]
    return caught.value
