"""Tables in plain text: aligned columns, no lines, and a way to fit a narrow terminal. Pure."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

from llmctl.terminal import Style, printable

Paint = Callable[[str, Style], str]
_FOLD_WIDTH_MIN = 12


class Column(NamedTuple):
    header: str
    right: bool = False
    fold: bool = False
    """May be folded over several lines where the table is too wide."""
    silent: tuple[str, ...] = ("",)
    """Cells that say nothing: on a narrow terminal a column of these alone is left out."""


class Cell(NamedTuple):
    text: str
    style: Style = ""


def table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], *, width: int | None, paint: Paint) -> list[str]:
    """The lines of a table. Wider than `width`: silent columns go first, then gaps narrow, then columns fold."""
    cells = [[Cell(_clean(cell.text), cell.style) for cell in row] for row in rows]
    shown = list(range(len(columns)))
    if width is not None and _total(columns, cells, shown, gap=2) > width:
        shown = [index for index in shown if not _is_silent(columns[index], [row[index] for row in cells])]
    gap = 1 if width is not None and _total(columns, cells, shown, gap=2) > width else 2
    widths = [_column_width(columns, cells, index) for index in shown]
    if width is not None:
        _squeeze(widths, [columns[index] for index in shown], excess=sum(widths) + gap * (len(shown) - 1) - width)
    lines = [_line([columns[i] for i in shown], [Cell(columns[i].header, "dim") for i in shown], widths, gap, paint)]
    for row in cells:
        folded = [fold(row[index].text, size) for index, size in zip(shown, widths, strict=True)]
        for part in range(max(map(len, folded))):
            parts = [
                Cell(texts[part] if part < len(texts) else "", row[index].style)
                for index, texts in zip(shown, folded, strict=True)
            ]
            lines.append(_line([columns[i] for i in shown], parts, widths, gap, paint))
    return lines


def fold(text: str, width: int) -> list[str]:
    """Text cut into pieces of `width` columns at most, after a space or a sign where one stands late enough."""
    pieces: list[str] = []
    while display_width(text) > width:
        end = _fitting(text, width)
        good = max((text.rfind(sign, 0, end) + 1 for sign in " /-_.,"), default=0)
        end = good if good > end // 3 else end
        pieces.append(text[:end].rstrip())
        text = text[end:].lstrip()
    return [*pieces, text]


def display_width(text: str) -> int:
    """Columns that text takes: wide East Asian characters take two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(_character_width(character) for character in text)


def _character_width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1


def _fitting(text: str, width: int) -> int:
    taken = 0
    for index, character in enumerate(text):
        taken += _character_width(character)
        if taken > width:
            return max(index, 1)
    return len(text)


def _clean(text: str) -> str:
    return printable(text.replace("\n", " ").replace("\t", " "))


def _is_silent(column: Column, cells: Sequence[Cell]) -> bool:
    return not column.fold and all(cell.text in column.silent for cell in cells)


def _column_width(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], index: int) -> int:
    return max([len(columns[index].header), *(display_width(row[index].text) for row in rows)])


def _total(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], shown: Sequence[int], *, gap: int) -> int:
    return sum(_column_width(columns, rows, index) for index in shown) + gap * (len(shown) - 1)


def _squeeze(widths: list[int], columns: Sequence[Column], *, excess: int) -> None:
    """Take what is too much from the widest of the columns that may fold."""
    while excess > 0:
        foldable = [i for i, column in enumerate(columns) if column.fold and widths[i] > _FOLD_WIDTH_MIN]
        if not foldable:
            return
        widest = max(foldable, key=lambda index: widths[index])
        widths[widest] -= 1
        excess -= 1


def _line(columns: Sequence[Column], cells: Sequence[Cell], widths: Sequence[int], gap: int, paint: Paint) -> str:
    parts: list[str] = []
    for index, (column, cell, width) in enumerate(zip(columns, cells, widths, strict=True)):
        padding = " " * (width - display_width(cell.text))
        last = index == len(cells) - 1
        text = paint(cell.text, cell.style)
        parts.append(padding + text if column.right else text + ("" if last else padding))
    return (" " * gap).join(parts).rstrip()
