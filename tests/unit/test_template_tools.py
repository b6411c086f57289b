"""Chat templates and tools: what the families' templates are given, and what stands in for templates without tools.

The templates are short, but take their variables apart as the real ones of their families do.
"""

# ruff: noqa: E501 - templates stand as they are
from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.protocol import ChatMessage, ChatPrompt, Tool, ToolCall
from llmvisor_runtimes.template import ChatTemplate
from llmvisor_runtimes.toolcalls import family_of, make_parser

QWEN = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] }}{%- else %}{{- 'You are Qwen.' }}{%- endif %}
    {{- "\\n\\n# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools>\\n\\nreturn a json object within <tool_call></tool_call> XML tags<|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}{{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' }}{{- message.content }}{{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

QWEN_3 = """\
{%- if tools %}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}{{- '<tool_call>\\n' }}{%- endif %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in message.content %}
            {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content }}
        {%- for tool_call in message.tool_calls %}
            {{- '<tool_call>' }}
            {%- if tool_call.function.arguments is string %}{{- tool_call.function.arguments }}{%- else %}{{- tool_call.function.arguments | tojson }}{%- endif %}
        {%- endfor %}
    {%- else %}{{- message.role + ':' + message.content }}{%- endif %}
{%- endfor %}"""

LLAMA_3_1 = """\
{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if builtin_tools is defined or tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "<|eot_id|>" }}
{%- if tools is not none %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\n' }}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{- raise_exception("This model only supports single tool-calls at once!") }}{%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {%- if builtin_tools is defined and tool_call.name in builtin_tools %}
            {{- "<|python_tag|>" + tool_call.name + ".call(" }}
        {%- else %}
            {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
            {{- '{"name": "' + tool_call.name + '", ' }}{{- '"parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}" }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}{%- else %}{{- message.content }}{%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}"""

MISTRAL = """\
{%- set user_messages = messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}{{- '"' + key + '": "' + val + '"' }}{%- else %}{{- '"' + key + '": ' + val|tojson }}{%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}{%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {{- "[INST] " + message["content"] + "[/INST]" }}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- elif message["role"] == "tool_results" or message["role"] == "tool" %}
        {%- if not message.tool_call_id is defined or message.tool_call_id|length != 9 %}{{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}{%- endif %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content|string + ", " }}{{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- endif %}
{%- endfor %}"""

DEEPSEEK = """\
{%- set ns = namespace(is_first=true, is_tool=false) -%}
{{ bos_token }}
{%- for message in messages -%}
    {%- if message['role'] == 'system' -%}{{ message['content'] }}{%- endif -%}
    {%- if message['role'] == 'user' -%}{{ '<｜User｜>' + message['content'] }}{%- endif -%}
    {%- if message['role'] == 'assistant' and message['content'] is none -%}
        {%- for tool in message['tool_calls'] -%}
            {%- if loop.first -%}{{ '<｜Assistant｜><｜tool▁calls▁begin｜>' }}{%- else -%}{{ '\\n' }}{%- endif -%}
            {{ '<｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + tool['function']['name'] + '\\n' + '```json' + '\\n' + tool['function']['arguments'] + '\\n' + '```' + '<｜tool▁call▁end｜>' }}
        {%- endfor -%}
        {{ '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}
    {%- endif -%}
    {%- if message['role'] == 'assistant' and message['content'] is not none -%}
        {%- set content = message['content'] -%}
        {%- if '</think>' in content -%}{%- set content = content.split('</think>')[-1] -%}{%- endif -%}
        {{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}
    {%- endif -%}
    {%- if message['role'] == 'tool' -%}{{ '<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>' }}{%- endif -%}
{%- endfor -%}
{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"""

GPT_OSS = """\
{%- macro render_tool_namespace(namespace_name, tools) -%}
    {{- "namespace " + namespace_name + " {\\n\\n" }}
    {%- for tool in tools %}
        {%- set tool = tool.function %}
        {{- "// " + tool.description + "\\n" }}{{- "type "+ tool.name + " = " }}
        {%- if tool.parameters and tool.parameters.properties %}
            {{- "(_: {\\n" }}
            {%- for param_name, param_spec in tool.parameters.properties.items() %}
                {{- param_name }}{%- if param_name not in (tool.parameters.required or []) %}{{- "?" }}{%- endif %}{{- ": " + param_spec.type + ",\\n" }}
            {%- endfor %}
            {{- "}) => any;\\n\\n" }}
        {%- else %}{{- "() => any;\\n\\n" }}{%- endif %}
    {%- endfor %}
    {{- "} // namespace " + namespace_name }}
{%- endmacro -%}
{{- "<|start|>developer<|message|>" }}
{%- if tools -%}{{- "# Tools\\n\\n" }}{{- render_tool_namespace("functions", tools) }}{%- endif -%}
{{- "<|end|>" }}
{%- set last_tool_call = namespace(name=none) %}
{%- for message in messages -%}
    {%- if message.role == 'assistant' -%}
        {%- if "tool_calls" in message %}
            {%- if message.content and message.thinking %}{{- raise_exception("Cannot pass both content and thinking") }}
            {%- elif message.thinking %}{{- "<|start|>assistant<|channel|>analysis<|message|>" + message.thinking + "<|end|>" }}{%- endif %}
            {%- set tool_call = message.tool_calls[0] %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- "<|start|>assistant to=functions." + tool_call.name + "<|channel|>commentary json<|message|>" }}
            {{- tool_call.arguments|tojson }}{{- "<|call|>" }}
            {%- set last_tool_call.name = tool_call.name %}
        {%- else %}{{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|end|>" }}{%- endif %}
    {%- elif message.role == 'tool' -%}
        {{- "<|start|>functions." + last_tool_call.name + " to=assistant<|channel|>commentary<|message|>" + message.content|tojson + "<|end|>" }}
    {%- elif message.role == 'user' -%}{{- "<|start|>user<|message|>" + message.content + "<|end|>" }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}"""

CHATML = """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
Default<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
{% for message in messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{{ '<start_of_turn>' + message['role'] + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"""

COMMAND = "{% for tool in tools %}<|START_ACTION|>{% endfor %}<|START_THINKING|>"
WEATHER = Tool(
    "get_weather",
    "The weather.",
    b'{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}',
)
NOW = Tool("now")
CALL = ToolCall("call_abcdefghijklmnopqrstuvwx", "get_weather", '{"city":"Orléans","n":[1]}')
ASKED = ChatMessage("user", "Weather?")
CALLED = ChatMessage("assistant", "", tool_calls=[CALL])
ANSWERED = ChatMessage("tool", "12 °C", tool_call_id=CALL.id)
TALK = [ASKED, CALLED, ANSWERED]


def render(source: str, messages: Sequence[ChatMessage] = TALK, **fields: Any) -> str:
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    fields.setdefault("tools", [WEATHER, NOW])
    return template.render(ChatPrompt(list(messages), **fields))


# ---------------------------------------------------------------------------------------------------------- families


@pytest.mark.parametrize(
    ("source", "family"),
    [
        (QWEN, "hermes"),
        (QWEN_3, "hermes:think"),
        (LLAMA_3_1, "llama3"),
        (MISTRAL, "mistral"),
        (MISTRAL + "{{ '[ARGS]' }}", "mistral-args"),
        (DEEPSEEK, "deepseek-fenced:think"),
        (DEEPSEEK.replace("```json", ""), "deepseek:think"),
        (GPT_OSS, "harmony"),
        (COMMAND, "cohere:cohere"),
        (CHATML, "hermes"),
        (GEMMA, "hermes"),
        (GEMMA + "{{ '```tool_code' }}", "gemma"),
        ("{% for tool in tools %}{{ tool | tojson }}{% endfor %}", "json"),
        ("{{ 'tools' }}", "hermes"),
        ("", "hermes"),
    ],
)
def test_family_is_found_in_the_template(source: str, family: str) -> None:
    """A template tells by its own text how its model writes calls and thoughts."""
    assert family_of(source) == family
    assert ChatTemplate(source, bos_token="", eos_token="").family == family


# --------------------------------------------------------------------------------------------- templates with tools


def test_template_gives_tools_and_calls_to_qwen() -> None:
    """Tools as OpenAI's objects, arguments as an object, results in the user's turn."""
    text = render(QWEN)
    assert (
        '<tools>\n{"type": "function", "function": {"name": "get_weather", "description": "The weather.", "parameters": '
        '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}\n'
        '{"type": "function", "function": {"name": "now", "description": "", "parameters": {"type": "object", '
        '"properties": {}}}}\n</tools>'
    ) in text
    assert text.endswith(
        "<|im_start|>user\nWeather?<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Orléans", "n": [1]}}\n'
        "</tool_call><|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n12 °C\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_template_gives_reasoning_to_qwen_3() -> None:
    """Earlier thoughts are `reasoning_content`; without any, the content is still text."""
    thought = ChatMessage("assistant", "Cold.", reasoning="Hm.")
    assert "<think>\nHm.\n</think>\n\nCold." in render(QWEN_3, [ASKED, thought])
    assert '<tool_call>{"city": "Orléans", "n": [1]}' in render(QWEN_3)


def test_template_gives_tools_and_calls_to_llama() -> None:
    """Arguments are an object under `parameters`, results are `ipython`'s."""
    text = render(LLAMA_3_1)
    assert "Environment: ipython" in text
    assert '"name": "get_weather"' in text
    assert '{"name": "get_weather", "parameters": {"city": "Orléans", "n": [1]}}<|eot_id|>' in text
    assert text.endswith('ipython<|end_header_id|>\n\n"12 °C"<|eot_id|>')
    assert "Environment" not in render(LLAMA_3_1, [ASKED], tools=[])


def test_template_gives_mistral_ids_of_nine_characters() -> None:
    """Mistral's templates refuse other ids: a call's and its result's are shortened alike, and differ for others."""
    other = ToolCall("call_2", "now", "")
    text = render(MISTRAL, [ASKED, ChatMessage("assistant", "", tool_calls=[CALL, other]), ANSWERED])
    ids = [part.split('"')[0] for part in text.split('"id": "')[1:]]
    assert [len(id) for id in ids] == [9, 9]
    assert ids[0] != ids[1]
    assert f'[TOOL_RESULTS] {{"content": 12 °C, "call_id": "{ids[0]}"}}' in text
    assert '"arguments": {"city": "Orléans", "n": [1]}' in text
    kept = [ChatMessage("assistant", "", tool_calls=[ToolCall("abcDEF123", "now", "{}")])]
    assert '"id": "abcDEF123"' in render(MISTRAL, kept)


def test_template_gives_deepseek_arguments_as_text_and_content_as_none() -> None:
    """Templates that add arguments up get them as the model wrote them; tools that they do not show are told."""
    text = render(DEEPSEEK)
    assert (
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        '{"city":"Orléans","n":[1]}\n```<｜tool▁call▁end｜>'
    ) in text
    assert text.startswith("<s># Tools")
    assert '"name":"get_weather"' in text.split("<｜User｜>")[0]
    assert "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>" in text.split("<｜User｜>")[0]
    assert "<｜tool▁output▁begin｜>12 °C" in text


def test_template_gives_tools_thoughts_and_calls_to_gpt_oss() -> None:
    """Tools become a namespace, thoughts `thinking`, which never meets content beside a call."""
    text = render(GPT_OSS, [ASKED, ChatMessage("assistant", "", reasoning="Hm.", tool_calls=[CALL]), ANSWERED])
    assert "// The weather.\ntype get_weather = (_: {\ncity: string,\n}) => any;" in text
    assert "type now = () => any;" in text
    assert "<|channel|>analysis<|message|>Hm.<|end|>" in text
    assert 'to=functions.get_weather<|channel|>commentary json<|message|>{"city": "Orléans", "n": [1]}<|call|>' in text
    assert text.endswith(
        '<|start|>functions.get_weather to=assistant<|channel|>commentary<|message|>"12 °C"<|end|><|start|>assistant'
    )
    both = ChatMessage("assistant", "I look.", reasoning="Hm.", tool_calls=[CALL])
    assert "<|call|>" in render(GPT_OSS, [ASKED, both, ANSWERED])


def test_template_names_the_tool_of_a_result() -> None:
    """A result has the name of the tool that gave it, also where the request leaves it out."""
    source = "{% for m in messages if m.role == 'tool' and 'tool_calls' %}{{ m.name }}/{{ m.tool_call_id }}{% endfor %}"
    assert render(source) == f"get_weather/{CALL.id}"


@pytest.mark.parametrize("source", [QWEN, LLAMA_3_1, MISTRAL, GPT_OSS, DEEPSEEK, CHATML])
def test_template_shows_no_tools_that_may_not_be_called(source: str) -> None:
    """With `tool_choice` none the prompt is the one without tools."""
    assert render(source, [ASKED], tool_choice="none") == render(source, [ASKED], tools=[])


@pytest.mark.parametrize("arguments", ["{cut", "[1]", "null", '"text"'])
@pytest.mark.parametrize("source", [QWEN, CHATML, DEEPSEEK])
def test_template_renders_earlier_calls_with_broken_arguments(source: str, arguments: str) -> None:
    """A call that the model once broke off does not break the conversation."""
    broken = ChatMessage("assistant", "", tool_calls=[ToolCall("call_1", "now", arguments)])
    assert "now" in render(source, [ASKED, broken])


def test_template_variables_of_a_request_cannot_replace_the_tools() -> None:
    """Tools come with the request's own field alone."""
    with pytest.raises(RequestError, match="cannot set tools"):
        render(QWEN, template_kwargs=b'{"tools": []}')


# ------------------------------------------------------------------------------------------ templates without tools


def test_template_without_tools_gets_them_in_the_system_message() -> None:
    """Where the template knows no tools, the system message tells them, in the form that the parser reads."""
    text = render(CHATML, [ASKED])
    system, user, assistant = text.split("<|im_end|>\n")
    assert system.startswith("<|im_start|>system\n# Tools")
    told = [json.loads(line) for line in system.splitlines() if line.startswith('{"type"')]
    assert [tool["function"]["name"] for tool in told] == ["get_weather", "now"]
    assert told[0]["function"]["parameters"]["required"] == ["city"]
    assert '<tool_call>\n{"name": "the-name", "arguments": {the arguments}}\n</tool_call>' in system
    assert (user, assistant) == ("<|im_start|>user\nWeather?", "<|im_start|>assistant\n")


def test_template_without_tools_keeps_the_system_message() -> None:
    """The tools follow what the request's own system message says."""
    text = render(CHATML, [ChatMessage("system", "Be brief."), ASKED])
    assert text.startswith("<|im_start|>system\nBe brief.\n\n# Tools")
    assert text.count("<|im_start|>system") == 1


def test_template_without_tools_gets_calls_and_results_as_text() -> None:
    """Calls are written as the model writes them, so that a parser reads the same; results come in the user's turn."""
    text = render(CHATML, [*TALK, ChatMessage("tool", "14:00", tool_call_id="x"), ChatMessage("user", "And?")])
    turns = text.split("<|im_start|>")[3:]
    assert turns == [
        'assistant\n<tool_call>\n{"name": "get_weather", "arguments": {"city":"Orléans","n":[1]}}\n</tool_call><|im_end|>\n',
        "user\n<tool_response>\n12 °C\n</tool_response>\n<tool_response>\n14:00\n</tool_response>\nAnd?<|im_end|>\n",
        "assistant\n",
    ]
    parser = make_parser(ChatPrompt([], tools=[WEATHER]), family_of(CHATML), "")
    assert parser is not None
    (call,) = parser.feed(turns[0].removeprefix("assistant\n")).tool_calls
    assert (call.name, call.arguments) == (CALL.name, CALL.arguments)


def test_template_without_tools_keeps_the_text_beside_a_call() -> None:
    """Text of a turn with calls stands before them; the turns after it go on as they were."""
    both = ChatMessage("assistant", "I look.", tool_calls=[CALL])
    assert "assistant\nI look.\n<tool_call>" in render(CHATML, [ASKED, both])
    plain = [ASKED, ChatMessage("user", "Twice."), ChatMessage("assistant", "Yes.")]
    assert render(CHATML, plain, tools=[]).count("<|im_start|>user") == 2


def test_template_without_a_system_role_gets_the_tools_in_the_first_turn() -> None:
    """Gemma's template refuses a system message: the user's first turn tells the tools, and the turns alternate."""
    text = render(GEMMA, [*TALK, ChatMessage("user", "And?"), ChatMessage("assistant", "Cold.")])
    assert text.startswith("<s><start_of_turn>user\n# Tools")
    assert "\n\nWeather?<end_of_turn>\n<start_of_turn>assistant\n<tool_call>" in text
    assert "<tool_response>\n12 °C\n</tool_response>\nAnd?<end_of_turn>" in text
    with pytest.raises(RequestError, match="System role not supported"):
        render(GEMMA, [ChatMessage("system", "x"), ASKED], tools=[])


def test_template_without_tools_keeps_media_in_their_order() -> None:
    """Images of a result and of the turn after it stay with their marks."""
    messages = [
        ASKED,
        CALLED,
        ChatMessage("tool", "<__media__>", tool_call_id=CALL.id, media=[b"1"]),
        ChatMessage("user", "<__media__> and <__media__>", media=[b"2", b"3"]),
    ]
    assert render(CHATML, messages).count("<__media__>") == 3
