"""Texts with tool calls as the families really write them, each with what has to come out of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

PARIS = '{"city": "Paris"}'
NESTED = '{"a": {"b": [1, {"c": "}{][\\"\\\\"}], "d": "</tool_call> \\u00e9 é ｜"}, "e": -1.5e3, "f": null}'


class Sample(NamedTuple):
    family: str
    written: str
    text: str = ""
    calls: Sequence[tuple[str, str]] = ()
    reasoning: str = ""
    opening: str = ""


def hermes(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def deepseek(name: str, arguments: str) -> str:
    return f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```<｜tool▁call▁end｜>"


ANALYSIS = "<|channel|>analysis<|message|>The user asks.<|end|><|start|>assistant"
SAMPLES = {
    # -- hermes
    "hermes": Sample("hermes", hermes("get_weather", PARIS), "", [("get_weather", PARIS)]),
    "hermes nested": Sample("hermes", hermes("get_weather", NESTED), "", [("get_weather", NESTED)]),
    "hermes parallel": Sample(
        "hermes",
        hermes("get_weather", PARIS) + "\n" + hermes("now", "{}"),
        "",
        [("get_weather", PARIS), ("now", "{}")],
    ),
    "hermes text before": Sample(
        "hermes", "I'll look.\n\n" + hermes("now", "{}"), "I'll look.", [("now", "{}")]
    ),
    "hermes text after": Sample("hermes", hermes("now", "{}") + "\nThere.", "There.", [("now", "{}")]),
    "hermes arguments first": Sample(
        "hermes", '<tool_call>{"arguments": {"a": 1}, "name": "now"}</tool_call>', "", [("now", '{"a": 1}')]
    ),
    "hermes on one line": Sample(
        "hermes", '<tool_call>{"name":"now","arguments":{"a":1}}</tool_call>', "", [("now", '{"a":1}')]
    ),
    "hermes escaped name": Sample("hermes", hermes("n\\u006fw", "{}"), "", [("now", "{}")]),
    "hermes more members": Sample(
        "hermes",
        '<tool_call>{"id": 7, "name": "now", "arguments": {}, "x": [1, "}"]}</tool_call>',
        "",
        [("now", "{}")],
    ),
    "hermes without arguments": Sample("hermes", '<tool_call>\n{"name": "now"}\n</tool_call>', "", [("now", "{}")]),
    "hermes null arguments": Sample("hermes", hermes("now", "null"), "", [("now", "{}")]),
    "hermes arguments as text": Sample("hermes", hermes("now", '"{\\"a\\": 1}"'), "", [("now", '{"a": 1}')]),
    "hermes OpenAI's form": Sample(
        "hermes",
        '<tool_call>{"type": "function", "function": {"name": "now", "arguments": {"a": 1}}}</tool_call>',
        "",
        [("now", '{"a": 1}')],
    ),
    "hermes unknown tool": Sample("hermes", hermes("nope", "{}"), "", [("nope", "{}")]),
    "hermes without its end": Sample(
        "hermes", '<tool_call>\n{"name": "now", "arguments": {"a": 1}}', "", [("now", '{"a": 1}')]
    ),
    "hermes cut in its end": Sample(
        "hermes", '<tool_call>\n{"name": "now", "arguments": {"a": 1}}\n</tool', "", [("now", '{"a": 1}')]
    ),
    "hermes cut in arguments": Sample(
        "hermes", '<tool_call>\n{"name": "now", "arguments": {"a": "x\\', "", [("now", '{"a": "x\\')]
    ),
    "hermes cut in name": Sample("hermes", 'a <tool_call>\n{"name": "no', 'a <tool_call>\n{"name": "no'),
    "hermes cut in mark": Sample("hermes", "a <tool_ca", "a <tool_ca"),
    "hermes malformed": Sample(
        "hermes", "a <tool_call>\n{name: now}\n</tool_call> b ", "a <tool_call>\n{name: now}\n</tool_call> b "
    ),
    "hermes arguments no object": Sample("hermes", hermes("now", "[1]"), hermes("now", "[1]")),
    "hermes empty name": Sample("hermes", hermes("", "{}"), hermes("", "{}")),
    "hermes malformed, then a call": Sample(
        "hermes", "<tool_call>oops</tool_call>" + hermes("now", "{}"), "<tool_call>oops</tool_call>", [("now", "{}")]
    ),
    "hermes without marks": Sample(
        "hermes", f'{{"name": "get_weather", "arguments": {PARIS}}}', "", [("get_weather", PARIS)]
    ),
    "hermes JSON that is no call": Sample("hermes", '{"name": "Ada", "age": 36}', '{"name": "Ada", "age": 36}'),
    "hermes XML text": Sample("hermes", "if a < b: <b>x</b>\n  <tool>", "if a < b: <b>x</b>\n  <tool>"),
    "hermes text alone": Sample("hermes", "\n Hello \n world \n", "\n Hello \n world \n"),
    "hermes tagged": Sample(
        "hermes",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\n12\n\n</parameter>\n"
        "<parameter=days>\n[1, 2]\n</parameter>\n"
        "<parameter=unit>\nc {\n</parameter>\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=now>\n</function>\n</tool_call>",
        "",
        [("get_weather", '{"city": "12\\n", "days": [1, 2], "unit": "c {"}'), ("now", "{}")],
    ),
    "hermes tagged alone": Sample(
        "hermes", "I look.\n<function=now>\n</function>", "I look.", [("now", "{}")]
    ),
    "hermes tagged cut": Sample(
        "hermes", "<function=now>\n<parameter=a>\n1", "<function=now>\n<parameter=a>\n1"
    ),
    "hermes tagged unknown": Sample("hermes", "<function=nope></function>", "<function=nope></function>"),
    "llama3 tagged": Sample("llama3", '<function=now>{"a": 1}</function>', "", [("now", '{"a": 1}')]),
    # -- reasoning
    "think": Sample("hermes:think", "<think>\nHm, 1 < 2.\n</think>\n\nYes.", "Yes.", [], "Hm, 1 < 2."),
    "think and call": Sample(
        "hermes:think", "<think>a</think>\n" + hermes("now", "{}"), "", [("now", "{}")], "a"
    ),
    "think begun by the template": Sample(
        "hermes:think", "Hm.\n</think>\n\nYes.", "Yes.", [], "Hm.", "<|im_start|>assistant\n<think>\n"
    ),
    "think begun twice": Sample(
        "hermes:think", "<think>\nHm.</think>Yes.", "Yes.", [], "Hm.", "<|im_start|>assistant\n<think>\n"
    ),
    "think cut": Sample("hermes:think", "<think>\nHm </thi", "", [], "Hm </thi"),
    "think later is text": Sample("hermes:think", "Use <think> so.</think>", "Use <think> so.</think>"),
    "think told away": Sample("hermes:think", "Yes.", "Yes.", [], "", "<think>\n\n</think>\n\n"),
    "think call mentioned": Sample(
        "hermes:think", "<think>I write <tool_call>{}.</think>No.", "No.", [], "I write <tool_call>{}."
    ),
    "cohere thoughts": Sample(
        "cohere:cohere",
        "<|START_THINKING|>Hm.<|END_THINKING|><|START_ACTION|>[\n"
        f'    {{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {PARIS}}},\n'
        '    {"tool_call_id": "1", "tool_name": "now", "parameters": {}}\n]<|END_ACTION|>',
        "",
        [("get_weather", PARIS), ("now", "{}")],
        "Hm.",
    ),
    # -- llama 3
    "llama3": Sample("llama3", f'{{"name": "get_weather", "parameters": {PARIS}}}', "", [("get_weather", PARIS)]),
    "llama3 typed": Sample(
        "llama3", '{"type": "function", "name": "now", "parameters": {"a": "1"}}', "", [("now", '{"a": "1"}')]
    ),
    "llama3 python tag": Sample(
        "llama3", f'<|python_tag|>{{"name": "get_weather", "parameters": {NESTED}}}', "", [("get_weather", NESTED)]
    ),
    "llama3 several": Sample(
        "llama3",
        f'<|python_tag|>{{"name": "get_weather", "parameters": {PARIS}}}; {{"name": "now", "parameters": {{}}}}',
        "",
        [("get_weather", PARIS), ("now", "{}")],
    ),
    "llama3 several lines": Sample(
        "llama3",
        '{"name": "now", "parameters": {}}\n{"name": "now", "parameters": {"a": 1}}',
        "",
        [("now", "{}"), ("now", '{"a": 1}')],
    ),
    "llama3 unknown tool": Sample(
        "llama3", '{"name": "Ada", "parameters": {"x": 1}}', '{"name": "Ada", "parameters": {"x": 1}}'
    ),
    "llama3 code": Sample("llama3", "<|python_tag|>print(1)", "<|python_tag|>print(1)"),
    "llama3 JSON answer": Sample("llama3", '{"answer": [1, 2]} is it', '{"answer": [1, 2]} is it'),
    # -- mistral
    "mistral list": Sample(
        "mistral", f'[TOOL_CALLS][{{"name": "get_weather", "arguments": {PARIS}}}]', "", [("get_weather", PARIS)]
    ),
    "mistral several": Sample(
        "mistral",
        f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {NESTED}}}, {{"name": "now", "arguments": {{}}}}]',
        "",
        [("get_weather", NESTED), ("now", "{}")],
    ),
    "mistral cut": Sample(
        "mistral", '[TOOL_CALLS][{"name": "now", "arguments": {"a": 1}}, {"na', ', {"na', [("now", '{"a": 1}')]
    ),
    "mistral args": Sample("mistral-args", f"[TOOL_CALLS]get_weather[ARGS]{PARIS}", "", [("get_weather", PARIS)]),
    "mistral args several": Sample(
        "mistral-args",
        f"Let me see.[TOOL_CALLS]get_weather[ARGS]{PARIS}[TOOL_CALLS]now[ARGS]{{}}",
        "Let me see.",
        [("get_weather", PARIS), ("now", "{}")],
    ),
    "mistral call id": Sample("mistral-args", "[TOOL_CALLS]now[CALL_ID]abc123def[ARGS]{}", "", [("now", "{}")]),
    "mistral without [ARGS]": Sample("mistral-args", '[TOOL_CALLS]now{"a": 1}', "", [("now", '{"a": 1}')]),
    "mistral thoughts": Sample(
        "mistral-args:mistral", "[THINK]Hm.[/THINK][TOOL_CALLS]now[ARGS]{}", "", [("now", "{}")], "Hm."
    ),
    "mistral malformed": Sample("mistral", "[TOOL_CALLS] nothing", "[TOOL_CALLS] nothing"),
    # -- deepseek
    "deepseek": Sample(
        "deepseek-fenced",
        "<｜tool▁calls▁begin｜>"
        + deepseek("get_weather", PARIS)
        + "\n"
        + deepseek("now", NESTED)
        + "<｜tool▁calls▁end｜>",
        "",
        [("get_weather", PARIS), ("now", NESTED)],
    ),
    "deepseek 3.1": Sample(
        "deepseek",
        "Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
        f"{PARIS}<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{{}}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "Let me see.",
        [("get_weather", PARIS), ("now", "{}")],
    ),
    "deepseek thoughts": Sample(
        "deepseek-fenced:think",
        "Hm.</think>\n<｜tool▁calls▁begin｜>" + deepseek("now", "{}"),
        "",
        [("now", "{}")],
        "Hm.",
        "<｜Assistant｜><think>\n",
    ),
    "deepseek cut": Sample(
        "deepseek", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{", "", [("now", "{")]
    ),
    "deepseek malformed": Sample(
        "deepseek", "<｜tool▁calls▁begin｜>none<｜tool▁calls▁end｜>", "<｜tool▁calls▁begin｜>none<｜tool▁calls▁end｜>"
    ),
    # -- phi, granite
    "phi": Sample(
        "phi",
        f'<|tool_call|>[{{"name": "get_weather", "arguments": {PARIS}}}]<|/tool_call|>',
        "",
        [("get_weather", PARIS)],
    ),
    "granite": Sample("granite", '<|tool_call|>[{"name": "now", "arguments": {}}]', "", [("now", "{}")]),
    # -- gemma
    "gemma python": Sample(
        "gemma",
        "```tool_code\nget_weather(city='Paris', days=[1, None], deep={'a': True})\n```",
        "",
        [("get_weather", '{"city": "Paris", "days": [1, null], "deep": {"a": true}}')],
    ),
    "gemma printed": Sample(
        "gemma", "Sure:\n```tool_code\nprint(now())\nfiles.read(path=\"a\")\n```\n", "Sure:",
        [("now", "{}"), ("files.read", '{"path": "a"}')],
    ),
    "gemma code": Sample("gemma", "```tool_code\nimport os\n```", "```tool_code\nimport os\n```"),
    "gemma JSON": Sample(
        "gemma",
        f'```json\n{{"name": "get_weather", "parameters": {PARIS}}}\n```',
        "",
        [("get_weather", PARIS)],
    ),
    "gemma JSON answer": Sample("gemma", '```json\n{"a": 1}\n```', '```json\n{"a": 1}\n```'),
    # -- harmony
    "harmony call": Sample(
        "harmony",
        ANALYSIS + f"<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{PARIS}<|call|>",
        "",
        [("get_weather", PARIS)],
        "The user asks.",
        "<|start|>assistant",
    ),
    "harmony recipient in role": Sample(
        "harmony",
        ANALYSIS + f" to=functions.get_weather<|channel|>commentary json<|message|>{NESTED}",
        "",
        [("get_weather", NESTED)],
        "The user asks.",
        "<|start|>assistant",
    ),
    "harmony final": Sample(
        "harmony", ANALYSIS + "<|channel|>final<|message|>Hello!<|return|>", "Hello!", [], "The user asks."
    ),
    "harmony preamble": Sample(
        "harmony",
        "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.now"
        " <|constrain|>json<|message|>{}<|call|>",
        "I look.",
        [("now", "{}")],
    ),
    "harmony two texts": Sample(
        "harmony",
        "<|channel|>commentary<|message|>I look. <|end|><|start|>assistant<|channel|>final<|message|>\nHi<|return|>",
        "I look.\n\nHi",
    ),
    "harmony begun": Sample(
        "harmony", "Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hi", "Hi", [], "Hm.",
        "<|start|>assistant<|channel|>analysis<|message|>",
    ),
    "harmony begun header": Sample(
        "harmony", "final<|message|>Hi", "Hi", [], "", "<|start|>assistant<|channel|>"
    ),
    "harmony plain": Sample("harmony", "Just text < so.", "Just text < so."),
    "harmony cut header": Sample("harmony", ANALYSIS + "<|channel|>fin", "", [], "The user asks."),
    "harmony cut arguments": Sample(
        "harmony", "<|channel|>commentary to=functions.now<|message|>{\"a", "", [("now", '{"a')]
    ),
    # -- json
    "json": Sample("json", f'{{"name": "get_weather", "arguments": {PARIS}}}', "", [("get_weather", PARIS)]),
    "json list": Sample(
        "json",
        f'[{{"name": "get_weather", "arguments": {PARIS}}}, {{"name": "now", "arguments": {{}}}}]',
        "",
        [("get_weather", PARIS), ("now", "{}")],
    ),
    "json fenced": Sample("json", '```json\n{"name": "now", "arguments": {}}\n```', "", [("now", "{}")]),
    "json text": Sample("json", "[1, 2] and {3}", "[1, 2] and {3}"),
}  # fmt: skip
