"""The Structs that the daemon and `llmctl` share: what the management paths answer. Imports msgspec alone."""

from llmvisor.control.api.answers import ErrorAnswer, ErrorBody, ListAnswer
from llmvisor.control.api.daemon import (
    CacheCleared,
    CacheStats,
    ConfigCheckAnswer,
    ConfigValue,
    DaemonStatus,
    Event,
    HealthAnswer,
    LogLevel,
    LogRecord,
    UsageRow,
)
from llmvisor.control.api.jobs import (
    Job,
    JobParams,
    JobRequest,
    JobState,
    JobType,
)
from llmvisor.control.api.models import (
    BackendProbe,
    BackendStatus,
    ModelState,
    ModelStatus,
    ProgressStatus,
    RuntimeStatus,
)
from llmvisor.control.api.registry import FoundModel, InstalledModel, RegistryModel

__all__ = [
    "BackendProbe",
    "BackendStatus",
    "CacheCleared",
    "CacheStats",
    "ConfigCheckAnswer",
    "ConfigValue",
    "DaemonStatus",
    "ErrorAnswer",
    "ErrorBody",
    "Event",
    "FoundModel",
    "HealthAnswer",
    "InstalledModel",
    "Job",
    "JobParams",
    "JobRequest",
    "JobState",
    "JobType",
    "ListAnswer",
    "LogLevel",
    "LogRecord",
    "ModelState",
    "ModelStatus",
    "ProgressStatus",
    "RegistryModel",
    "RuntimeStatus",
    "UsageRow",
]
