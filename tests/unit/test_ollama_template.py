"""Ollama's templates in Go become templates in Jinja that write the same; whatever else they say is refused."""

from __future__ import annotations

import json
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError

from llmvisor.fetch.go_template import Untranslatable
from llmvisor.fetch.ollama_template import to_jinja
from llmvisor_runtimes.protocol import ChatMessage, ChatPrompt, Tool, ToolCall
from llmvisor_runtimes.template import ChatTemplate

Role = Literal["system", "user", "assistant", "tool"]
SYSTEM: tuple[Role, str] = ("system", "Be kind.")
USER: tuple[Role, str] = ("user", "Hi")
ANSWER: tuple[Role, str] = ("assistant", "Hello!")
AGAIN: tuple[Role, str] = ("user", "Bye")

CHATML = """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
TURN = """{{ if .System }}<|system|>
{{ .System }}<|end|>
{{ end }}{{ if .Prompt }}<|user|>
{{ .Prompt }}<|end|>
{{ end }}<|assistant|>
{{ .Response }}<|end|>
"""
QWEN = """{{- if .Messages }}
{{- if or .System .Tools }}<|im_start|>system
{{- if .System }}
{{ .System }}
{{- end }}
{{- if .Tools }}

# Tools
<tools>
{{- range .Tools }}
{"type": "function", "function": {{ .Function }}}
{{- end }}
</tools>
{{- end }}<|im_end|>
{{ end }}
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 -}}
{{- if eq .Role "user" }}<|im_start|>user
{{ .Content }}<|im_end|>
{{ else if eq .Role "assistant" }}<|im_start|>assistant
{{ if .Content }}{{ .Content }}
{{- else if .ToolCalls }}<tool_call>
{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}
{{ end }}</tool_call>
{{- end }}{{ if not $last }}<|im_end|>
{{ end }}
{{- else if eq .Role "tool" }}<|im_start|>user
<tool_response>
{{ .Content }}
</tool_response><|im_end|>
{{ end }}
{{- if and (ne .Role "assistant") $last }}<|im_start|>assistant
{{ end }}
{{- end }}
{{- else }}
{{- if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}{{ if .Prompt }}<|im_start|>user
{{ .Prompt }}<|im_end|>
{{ end }}<|im_start|>assistant
{{ end }}{{ .Response }}{{ if .Response }}<|im_end|>{{ end }}"""


def rendered(
    source: str, *messages: tuple[Role, str], system: str = "", generate: bool = True, kwargs: bytes = b"{}"
) -> str:
    prompt = ChatPrompt(
        messages=[ChatMessage(role, content) for role, content in messages],
        add_generation_prompt=generate,
        template_kwargs=kwargs,
    )
    return ChatTemplate(to_jinja(source, system=system), bos_token="", eos_token="").render(prompt)


def expression(go: str) -> str:
    """What an expression writes where a user has said `Hi`."""
    return rendered(f"{{{{ range .Messages }}}}{go}{{{{ end }}}}", USER)


def test_template_of_messages_writes_the_conversation() -> None:
    """Every message, with the spaces that its marks leave."""
    assert rendered(CHATML, SYSTEM, USER) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_template_of_a_turn_is_repeated_and_ends_where_the_answer_begins() -> None:
    """What stands behind `.Response` closes earlier turns, and not the one that is to be written."""
    assert rendered(TURN, USER) == "<|user|>\nHi<|end|>\n<|assistant|>\n"
    assert rendered(TURN, SYSTEM, USER, ANSWER, AGAIN) == (
        "<|system|>\nBe kind.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello!<|end|>\n"
        "<|user|>\nBye<|end|>\n<|assistant|>\n"
    )
    closed = rendered(TURN, USER, ANSWER, generate=False)
    assert closed == "<|user|>\nHi<|end|>\n<|assistant|>\nHello!<|end|>\n"


def test_turn_without_response_gets_one_at_its_end() -> None:
    """As Ollama adds it."""
    assert rendered("Q: {{ .Prompt }} A: ", USER, ANSWER, AGAIN) == "Q: Hi A: Hello!Q: Bye A: "


def test_default_system_message_gives_way_to_the_conversations_own() -> None:
    """Of both kinds of template."""
    for source in (TURN, QWEN):
        assert "Stay calm." in rendered(source, USER, system="Stay calm.")
        own = rendered(source, SYSTEM, USER, system="Stay calm.")
        assert "Be kind." in own
        assert "Stay calm." not in own


def test_messages_of_one_role_in_a_row_are_one() -> None:
    """As Ollama joins them, with a line between."""
    assert rendered(QWEN, USER, AGAIN) == "<|im_start|>user\nHi\n\nBye<|im_end|>\n<|im_start|>assistant\n"


def test_tools_and_calls_are_written_as_json() -> None:
    """The tools there are, an earlier call with its arguments, and what came of it."""
    tool = Tool("look", "Looks.", b'{"type":"object","properties":{}}')
    call = ToolCall(id="c1", name="look", arguments='{"at":"sky"}')
    prompt = ChatPrompt(
        messages=[
            ChatMessage("user", "Hi"),
            ChatMessage("assistant", "", tool_calls=[call]),
            ChatMessage("tool", "blue", tool_call_id="c1"),
        ],
        tools=[tool],
    )
    template = ChatTemplate(to_jinja(QWEN), bos_token="", eos_token="")
    text = template.render(prompt)
    assert template.family == "hermes"
    told = text.split("<tools>\n")[1].split("\n</tools>")[0]
    assert json.loads(told)["function"]["name"] == "look"
    call_text = text.split("<tool_call>\n")[1].split("\n</tool_call>")[0]
    assert json.loads(call_text) == {"name": "look", "arguments": {"at": "sky"}}
    assert "<tool_response>\nblue\n</tool_response>" in text
    assert text.endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("source", [TURN, CHATML], ids=["turn", "messages"])
def test_calls_and_their_answers_are_told_where_a_template_knows_none(source: str) -> None:
    """Neither the tools, nor an earlier call, nor what came of it is lost."""
    call = ToolCall(id="c1", name="look", arguments='{"at":"sky"}')
    prompt = ChatPrompt(
        messages=[
            ChatMessage("user", "Hi"),
            ChatMessage("assistant", "", tool_calls=[call]),
            ChatMessage("tool", "blue", tool_call_id="c1"),
        ],
        tools=[Tool("look", "Looks.", b'{"type":"object","properties":{}}')],
    )
    text = ChatTemplate(to_jinja(source), bos_token="", eos_token="").render(prompt)
    assert [word for word in ("Looks.", "sky", "blue") if word not in text] == []


def test_texts_that_come_with_a_model_stand_as_they_are() -> None:
    """Whatever words they are made of."""
    messages = [{"role": "user", "content": "DEFAULT BEFORE"}, {"role": "assistant", "content": "{{ it's }}"}]
    source = to_jinja(TURN, system="APART BEFORE DEFAULT", messages=messages)
    text = ChatTemplate(source, bos_token="", eos_token="").render(ChatPrompt(messages=[ChatMessage("user", "Hi")]))
    assert text == (
        "<|system|>\nAPART BEFORE DEFAULT<|end|>\n<|user|>\nDEFAULT BEFORE<|end|>\n<|assistant|>\n{{ it's }}<|end|>\n"
        "<|user|>\nHi<|end|>\n<|assistant|>\n"
    )


def test_thinking_follows_enable_thinking() -> None:
    """`.Think` and `.IsThinkSet` are what `chat_template_kwargs` says."""
    source = "{{ range .Messages }}{{ .Content }}{{ end }}{{ if and .IsThinkSet (not .Think) }}/no_think{{ end }}"
    assert rendered(source, USER) == "Hi"
    assert rendered(source, USER, kwargs=b'{"enable_thinking": false}') == "Hi/no_think"
    assert rendered(source, USER, kwargs=b'{"enable_thinking": true}') == "Hi"


@pytest.mark.parametrize(
    ("go", "text"),
    [
        ("a {{- /* a }} comment */ -}} b", "ab"),
        ("a  {{- .Content -}}  b", "aHib"),
        ("a {{ .Content }} b", "a Hi b"),
        ('{{ "say \\"x\\"\\n" }}', 'say "x"\n'),
        ("{{ `raw \\n` }}", "raw \\n"),
        ('{{ if eq .Role "tool" "user" }}yes{{ else }}no{{ end }}', "yes"),
        ('{{ if ne .Role "user" }}yes{{ else if eq .Content "Hi" }}two{{ else }}no{{ end }}', "two"),
        ("{{ if and .Content (not .ToolCalls) }}yes{{ end }}", "yes"),
        ("{{ if gt (len $.Messages) 0 }}yes{{ end }}", "yes"),
        ("{{ with .Content }}[{{ . }}]{{ end }}", "[Hi]"),
        ("{{ with .Thinking }}x{{ else }}none{{ end }}", "none"),
        ('{{ $x := "a" }}{{ if .Content }}{{ $x = "b" }}{{ end }}{{ $x }}', "b"),
        ('{{ $x := "a" }}{{ if .Content }}{{ $x := "b" }}{{ $x }}{{ end }}{{ $x }}', "ba"),
        ('{{ $x := "a" }}{{ if .Content }}{{ $x = .Thinking }}{{ end }}[{{ $x }}]', "[]"),
        ('{{ $x = "a" }}', None),
        ("{{ range $i, $m := $.Messages }}{{ $i = 1 }}{{ end }}", None),
        ("{{ slice .Content }}{{ slice .Content 1 }}{{ slice .Content 0 1 }}", "HiiH"),
        ("{{ (index $.Messages 0).Role }}", "user"),
        ("{{ .Content | json }}", '"Hi"'),
        ("{{ . }}", '{"role":"user","content":"Hi"}'),
        ("{{ json . }}", '{"role":"user","content":"Hi"}'),
        ("{{ $n := -1 }}{{ range $i, $m := $.Messages }}{{ $n = $i }}{{ end }}{{ $n }}", "0"),
        ('{{ printf "<%s>%s" .Role .Content }}', "<user>Hi"),
        ("{{ $.System }}-{{ .Missing }}", None),
        ("{% raw %}{{ .Content }}{# x #}", "{% raw %}Hi{# x #}"),
        ("it's \\n {{ .Content }}", "it's \\n Hi"),
        ("{{ .Content }}{{ continue }}x", "Hi"),
        ("ünï 😀{{ .Content }}", "ünï 😀Hi"),
    ],
)
def test_expressions_mean_the_same(go: str, text: str | None) -> None:
    """One by one, as text/template has them; a field that nobody knows is refused."""
    if text is None:
        with pytest.raises(Untranslatable):
            expression(go)
    else:
        assert expression(go) == text


@pytest.mark.parametrize(
    "source",
    [
        *("", "no fields at all", "{{ .Prompt", "{{ if .Prompt }}x", "{{ end }}", "{{ .Prompt }}{{ else }}"),
        *('{{ template "x" . }}{{ .Prompt }}', '{{ define "x" }}{{ end }}{{ .Prompt }}', "{{ unknown .Prompt }}"),
        *(
            "{{ .Prompt ) }}",
            "{{ ( .Prompt }}",
            "{{ .Prompt | }}",
            '{{ "open }}{{ .Prompt }}',
            "{{ $nope }}{{ .Prompt }}",
        ),
        *("{{ if .Prompt }}" * 200, "{{ .Prompt }}" + "x" * 100_000, "{{ " + "(" * 1000 + ".Prompt }}", "{{ not }}"),
        *('{{ printf "%5d" .Prompt }}', "{{ printf .Prompt }}", "{{ eq .Prompt }}", "{{ .Prompt }}{{ \x00 }}"),
    ],
)
def test_what_has_no_counterpart_is_refused(source: str) -> None:
    """With a reason, and never with another error."""
    with pytest.raises(Untranslatable) as caught:
        to_jinja(source)
    assert str(caught.value)


PIECES = (
    *("{{", "}}", "{{-", "-}}", "if ", "end", "range ", ".Messages", " .Prompt", "$x", ":=", "(", ")", '"', "a", "\n"),
    *("|", "{%", "else", "{{ end }}", " . ", "{{ .Content }}", "{{ range .Messages }}"),
)


@given(st.lists(st.sampled_from(PIECES), max_size=40))
@settings(max_examples=100, deadline=None)
def test_any_text_translates_to_a_template_or_is_refused(pieces: list[str]) -> None:
    """Whatever comes out compiles in the sandbox."""
    try:
        source = to_jinja("".join(pieces) + "{{ .Prompt }}")
    except Untranslatable:
        return
    try:
        ChatTemplate(source, bos_token="", eos_token="")
    except TemplateError as error:
        pytest.fail(f"{source!r} does not compile: {error}")


def test_hostile_template_is_read_in_linear_time() -> None:
    """The longest one that is taken, of what makes readers slow."""
    for piece in ("{{", "{{ /*", '{{ "', "{{ .a" + ".a" * 50, "{{- -}}", "{{ (((("):
        source = (piece * 70_000)[:60_000]
        with pytest.raises(Untranslatable):
            to_jinja(source)
