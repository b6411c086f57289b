"""A conversation held in memory, with its settings. Pure: commands change it, and it says what to ask of the daemon."""

from __future__ import annotations

import msgspec

from llmctl.completion import ChatRequest, Message
from llmctl.errors import CtlError

SETTINGS: dict[str, tuple[type[int | float], float, float]] = {
    "temperature": (float, 0, 2),
    "top_p": (float, 0, 1),
    "top_k": (int, 0, 1_000_000),
    "min_p": (float, 0, 1),
    "repeat_penalty": (float, 0, 10),
    "max_tokens": (int, 1, 10_000_000),
    "seed": (int, 0, 2**63 - 1),
}
"""What `/set` takes: type, lowest and highest value (those of the HTTP API)."""


class Conversation:
    """Messages, a system message that always goes first, and settings."""

    def __init__(self, model: str, *, system: str | None = None) -> None:
        self.model = model
        self.system = system
        self.messages: list[Message] = []
        self.settings: dict[str, float] = {}

    def request(self, prompt: str) -> ChatRequest:
        """What to ask with `prompt` as the next message; the conversation itself stays as it is."""
        head = [Message("system", self.system)] if self.system else []
        values = {"model": self.model, "messages": [*head, *self.messages, Message("user", prompt)], **self.settings}
        return msgspec.convert(values, ChatRequest, from_attributes=True)

    def add(self, prompt: str, answer: str) -> None:
        """Keep a turn. An answer that was stopped counts as far as it came."""
        self.messages += [Message("user", prompt), Message("assistant", answer)]

    def clear(self) -> None:
        self.messages.clear()

    def set(self, name: str, text: str) -> None:
        """Set a value; `default` takes it back. Raises `CtlError` for an unknown name or a value out of range."""
        if name not in SETTINGS:
            raise CtlError(f"no setting {name!r}; there are: {', '.join(SETTINGS)}")
        if text == "default":
            self.settings.pop(name, None)
            return
        kind, lowest, highest = SETTINGS[name]
        try:
            value = kind(text)
        except ValueError:
            raise CtlError(f"{name} takes a number, or `default`") from None
        if not lowest <= value <= highest:
            raise CtlError(f"{name} goes from {lowest:g} to {highest:g}")
        self.settings[name] = value

    def saved(self, *, markdown: bool) -> str:
        """The whole as Markdown, or as JSON with OpenAI's `messages`."""
        head = [Message("system", self.system)] if self.system else []
        messages = [*head, *self.messages]
        if markdown:
            parts = [f"# Conversation with {self.model}"]
            parts += [f"**{message.role}**\n\n{message.content}" for message in messages]
            return "\n\n".join(parts) + "\n"
        body = msgspec.json.encode(ChatRequest(model=self.model, messages=messages))
        return msgspec.json.format(body, indent=2).decode() + "\n"
