"""Chat templates: what a hostile one cannot do.

Attacks on the sandbox go for a canary file and for the machine's memory and time; each has to end in a `RequestError`,
soon, with the canary unread, and leave the next rendering alone.
"""

# ruff: noqa: E501, ISC004 - payloads stand as they are
from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest
from tests.support.templates import HELLO, TURNS, refused, render

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.protocol import ChatMessage, ChatPrompt
from llmvisor_runtimes.template import ChatTemplate

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% for c in ''.__class__.__base__.__subclasses__() %}{% if 'catch_warnings' in c.__name__ %}"
    "{{ c()._module.__builtins__['open']('CANARY').read() }}{% endif %}{% endfor %}",
    "{{ cycler.__init__.__globals__.os.popen('cat CANARY').read() }}",
    "{{ joiner.__init__.__globals__['__builtins__']['open']('CANARY').read() }}",
    "{{ namespace.__init__.__globals__.os.popen('cat CANARY').read() }}",
    "{{ lipsum.__globals__['os'].popen('cat CANARY').read() }}",
    "{{ raise_exception.__globals__['__builtins__'].open('CANARY').read() }}",
    "{{ strftime_now.__self__._sandbox }}",
    "{{ strftime_now.__func__.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ ''|attr('__class__')|attr('__mro__') }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{0.__class__}'|format('') }}{{ ''.__class__ }}",
    "{{ '{x.__class__.__init__.__globals__}'.format_map({'x': messages}) }}",
    "{% set f = '{0.__class__}'.format %}{{ f('') }}",
    "{{ [''.format]|map('__call__')|list }}",
    "{{ ['']|map(attribute='__class__.__mro__')|list }}",
    "{{ messages|groupby('__class__.__mro__') }}",
    "{{ messages|map(attribute='__class__')|map(attribute='__mro__')|list }}",
    "{{ range.__class__.__mro__ }}",
    "{{ dict.__base__.__subclasses__() }}",
    "{{ dict.mro() }}",
    "{{ loop.__init__ }}{% for x in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{% macro m() %}{{ caller._func.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(role='x') }}",
    "{{ messages[0].clear() }}",
    "{{ ''.encode().hex() }}",
    "{{ (1).to_bytes(100000000, 'big') }}",
    "{{ dict.fromkeys(range(10)) }}",
    "{{ ''.maketrans({}) }}{{ 'a'.translate({97: 'b'}) }}",
    "{{ namespace }}",
    "{{ raise_exception }}",
    "{% for x in [1] %}{{ loop }}{% endfor %}",
    "{{ joiner }}{{ [namespace(a=1)] }}",
    "{{ ('a'|e).__html__.__globals__ }}",
    "{% import 'os' as os %}{{ os.popen('cat CANARY') }}",
    "{{ url_for.__globals__ }}{{ config.__class__.__init__.__globals__['os'] }}",
    "{{ raise_exception.__class__ }}",
    "{{ x.__init__.__globals__ }}",
]


@pytest.mark.parametrize("attack", ESCAPES)
def test_template_cannot_reach_out_of_its_sandbox(attack: str, tmp_path: Path) -> None:
    """Attacks through attributes, globals, filters and format strings end in `template_error` and read no file."""
    canary = tmp_path / "canary"
    canary.write_text("the canary sang")
    error = refused(attack.replace("CANARY", str(canary)))
    assert error.kind == "template_error"
    assert "sang" not in error.message
    assert "0x" not in error.message


BOMBS = [
    "{{ 'a' * 10 ** 10 }}",
    "{{ 10 ** 10 * 'a' }}",
    "{{ [0] * 10 ** 9 }}",
    "{{ 10 ** (10 ** 9) }}",
    "{{ 3 ** (3 ** 20) // 7 }}",
    "{{ 'a'|center(1000000000) }}",
    "{{ 'a'.center(10 ** 9) }}{{ 'a'.ljust(10 ** 9) }}",
    "{{ '7'.zfill(1000000000) }}",
    "{{ ('a'|safe).rjust(1000000000) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%.1000000000f' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%1000000000s'|format('a') }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 1000000000) }}",
    "{{ '{0:>999999999}'.format_map({'0': 1}) }}",
    "{{ ('a' * 1000000)|replace('a', 'b' * 1000000) }}",
    "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "{{ ('a' * 1000000).replace('', 'b' * 1000000) }}",
    "{{ ('a' * 1000000).join(range(1000)|map('string')) }}",
    "{{ range(1000)|join('a' * 1000000) }}",
    "{{ ('a\n' * 1000000)|indent(1000000) }}",
    "{{ ('a\n' * 10)|indent('x' * 8000000) }}",
    "{{ range(1000000000)|list }}",
    "{{ [1, 2]|tojson(indent=1000000000) }}",
    "{{ range(1000)|list|tojson(separators=('a' * 1000000, ':')) }}",
    "{{ 2.5|round(1000000000, 'floor') }}",
    "{{ ('f' * 8000000)|int(0, 16) }}",
    "{% set ns = namespace(a='x') %}{% for i in range(100) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}",
    "{% set ns = namespace(a='x') %}{% for i in range(100) %}{% set ns.a = ns.a + ns.a %}{% endfor %}",
    "{% set ns = namespace(a=[0]) %}{% for i in range(100) %}{% set ns.a = ns.a + ns.a %}{% endfor %}",
    "{% set ns = namespace(a='x') %}{% for i in range(100) %}{% set ns.a %}{{ ns.a }}{{ ns.a }}{% endset %}{% endfor %}",
    "{% set ns = namespace(a=[]) %}{% for i in range(100) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a }}",
    "{% set ns = namespace(a={}) %}{% for i in range(100) %}{% set ns.a = dict(x=ns.a, y=ns.a) %}{% endfor %}",
    "{% set ns = namespace(a=()) %}{% for i in range(99) %}{% set ns.a = (ns.a, ns.a) %}{% endfor %}{{ ns.a|tojson }}",
    "{% set ns = namespace(a=namespace()) %}{% for i in range(100) %}{% set ns.a = namespace(x=ns.a, y=ns.a) %}"
    "{% endfor %}{{ [ns.a] }}{{ '%s' % ns.a }}",
    "{% set x = [0] * 100000 %}{% set y = [0] * 100000 %}{{ [x] * 100000 == [y] * 100000 }}",
    "{% set ns = namespace(a=[[0] * 100000]) %}{% for i in range(20) %}{% set ns.a = ns.a + ns.a %}{% endfor %}",
    "{% set x = [0] * 100000 %}{% set y = range(100000)|map('default', x, true)|list %}"
    "{% set y = range(100000)|map(attribute='nothing', default=x)|list %}",
    "{% macro m() %}{{ varargs }}{% endmacro %}{{ m(1, 2) }}",
    "{{ [[1] * 100000] * 100000 |sum(start=[]) }}",
    "{% for i in range(100000) %}{{ 'a' * 100000 }}{% endfor %}",
    "{% set x %}{% for i in range(100000) %}{% for j in range(100) %}" + "a" * 1000 + "{% endfor %}{% endfor %}{% endset %}",
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% for i in range(100000) if range(100000)|select('odd')|list %}{% endfor %}",
    "{% for x in range(9) recursive %}{{ loop(range(100000)) }}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(100) }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% set ns = namespace(l=[]) %}{% for i in range(100000) %}{% set ns.l = ns.l + [('a' * 8000000)] %}{% endfor %}",
    "{% for i in range(100000) %}{{ range(100000)|sum }}{% endfor %}",
    "{% for i in range(100000) %}{{ range(100000)|map('string')|map('upper')|list|length }}{% endfor %}",
]  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_template_bomb_is_stopped(bomb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Templates that would take endless time or memory are stopped with `template_error` before they take much."""
    monkeypatch.setattr(limits, "template_seconds_max", 0.3)
    started = time.monotonic()
    tracemalloc.start()
    error = refused(bomb)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error.kind == "template_error"
    assert peak_bytes < 1.5 * limits.template_work_bytes_max
    assert time.monotonic() - started < 10


def test_template_bomb_leaves_the_next_rendering_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that once took too long renders the next conversation as if nothing had been."""
    monkeypatch.setattr(limits, "template_seconds_max", 0.2)
    template = ChatTemplate(
        "{% if messages|length > 1 %}{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
        "{% endif %}fine",
        bos_token="",
        eos_token="",
    )
    for _ in range(2):
        with pytest.raises(RequestError, match="longer than"):
            template.render(ChatPrompt(TURNS))
        assert template.render(ChatPrompt(HELLO)) == "fine"


def test_template_that_gathers_a_long_conversation_is_no_bomb() -> None:
    """The pattern `ns.list + [message]` and growing texts stay within the limits for thousands of messages."""
    source = (
        "{% set ns = namespace(l=[], t='') %}{% for m in messages %}{% set ns.l = ns.l + [m] %}"
        "{% set ns.t = ns.t ~ m.content[:20] %}{% endfor %}{{ ns.l|length }} {{ ns.t|length }}"
    )
    messages = [ChatMessage("user", "x" * 500)] * 3000
    assert render(source, messages) == "3000 60000"


def test_template_output_over_the_bound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound counts bytes, not characters, of all pieces together."""
    monkeypatch.setattr(limits, "template_output_bytes_max", 100)
    assert len(render("{{ messages[0].content }}{{ 'b' }}", [ChatMessage("user", "a" * 99)])) == 100
    assert refused("{{ messages[0].content }}{{ 'bb' }}", [ChatMessage("user", "a" * 99)]).kind == "template_error"
    assert refused("{{ messages[0].content }}", [ChatMessage("user", "é" * 51)]).kind == "template_error"
