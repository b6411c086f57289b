"""A jinja2 sandbox for chat templates, which come with a model's file and are trusted no more than that file.

jinja2's own sandbox keeps a template from reaching Python's insides. What it leaves open is time and memory: endless
loops, `'x' * 10**10`, `|center(10**9)`, strings that double. Here every loop turn, call, filter, operator and output
passes a `Meter`, which ends the rendering when its time or its bytes are spent. That is checked between steps, in the
rendering thread itself, and no step makes anything over `template_output_bytes_max`: so no step takes long, and
nothing is ever raised from another thread. Filters and methods that no chat template needs do not exist.
"""

# ruff: noqa: ANN401, N802, SIM905 - a template's values have any type; jinja2 names its visitors; word lists read best
from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from types import BuiltinMethodType
from typing import Any, NoReturn, cast

from jinja2 import Template, Undefined, nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateAssertionError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.filters import FILTERS, do_indent, do_int, do_round, make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer
from markupsafe import escape

from llmvisor_runtimes.meter import (
    REFERENCE_BYTES,
    Meter,
    check_bits,
    check_integers,
    check_size,
    columns,
    count,
    size,
    weight,
)

_FILTERS = frozenset(
    "abs capitalize count d default dictsort first float items last length list lower map max min reject rejectattr "
    "reverse select selectattr sort title trim truncate unique upper urlencode".split()
)
_METHODS: tuple[tuple[type, frozenset[str]], ...] = (
    (
        str,
        frozenset(
            "capitalize casefold center count endswith find format format_map index isalnum isalpha isascii isdecimal "
            "isdigit islower isnumeric isspace istitle isupper join ljust lower lstrip partition removeprefix "
            "removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines startswith strip "
            "swapcase title upper zfill".split()
        ),
    ),
    (dict, frozenset({"copy", "get", "items", "keys", "values"})),
    (list, frozenset({"copy", "count", "index"})),
    (tuple, frozenset({"count", "index"})),
)
_WRITTEN = (int, float, type(None), Undefined, range)
"""What may be written as text, beside texts and containers. Whatever else there is would say what it is made of."""


class _Turns:
    """What a loop goes through, with a step of the meter for each turn."""

    __slots__ = ("_items", "_meter", "_turn_bytes")

    def __init__(self, items: Any, meter: Meter, turn_bytes: int) -> None:
        self._items = items
        self._meter = meter
        self._turn_bytes = turn_bytes

    def __len__(self) -> int:
        return len(self._items)  # a TypeError for a generator, which jinja2's `loop` expects and handles

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            self._meter.charge(self._turn_bytes)
            yield item


class _Guard(NodeTransformer):
    """Puts the meter into a parsed template where jinja2 has no hook: loops, `~`, and list, tuple and dict literals."""

    def visit_Name(self, node: nodes.Name) -> nodes.Name:
        # The only lists that come about unseen; no chat template has a use for them.
        if node.name in {"varargs", "kwargs"}:
            raise TemplateAssertionError(f"{node.name} is not available in chat templates", node.lineno)
        return node

    def visit_For(self, node: nodes.For) -> nodes.For:
        literal_bytes = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        node.iter = _environment_call("turns", cast("nodes.Expr", node.iter), nodes.Const(literal_bytes))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return _environment_call("concatenated", *node.nodes)

    def visit_List(self, node: nodes.List) -> nodes.Expr:
        self.generic_visit(node)
        return _environment_call("weighed", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return _environment_call("weighed", node) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Expr:
        self.generic_visit(node)
        return _environment_call("weighed", node)


def _environment_call(name: str, *arguments: nodes.Expr) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), list(arguments), [], None, None)


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's words for training; here it is only its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one chat template. Use it from one thread at a time, with a fresh `meter` for each use."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            # Nothing is computed at compile time, nor without its filters and operators being metered.
            optimized=False,
            finalize=_finalize,
            extensions=[LoopControlExtension, _GenerationTag],
            cache_size=0,
        )
        self.meter = Meter()
        self.globals: dict[str, Any] = {name: self.globals[name] for name in ("range", "dict", "namespace", "joiner")}
        self.filters = {name: self._metered(FILTERS[name]) for name in _FILTERS} | self._own_filters()

    def compiled(self, source: str) -> Template:
        """The template of a source. Raises what jinja2 and Python raise for one that does not compile."""
        return self.from_string(cast("nodes.Template", _Guard().visit(self.parse(source))))

    # ------------------------------------------------------------------------------ called from rendered templates

    def turns(self, items: Any, turn_bytes: int) -> _Turns:
        return _Turns(items, self.meter, turn_bytes)

    def concatenated(self, *parts: Any) -> str:
        return self._joined("", [self.text(part) for part in parts])

    def weighed(self, container: Any) -> Any:
        """A literal, if it is no larger than any text may be: nested lists could double with each line."""
        self.meter.hold(container)
        return container

    def text(self, value: Any) -> str:
        """A value as text. Lists are weighed first: writing them out cannot be interrupted."""
        if isinstance(value, str):
            return value
        self.meter.charge(self._written(value))
        return str(value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ARG002
        if operator == "%" and isinstance(left, str):
            self._charge_percent(left, right)
        if isinstance(left, int) and isinstance(right, int):
            check_integers(operator, left, right)
        elif operator in {"+", "*"}:
            return self._combined(operator, left, right)
        return self.binop_table[operator](left, right)

    def _combined(self, operator: str, left: Any, right: Any) -> Any:
        """A sum or a multiple, which may be of texts or lists and is weighed before it is made."""
        meter = self.meter
        if operator == "+":
            length, total = size(left) + size(right), meter.weigh(left) + meter.weigh(right)
        else:
            length = size(left) * count(right) + size(right) * count(left)
            total = meter.weigh(left) * count(right) + meter.weigh(right) * count(left)
        check_size(total)
        meter.charge(length)
        result = self.binop_table[operator](left, right)
        if type(result) in {list, tuple}:
            meter.remember(result, total)
        return result

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.meter.step()
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str) or isinstance(obj, BuiltinMethodType):
            _check_method(owner, obj.__name__)
            if isinstance(owner, str):
                args = self._string_arguments(owner, obj.__name__, args)
        if isinstance(obj, LoopContext):
            args = tuple(self.turns(argument, 0) for argument in args)
        result = super().call(context, obj, *args, **kwargs)
        self.meter.hold(result)
        return result

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"access to attribute {attribute!r} of {type(obj).__name__!r} object is unsafe")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """jinja2's guarded `str.format`, where no field may be wide or nested."""
        guarded = super().wrap_str_format(value)
        if guarded is None:
            return None

        @wraps(guarded)
        def bounded(*args: Any, **kwargs: Any) -> str:
            pattern: str = value.__self__
            if re.search(r":[^{}]*\{", pattern):
                raise SecurityError("nested fields of format() are not available in chat templates")
            fields = pattern.count("{")
            self.meter.charge(len(pattern) + columns(pattern) + fields * self._written([args, kwargs]))
            return guarded(*args, **kwargs)

        return bounded

    # ------------------------------------------------------------------------------------- what can make much of little

    def _string_arguments(self, owner: str, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of a method of text, once what it will make is charged."""
        if name in {"center", "ljust", "rjust", "zfill"} and args:
            self.meter.charge(count(args[0]))
        elif name == "replace" and len(args) >= 2:
            self._charge_replace(owner, *args[:2])
        elif name == "join" and len(args) == 1:
            return (self._texts(owner, args[0]),)
        return args

    def _charge_replace(self, text: str, old: str, new: str) -> None:
        self.meter.charge(len(text) + text.count(old) * max(0, len(new) - len(old)))

    def _charge_percent(self, pattern: str, values: Any) -> None:
        if re.search(r"%[^%a-zA-Z]*\*", pattern):
            raise SecurityError("widths of '*' are not available in chat templates")
        self.meter.charge(len(pattern) + columns(pattern) + pattern.count("%") * self._written(values))

    def _written(self, value: Any) -> int:
        return weight(value, written=_WRITTEN)

    def _joined(self, separator: str, parts: Iterable[Any]) -> str:
        return separator.join(self._texts(separator, parts))

    def _texts(self, separator: str, parts: Iterable[Any]) -> list[str]:
        """The parts as text, once their sum is charged."""
        texts: list[str] = []
        total = 0
        for part in self.turns(parts, 0):
            texts.append(text := self.text(part))
            total += len(text) + len(separator)
            check_size(total)
        self.meter.charge(total)
        return texts

    # ------------------------------------------------------------------------------------------------------ filters

    def _metered(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)  # carries jinja2's mark of what the filter wants as its first argument
        def metered(*args: Any, **kwargs: Any) -> Any:
            self.meter.step()
            result = function(*args, **kwargs)
            self.meter.hold(result)
            return result

        return metered

    def _own_filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "center": self._center,
            "e": self._escape,
            "escape": self._escape,
            "format": self._format,
            "indent": self._indent,
            "int": self._int,
            "join": self._join,
            "replace": self._replace,
            "round": self._round,
            # Nothing is escaped here, so nothing has to be kept from it: jinja2's own would escape what is added to it.
            "safe": self.text,
            "string": self.text,
            "sum": self._sum,
            "tojson": self._tojson,
        }

    def _center(self, value: Any, width: int = 80) -> str:
        self.meter.charge(count(width))
        return self.text(value).center(width)

    def _escape(self, value: Any) -> str:
        return str(escape(self.text(value)))

    def _format(self, value: Any, *args: Any, **kwargs: Any) -> str:
        pattern, values = self.text(value), kwargs or args
        self._charge_percent(pattern, values)
        return pattern % values

    def _indent(self, value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        text = self.text(value)
        each = len(width) if isinstance(width, str) else count(width)
        self.meter.charge(len(text) + (text.count("\n") + 1) * each)
        return do_indent(text, width, first, blank)

    def _int(self, value: Any, default: int = 0, base: int = 10) -> int:
        if isinstance(value, str):
            check_bits(4 * len(value))
        return do_int(value, default, base)

    def _join(self, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
        get = make_attrgetter(self, attribute) if attribute is not None else None
        return self._joined(self.text(d), map(get, value) if get else value)

    def _replace(self, value: Any, old: Any, new: Any, count: int = -1) -> str:
        text, old, new = self.text(value), self.text(old), self.text(new)
        self._charge_replace(text, old, new)
        return text.replace(old, new, count)

    def _round(self, value: float, precision: int = 0, method: Any = "common") -> float:
        check_bits(4 * abs(precision))
        return do_round(value, precision, method)

    def _sum(self, iterable: Iterable[Any], attribute: str | int | None = None, start: Any = 0) -> Any:
        get = make_attrgetter(self, attribute) if attribute is not None else None
        for item in self.turns(iterable, 0):
            operand = get(item) if get else item
            start = self._combined("+", start, operand)
        return start

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON as chat templates expect it: characters and order kept, nothing escaped for HTML."""
        written = self._written(value)
        self.meter.charge(written + written // REFERENCE_BYTES * sum(map(len, separators or ())))
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        if indent is None:
            return encoder.encode(value)
        # The depth of the indent is bounded by the depth of the recursion; its sum is not, so it is counted.
        self.meter.charge(count(indent) * sys.getrecursionlimit())
        return self._joined("", encoder.iterencode(value))


@pass_context
def _finalize(context: Context, value: Any) -> str:
    """What each `{{ … }}` goes through. It takes the context so that jinja2 does not call it while compiling."""
    environment = cast("Sandbox", context.environment)
    text = environment.text(value)
    environment.meter.charge(len(text))
    return text


def _check_method(owner: Any, name: str) -> None:
    for kind, names in _METHODS:
        if isinstance(owner, kind) and name in names:
            return
    raise SecurityError(f"{name}() is not available in chat templates")
