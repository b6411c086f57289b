"""Every kind of `protocol.Grammar` as a grammar of llguidance. llguidance itself is imported where it converts."""

from __future__ import annotations

import json
import re

import msgspec

from llmvisor_runtimes import limits
from llmvisor_runtimes.protocol import Grammar
from llmvisor_runtimes.structured.schema import prepared_schema

_NO_FORCING = '%llguidance {"no_forcing": true}'
"""Where only one byte can come next, llguidance goes on to the next choice, and never returns where there is none.

So it is with `start: A A` and `A: /x+/`, for the first `A` takes every `x`. What is written last holds.
"""
_SCHEMA = re.compile(r"%json\b[^{]*")

_ANY_OBJECT = '{"type":"object"}'
_JSON = json.JSONDecoder()


def llguidance_grammar(grammar: Grammar) -> str:
    """llguidance's own form of a grammar, which is JSON. Raises `ValueError` with the reason where there is none."""
    source = grammar.source
    if len(source.encode()) > limits.grammar_source_bytes_max:
        raise ValueError(f"it is longer than {limits.grammar_source_bytes_max} bytes")
    match grammar.kind:
        case "json_object" | "json_schema":
            schema = prepared_schema(source if grammar.kind == "json_schema" else _ANY_OBJECT)
            return _wrapped(json_schema=msgspec.Raw(schema.encode()))
        case "regex":
            lark = _lark_of_regex(source)
        case "choice":
            lark = _lark_of_texts(source)
        case "lark":
            lark = _bounded(source)
        case "gbnf":
            lark = _bounded(_lark_of_gbnf(source))
        case "tool_calls":
            lark = source
    return _wrapped(lark_grammar=lark)


def _wrapped(**grammar: str | msgspec.Raw) -> str:
    return msgspec.json.encode({"grammars": [grammar]}).decode()


def _bounded(source: str) -> str:
    """A Lark grammar of somebody else's. Raises `ValueError` for a schema in it that `prepared_schema` refuses."""
    for match in _SCHEMA.finditer(source):
        try:
            _, end = _JSON.raw_decode(source, match.end())
        except RecursionError as error:
            raise ValueError("a schema in it is nested too deep") from error
        except ValueError:
            continue  # llguidance tells what is wrong
        prepared_schema(source[match.end() : end])
    return f"{source}\n{_NO_FORCING}\n"


def _lark_of_regex(source: str) -> str:
    from llguidance import regex_to_lark  # noqa: PLC0415 - the mock and the daemon's tests have no llguidance

    # A digit is one of ASCII's: whoever reads the text with another engine gets what both call a digit.
    return f"start: /{regex_to_lark(source, use_ascii='d')}/"


def _lark_of_texts(source: str) -> str:
    try:
        texts = msgspec.json.decode(source, type=list[str])
    except msgspec.MsgspecError as error:
        raise ValueError(f"a choice has to be a JSON list of texts: {error}") from error
    if not 1 <= len(texts) <= limits.grammar_texts_max:
        raise ValueError(f"a choice is among {len(texts)} texts, outside 1 to {limits.grammar_texts_max}")
    written = [json.dumps(text) for text in dict.fromkeys(texts) if text]
    if not written:
        return 'start: ""'
    # One terminal: as rules of their own many texts take ten times as long.
    return f"start: TEXT{'?' if '' in texts else ''}\nTEXT: {' | '.join(written)}"


def _lark_of_gbnf(source: str) -> str:
    from llguidance.gbnf_to_lark import gbnf_to_lark  # noqa: PLC0415 - as above

    if source.count("::=") > limits.gbnf_rules_max:
        raise ValueError(f"the GBNF grammar has more than {limits.gbnf_rules_max} rules")
    try:
        return gbnf_to_lark(source)
    except RecursionError as error:
        raise ValueError("the GBNF grammar is nested too deep") from error
    except Exception as error:  # the converter raises plain `Exception` for what it does not know
        raise ValueError(f"the GBNF grammar cannot be converted: {error}") from error
