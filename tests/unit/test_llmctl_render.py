"""llmctl's pure parts: values, tables, progress, events, conversations."""

from __future__ import annotations

from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl import render
from llmctl.conversation import Conversation
from llmctl.errors import CtlError
from llmctl.progress import Rate, progress_text
from llmctl.sse import EventParser, ServerSentEvent
from llmctl.table import Cell, Column, display_width, fold, table
from llmctl.terminal import Style, Terminal, printable
from llmvisor.control.api import Job, JobParams


def plain(text: str, style: Style) -> str:
    return text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, ""),
        (0, "0"),
        (512, "512"),
        (2**10, "1K"),
        (98 * 2**20, "98M"),
        (1000 * 2**20, "1.0G"),
        (2**50, "1024T"),
    ],
)
def test_size_is_short(count: int | None, text: str) -> None:
    """Three digits and a unit."""
    assert render.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0.42, "0.4s"),
        (45, "45s"),
        (59.6, "1m"),
        (60, "1m"),
        (252, "4m 12s"),
        (3600, "1h"),
        (11_532, "3h 12m"),
        (86_400, "1d"),
        (100_000_000, "1157d 9h"),
    ],
)
def test_duration_has_two_units_at_most(seconds: float | None, text: str) -> None:
    """The larger ones."""
    assert render.duration(seconds) == text


@pytest.mark.parametrize(("seconds", "text"), [(None, ""), (0.2, "0s"), (59, "59s"), (252, "4m"), (9000, "2h")])
def test_countdown_has_one_unit(seconds: float | None, text: str) -> None:
    """It fits four columns."""
    assert render.countdown(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(None, ""), (12, "12"), (134_515_008, "135M"), (7_240_000_000, "7.2B")])
def test_count_of_parameters(value: int | None, text: str) -> None:
    """As models are spoken of."""
    assert render.count(value) == text


def test_table_aligns_and_paints_without_touching_the_widths() -> None:
    """Styles are not counted as columns."""
    columns = (Column("NAME"), Column("N", right=True))
    rows = [[Cell("a"), Cell("1", "red")], [Cell("long"), Cell("12")]]
    assert table(columns, rows, width=None, paint=plain) == ["NAME   N", "a      1", "long  12"]
    painted = table(columns, rows, width=None, paint=lambda text, style: f"<{text}>" if style else text)
    assert painted[1] == "a      <1>"


def test_table_leaves_silent_columns_out_only_where_it_is_too_wide() -> None:
    """What says nothing goes first."""
    columns = (Column("NAME", fold=True), Column("QUEUE", silent=("", "0")), Column("PID"))
    rows = [[Cell("model"), Cell("0"), Cell("42")]]
    assert "QUEUE" in table(columns, rows, width=40, paint=plain)[0]
    assert table(columns, rows, width=12, paint=plain) == ["NAME   PID", "model  42"]


@given(
    st.lists(st.lists(st.text(max_size=60), min_size=3, max_size=3), min_size=1, max_size=4),
    st.integers(min_value=60, max_value=200),
)
def test_table_never_exceeds_its_width(cells: list[list[str]], width: int) -> None:
    """Whatever stands in columns that may fold: control characters, wide ones, none."""
    columns = (Column("A", fold=True), Column("B", fold=True), Column("C", fold=True))
    rows = [[Cell(text) for text in row] for row in cells]
    assert all(display_width(line) <= width for line in table(columns, rows, width=width, paint=plain))


@given(st.text(max_size=200), st.integers(min_value=2, max_value=40))
def test_fold_loses_nothing_but_spaces(text: str, width: int) -> None:
    """The pieces fit, and together are the text."""
    pieces = fold(text, width)
    assert all(display_width(piece) <= width for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())


@pytest.mark.parametrize("width", [-3, 0])
def test_fold_ends_where_there_is_no_room_at_all(width: int) -> None:
    """What stands behind a margin on a terminal of one column: a character a line."""
    assert (fold("", width), fold("ab", width)) == ([""], ["a", "b"])


def test_text_in_a_row_is_a_cell_without_a_style() -> None:
    """Only a painted cell needs more than its text."""
    columns = (Column("A"), Column("B", right=True))
    cells = [[Cell("x"), Cell("é")], [Cell("long"), Cell("12")]]
    assert table(columns, [["x", "é"], ["long", Cell("12")]], width=None, paint=plain) == table(
        columns, cells, width=None, paint=plain
    )
    assert table(columns, [], width=20, paint=plain) == ["A  B"]


def test_printable_keeps_text_and_line_breaks() -> None:
    """Escape sequences lose what makes them work, and text stays in the order in which it is written."""
    assert printable("a\x1b[2J\x07\x9bb\n\tü漢\r\u202egpj\u2066") == "a[2Jb\n\tü漢gpj"


def test_painted_text_keeps_the_paint_alone() -> None:
    """Of escape sequences only colours reach a terminal, and none a pipe."""
    hostile = "\x1b[31mred\x1b[0m \x1b[2J\x1b\x1b]0;title\x07 \x1b[3\x001m"

    class Screen(StringIO):
        def isatty(self) -> bool:
            return True

    screen, pipe = Screen(), StringIO()
    Terminal(screen, screen, {}).line(hostile)
    Terminal(pipe, pipe, {}).line(hostile)
    assert screen.getvalue() == "\x1b[31mred\x1b[0m [2J]0;title [31m\n"
    assert pipe.getvalue() == "[31mred[0m [2J]0;title [31m\n"


def test_rate_is_that_of_the_stage() -> None:
    """A new stage begins a new count; without any speed nothing is promised."""
    rate = Rate()
    assert rate.update("weights", 0, 100, now=10.0) == (0.0, None)
    assert rate.update("weights", 20, 100, now=12.0) == (10.0, 8.0)
    assert rate.update("warm-up", 0, 4, now=13.0) == (0.0, None)


def job(**changes: object) -> Job:
    values = {"done": 25 * 2**20, "total": 100 * 2**20, "unit": "bytes", "stage": "weights", **changes}
    return Job(
        id="job_1",
        type="load",
        params=JobParams(model="m"),
        state="running",
        progress=0.25,
        created_at="",
        **values,  # pyright: ignore[reportArgumentType] - a table of the fields that matter here
    )


def test_progress_text_has_rate_and_time_left() -> None:
    """Bytes with units, layers as a count, and an unknown total left out."""
    assert progress_text(job(), 10 * 2**20, 7.5) == "weights  25 of 100 MiB  10 MiB/s  7.5s left"
    assert (
        progress_text(job(done=3, total=30, unit="layers"), 2.0, 13.5)
        == "weights  3 of 30 layers  2 layers/s  14s left"
    )
    assert progress_text(job(total=0), 0.0, None) == "weights"


def test_event_parser_follows_the_standard() -> None:
    """Comments give nothing, data lines are joined, the kind is forgotten after each event."""
    parser = EventParser()
    lines = [b": beat\n", b"\n", b"event: job\r\n", b"data: a\r\n", b"data:b\r\n", b"\r\n", b"data: c\n", b"\n"]
    events = [event for line in lines if (event := parser.feed(line))]
    assert events == [ServerSentEvent("job", b"a\nb"), ServerSentEvent("message", b"c")]


def test_conversation_sends_system_history_and_settings() -> None:
    """In the order that models expect, and without what was taken back."""
    talk = Conversation("m", system="Be brief.")
    talk.add("a", "b")
    talk.set("temperature", "0.5")
    talk.set("seed", "1")
    talk.set("seed", "default")
    request = talk.request("c")
    assert [(message.role, message.content) for message in request.messages] == [
        ("system", "Be brief."),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
    ]
    assert (request.temperature, request.seed) == (0.5, None)
    talk.clear()
    assert len(talk.request("d").messages) == 2


@pytest.mark.parametrize(
    ("name", "value"), [("top_k", "0.5"), ("temperature", "nan"), ("top_p", "1.01"), ("nope", "1")]
)
def test_conversation_refuses_settings_that_the_daemon_would(name: str, value: str) -> None:
    """Said before the next question, not after it."""
    with pytest.raises(CtlError):
        Conversation("m").set(name, value)


def test_conversation_is_saved_as_markdown_or_json() -> None:
    """For reading, and for programs."""
    talk = Conversation("m")
    talk.add("a", "b")
    assert "**assistant**\n\nb" in talk.saved(markdown=True)
    assert '"messages"' in talk.saved(markdown=False)
