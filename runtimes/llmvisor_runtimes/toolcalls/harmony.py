"""Harmony, the format of gpt-oss: messages on channels, calls addressed to functions.

    <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…
    <|channel|>commentary to=functions.name <|constrain|>json<|message|>{…}<|call|>

The source is OpenAI's guide to its "harmony" response format. `<|call|>` and `<|return|>` end a generation.
"""

from __future__ import annotations

import re

from llmvisor_runtimes import limits
from llmvisor_runtimes.toolcalls import json_call
from llmvisor_runtimes.toolcalls.parts import Found
from llmvisor_runtimes.toolcalls.reader import Malformed, Reader, Steps

START = "<|start|>"
CHANNEL = "<|channel|>"
MESSAGE = "<|message|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>", START)
MARKS = (*ENDS, CHANNEL, MESSAGE, "<|constrain|>")
ANALYSIS = f"{CHANNEL}analysis{MESSAGE}"
NEXT_MESSAGE = f"<|end|>{START}assistant"
_RECIPIENT = re.compile(r"to=functions\.([\w.-]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")


def read(reader: Reader, found: Found, opening: str, *, calls: bool) -> Steps[None]:
    """A whole text, which goes on where the prompt's last header stands."""
    header = opening.rpartition(START)[2] if START in opening else ""
    if MESSAGE in header:
        yield from _read_body(reader, found, header, calls=calls)
        header = ""
    while (yield from reader.peek()):
        commits = reader.commits
        try:
            header = yield from _read_header(reader, header)
            yield from _read_body(reader, found, header, calls=calls)
        except Malformed:
            reader.at = 0
            if commits == reader.commits:
                yield from _read_stray(reader, found)
        header = ""


def _read_header(reader: Reader, begun: str) -> Steps[str]:
    """What stands before a message. A header that is cut at the end of the text is left out."""
    if CHANNEL not in begun:
        yield from reader.skip_space()
        yield from reader.expect(START, CHANNEL, MESSAGE, "to=", "<|constrain|>")
        reader.at = 0
    try:
        header = yield from reader.until((MESSAGE,), limits.tool_name_chars_max)
        yield from reader.expect(MESSAGE)
    except Malformed:
        if not reader.ended or len(reader.text) > limits.tool_name_chars_max:
            raise
        header = ""
        reader.at = len(reader.text)
    reader.commit()
    return begun + header


def _read_body(reader: Reader, found: Found, header: str, *, calls: bool) -> Steps[None]:
    """A message up to its end."""
    recipient = _RECIPIENT.search(header)
    if recipient and calls:
        yield from reader.skip_space()
        if (yield from reader.peek()) == "{":
            found.begin_call(recipient.group(1))
            reader.commit()
            yield from json_call.read_arguments(reader, found)
    channel = _CHANNEL.search(header)
    found.begin_part()
    if channel and channel.group(1) == "analysis" and not recipient:
        mark = yield from reader.give_until(ENDS, found.add_reasoning)
    else:
        found.begin_paragraph()
        mark = yield from reader.give_until(ENDS, found.add_text)
    found.begin_part()
    if mark != START:
        reader.at = len(mark)
        reader.commit()


def _read_stray(reader: Reader, found: Found) -> Steps[None]:
    """Text without a header, up to where the next may begin."""
    mark = yield from reader.accept(START, CHANNEL)
    found.add_text(mark)
    reader.commit()
    yield from reader.give_until((START, CHANNEL), found.add_text)
