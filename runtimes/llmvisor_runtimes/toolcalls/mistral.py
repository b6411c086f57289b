"""Mistral: `[TOOL_CALLS][{"name": …, "arguments": …}]`, and since 2025 `[TOOL_CALLS]name[ARGS]{…}` for each call."""

from __future__ import annotations

from llmvisor_runtimes import limits
from llmvisor_runtimes.toolcalls import json_call
from llmvisor_runtimes.toolcalls.parts import Found
from llmvisor_runtimes.toolcalls.reader import Malformed, Reader, Steps

MARK = "[TOOL_CALLS]"
FURTHER_MARKS = ("[ARGS]", "[CALL_ID]")


def read(reader: Reader, found: Found) -> Steps[None]:
    """The calls after a mark."""
    yield from reader.skip_space()
    if (yield from reader.peek()) in ("[", "{"):
        yield from json_call.read_calls(reader, found, known=False)
        return
    name = (yield from reader.until(("[ARGS]", "[CALL_ID]", "{"), limits.tool_name_chars_max)).strip()
    if (yield from reader.accept("[CALL_ID]")):
        yield from reader.until(("[ARGS]", "{"), limits.tool_name_chars_max)
    yield from reader.accept("[ARGS]")
    yield from reader.skip_space()
    if not name or (yield from reader.peek()) != "{":
        raise Malformed
    found.begin_call(name)
    reader.commit()
    yield from json_call.read_arguments(reader, found)
