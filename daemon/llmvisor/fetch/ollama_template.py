"""Ollama's chat templates, which are Go's, as ones of Jinja that do the same. Pure.

As Ollama has it, a template that mentions `.Messages` writes a whole conversation. Any other writes one turn of
`.System`, `.Prompt` and `.Response`, is repeated for each, and the last time ends where the answer begins. Messages of
one role in a row are one message, and all system messages together are `.System`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from llmvisor.fetch.go_expression import DICTIONARIES, Scope, Value, expression, quoted
from llmvisor.fetch.go_template import Action, Branch, Node, Text, Untranslatable, fields_of, parse

_ROOT: Final = {
    "System": "go.system",
    "Messages": "go.messages",
    "Tools": "tools",
    "Think": "go.think",
    "IsThinkSet": "go.think_set",
    **dict.fromkeys(("Prompt", "Response", "Suffix", "Query", "Document", "Instruction", "ThinkLevel"), "''"),
}
_TURN: Final = {**_ROOT, "System": "system", "Messages": "[]", "Prompt": "prompt", "Response": "response"}
_PLACE = re.compile("BEFORE|DEFAULT|APART")
_VARIABLE = re.compile(r"\$[A-Za-z_]\w*", re.ASCII)

_PREPARED: Final = """\
{%- macro shown(value) -%}
{%- if value is string -%}{{- value -}}
{%- elif value is defined and value is not none -%}{{- value|tojson(separators=(',', ':')) -}}{%- endif -%}
{%- endmacro -%}
{%- set go = namespace(given=BEFORE, messages=[], system='', prompt='', response='') -%}
{%- set go.think_set = enable_thinking is defined -%}
{%- set go.think = enable_thinking if enable_thinking is defined else true -%}
{%- if DEFAULT and not (messages and messages[0]['role'] == 'system') -%}
{%- set go.given = [{'role': 'system', 'content': DEFAULT}] + go.given -%}
{%- endif -%}
{%- for message in go.given + messages -%}
{%- set content = message['content'] or '' -%}
{%- set before = go.messages[-1] if go.messages else none -%}
{%- if message['role'] == 'system' -%}
{%- set go.system = go.system + '\\n\\n' + content if go.system else content -%}
{%- endif -%}
{%- if before and before['role'] == message['role'] and message['role'] != 'tool'APART -%}
{%- set joined = dict(message, content=(before['content'] or '') + '\\n\\n' + content) -%}
{%- set go.messages = go.messages[:-1] + [joined] -%}
{%- else -%}
{%- set go.messages = go.messages + [message] -%}
{%- endif -%}
{%- endfor -%}
"""
_APART: Final = " and not before['tool_calls']"
"""Only where the template writes calls: by this name the runtimes tell whether it does, and write them where not."""
_TURNS: Final = """\
{%- set go.system = '' -%}
{%- for message in go.messages -%}
{%- set content = message['content'] or '' -%}
{%- if message['role'] == 'system' -%}
{%- if go.prompt or go.response -%}
{{- turn(go.system, go.prompt, go.response) -}}
{%- set go.prompt = '' -%}{%- set go.response = '' -%}
{%- endif -%}
{%- set go.system = content -%}
{%- elif message['role'] == 'user' -%}
{%- if go.response -%}
{{- turn(go.system, go.prompt, go.response) -}}
{%- set go.system = '' -%}{%- set go.response = '' -%}
{%- endif -%}
{%- set go.prompt = content -%}
{%- elif message['role'] == 'assistant' -%}
{%- set go.response = content -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt or not go.response -%}
{{- last_turn(go.system, go.prompt, go.response) -}}
{%- else -%}
{{- turn(go.system, go.prompt, go.response) -}}
{%- endif -%}
"""


def to_jinja(source: str, *, system: str = "", messages: Sequence[Mapping[str, str]] = ()) -> str:
    """The template in Jinja. `system` stands where a conversation has no system message, `messages` before each one.

    Raises `Untranslatable` for what does not mean the same there.
    """
    nodes = parse(source.replace("\r\n", "\n"))
    fields = fields_of(nodes)
    before = ", ".join(f"{{'role': {quoted(one['role'])}, 'content': {quoted(one['content'])}}}" for one in messages)
    filled = {
        "BEFORE": f"[{before}]",
        "DEFAULT": quoted(system),
        "APART": _APART if "ToolCalls" in fields else "",
    }
    # In one go: what is filled in may hold such a word itself.
    head = _PLACE.sub(lambda place: filled[place[0]], _PREPARED)
    if "Messages" in fields:
        return head + _Writer(_ROOT).written(nodes)
    if not fields & {"Prompt", "Response"}:
        raise Untranslatable("it mentions neither .Messages nor .Prompt")
    if "Response" not in fields:
        nodes = (*nodes, Action((".Response",)))
    return "".join(
        (head, _macro("turn", nodes), _macro("last_turn", _until_response(nodes)[0]), _TURNS),
    )


def _macro(name: str, nodes: Sequence[Node]) -> str:
    written = _Writer(_TURN).written(nodes)
    return f"{{%- macro {name}(system, prompt, response) -%}}\n{written}{{%- endmacro -%}}\n"


def _until_response(nodes: Sequence[Node]) -> tuple[tuple[Node, ...], bool]:
    """What comes before the end of `.Response`, the first time that it is written, and whether it is."""
    kept: list[Node] = []
    for node in nodes:
        if isinstance(node, Branch):
            body, found = _until_response(node.body)
            otherwise, found_there = ((), True) if found else _until_response(node.otherwise)
            kept.append(node._replace(body=body, otherwise=otherwise))
            if found or found_there:
                return tuple(kept), True
        else:
            kept.append(node)
            if isinstance(node, Action) and any("Response" in word.split(".") for word in node.words):
                return tuple(kept), True
    return tuple(kept), False


class _Writer:
    """Writes nodes as Jinja, without any space that is not the template's own."""

    def __init__(self, root: Mapping[str, str]) -> None:
        self._lines: list[str] = []
        self._root = root
        self._loops = 0
        self._declared = 0

    def written(self, nodes: Sequence[Node]) -> str:
        self._write(nodes, Scope(self._root, None, {}))
        return "".join(f"{line}\n" for line in self._lines)

    def _write(self, nodes: Sequence[Node], scope: Scope) -> Scope:
        for node in nodes:
            if isinstance(node, Text):
                self._lines.append(f"{{{{- {quoted(node.text)} -}}}}")
            elif isinstance(node, Action) and node.words in {("break",), ("continue",)}:
                self._tag(node.words[0])
            elif isinstance(node, Action):
                scope = self._action(node.words, scope)
            else:
                self._branch(node, scope)
        return scope

    def _action(self, words: Sequence[str], scope: Scope) -> Scope:
        if len(words) > 1 and words[1] in {":=", "="}:
            return self._assigned(words[0], expression(words[2:], scope), scope, new=words[1] == ":=")
        value = expression(words, scope)
        self._lines.append(f"{{{{- {value.code if value.text else f'shown({value.code})'} -}}}}")
        return scope

    def _assigned(self, name: str, value: Value, scope: Scope, *, new: bool) -> Scope:
        """A variable is an attribute, so that a loop can change what stands outside of it.

        A `new` one hides another of its name up to the end of its block, and leaves that one as it is.
        """
        if not _VARIABLE.fullmatch(name) or not (new or name in scope.variables):
            raise Untranslatable(f"{name} is no variable")
        if new:
            self._declared += 1
        code = f"go.v{self._declared}_{name[1:]}" if new else scope.variables[name].code
        if not code.startswith("go."):
            raise Untranslatable(f"{name} is a loop's, and is changed")
        held = Value(code, value.field)  # of what kind it is may change
        self._tag(f"set {held.code} = {value.code}")
        return scope._replace(variables={**scope.variables, name: held})

    def _branch(self, node: Branch, scope: Scope) -> None:
        if node.kind == "range":
            self._range(node, scope)
            return
        words = node.words
        inner = scope
        if len(words) > 1 and words[1] == ":=":
            inner = self._assigned(words[0], expression(words[2:], scope), scope, new=True)
            words = words[:1]
        condition = expression(words, inner)
        self._tag(f"if {condition.code}")
        self._write(node.body, inner._replace(dot=condition) if node.kind == "with" else inner)
        self._otherwise(node, scope)
        self._tag("endif")

    def _range(self, node: Branch, scope: Scope) -> None:
        names, words = _loop_variables(node.words)
        over = expression(words, scope)
        self._loops += 1
        item, key = f"item{self._loops}", f"key{self._loops}"
        if over.field in DICTIONARIES:
            self._tag(f"for {key}, {item} in ({over.code} or {{}}).items()")
        else:
            self._tag(f"for {item} in {over.code} or []")
            self._tag(f"set {key} = loop.index0")
        # With one variable it is the element.
        values = (Value(key), Value(item)) if len(names) == 2 else (Value(item),)
        variables = {**scope.variables, **dict(zip(names, values, strict=False))}
        self._write(node.body, Scope(scope.root, Value(item), variables))
        self._otherwise(node, scope)
        self._tag("endfor")

    def _otherwise(self, node: Branch, scope: Scope) -> None:
        if node.otherwise:
            self._tag("else")
            self._write(node.otherwise, scope)

    def _tag(self, code: str) -> None:
        self._lines.append(f"{{%- {code} -%}}")


def _loop_variables(words: Sequence[str]) -> tuple[tuple[str, ...], Sequence[str]]:
    """The variables of a `range`, and what it goes through."""
    if words[1:2] == (":=",):
        return (words[0],), words[2:]
    if words[1:2] == (",",) and words[3:4] == (":=",):
        return (words[0], words[2]), words[4:]
    return (), words
