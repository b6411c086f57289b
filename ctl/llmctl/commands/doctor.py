"""`llmctl doctor`."""

from __future__ import annotations

import os

import msgspec

from llmctl.doctor import Finding, Place, examine
from llmctl.errors import DONE, FAILED
from llmctl.session import Session
from llmctl.table import fold
from llmctl.terminal import Style, Terminal, printable

_MARKS: dict[str, tuple[str, Style]] = {"ok": ("ok", "green"), "note": ("note", "dim"), "problem": ("PROBLEM", "red")}
_MARK_WIDTH = 7
_SUBJECT_WIDTH = 16


class _Report(msgspec.Struct):
    object: str
    data: list[Finding]
    problems: int


def doctor(session: Session) -> int:
    """Every check with what it found, each problem with its fix; exit code 1 if there is a problem."""
    place = Place(environ=os.environ, client=session.client)
    findings: list[Finding] = []
    for finding in examine(place):
        findings.append(finding)
        if not session.json:
            session.out.lines(finding_lines(finding, session.out))
            session.out.stdout.flush()
    problems = sum(finding.level == "problem" for finding in findings)
    if session.json:
        session.out.json(msgspec.json.encode(_Report("list", findings, problems)))
    else:
        session.out.line()
        session.out.line(f"{problems} problem{'' if problems == 1 else 's'}" if problems else "no problems")
    return FAILED if problems else DONE


def finding_lines(finding: Finding, out: Terminal) -> list[str]:
    """`ok  Python  3.11.7`, long texts folded below each other, the fix on lines of its own."""
    mark, style = _MARKS[finding.level]
    margin = _MARK_WIDTH + 2 + _SUBJECT_WIDTH + 2
    room = max((out.width or 10_000) - margin, 20)
    texts = [piece for part in printable(finding.text).splitlines() for piece in fold(part, room)]
    texts += fold(f"fix: {finding.fix}", room) if finding.fix else []
    head = f"{out.paint(f'{mark:<{_MARK_WIDTH}}', style)}  {finding.subject:<{_SUBJECT_WIDTH}}  "
    return [(head if index == 0 else " " * margin) + text for index, text in enumerate(texts or [""])]
