"""Chat templates: what they render, and how they fail.

Templates of the common families render as their models were trained, with all that transformers gives to templates.
One that refuses a conversation, or cannot be rendered, says why, and whatever stands in a file, the outcome is a text
or a `RequestError`.
"""

# ruff: noqa: E501 - templates stand as they are
from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.templates import HELLO, TURNS, refused, render

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.protocol import ChatMessage, ChatPrompt
from llmvisor_runtimes.template import ChatTemplate

CHATML = """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

LLAMA_3 = """\
{{- bos_token }}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {%- generation %}{{- " " + message["content"]|trim + eos_token }}{%- endgeneration %}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported!") }}
    {%- endif %}
{%- endfor %}
"""

GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
{% for message in messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}\
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"""

QWEN_THINKING = """\
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == "user" and not (message.content.startswith('<tool_response>')) %}
        {%- set ns.last = index %}{%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ content ~ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""


# ----------------------------------------------------------------------------------------------------- real templates


def test_template_renders_chatml_with_its_default_system_message() -> None:
    """SmolLM2's own template puts its system message in front and opens the assistant's turn."""
    assert render(CHATML) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_template_leaves_the_generation_prompt_out() -> None:
    """Without `add_generation_prompt` nothing follows the last message."""
    assert render(CHATML, add_generation_prompt=False).endswith("Hello<|im_end|>\n")


def test_template_renders_llama_3() -> None:
    """Header ids, trimmed content, slices of messages and today's date, as Llama 3.1's template has them."""
    text = render(LLAMA_3, [ChatMessage("system", " Be brief. "), *TURNS])
    assert text == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 20 Nov 2026\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nYes?<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_template_renders_mistral() -> None:
    """Namespaces, generation blocks and the system message in the last turn, as Mistral's template has them."""
    text = render(MISTRAL, [ChatMessage("system", "Be brief."), *TURNS])
    assert text == "<s>[INST] Hi[/INST] Yes?</s>[INST] Be brief.\n\nBye[/INST]"


def test_template_renders_gemma() -> None:
    """The assistant is called `model`, as Gemma's template has it."""
    assert render(GEMMA, TURNS) == (
        "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nYes?<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n"
    )


def test_template_renders_a_thinking_model_with_its_switch() -> None:
    """Reversed loops with break, `~`, splits, and a variable from the request, as Qwen 3's template has them."""
    messages = [ChatMessage("user", "Hi"), ChatMessage("assistant", "<think>\nhm\n</think>\n\nYes"), *HELLO]
    assert render(QWEN_THINKING, messages, template_kwargs=b'{"enable_thinking": false}') == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ {'b': 'é', 'a': [1, none, true]}|tojson }}", '{"b": "é", "a": [1, null, true]}'),
        ("{{ {'b': 1, 'a': '<&'}|tojson(indent=2) }}", '{\n  "b": 1,\n  "a": "<&"\n}'),
        ("{{ {'b': 1}|tojson(separators=(',', ':'))|safe }}", '{"b":1}'),
        ("{{ messages|map(attribute='role')|join(', ')|upper }}", "USER"),
        ("{{ messages|selectattr('role', 'equalto', 'user')|list|length }}", "1"),
        ("{{ 'a\nb'|indent(2) }}", "a\n  b"),
        ("{{ ['x', 'y']|join('-') ~ 1 ~ none }}", "x-y1None"),
        ("{{ '%s-%d'|format('a', 3) }} {{ '{} {x}'.format('b', x=1) }} {{ '%.2f' % 0.5 }}", "a-3 b 1 0.50"),
        ("{{ 'ab'|center(6) }}|{{ 'aXb'|replace('X', '--') }}|{{ 'ab'.replace('b', 'c') }}", "  ab  |a--b|ac"),
        ("{{ [1, 2.5]|sum }} {{ '7'|int + 1 }} {{ 2 ** 10 }} {{ 7 // 2 }} {{ 3.14159|round(2) }}", "3.5 8 1024 3 3.14"),
        ("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m('a') }}{% set b %}{{ m(1) }}!{% endset %}{{ b }}", "<a><1>!"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}={{ v }}{% endfor %}", "a=1"),
        ("{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}", "123"),
        (
            "{% for x in range(5) %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}/{{ loop.length }} {% endfor %}",
            "0/5 2/5 3/5 4/5 ",
        ),
        ("{{ unknown }}{{ tools is none }}{{ documents is none }}", "TrueTrue"),
        ("{{ 'a' if messages[0].name is defined else 'b' }}", "b"),
        ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),
        (
            "{% set ns = namespace(l=[]) %}{% for m in messages * 3 %}{% set ns.l = ns.l + [m.role] %}{% endfor %}{{ ns.l }}",
            "['user', 'user', 'user']",
        ),
        ("{{ [[1], [2]]|sum(start=[]) }} {{ ['a', 'b']|sum(start='') }} {{ (1, 2) + (3,) }}", "[1, 2] ab (1, 2, 3)"),
        ("{{ [1, 'a', {'b': none}] }}", "[1, 'a', {'b': None}]"),
    ],
)
def test_template_has_what_transformers_gives_templates(source: str, expected: str) -> None:
    """Filters, methods, whitespace rules and undefined names behave as in `apply_chat_template`."""
    assert render(source) == expected


def test_template_names_the_developer_as_system_for_a_template_that_does_not_know_it() -> None:
    """The role `developer` is passed on only to templates that mention it."""
    messages = [ChatMessage("developer", "x")]
    assert render("{{ messages[0].role }}", messages) == "system"
    assert render("{# developer #}{{ messages[0].role }}", messages) == "developer"


def test_template_gives_the_name_of_a_message() -> None:
    """A participant's name is there for the templates that use it."""
    assert render("{{ messages[0].name }}", [ChatMessage("user", "x", "Ann")]) == "Ann"


def test_template_may_be_rendered_from_several_threads() -> None:
    """Renderings at the same time do not mix."""
    template = ChatTemplate(
        "{% for i in range(200) %}{{ messages[0].content }}{% endfor %}", bos_token="", eos_token=""
    )
    results: dict[str, str] = {}

    def work(letter: str) -> None:
        results[letter] = template.render(ChatPrompt([ChatMessage("user", letter)]))

    threads = [threading.Thread(target=work, args=(letter,)) for letter in "abcdef"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {letter: letter * 200 for letter in "abcdef"}


# ----------------------------------------------------------------------------------------------------------- failures


def test_template_that_refuses_a_conversation_blames_the_messages() -> None:
    """The template's own words reach the client as an invalid value of `messages`."""
    error = refused(GEMMA, [ChatMessage("system", "x")])
    assert (error.kind, error.param) == ("invalid_value", "messages")
    assert "System role not supported" in error.message


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% if %}", "line 1"),
        ("\n\n{{ x|nofilter }}", "nofilter"),
        ("{{ messages[0].content.nothing.more }}", "nothing"),
        ("{{ 1 / 0 }}", "zero"),
        ("{{ [loop_forever]|tojson }}", "Undefined"),
        ("{% include 'x' %}", "loader"),
        ("{{ '\\ud800' }}", "surrogate"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "nested too deep"),
        ("x" * (limits.template_source_bytes_max + 1), "longer"),
    ],
)
def test_template_that_fails_says_why(source: str, reason: str) -> None:
    """Sources that do not compile and renderings that fail are `template_error` with the reason."""
    error = refused(source)
    assert error.kind == "template_error"
    assert reason in error.message


@pytest.mark.parametrize("name", ["messages", "bos_token", "eos_token", "add_generation_prompt", "raise_exception",
                                  "strftime_now", "range", "namespace"])  # fmt: skip
def test_template_kwargs_cannot_replace_what_the_template_is_given(name: str) -> None:
    """Variables of a request never stand in for the conversation, the tokens or the functions."""
    error = refused("{{ messages }}", template_kwargs=b'{"%s": "x"}' % name.encode())
    assert (error.kind, error.param) == ("invalid_value", f"chat_template_kwargs.{name}")


@pytest.mark.parametrize("kwargs", [b"", b"[]", b"null", b'"x"', b"{", b'{"a": \xff}', b'{"a":' * 5000])
def test_template_kwargs_that_are_no_json_object_are_refused(kwargs: bytes) -> None:
    """Whatever is no JSON object is an invalid value."""
    error = refused("x", template_kwargs=kwargs)
    assert (error.kind, error.param) == ("invalid_value", "chat_template_kwargs")


@given(st.text(alphabet="{}%ab .|()[]'~+*0=<>\n", max_size=60))
def test_template_of_any_source_renders_or_says_why(source: str) -> None:
    """Whatever stands in a file, the outcome is text or a `RequestError`."""
    outcome: str | RequestError
    try:
        outcome = render(source)
    except RequestError as error:
        outcome = error
    assert outcome.message if isinstance(outcome, RequestError) else len(outcome) <= limits.template_output_bytes_max
