"""The tables, and every step that led to them. A step that was released is never changed; a new one is added."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database
    from sqlite_utils.db import Table

Migration = Callable[["Database"], None]
Columns = dict[str, type]

_MODEL: Columns = {
    "name": str,
    "upstream_model_name": str,
    "type": str,
    "state": str,
    "description": str,
    "publisher": str,
    "modified_at": str,
    "architecture": str,
    "quantization": str,
    "max_tokens": int,
    "size": int,
    "parameters": int,
    "streaming": int,
    "instructed": int,
    "coding": int,
    "tooling": int,
    "is_mlx": int,
    "is_gguf": int,
    "runtime_name": str,
    "service": str,
    "file_path": str,
    "sha256": str,
    "source": str,
}
_INSTALLED: Columns = {
    "folder": str,
    "revision": str,
    "previous_revision": str,
    "tier": str,
    "installed_at": str,
    "has_loaded": int,
    "linked": int,
    "capabilities": str,
    "options": str,
    "sampling": str,
}
_REGISTRY: Columns = {
    "db_key": str,
    "registry": str,
    "id": str,
    "model_id": str,
    "likes": int,
    "trending_score": float,
    "downloads": int,
    "created_at_ms": int,
    "tags": str,
    "url": str,
    "gated": int,
    "fetched_at": str,
}
_SERVICE_CONFIG: Columns = {
    "service_name": str,
    "api_format": str,
    "api_key_env_var": str,
    "urls": str,
    "short_timeout_sec": float,
    "long_timeout_sec": float,
    "verify_cert": int,
    "enable_discovery": int,
}
_JOB: Columns = {
    "id": str,
    "type": str,
    "params": str,
    "state": str,
    "progress": float,
    "stage": str,
    "bytes_done": int,
    "bytes_total": int,
    "unit": str,
    "error": str,
    "error_code": str,
    "hint": str,
    "result": str,
    "attempts": int,
    "retry_at": str,
    "created_at": str,
    "started_at": str,
    "ended_at": str,
    "idempotency_key": str,
}
_USAGE: Columns = {
    "id": int,
    "time": str,
    "request_id": str,
    "model": str,
    "service": str,
    "tier": str,
    "task_type": str,
    "key_name": str,
    "prompt_tokens": int,
    "cached_tokens": int,
    "completion_tokens": int,
    "first_token_ms": float,
    "total_ms": float,
    "status": str,
    "cost": float,
}
_USAGE_DAY: Columns = {
    "day": str,
    "model": str,
    "service": str,
    "tier": str,
    "task_type": str,
    "key_name": str,
    "requests": int,
    "errors": int,
    "prompt_tokens": int,
    "cached_tokens": int,
    "completion_tokens": int,
    "first_tokens": int,
    "first_token_ms": float,
    "total_ms": float,
    "cost": float,
}
"""Sums; `first_tokens` counts the requests that had one."""
_MEASURE: Columns = {
    "model": str,
    "backend": str,
    "options_sha256": str,
    "loads": int,
    "load_seconds": float,
    "load_seconds_max": float,
    "rss_bytes_peak": int,
    "measured_at": str,
}
_CACHE_ENTRY: Columns = {
    "key": str,
    "model_fingerprint": str,
    "body": bytes,
    "created_at": str,
    "expires_at": str,
    "hits": int,
}
_CONVERSATION: Columns = {"id": str, "created_at": int, "metadata": str}
_CONVERSATION_ITEM: Columns = {
    "id": str,
    "conversation_id": str,
    "position": int,
    "type": str,
    "created_at": int,
    "body": str,
}
_RESPONSE: Columns = {
    "id": str,
    "conversation_id": str,
    "previous_response_id": str,
    "model": str,
    "status": str,
    "created_at": int,
    "body": str,
}


def _first(database: Database) -> None:
    """Every table of the first release."""
    _table(database, "llm_models", _MODEL | _INSTALLED, "name")
    _table(database, "llm_registry_models", _MODEL | _REGISTRY, "db_key").create_index(["fetched_at"])
    searches: Columns = {"registry": str, "query": str, "fetched_at": str, "db_keys": str}
    _table(database, "llm_registry_searches", searches, ("registry", "query"))
    _table(database, "llm_service_configs", _SERVICE_CONFIG, "service_name")
    _table(database, "jobs", _JOB, "id")
    _table(database, "conversations", _CONVERSATION, "id")
    _table(
        database,
        "conversation_items",
        _CONVERSATION_ITEM,
        "id",
        foreign_keys=[("conversation_id", "conversations", "id")],
    ).create_index(["conversation_id", "position"])
    _table(database, "responses", _RESPONSE, "id").create_index(["conversation_id"])
    _table(database, "usage", _USAGE, "id")
    _table(database, "usage_days", _USAGE_DAY, ("day", "model", "service", "tier", "task_type", "key_name"))
    _table(database, "load_measures", _MEASURE, ("model", "backend", "options_sha256"))
    _table(database, "cache_entries", _CACHE_ENTRY, "key").create_index(["expires_at"])
    _table(database, "write_tests", {"body": bytes}, None)


def _table(
    database: Database,
    name: str,
    columns: Columns,
    pk: str | tuple[str, ...] | None,
    *,
    foreign_keys: list[tuple[str, str, str]] | None = None,
) -> Table:
    return database.table(name).create(dict(columns), pk=pk, foreign_keys=foreign_keys)


MIGRATIONS: tuple[Migration, ...] = (_first,)
"""Version n of the file is what the first n of these have made."""

REQUIRED: Mapping[str, frozenset[str]] = {
    "llm_models": frozenset(_MODEL | _INSTALLED),
    "llm_registry_models": frozenset(_MODEL | _REGISTRY),
    "llm_registry_searches": frozenset({"registry", "query", "fetched_at", "db_keys"}),
    "llm_service_configs": frozenset(_SERVICE_CONFIG),
    "jobs": frozenset(_JOB),
    "conversations": frozenset(_CONVERSATION),
    "conversation_items": frozenset(_CONVERSATION_ITEM),
    "responses": frozenset(_RESPONSE),
    "usage": frozenset(_USAGE),
    "usage_days": frozenset(_USAGE_DAY),
    "load_measures": frozenset(_MEASURE),
    "cache_entries": frozenset(_CACHE_ENTRY),
    "write_tests": frozenset({"body"}),
}
"""What a file has to have beside its version; one without it was changed by somebody else."""
