"""A backend from outside: it prints wherever it can, and fails in ways that ours do not."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from llmvisor_runtimes.mock import MockBackend
from llmvisor_runtimes.protocol import Generate, Report, TextPrompt
from llmvisor_runtimes.structured import Constraint

ENTRY_POINTS = """[llmvisor.runtimes]
loud = tests.support.loud_backend:LoudBackend
absent = tests.support.no_such_module:Backend
"""


class LoudBackend(MockBackend):
    """The mock, but it prints at every step."""

    name = "loud"

    def generate(self, request: Generate, prompt_tokens: list[int], constraint: Constraint | None = None) -> None:
        if isinstance(request.prompt, TextPrompt) and request.prompt.text == "break":
            raise ValueError("this backend does not like breaks")
        super().generate(request, prompt_tokens, constraint)

    def step(self) -> list[Report]:
        print("print: stepping")
        print("print: to stderr", file=sys.stderr)
        os.write(1, b"native: \xff\xff\xff\xff to stdout\n")
        os.write(2, b"native: to stderr\n")
        return super().step()


def install(folder: Path) -> dict[str, str]:
    """Register this backend as an installed package would; gives the environment in which it is found."""
    info = folder / "loud-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loud\nVersion: 1\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    root = Path(__file__).parents[2]
    return {"PYTHONPATH": f"{folder}{os.pathsep}{root}"}
