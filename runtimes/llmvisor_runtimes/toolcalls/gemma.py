"""Gemma: a fenced block of Python (`tool_code`) or of JSON."""

from __future__ import annotations

import ast
import json

from llmvisor_runtimes import limits
from llmvisor_runtimes.toolcalls import json_call
from llmvisor_runtimes.toolcalls.parts import Found
from llmvisor_runtimes.toolcalls.reader import Malformed, Reader, Steps

FENCE = "```"


def read(reader: Reader, found: Found) -> Steps[None]:
    """Python calls with keyword arguments, each on a line, up to the fence. They come out once they are whole."""
    source = yield from reader.until((FENCE,), limits.tool_call_held_chars_max)
    calls = [(name, arguments) for name, arguments in _calls(source) if name in found.names]
    if not calls:
        raise Malformed
    yield from reader.expect(FENCE)
    for name, arguments in calls:
        found.begin_call(name)
        found.add_arguments(arguments)
    reader.commit()


def read_fenced_json(reader: Reader, found: Found) -> Steps[None]:
    """JSON calls of tools that there are, up to the fence."""
    yield from json_call.read_calls(reader, found, known=True)
    yield from reader.close(FENCE)
    reader.commit()


def _calls(source: str) -> list[tuple[str, str]]:
    """Names and arguments as JSON. Raises `Malformed` for what is anything but calls with literal arguments."""
    try:
        body = ast.parse(source.strip()).body
        return [_call(statement.value) for statement in body if isinstance(statement, ast.Expr | ast.Assign)]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise Malformed from error


def _call(value: ast.expr) -> tuple[str, str]:
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "print" and value.args:
        value = value.args[0]
    if not isinstance(value, ast.Call) or value.args or any(keyword.arg is None for keyword in value.keywords):
        raise Malformed
    arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in value.keywords}
    return ast.unparse(value.func), json.dumps(arguments, ensure_ascii=False)
