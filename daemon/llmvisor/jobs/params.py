"""What each type of job may be told. Pure."""

from __future__ import annotations

import re

import msgspec

from llmvisor import limits
from llmvisor.control.api import JobParams, JobRequest, JobType
from llmvisor.errors import InvalidRequest
from llmvisor.models.manifest import check_installed_name, check_tier

_TAKES: dict[JobType, frozenset[str]] = {
    "install": frozenset({"source", "name", "tier", "quantization"}),
    "import": frozenset({"path", "mode", "name", "tier"}),
    "load": frozenset({"model", "restart"}),
    "unload": frozenset({"model", "force"}),
    "update": frozenset({"model", "rollback"}),
    "delete": frozenset({"model", "force"}),
}
_NEEDS: dict[JobType, str] = {"install": "source", "import": "path"}
_QUANTIZATION = re.compile(r"[A-Za-z0-9_.-]{1,32}", re.ASCII)
_SOURCE = re.compile(r"starter|(hf|ollama):[A-Za-z0-9][A-Za-z0-9._:/@+ \[\]()-]*", re.ASCII)
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")


def check_request(request: JobRequest) -> None:
    """Raises `InvalidRequest`, with the field's path, for what a job of this type cannot be told."""
    params, takes = request.params, _TAKES[request.type]
    default = JobParams()
    for field in msgspec.structs.fields(JobParams):
        if field.name not in takes and getattr(params, field.name) != getattr(default, field.name):
            raise _wrong(field.name, f"not for {request.type}")
    needed = _NEEDS.get(request.type, "model")
    if not getattr(params, needed):
        raise InvalidRequest(f"params.{needed} is required", param=f"params.{needed}")
    if len(params.model) > limits.model_name_chars_max:
        raise _wrong("model", f"at most {limits.model_name_chars_max} characters")
    if request.idempotency_key is not None and not 0 < len(request.idempotency_key) <= limits.idempotency_key_chars_max:
        most = limits.idempotency_key_chars_max
        raise InvalidRequest(f"idempotency_key: expected 1 to {most} characters", param="idempotency_key")
    _check_new(params)


def _check_new(params: JobParams) -> None:
    """What an installation is told."""
    source, path = params.source, params.path
    if source is not None and (len(source) > limits.source_chars_max or not _SOURCE.fullmatch(source)):
        if source.startswith("file:"):
            raise _wrong("source", "a file of this machine is imported: type `import` with params.path")
        raise _wrong("source", "expected `starter`, `hf:org/repo[:file]` or `ollama:name[:tag]`")
    if source is not None and ".." in re.split(r"[:/]", source):
        raise _wrong("source", "`..` leads out of the repository")
    if path is not None and (len(path) > limits.option_path_chars_max or not path.startswith("/")):
        raise _wrong("path", f"expected an absolute path of at most {limits.option_path_chars_max} characters")
    if path is not None and _CONTROLS.search(path):
        raise _wrong("path", "a control character in it")
    if params.name is not None:
        check_installed_name(params.name)
    check_tier(params.tier)
    if params.quantization is not None and not _QUANTIZATION.fullmatch(params.quantization):
        raise _wrong("quantization", "expected a name such as Q4_K_M")


def _wrong(field: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"params.{field}: {what}", param=f"params.{field}")
