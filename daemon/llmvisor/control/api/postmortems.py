"""What is kept of a worker that crashed. Nothing of prompts and answers is in it."""

from __future__ import annotations

from typing import Literal

import msgspec

RequestFate = Literal["resumed", "poison", "failed", "left"]
"""Goes on in the next worker; was refused as the cause; ended with an error; whoever asked had gone."""


class FrameRecord(msgspec.Struct, frozen=True):
    """A frame between the daemon and the worker."""

    seconds_before: float
    """The crash."""
    direction: Literal["sent", "received"]
    kind: str
    """`Generate`, `Step`, …"""
    ids: list[int]
    """The requests that it is about; numbers of this worker's life alone."""
    size_bytes: int


class MemoryRecord(msgspec.Struct, frozen=True):
    """The worker's memory at a moment."""

    seconds_before: float
    rss_bytes: int


class RequestRecord(msgspec.Struct, frozen=True):
    """A request that was inside the worker."""

    id: int
    """As the frames have it."""
    kind: str
    """generate | embed | score | call"""
    sha256: str
    """Of the model, the prompt and the parameters: the same request has the same."""
    seconds: float
    """That this worker had it."""
    tokens: int
    """That it had brought, of all workers."""
    tokens_new: int
    """Of this one."""
    fate: RequestFate


class Postmortem(msgspec.Struct, frozen=True):
    """One crash of one model's worker."""

    model: str
    time: str
    backend: str
    pid: int
    reason: str
    state: str
    """In which it crashed: `loading`, `loaded`, `draining`."""
    exit_code: int | None
    signal: int | None
    possible_oom: bool
    seconds: float
    """That the worker lived."""
    rss_peak_bytes: int
    memory: list[MemoryRecord] = []
    """Oldest first, as the frames."""
    frames: list[FrameRecord] = []
    requests: list[RequestRecord] = []
    last_lines: list[str] = []
