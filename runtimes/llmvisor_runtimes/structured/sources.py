"""Every kind of `protocol.Grammar` as a grammar of llguidance. llguidance itself is imported where it converts."""

from __future__ import annotations

import json

import msgspec

from llmvisor_runtimes import limits
from llmvisor_runtimes.protocol import Grammar
from llmvisor_runtimes.structured.schema import prepared_schema

_ANY_OBJECT = '{"type":"object"}'


def llguidance_grammar(grammar: Grammar) -> str:
    """llguidance's own form of a grammar, which is JSON. Raises `ValueError` with the reason where there is none."""
    source = grammar.source
    if len(source.encode()) > limits.grammar_source_bytes_max:
        raise ValueError(f"it is longer than {limits.grammar_source_bytes_max} bytes")
    match grammar.kind:
        case "json_object":
            return _wrapped(json_schema=msgspec.Raw(prepared_schema(_ANY_OBJECT).encode()))
        case "json_schema":
            return _wrapped(json_schema=msgspec.Raw(prepared_schema(source).encode()))
        case "regex":
            return _wrapped(lark_grammar=_lark_of_regex(source))
        case "choice":
            return _wrapped(lark_grammar=_lark_of_texts(source))
        case "lark":
            return _wrapped(lark_grammar=source)
        case "gbnf":
            return _wrapped(lark_grammar=_lark_of_gbnf(source))


def _wrapped(**grammar: str | msgspec.Raw) -> str:
    return msgspec.json.encode({"grammars": [grammar]}).decode()


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
