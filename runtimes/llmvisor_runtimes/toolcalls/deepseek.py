"""DeepSeek: `<｜tool▁calls▁begin｜>` and calls that name the function first.

V3 and R1 write `function<｜tool▁sep｜>name`, a fenced JSON object after it; V3.1 writes `name<｜tool▁sep｜>{…}`.
"""

from __future__ import annotations

from llmvisor_runtimes import limits
from llmvisor_runtimes.toolcalls import json_call
from llmvisor_runtimes.toolcalls.parts import Found
from llmvisor_runtimes.toolcalls.reader import Malformed, Reader, Steps

CALLS_BEGIN = "<｜tool▁calls▁begin｜>"
CALLS_END = "<｜tool▁calls▁end｜>"
CALL_BEGIN = "<｜tool▁call▁begin｜>"
CALL_END = "<｜tool▁call▁end｜>"
SEPARATOR = "<｜tool▁sep｜>"
FURTHER_MARKS = (CALLS_END, CALL_END, SEPARATOR)


def read_calls(reader: Reader, found: Found) -> Steps[None]:
    """All calls of a turn."""
    yield from reader.skip_space()
    yield from reader.expect(CALL_BEGIN)
    yield from read_call(reader, found)


def read_call(reader: Reader, found: Found) -> Steps[None]:
    """One call, and the end of all of them where it follows."""
    first = (yield from reader.until((SEPARATOR,), limits.tool_name_chars_max)).strip()
    yield from reader.expect(SEPARATOR)
    yield from reader.skip_space()
    name, fence = first, ""
    if (yield from reader.peek()) != "{":
        name = (yield from reader.until(("\n", "{"), limits.tool_name_chars_max)).strip()
        yield from reader.skip_space()
        fence = yield from reader.accept("```json", "```")
        yield from reader.skip_space()
    if not name or (yield from reader.peek()) != "{":
        raise Malformed
    found.begin_call(name)
    reader.commit()
    yield from json_call.read_arguments(reader, found)
    if fence:
        yield from reader.close("```")
    yield from reader.close(CALL_END)
    yield from reader.close(CALLS_END)
    reader.commit()
