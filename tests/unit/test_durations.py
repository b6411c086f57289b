"""Ollama's `keep_alive`."""

from __future__ import annotations

import pytest

from llmvisor import limits
from llmvisor.errors import InvalidRequest
from llmvisor.http.durations import keep_alive_seconds


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (0, 0.0),
        (-1, -1.0),
        (300, 300.0),
        (1.5, 1.5),
        ("0", 0.0),
        ("-1", -1.0),
        ("300", 300.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("-1m", -60.0),
        ("+2s", 2.0),
        ("1.5h", 5400.0),
        ("250ms", 0.25),
        ("100us", 1e-4),
        ("100µs", 1e-4),
        ("1000ns", 1e-6),
    ],
)
def test_duration_reads_seconds_and_units(value: float | str | None, seconds: float | None) -> None:
    """Numbers are seconds, texts have units as in Go; negative means for ever."""
    assert keep_alive_seconds(value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value", ["", " ", "m", "5 m", "5x", "5m3", "--1m", "1e9h", "٥m", "nan", "inf", "1" * 65, "5m\n"]
)
def test_duration_refuses_what_is_none(value: str) -> None:
    """A text that is no duration names the field and shows what was found."""
    with pytest.raises(InvalidRequest) as error:
        keep_alive_seconds(value)
    assert error.value.param == "keep_alive"


def test_duration_has_a_bound() -> None:
    """At the bound it is taken, past it refused, in both directions."""
    most = limits.keep_alive_seconds_max
    assert keep_alive_seconds(most) == most
    assert keep_alive_seconds(-most) == -most
    for value in (most + 1, -most - 1, f"{int(most) + 1}s"):
        with pytest.raises(InvalidRequest):
            keep_alive_seconds(value)
