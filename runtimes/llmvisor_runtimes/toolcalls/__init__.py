"""Tool calls and reasoning: what families of models write, taken apart, and held to it by grammars.

Pure: it knows neither an engine nor a tokenizer. A *family* is a text such as `hermes` or `hermes:think`: the format of
the calls, and after a colon that of the reasoning. `families.py` is the table of both.

    family = family_of(template_source)                 once for a model
    parser = make_parser(prompt, family, opening)       for each choice
    grammar = tool_grammar(prompt, family, opening)     where a call is required
"""

from llmvisor_runtimes.toolcalls.families import family_of, markers
from llmvisor_runtimes.toolcalls.grammar import tool_grammar
from llmvisor_runtimes.toolcalls.parser import call_id, make_parser

__all__ = ["call_id", "family_of", "make_parser", "markers", "tool_grammar"]
