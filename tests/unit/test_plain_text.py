"""What strangers write is shown, and steers nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmvisor.fetch.plain_text import printable, without_login


def test_signs_that_steer_a_terminal_are_replaced() -> None:
    """Escapes and turns of the writing direction; lines become one."""
    assert printable("a\x1b[2Jb\u202ec", 50) == "a\N{REPLACEMENT CHARACTER}[2Jb\N{REPLACEMENT CHARACTER}c"
    assert printable(" two\n\tlines ", 50) == "two lines"
    assert printable("x" * 100, 10) == "x" * 9 + "…"


@given(st.text(max_size=200), st.integers(min_value=1, max_value=50))
def test_any_text_is_short_and_printable(text: str, chars_max: int) -> None:
    """Within its bound."""
    shown = printable(text, chars_max)
    assert shown.isprintable()
    assert len(shown) <= chars_max


def test_logins_in_addresses_are_left_out() -> None:
    """Wherever the address stands; other signs of the same kind stay."""
    assert without_login("http://me:pass@hub.example:80/a@b") == "http://hub.example:80/a@b"
    assert without_login("ask https://token@hub.example, or mail a@b.example") == (
        "ask https://hub.example, or mail a@b.example"
    )
