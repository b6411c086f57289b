"""The text of `.env`."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmvisor.config.dotenv import read_dotenv


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("PORT=8080", "8080"),
        ("PORT = 8080 ", "8080"),
        ("export PORT=8080", "8080"),
        ("PORT=8080 # the port", "8080"),
        ("PORT=80#80", "80#80"),
        ("PORT=", ""),
        ("PORT=# nothing", ""),
        ("PORT='a # $HOME \\n'", "a # $HOME \\n"),
        ('PORT="a\\nb\\t\\"c\\" \\\\ \\$x" # d', 'a\nb\t"c" \\ $x'),
        ("PORT=$HOME", "$HOME"),
        ("PORT=a=b", "a=b"),
        ("PORT=8080\r", "8080"),
    ],
)
def test_dotenv_reads_a_line(line: str, value: str) -> None:
    """Quotes, `export`, comments and spaces mean what people expect of them, and nothing is expanded."""
    found, problems = read_dotenv(f"# first\n\n{line}\n")
    assert problems == []
    assert [(each.name, each.value, each.line) for each in found] == [("PORT", value, 3)]


@pytest.mark.parametrize("line", ["PORT", "=8", "1A=2", "A-B=2", "PORT='x", 'PORT="x', 'PORT="x" y'])
def test_dotenv_reports_a_wrong_line_without_its_value(line: str) -> None:
    """A line that is none is a problem with its number; what stands in it may be a secret and is not repeated."""
    found, problems = read_dotenv(f"A=1\n{line}\nB=2\n")
    assert [each.name for each in found] == ["A", "B"]
    assert [number for number, _ in problems] == [2]
    assert "x" not in problems[0][1].replace("export", "")


def test_dotenv_ignores_a_byte_order_mark() -> None:
    """A file that Windows wrote is read from its first name on."""
    found, problems = read_dotenv("\ufeffPORT=1\r\nHOST=h\r\n")
    assert problems == []
    assert [(each.name, each.value) for each in found] == [("PORT", "1"), ("HOST", "h")]


@settings(deadline=None)
@given(st.text(max_size=300))
def test_dotenv_reads_any_text(text: str) -> None:
    """Whatever stands in the file, every line is a variable, a problem, or nothing."""
    found, problems = read_dotenv(text)
    assert len(found) + len(problems) <= text.count("\n") + 1
