"""`llmctl install` without a source: a short list of models that fit this machine's memory."""

from __future__ import annotations

import sys
from typing import NamedTuple

from llmctl import render
from llmctl.client import decode
from llmctl.errors import CtlError, UsageError
from llmctl.session import Session
from llmctl.table import Cell, Column, table
from llmvisor.control.api import DaemonStatus

_GIB = 1024**3
_MEMORY_BESIDE_WEIGHTS = 768 * 1024**2
"""What a context of 8192 tokens and the buffers of a step take, about, and more with larger models: see `fits`."""


class Offer(NamedTuple):
    source: str
    size: int
    """Bytes to fetch, about."""
    for_what: str


OFFERS = (
    Offer("starter", 98 * 1024**2, "to try things out: SmolLM2 135M, tiny and quick"),
    Offer("hf:Qwen/Qwen3-0.6B-GGUF", 639 * 10**6, "simple tasks, on any machine"),
    Offer("hf:Qwen/Qwen3-1.7B-GGUF", 1830 * 10**6, "short answers, summaries"),
    Offer("hf:Qwen/Qwen3-4B-GGUF", 2500 * 10**6, "everyday questions, tools"),
    Offer("hf:Qwen/Qwen3-8B-GGUF", 5030 * 10**6, "good answers, tools, code"),
    Offer("hf:Qwen/Qwen3-14B-GGUF", 9000 * 10**6, "better answers, slower"),
    Offer("hf:Qwen/Qwen3-32B-GGUF", 19_760 * 10**6, "the best of these; wants a GPU or patience"),
    Offer("hf:Qwen/Qwen3-Embedding-0.6B-GGUF", 639 * 10**6, "vectors for search"),
)
_COLUMNS = (Column("", right=True), Column("MODEL"), Column("SIZE", right=True), Column("FOR", fold=True))


def choose_source(session: Session) -> str:
    """What a person picks. Raises `UsageError` where there is none to ask, `CtlError` where nothing is picked."""
    if not (sys.stdin and sys.stdin.isatty() and session.out.interactive) or session.json:
        hint = "llmctl install starter, hf:org/repo or ollama:name; llmctl search finds them"
        raise UsageError("install needs a SOURCE", hint=hint)
    limit = decode(session.client.get("/llm/status"), DaemonStatus).memory_limit
    offers = [offer for offer in OFFERS if fits(offer, limit)] or [OFFERS[0]]
    rows = [
        [Cell(str(place)), Cell(offer.source), Cell(render.size(offer.size)), Cell(offer.for_what)]
        for place, offer in enumerate(offers, start=1)
    ]
    session.out.lines(
        [
            f"These fit in the {render.long_size(limit)} that models may take here:",
            "",
            *table(_COLUMNS, rows, width=session.out.width, paint=session.out.paint),
            "",
        ]
    )
    return _asked(session, offers)


def fits(offer: Offer, memory_limit: int) -> bool:
    """Whether the weights, with a tenth on top for the context, and the buffers fit in so many bytes."""
    return offer.size * 1.1 + _MEMORY_BESIDE_WEIGHTS * (offer.size > _GIB // 4) <= memory_limit


def _asked(session: Session, offers: list[Offer]) -> str:
    while True:
        session.out.stdout.flush()
        try:
            answer = input("which? a number, or any other source (nothing: none) ").strip()
        except EOFError:
            session.out.line()
            answer = ""
        if not answer:
            raise CtlError("nothing is installed", hint="others are found with: llmctl search TEXT")
        if answer.isdecimal() and 1 <= int(answer) <= len(offers):
            return offers[int(answer) - 1].source
        if answer == "starter" or ":" in answer:
            return answer
        session.out.line(f"  1 to {len(offers)}, hf:org/repo or ollama:name")
