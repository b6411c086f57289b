"""How a fetch ends that cannot go on: one exception, which carries what the daemon is told."""

from __future__ import annotations

import errno

from llmvisor.errors import FetchFailed
from llmvisor.fetch.protocol import FailureKind, FetchFailure

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class FetchProblem(FetchFailed):
    """What is wrong, of which kind, and the next step a person can take."""

    def __init__(self, kind: FailureKind, message: str, *, hint: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message, hint=hint, retry_after_seconds=retry_after_seconds)
        self.kind: FailureKind = kind

    def failure(self) -> FetchFailure:
        """The last line of the fetch process."""
        return FetchFailure(self.kind, self.message, self.hint or "", self.retry_after_seconds)


def disk_problem(error: OSError, where: str) -> FetchProblem:
    """What it means that a file of ours could not be written, read or renamed."""
    reason = error.strerror or str(error)
    if error.errno in _NO_SPACE:
        return FetchProblem(
            "no_space", f"{where}: {reason}", hint="free some space, or set storage.dir to another disk"
        )
    return FetchProblem("disk", f"{where}: {reason}", hint="check the folder's permissions and the disk")


def gravest(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one that says most of what went wrong, where several of a group failed at once."""
    return next((error for error in errors.exceptions if isinstance(error, FetchProblem)), errors.exceptions[0])
