"""The options of a model that only its backend knows, decoded and checked."""

from __future__ import annotations

import difflib
from typing import TypeVar

import msgspec

from llmvisor_runtimes.backend import LoadError

T = TypeVar("T", bound=msgspec.Struct)


def decode_options(raw: dict[str, msgspec.Raw], type: type[T], *, backend: str) -> T:
    """The options as the backend's own Struct. Raises `LoadError` (permanent) naming the key and, where there is one,
    the nearest."""
    known = type.__struct_fields__
    for name in raw:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
            raise LoadError(f"the {backend} backend has no option {name!r}{hint}", permanent=True)
    try:
        return msgspec.msgpack.decode(msgspec.msgpack.encode(raw), type=type)
    except msgspec.MsgspecError as error:
        raise LoadError(f"options of the {backend} backend: {error}", permanent=True) from error
