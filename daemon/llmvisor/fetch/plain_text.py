"""Texts of strangers as they may stand on a terminal. Pure."""

from __future__ import annotations

import re

_LOGIN = re.compile(r"(?<=//)[^/@\s]*@")


def printable(text: str, chars_max: int) -> str:
    """One line of at most so many characters, without what steers a terminal or turns the direction of writing."""
    line = " ".join(text[: 4 * chars_max].split())
    shown = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in line)
    return shown if len(shown) <= chars_max else f"{shown[: chars_max - 1]}…"


def without_login(address: str) -> str:
    """An address, or a text with addresses in it, without the name and password that may stand before a host."""
    return _LOGIN.sub("", address)
