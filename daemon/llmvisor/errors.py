"""Every error that a person or a client can meet, as one tree.

LlmvisorError
├── RequestError                what a client asked for cannot be done
│   ├── InvalidRequest          400 invalid_value
│   │   ├── InvalidJson         400 invalid_json
│   │   ├── InvalidConfig       400 invalid_config
│   │   ├── ContextLengthExceeded  400 context_length_exceeded
│   │   └── UnsupportedOperation   400 unsupported_operation
│   ├── ModelNotFound           404 model_not_found
│   ├── TierNotConfigured       404 tier_not_configured
│   ├── NotFound                404 not_found
│   ├── MethodNotAllowed        405 method_not_allowed
│   ├── HostNotAllowed          403 host_not_allowed
│   ├── OriginNotAllowed        403 origin_not_allowed
│   ├── UnsupportedMediaType    415 unsupported_media_type
│   ├── BodyTooLarge            413 body_too_large
│   ├── BodyTimeout             408 body_timeout
│   ├── Conflict                409 conflict
│   ├── PoisonRequest           422 poison_request
│   ├── InvalidApiKey           401 invalid_api_key
│   ├── PermissionDenied        403 permission_denied
│   └── RateLimited             429 rate_limit_exceeded  (retryable)
├── ModelError                  a model cannot serve
│   ├── ModelLoadFailed         503 model_load_failed
│   ├── InsufficientMemory      503 insufficient_memory
│   ├── ModelLoading            503 model_loading        (retryable)
│   ├── ModelUnavailable        503 model_unavailable
│   ├── ModelUnloaded           503 model_unloaded       (retryable)
│   └── RuntimeCrashed          503 runtime_crashed      (retryable)
├── ServerError                 the daemon cannot serve at the moment
│   ├── QueueFull               503 queue_full           (retryable)
│   ├── ShuttingDown            503 shutting_down        (retryable)
│   ├── RequestTimeout          504 timeout
│   ├── StoreUnavailable        503 store_unavailable    (retryable)
│   ├── ReloadFailed            500 reload_failed
│   └── InternalError           500 internal_error
├── ConfigError                 configuration that cannot be used, every problem at once
├── StartError                  the daemon cannot start (lock held, port taken, socket refused)
└── FetchFailed                 weights cannot be fetched
"""

from __future__ import annotations

from typing import ClassVar


class LlmvisorError(Exception):
    """Base of all; `hint` is the next step a person can take."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        hint: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.hint = hint
        self.retry_after_seconds = retry_after_seconds

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class RequestError(LlmvisorError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class InvalidRequest(RequestError):
    """Wrong type, out of range, or missing; `param` is the field's path."""


class InvalidJson(InvalidRequest):
    code = "invalid_json"


class InvalidConfig(InvalidRequest):
    """A configuration file's text that cannot be used."""

    code = "invalid_config"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class UnsupportedOperation(InvalidRequest):
    code = "unsupported_operation"


class ModelNotFound(RequestError):
    status = 404
    code = "model_not_found"


class TierNotConfigured(RequestError):
    status = 404
    type = "model_error"
    code = "tier_not_configured"


class NotFound(RequestError):
    status = 404
    code = "not_found"


class MethodNotAllowed(RequestError):
    status = 405
    code = "method_not_allowed"


class HostNotAllowed(RequestError):
    status = 403
    type = "permission_error"
    code = "host_not_allowed"


class OriginNotAllowed(RequestError):
    status = 403
    type = "permission_error"
    code = "origin_not_allowed"


class UnsupportedMediaType(RequestError):
    status = 415
    code = "unsupported_media_type"


class BodyTooLarge(RequestError):
    status = 413
    code = "body_too_large"


class BodyTimeout(RequestError):
    status = 408
    code = "body_timeout"


class Conflict(RequestError):
    """What is asked for does not go with the state that a thing is in."""

    status = 409
    code = "conflict"


class PoisonRequest(RequestError):
    """Two workers ended with this request in them; it is not tried again for a while."""

    status = 422
    type = "model_error"
    code = "poison_request"


class InvalidApiKey(RequestError):
    """No key, or none of ours."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class PermissionDenied(RequestError):
    """The key is good, but not for this."""

    status = 403
    type = "permission_error"
    code = "permission_denied"


class RateLimited(RequestError):
    """One key asks for too much at once."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    retryable = True


class ModelError(LlmvisorError):
    status = 503
    type = "model_error"


class ModelLoadFailed(ModelError):
    code = "model_load_failed"


class InsufficientMemory(ModelError):
    code = "insufficient_memory"


class ModelLoading(ModelError):
    code = "model_loading"
    retryable = True


class ModelUnavailable(ModelError):
    code = "model_unavailable"


class ModelUnloaded(ModelError):
    """Somebody unloaded it by force, with the request inside."""

    code = "model_unloaded"
    retryable = True


class RuntimeCrashed(ModelError):
    code = "runtime_crashed"
    retryable = True


class ServerError(LlmvisorError):
    status = 503


class QueueFull(ServerError):
    code = "queue_full"
    retryable = True


class ShuttingDown(ServerError):
    code = "shutting_down"
    retryable = True


class RequestTimeout(ServerError):
    """The request's own deadline is over."""

    status = 504
    type = "timeout_error"
    code = "timeout"


class StoreUnavailable(ServerError):
    """What has to be written down, or read, cannot be now: disk full, file locked, made by a newer version."""

    code = "store_unavailable"
    retryable = True


class ReloadFailed(ServerError):
    """A configuration is right and could not be applied; what ran goes on as it was."""

    status = 500
    code = "reload_failed"


class InternalError(ServerError):
    status = 500


class ConfigError(LlmvisorError):
    """Configuration that cannot be used; `problems` lists each one with its place."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class StartError(LlmvisorError):
    """The daemon cannot start; `exit_code` is what it exits with."""

    def __init__(self, message: str, *, hint: str | None = None, exit_code: int = 1) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


class FetchFailed(LlmvisorError):
    """Weights cannot be fetched: no network, no space, a wrong checksum."""

    status = 503
    type = "model_error"
    code = "fetch_failed"
