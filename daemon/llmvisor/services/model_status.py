"""What is shown of a model: configuration, then its file, then what the worker said. Touches no disk."""

from __future__ import annotations

from datetime import datetime

import msgspec

from llmvisor.config.tree import ModelConfig
from llmvisor.control.api import InstalledModel, ModelStatus
from llmvisor.models.abilities import gguf_abilities
from llmvisor.models.catalogue import Catalogue
from llmvisor.supervision.memory.estimates import LoadEstimates
from llmvisor.supervision.runtime import Runtime

SERVICE = "local"
_SAID_AT_INSTALL = ("architecture", "quantization", "parameters", "context_length")
"""What stands in an installed model's row as well as in its file."""


def model_id(name: str, config: ModelConfig) -> str:
    """`tier/name` for a model with a tier, else its name."""
    return f"{config.tier}/{name}" if config.tier else name


def model_status(
    runtime: Runtime, catalogue: Catalogue, installed: InstalledModel | None, estimates: LoadEstimates
) -> ModelStatus:
    """All that is known of a model that has a runtime."""
    name, info, config = runtime.name, runtime.info, runtime.config
    read = catalogue.header(name) or catalogue.folder(name)
    header = catalogue.header(name)
    signature = catalogue.signature(runtime.name)
    runtime_status = runtime.status()
    status = ModelStatus(
        id=model_id(name, config),
        name=name,
        tier=config.tier,
        aliases=config.aliases,
        service=SERVICE,
        backend=runtime_status.backend,
        state=runtime_status.state,
        type=catalogue.type(name, before_read=installed.type if installed else "llm"),
        path=config.path,
        size=header.file_bytes if header else signature.size if signature else None,
        architecture=info.architecture if info else read.architecture if read else None,
        quantization=info.quantization if info else read.quantization if read else None,
        parameters=info.parameters if info else header.parameters if header else None,
        context_length=info.context_length if info else read.context_length if read else None,
        n_ctx=info.n_ctx if info else config.n_ctx,
        capabilities=info.capabilities if info else [],
        capabilities_expected=gguf_abilities(header) if header and not info else [],
        chat_template_sha256=info.chat_template_sha256 if info else header.chat_template_sha256 if header else None,
        memory_estimated=estimates.predicted_bytes(name),
        memory_measured=estimates.measured_bytes(name),
        loaded_at=runtime.loaded_at,
        created=signature.modified_ns // 10**9 if signature else 0,
        error=runtime_status.error,
        embedding_dimension=config.embedding_dimension,
        pinned=config.pinned,
        preload=config.preload,
    )
    return status if installed is None else _with_install(status, installed)


def resting_status(
    config: ModelConfig, installed: InstalledModel, catalogue: Catalogue, estimates: LoadEstimates, *, gone: bool
) -> ModelStatus:
    """An installed model that nobody has wanted since the start."""
    header = catalogue.header(installed.name)
    status = ModelStatus(
        id=model_id(installed.name, config),
        name=installed.name,
        tier=config.tier,
        aliases=config.aliases,
        service=SERVICE,
        backend=installed.backend,
        state="unavailable" if gone else "not_loaded",
        type=installed.type,
        path=installed.path,
        n_ctx=config.n_ctx,
        chat_template_sha256=header.chat_template_sha256 if header else None,
        memory_estimated=estimates.predicted_bytes(installed.name),
        memory_measured=estimates.measured_bytes(installed.name),
        error=f"its files are gone from {installed.folder}" if gone else None,
    )
    return _with_install(status, installed)


def _with_install(status: ModelStatus, installed: InstalledModel) -> ModelStatus:
    """With what the installation knows where nothing newer does. What it can do counts once a worker has told it."""
    known: dict[str, object] = {
        name: getattr(installed, name) for name in _SAID_AT_INSTALL if getattr(status, name) is None
    }
    if not status.capabilities:
        known["capabilities" if installed.has_loaded else "capabilities_expected"] = installed.capabilities
    if not status.created:
        known["created"] = _seconds(installed.installed_at)
    known |= {"source": installed.source, "revision": installed.revision, "size": installed.size}
    return msgspec.structs.replace(status, **known)


def _seconds(time: str) -> int:
    try:
        return int(datetime.fromisoformat(time).timestamp())
    except ValueError:
        return 0
