"""Chat templates of models that see: content as a text or as parts, and markers where images stand."""

from __future__ import annotations

import pytest

from llmvisor_runtimes.protocol import MEDIA_MARKER, ChatMessage, ChatPrompt, Tool
from llmvisor_runtimes.template import ChatTemplate

SMOLVLM = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
QWEN2_VL = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}<|image_pad|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRICT = (
    "{% for m in messages %}{% if m.content is string %}{{ raise_exception('parts, please') }}{% endif %}"
    "[{{ m.role }}]{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"
    "{% endfor %}"
)
LOOK = f"look at {MEDIA_MARKER} well"


def rendered(source: str, prompt: ChatPrompt) -> str:
    return ChatTemplate(source, bos_token="<s>", eos_token="</s>").render(prompt)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (SMOLVLM, f"<|im_start|>User: {LOOK}<end_of_utterance>\nAssistant:"),
        (QWEN2_VL, f"<|im_start|>user\n{LOOK}<|im_end|>\n<|im_start|>assistant\n"),
        (STRICT, f"[user]{LOOK}"),
    ],
)
def test_marker_stands_where_the_image_stood(source: str, text: str) -> None:
    """Whether the template reads parts alone, texts as well, or refuses texts."""
    assert rendered(source, ChatPrompt([ChatMessage("user", LOOK, media=[b"png"])])) == text


def test_template_of_parts_gets_every_turn_as_parts() -> None:
    """System, earlier answers and all: no text is lost."""
    turns = [ChatMessage("system", "be brief"), ChatMessage("user", "hi"), ChatMessage("assistant", "yes")]
    text = rendered(SMOLVLM, ChatPrompt([*turns, ChatMessage("user", "why?")]))
    assert [part.strip() for part in text.split("<end_of_utterance>")] == [
        "<|im_start|>System: be brief", "User: hi", "Assistant: yes", "User: why?", "Assistant:",
    ]  # fmt: skip


def test_template_of_parts_that_knows_no_tools_is_told_of_them() -> None:
    """In the system message, as any other."""
    text = rendered(SMOLVLM, ChatPrompt([ChatMessage("user", "hi")], tools=[Tool("weather")]))
    assert "weather" in text
    assert "User: hi" in text


def test_template_that_shows_no_content_at_all_gets_texts() -> None:
    """Parts are no better there, and a text is what most others read."""
    source = "{% for m in messages %}{{ m.content is string }} {{ m['type'] }}{% endfor %}"
    assert rendered(source, ChatPrompt([ChatMessage("user", "hi")])) == "True "
