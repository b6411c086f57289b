"""The search page of Ollama's library, which is all that there is of a search there. Pure.

The page is made for people and changes: a card is taken to be a link to a model and whatever text stands within, so
that it matters little which element has it.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Final

import msgspec

from llmvisor.fetch.plain_text import printable

_NAME = r"[A-Za-z0-9][\w.-]{0,79}"
_MODEL = re.compile(rf"/library/(?P<name>{_NAME})|/(?P<users>(?!library/){_NAME}/{_NAME})", re.ASCII)
_PULLS = re.compile(r"(\d+(?:\.\d+)?)\s*([KMB]?)\s+Pulls?\b", re.IGNORECASE)
_SIZE = re.compile(r"e?\d+(?:\.\d+)?(?:x\d+(?:\.\d+)?)?[bm]", re.IGNORECASE)
_CAPABILITIES: Final = frozenset({"vision", "tools", "thinking", "embedding", "cloud", "audio", "code", "image"})
_UNITS: Final = {"": 1, "k": 1_000, "m": 1_000_000, "b": 1_000_000_000}
_NOTHING_FOUND: Final = "no models found"


class Card(msgspec.Struct, frozen=True):
    """One model of the library."""

    id: str
    """`name`, or `user/name`."""
    description: str | None
    pulls: int | None
    sizes: tuple[str, ...]
    capabilities: tuple[str, ...]


class UnknownPageError(Exception):
    """The page has no cards, and does not say either that nothing was found."""


def read_cards(page: str) -> list[Card]:
    """The models of a page, in its order. Raises `UnknownPageError`."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    cards: dict[str, Card] = {}
    for id, link in reader.links:
        card = _card(id, link)
        # What is linked twice, or from the page's frame, is no card a second time.
        if card is not None and card.id not in cards:
            cards[card.id] = card
    if not cards and _NOTHING_FOUND not in page.lower():
        raise UnknownPageError
    return list(cards.values())


def parameters_of(size: str) -> int | None:
    """`3b`, `350m`, `8x7b` as a number."""
    found = re.fullmatch(r"(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])", size.lower())
    return round(int(found[1] or 1) * float(found[2]) * _UNITS[found[3]]) if found else None


class _Link(msgspec.Struct):
    """What stands within a link: paragraphs, and all texts one by one."""

    paragraphs: list[str] = []
    texts: list[str] = []


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[tuple[str, _Link]] = []
        self._open: _Link | None = None
        self._in_paragraph = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            found = _MODEL.fullmatch((dict(attrs).get("href") or "").rstrip("/"))
            self._open = _Link() if found else None
            if found and self._open is not None:
                self.links.append((found["name"] or found["users"], self._open))
        elif tag == "p" and self._open is not None:
            self._in_paragraph = True
            self._open.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "a":
            self._open = None
        if tag in {"a", "p"}:
            self._in_paragraph = False

    def handle_data(self, data: str) -> None:
        if self._open is None or not data.strip():
            return
        self._open.texts.append(" ".join(data.split()))
        if self._in_paragraph:
            self._open.paragraphs[-1] += data


def _card(id: str, link: _Link) -> Card | None:
    paragraphs = [" ".join(text.split()) for text in link.paragraphs]
    described = next((text for text in paragraphs if text and not _PULLS.search(text)), None)
    pulls = _PULLS.search(" ".join(link.texts))
    # A user's model is told from the site's own pages by that somebody pulls it.
    if (described if "/" not in id else pulls) is None:
        return None
    figure = f"{pulls[1]}{pulls[2]}" if pulls else ""  # a million looks like a size
    return Card(
        id=id,
        description=printable(described, 500) if described else None,
        pulls=round(float(pulls[1]) * _UNITS[pulls[2].lower()]) if pulls else None,
        sizes=tuple(text.lower() for text in link.texts if _SIZE.fullmatch(text) and text != figure)[:32],
        capabilities=tuple(text.lower() for text in link.texts if text.lower() in _CAPABILITIES),
    )
