"""What a schema's parts and references lead to: whether a finite value fits, how many patterns one text has to fit.

Each part is looked at once for as long as nothing about it changes, however often it is referred to. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeGuard

JsonObject = dict[str, object]
Schema = JsonObject | bool

_ONE = ("additionalProperties", "additionalItems", "items", "contains", "not", "if", "then", "else", "propertyNames",
        "unevaluatedProperties", "unevaluatedItems")  # fmt: skip
_LIST = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_CONTAINERS = {"object", "array"}


def is_object(value: object) -> TypeGuard[JsonObject]:
    """Whether a value is a JSON object."""
    return isinstance(value, dict)


def is_list(value: object) -> TypeGuard[list[object]]:
    """Whether a value is a JSON array."""
    return isinstance(value, list)


def parts(schema: JsonObject) -> Iterator[JsonObject]:
    """The schemas directly within one."""
    for name in _ONE:
        if is_object(part := schema.get(name)):
            yield part
    for name in _LIST:
        if is_list(found := schema.get(name)):
            yield from filter(is_object, found)
    for name in _NAMED:
        if is_object(named := schema.get(name)):
            yield from filter(is_object, named.values())


class Graph:
    """A schema and all that it leads to. `references` are what each `$ref` in it names."""

    def __init__(self, root: JsonObject, references: Mapping[str, Schema]) -> None:
        self._root = root
        self._references = references
        self._nodes = self._ordered()
        self.evaluations = 0
        """How often a node has been looked at."""

    def can_end(self) -> bool:
        """Whether a finite value may fit. In doubt yes: this only finds what plainly requires itself.

        A reference can end where what it names can without it.
        """
        ending: set[int] = set()
        waiting = self._nodes
        while waiting:
            left = [node for node in waiting if not self._ends(node, ending)]
            if len(left) == len(waiting):
                break
            waiting = left
        return id(self._root) in ending

    def patterns_joined(self, most: int) -> int:
        """At most so many patterns one text has to fit, counted no further than just over `most`."""
        counts = dict.fromkeys(map(id, self._nodes), 0)
        changed = True
        while changed:
            changed = False
            for node in self._nodes:
                count = min(self._patterns(node, counts), most + 1)
                changed = changed or count > counts[id(node)]
                counts[id(node)] = count
        return max(counts.values())

    def _ordered(self) -> list[JsonObject]:
        """Every node once, after those that it leads to unless they lead back to it."""
        ordered: list[JsonObject] = []
        seen = {id(self._root)}
        under_way = [(self._root, self._next(self._root))]
        while under_way:
            node, following = under_way[-1]
            child = next((child for child in following if id(child) not in seen), None)
            if child is None:
                ordered.append(node)
                under_way.pop()
            else:
                seen.add(id(child))
                under_way.append((child, self._next(child)))
        return ordered

    def _next(self, node: JsonObject) -> Iterator[JsonObject]:
        target = self._target(node)
        if is_object(target):
            yield target
        yield from parts(node)

    def _target(self, node: JsonObject) -> Schema | None:
        """What the `$ref` of a node names; None without one."""
        reference = node.get("$ref")
        # One in a place that no schema stands in has not been followed: it leads nowhere.
        return self._references.get(reference, False) if isinstance(reference, str) else None

    def _ends(self, node: JsonObject, ending: set[int]) -> bool:
        self.evaluations += 1

        def ends(schema: object) -> bool:
            return not is_object(schema) or id(schema) in ending

        target = self._target(node)
        if target is not None and not (target if isinstance(target, bool) else ends(target)):
            return False
        for name in ("anyOf", "oneOf"):
            if is_list(found := node.get(name)) and not any(map(ends, found)):
                return False
        if is_list(found := node.get("allOf")) and not all(map(ends, found)):
            return False
        kinds = node.get("type")
        names = set(map(str, kinds if is_list(kinds) else [kinds]))
        if (
            "const" in node
            or "enum" in node
            or not names <= _CONTAINERS
            or any(all(map(ends, _needed(name, node))) for name in names)
        ):
            ending.add(id(node))
        return id(node) in ending

    def _patterns(self, node: JsonObject, counts: Mapping[int, int]) -> int:
        """An upper bound, for what is joined may name different properties."""
        self.evaluations += 1
        target = self._target(node)
        joined = counts[id(target)] if is_object(target) else 0
        if is_list(found := node.get("allOf")):
            joined += sum(counts[id(part)] for part in found if is_object(part))
        chosen = 0
        for name in ("anyOf", "oneOf"):
            if is_list(found := node.get(name)):
                chosen += max((counts[id(part)] for part in found if is_object(part)), default=0)
        apart = {id(target), *(id(part) for name in _JOINING if is_list(found := node.get(name)) for part in found)}
        own = max((counts[id(part)] for part in parts(node) if id(part) not in apart), default=0)
        return joined + chosen + max(own, int("pattern" in node))


_JOINING = ("allOf", "anyOf", "oneOf")


def _needed(kind: str, node: JsonObject) -> Iterator[object]:
    """The schemas that every object or array of this schema has a value of."""
    if kind == "object":
        required, named = node.get("required"), node.get("properties")
        others = node.get("additionalProperties", True)
        for name in dict.fromkeys(map(str, required)) if is_list(required) else ():
            yield named.get(name, others) if is_object(named) else others
        return
    least = node.get("minItems")
    count = least if isinstance(least, int) else 0
    items, rest = node.get("prefixItems", node.get("items")), node.get("items", True)
    first = items if is_list(items) else []
    yield from first[: max(count, 0)]
    if count > len(first) and not is_list(rest):
        yield rest
