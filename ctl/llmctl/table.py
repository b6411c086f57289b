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


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[Cell | str]], *, width: int | None, paint: Paint
) -> list[str]:
    """The lines of a table; a text is a cell without a style.

    Wider than `width`: silent columns go first, then gaps narrow, then columns fold.
    """
    below = list(zip(*rows, strict=True)) or [()] * len(columns)
    texts = [_clean([cell if isinstance(cell, str) else cell.text for cell in cells]) for cells in below]
    styles: list[list[Style]] = [["" if isinstance(cell, str) else cell.style for cell in cells] for cells in below]
    widths = [_column_width(column, cells) for column, cells in zip(columns, texts, strict=True)]
    shown = list(range(len(columns)))
    if width is not None and _total(widths, shown, gap=2) > width:
        shown = [index for index in shown if not _is_silent(columns[index], texts[index])]
    gap = 1 if width is not None and _total(widths, shown, gap=2) > width else 2
    chosen = [columns[index] for index in shown]
    fitted = [widths[index] for index in shown]
    if width is not None:
        _squeeze(fitted, chosen, excess=sum(fitted) + gap * (len(shown) - 1) - width)
    lines = [_line(chosen, [Cell(column.header, "dim") for column in chosen], fitted, gap, paint)]
    if fitted == [widths[index] for index in shown]:
        # Nothing needs folding. Ten thousand rows column by column take a tenth of the time.
        padded = [_padded(columns[i], texts[i], styles[i], widths[i], paint) for i in shown]
        join = (" " * gap).join
        return lines + [join(parts).rstrip() for parts in zip(*padded, strict=True)]
    for place in range(len(rows)):
        folded = [fold(texts[index][place], size) for index, size in zip(shown, fitted, strict=True)]
        for part in range(max(map(len, folded))):
            parts = [
                Cell(pieces[part] if part < len(pieces) else "", styles[index][place])
                for index, pieces in zip(shown, folded, strict=True)
            ]
            lines.append(_line(chosen, parts, fitted, gap, paint))
    return lines


def _padded(column: Column, texts: list[str], styles: Sequence[Style], width: int, paint: Paint) -> list[str]:
    if not any(styles) and all(map(str.isascii, texts)):
        return [text.rjust(width) for text in texts] if column.right else [text.ljust(width) for text in texts]
    cells: list[str] = []
    for text, style in zip(texts, styles, strict=True):
        padding = " " * (width - display_width(text))
        painted = paint(text, style) if style else text
        cells.append(padding + painted if column.right else painted + padding)
    return cells


def fold(text: str, width: int) -> list[str]:
    """Text cut into pieces of `width` columns at most, after a space or a sign where one stands late enough."""
    pieces: list[str] = []
    width = max(width, 1)  # what a margin leaves of a very narrow terminal may be less than nothing
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


def _clean(texts: list[str]) -> list[str]:
    if "".join(texts).isprintable():
        return texts
    return [printable(text.replace("\n", " ").replace("\t", " ")) for text in texts]


def _is_silent(column: Column, texts: Sequence[str]) -> bool:
    return not column.fold and all(text in column.silent for text in texts)


def _column_width(column: Column, texts: Sequence[str]) -> int:
    measure = len if all(map(str.isascii, texts)) else display_width
    return max(len(column.header), *map(measure, texts)) if texts else len(column.header)


def _total(widths: Sequence[int], shown: Sequence[int], *, gap: int) -> int:
    return sum(widths[index] for index in shown) + gap * (len(shown) - 1)


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
