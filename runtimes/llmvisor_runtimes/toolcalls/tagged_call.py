"""Calls with a tag for each argument, as Qwen3-Coder writes them, and the older `<function=name>{…}</function>`.

<function=name>
<parameter=city>
Paris
</parameter>
</function>
"""

from __future__ import annotations

import json
from typing import Any

from llmvisor_runtimes import limits
from llmvisor_runtimes.toolcalls.json_call import read_arguments
from llmvisor_runtimes.toolcalls.parts import Found
from llmvisor_runtimes.toolcalls.reader import Malformed, Reader, Steps

MARK = "<function="
END = "</function>"
_PARAMETER = "<parameter="
_PARAMETER_END = "</parameter>"


def read(reader: Reader, found: Found) -> Steps[None]:
    """One call of a tool that there is, after its mark. Tagged arguments come out once they are all there."""
    name = (yield from reader.until((">",), limits.tool_name_chars_max)).strip()
    yield from reader.expect(">")
    if name not in found.names:
        raise Malformed
    yield from reader.skip_space()
    if (yield from reader.peek()) == "{":
        found.begin_call(name)
        reader.commit()
        yield from read_arguments(reader, found)
        yield from reader.close(END)
        reader.commit()
        return
    arguments: dict[str, Any] = {}
    while (yield from reader.accept(_PARAMETER)):
        key = (yield from reader.until((">",), limits.tool_name_chars_max)).strip()
        yield from reader.expect(">")
        written = yield from reader.until((_PARAMETER_END,), limits.tool_call_held_chars_max)
        yield from reader.expect(_PARAMETER_END)
        arguments[key] = _value(written, text=found.takes_text(name, key))
        yield from reader.skip_space()
    yield from reader.expect(END)
    found.begin_call(name)
    found.add_arguments(json.dumps(arguments, ensure_ascii=False))
    reader.commit()


def _value(written: str, *, text: bool) -> Any:  # noqa: ANN401 - any JSON value
    """A value by its schema: text as it stands, less the line breaks around it; anything else as JSON where it is."""
    written = written.removeprefix("\n").removesuffix("\n")
    if text:
        return written
    try:
        return json.loads(written)
    except (ValueError, RecursionError):
        return written
