"""What the hub's refusals mean for a person: which of them pass, and what can be done about the others."""

from __future__ import annotations

from typing import Final

from huggingface_hub import errors, get_token
from huggingface_hub.utils import parse_ratelimit_headers

from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.plain_text import printable, without_login

_RETRIED: Final = frozenset({408, 425, 429})
_RETRY_SECONDS_MAX = 3600.0


def hub_problem(  # noqa: C901, PLR0911 - one for each
    error: Exception, repository: str, endpoint: str
) -> FetchProblem:
    """The problem behind whatever huggingface_hub has raised."""
    endpoint = without_login(endpoint)
    page = f"{endpoint}/{repository}"
    match error:
        case errors.GatedRepoError():
            return _gated(repository, page)
        case errors.DisabledRepoError():
            return FetchProblem("forbidden", f"{repository} was disabled by the hub", hint="choose another repository")
        case errors.RevisionNotFoundError():
            return FetchProblem("not_found", f"{repository} has no such revision", hint=f"{page} lists its branches")
        case errors.RemoteEntryNotFoundError():
            return FetchProblem("not_found", f"{repository} has no such file", hint=f"{page}/tree/main lists its files")
        case errors.RepositoryNotFoundError():
            return _absent(repository)
        case errors.OfflineModeIsEnabled():
            return FetchProblem("refused", "HF_HUB_OFFLINE forbids to ask the hub", hint="unset HF_HUB_OFFLINE")
        case errors.HfHubHTTPError():
            return _status(error, repository)
        case errors.HFValidationError():
            return FetchProblem("invalid", f"{repository} names no repository", hint="write hf:ORG/REPO")
        case MemoryError():
            error.__traceback__ = error.__context__ = None  # they hold what was too much
            return FetchProblem("invalid", f"{endpoint} answers without an end", hint="check that HF_ENDPOINT is a hub")
        case OSError() | errors.HTTPError():  # pyright: ignore[reportPrivateImportUsage] - of its HTTP library
            message = f"{endpoint} cannot be reached: {_short(error)}"
            return FetchProblem("network", message, hint="check the connection and HF_ENDPOINT")
        case _:
            message = f"{endpoint} answered what is not understood: {_short(error)}"
            return FetchProblem("invalid", message, hint="check that HF_ENDPOINT is a hub")


def _absent(repository: str) -> FetchProblem:
    hint = "check its name with `llmctl search`; a private one needs `hf auth login`, or a daemon with HF_TOKEN"
    return FetchProblem("not_found", f"there is no {repository} on the hub, or it is private", hint=hint)


def _gated(repository: str, page: str) -> FetchProblem:
    if get_token() is None:
        hint = f"accept its conditions at {page}, then run `hf auth login` or start the daemon with HF_TOKEN"
        return FetchProblem("forbidden", f"{repository} is gated: it wants to know who you are", hint=hint)
    hint = f"ask for access at {page}, with the account of this token"
    return FetchProblem("forbidden", f"{repository} is gated, and your token has no access to it", hint=hint)


def _status(error: errors.HfHubHTTPError, repository: str) -> FetchProblem:
    status = error.response.status_code
    said = error.server_message or f"status {status}"
    if status in _RETRIED or status >= 500:
        return FetchProblem(
            "network",
            f"the hub cannot answer for {repository} now: {_short(said)}",
            hint="it is tried again; a token (HF_TOKEN) has higher limits" if status == 429 else "it is tried again",
            retry_after_seconds=_retry_after(error),
        )
    if status == 401 and get_token() is None:
        return _absent(repository)  # a hub that does not say who may know
    if status == 401:
        return FetchProblem(
            "forbidden",
            "the hub does not know your token",
            hint="run `hf auth login`, or start the daemon with HF_TOKEN",
        )
    if status == 403:
        hint = "check what your token is allowed to read"
        return FetchProblem("forbidden", f"the hub does not give {repository}: {_short(said)}", hint=hint)
    kind = "not_found" if status in {404, 410} else "invalid"
    return FetchProblem(kind, f"the hub refuses {repository}: {_short(said)}", hint="check the name")


def _retry_after(error: errors.HfHubHTTPError) -> float | None:
    headers = error.response.headers
    text = headers.get("Retry-After", "")
    if text.isascii() and text.isdigit():
        return min(float(text), _RETRY_SECONDS_MAX)
    limit = parse_ratelimit_headers(headers)
    spent = limit is not None and limit.remaining == 0
    return min(float(limit.reset_in_seconds), _RETRY_SECONDS_MAX) if limit is not None and spent else None


def _short(reason: object) -> str:
    lines = str(reason).strip().splitlines() or [type(reason).__name__]
    return printable(without_login(lines[0]), 300)
