"""Bytes that are no frame, each wrong in its own way, by name.

Whatever reads a pipe of ours has to turn each of them into one `ProtocolViolation`, the cut ones at the pipe's end.
"""

from __future__ import annotations

import struct

import msgspec

from llmvisor_runtimes import limits


def _frame(body: bytes) -> bytes:
    return struct.pack("<I", len(body)) + body


def _packed(value: object) -> bytes:
    return _frame(msgspec.msgpack.encode(value))


_TICK = {"type": "tick", "step": 1, "phase": "idle", "active": 0, "waiting": 0, "tokens": 0, "rss_bytes": 1}
_DELTA = [7, 0, "text", [256], None, []]
_EXTRA_FIELD = b"\x82\xa4type\xa5close\xa1x"

SEEDS: dict[str, bytes] = {
    # Lengths
    "zero_length": _frame(b""),
    "oversize": struct.pack("<I", limits.frame_bytes_max + 1),
    "longest_length": b"\xff\xff\xff\xff",
    "http_request": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "log_line": b"ggml: loading model tensors\n",
    "cut_length": b"\x05\x00",
    "cut_body": _packed(_TICK)[:-3],
    "length_alone": struct.pack("<I", 60 * 1024 * 1024),
    "trailing_bytes": _frame(msgspec.msgpack.encode({"type": "close"}) + b"\x00"),
    # Values that are no tagged map
    "reserved_byte": _frame(b"\xc1"),
    "nil": _packed(None),
    "integer": _packed(7),
    "string": _packed("close"),
    "array": _packed(["close"]),
    "empty_map": _packed({}),
    "no_tag": _packed({"step": 1}),
    "unknown_tag": _packed({"type": "reboot"}),
    "tag_of_wrong_type": _packed({"type": 3}),
    # Fields
    "missing_field": _packed({"type": "tick"}),
    "wrong_type": _packed(_TICK | {"step": "one"}),
    "unknown_value": _packed(_TICK | {"phase": "asleep"}),
    "extra_field": _packed(_TICK | {"mood": "fine"}),
    "float_for_integer": _packed(_TICK | {"step": 1.5}),
    "short_delta": _packed({"type": "step", "deltas": [_DELTA[:2]]}),
    "unknown_finish": _packed({"type": "step", "deltas": [[*_DELTA[:4], "exploded"]]}),
    # Bytes inside values
    "bad_utf8": _frame(b"\x81\xa4type\xa4\xff\xfe\xfd\xfc"),
    "bad_utf8_in_text": _frame(b"\x83\xa4type\xa4text\xa2id\x01\xa4text\xa2\xc3\x28"),
    "deep_nesting": _frame(b"\x91" * 50_000 + b"\xc0"),
    "deep_nesting_in_extra_field": _frame(_EXTRA_FIELD + b"\x91" * 50_000 + b"\xc0"),
    # Lengths inside values
    "array_bomb": _frame(b"\xdd\xff\xff\xff\xff"),
    "map_bomb": _frame(b"\xdf\xff\xff\xff\xff"),
    "bin_bomb": _frame(b"\xc6\xff\xff\xff\xff"),
    "str_bomb": _frame(b"\xdb\xff\xff\xff\xff"),
    "delta_bomb": _frame(b"\x82\xa4type\xa4step\xa6deltas\xdd\xff\xff\xff\xff"),
}
CUT = frozenset({"cut_length", "cut_body", "length_alone"})
"""Those that might still become frames: wrong only once the pipe ends."""
