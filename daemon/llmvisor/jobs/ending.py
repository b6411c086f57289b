"""What a job's error means: what a person is told, and whether it may pass by itself. Pure."""

from __future__ import annotations

import msgspec

from llmvisor import limits
from llmvisor.errors import InternalError, LlmvisorError, StoreUnavailable
from llmvisor.fetch.failures import FetchProblem, disk_problem
from llmvisor.fetch.protocol import RETRYABLE


class FetchCrashed(LlmvisorError):
    """The fetch process ended without a word, or with one that is none."""

    code = "fetch_crashed"
    retryable = True


class Reason(msgspec.Struct, frozen=True):
    """Why a try failed."""

    message: str
    code: str
    hint: str | None = None
    passes: bool = False
    """Whether the same may succeed later."""
    retry_after_seconds: float | None = None
    retries_max: int = limits.job_retries_max
    """Of tries in a row that brought nothing."""
    bug: bool = False


def reason_of(error: BaseException) -> Reason:
    """What an error of a job means."""
    match error:
        case FetchProblem():
            passes = error.kind in RETRYABLE
            return Reason(error.message, error.kind, error.hint, passes, error.retry_after_seconds)
        case FetchCrashed():
            retries_max = limits.job_crashes_max - 1
            hint = error.hint or "`llmctl logs` has what it said last"
            return Reason(error.message, error.code, hint, passes=True, retries_max=retries_max)
        case LlmvisorError():
            return Reason(error.message, error.code, error.hint, passes=isinstance(error, StoreUnavailable))
        case OSError():
            return reason_of(disk_problem(error, "a model's files"))
        case _:
            return Reason("internal error", InternalError.code, "`llmctl logs --level error` has it", bug=True)
