"""The tables of what is promised name tests; each of these exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`(?:tests/[\w/]+/)?(test_\w+(?:\.py)?)(?:\[[^`]*\])?`")
FAULTS = [*(f"F{number}" for number in range(1, 37)), *(f"A{number}" for number in range(1, 16))]


@cache
def existing() -> set[str]:
    """Names of test files and of the functions in them."""
    names: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        names.add(path.name)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        names |= {node.name for node in ast.walk(tree) if isinstance(node, functions) and node.name.startswith("test_")}
    return names


def rows(path: str) -> list[str]:
    return [line for line in (ROOT / path).read_text(encoding="utf-8").splitlines() if line.startswith("|")]


@pytest.mark.parametrize("path", ["README.md", "docs/faults.md"])
def test_tables_name_tests_that_exist(path: str) -> None:
    """A promise whose test was renamed or removed is a promise without one."""
    named = [name for row in rows(path) for name in NAMED.findall(row)]
    assert len(named) > 20
    assert [name for name in named if name not in existing()] == []


@pytest.mark.parametrize("number", FAULTS)
def test_every_fault_and_attack_has_its_row(number: str) -> None:
    """With a test, or with the reason why there is none."""
    (row,) = [row for row in rows("docs/faults.md") if row.startswith(f"| {number} |")]
    assert NAMED.search(row) or "not tested" in row, row
