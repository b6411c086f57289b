"""`llmctl bench`."""

from __future__ import annotations

from statistics import mean
from typing import cast

import msgspec

from llmctl import render
from llmctl.bench import BenchAnswer, BenchRow, Sample, levels, measure, summed_up
from llmctl.chat import find_model
from llmctl.errors import DONE, CtlError
from llmctl.follow import load_first
from llmctl.session import Session
from llmctl.table import Cell, Column, table
from llmctl.waiting import waiting_note

_COLUMNS = (
    Column("AT ONCE", right=True),
    Column("FIRST TOKEN", right=True),
    Column("SLOWEST", right=True),
    Column("READS TOK/S", right=True),
    Column("WRITES TOK/S", right=True),
    Column("EACH", right=True),
)
_GENERATES = ("llm", "vlm", "unknown")


def bench(session: Session) -> int:
    """Time to the first token, prefill and decode speed, at one request and at more at once."""
    args = session.args
    model = find_model(session, cast("str", args.model))
    if model.type not in _GENERATES:
        raise CtlError(f"{model.id} generates no text ({model.type}), and bench measures that alone")
    load_first(session, model)
    prompt, answer = cast("int", args.prompt_tokens), cast("int", args.max_tokens)
    with waiting_note(session.out, "warming up"):
        measure(session.client, model.id, concurrency=1, prompt_tokens=16, max_tokens=2)
    samples: list[list[Sample]] = []
    for concurrency in levels(cast("int", args.concurrency)):
        with waiting_note(session.out, f"{concurrency} at once"):
            samples.append(
                measure(session.client, model.id, concurrency=concurrency, prompt_tokens=prompt, max_tokens=answer)
            )
    tokens = round(mean(sample.prompt_tokens for level in samples for sample in level))
    rows = [summed_up(level) for level in samples]
    if session.json:
        session.out.json(msgspec.json.encode(BenchAnswer(model.id, tokens, answer, rows)))
        return DONE
    session.out.line(f"{model.id}: prompts of {tokens} tokens, answers of {answer}")
    session.out.lines(table(_COLUMNS, [_row(row) for row in rows], width=session.out.width, paint=session.out.paint))
    return DONE


def _row(row: BenchRow) -> list[Cell]:
    return [
        Cell(str(row.concurrency)),
        Cell(render.milliseconds(1000 * row.first_token_seconds)),
        Cell(render.milliseconds(1000 * row.first_token_seconds_max)),
        Cell(_speed(row.prefill_tokens_per_second)),
        Cell(_speed(row.decode_tokens_per_second)),
        Cell(_speed(row.decode_tokens_per_second_each)),
    ]


def _speed(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"
