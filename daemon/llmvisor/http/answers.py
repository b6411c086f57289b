"""Answers that are one JSON object, errors above all."""

from __future__ import annotations

import math

import msgspec
from aiohttp import web

from llmvisor import limits
from llmvisor.control.api import ErrorAnswer, ErrorBody
from llmvisor.errors import LlmvisorError

ENCODER = msgspec.json.Encoder()


def json_answer(value: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A Struct (or what msgspec encodes) as an answer."""
    return web.Response(
        body=ENCODER.encode(value), status=status, headers={"Content-Type": "application/json", **(headers or {})}
    )


def error_body(error: LlmvisorError) -> ErrorAnswer:
    return ErrorAnswer(ErrorBody(message=str(error), type=error.type, code=error.code, param=error.param))


def error_answer(error: LlmvisorError) -> web.Response:
    """An error with its status, and when to come back where that is of use."""
    headers: dict[str, str] = {}
    seconds = error.retry_after_seconds
    if seconds is None and error.retryable:
        seconds = limits.retry_after_seconds
    if seconds is not None:
        headers["Retry-After"] = str(max(1, math.ceil(seconds)))
    return json_answer(error_body(error), status=error.status, headers=headers)
