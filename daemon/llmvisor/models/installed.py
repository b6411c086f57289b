"""An installed model: what its manifest and its files make of it, and how it runs where nobody configured it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import cast

import msgspec

from llmvisor.config.tree import Llm, ModelConfig
from llmvisor.control.api import InstalledModel
from llmvisor.errors import ModelLoadFailed
from llmvisor.fetch.protocol import Fetched
from llmvisor.models.abilities import folder_abilities, gguf_abilities
from llmvisor.models.folders import read_folder
from llmvisor.models.gguf_split import read_model
from llmvisor.models.manifest import Manifest, check_tier

_SETTINGS = ("temperature", "top_p", "top_k", "repeat_penalty", "max_tokens", "n_ctx", "n_batch")
"""What a source may say of how its model runs, by the configuration's names."""


class Installed(msgspec.Struct, frozen=True):
    """A model of the library."""

    model: InstalledModel
    options: dict[str, msgspec.Raw] = {}
    """The backend's, as JSON, from its source; paths are absolute."""
    sampling: dict[str, float | int | str] = {}
    """Settings by the configuration's names, from its source."""


class _Facts(msgspec.Struct):
    """What a model's own files say."""

    backend: str
    type: str
    architecture: str | None = None
    quantization: str | None = None
    parameters: int | None = None
    context_length: int | None = None
    capabilities: list[str] = []


def describe(manifest: Manifest, folder: Path) -> Installed:
    """A revision that lies in this folder. Blocks on the disk. Raises `ModelLoadFailed` for what no backend serves."""
    fetched = manifest.fetched
    files_folder = _files_folder(fetched, folder)
    path = files_folder / fetched.main if fetched.main else files_folder
    facts = _read_facts(path)
    main = next((file for file in fetched.files if file.path == fetched.main), None)
    model = InstalledModel(
        name=manifest.name,
        source=fetched.source,
        revision=fetched.revision,
        path=str(path),
        folder=str(folder),
        size=sum(file.size for file in fetched.files),
        sha256=main.sha256 if main else None,
        backend=facts.backend,
        type=facts.type,
        installed_at=manifest.installed_at,
        tier=manifest.tier,
        linked=fetched.linked_to is not None,
        architecture=facts.architecture,
        quantization=facts.quantization,
        parameters=facts.parameters,
        context_length=facts.context_length,
        publisher=fetched.publisher,
        description=fetched.description,
        modified_at=manifest.chosen_at,
        capabilities=[*facts.capabilities, *(["vision"] if "mmproj" in fetched.options else [])],
    )
    names = {file.path for file in fetched.files}
    options = {
        name: msgspec.Raw(msgspec.json.encode(_with_paths(msgspec.json.decode(raw), names, files_folder)))
        for name, raw in fetched.options.items()
    }
    return Installed(model, options, fetched.sampling)


def _files_folder(fetched: Fetched, folder: Path) -> Path:
    """Where the files are: elsewhere if they are linked, by a link to one of them or to their folder."""
    if fetched.linked_to is None:
        return folder
    target = Path(fetched.linked_to)
    return target if target.is_dir() else target.parent


def model_config(installed: Installed, llm: Llm) -> ModelConfig:
    """How an installed model runs: what its source says, and defaults for the rest."""
    model = installed.model
    config = ModelConfig(
        path=model.path,
        backend=model.backend,
        tier=check_tier(model.tier),
        temperature=llm.temperature,
        max_tokens=llm.max_tokens,
        options={name: msgspec.json.decode(raw) for name, raw in installed.options.items()},
    )
    for name in _SETTINGS:
        if name in installed.sampling:
            config = _with_setting(config, name, installed.sampling[name])
    return config


def _with_setting(config: ModelConfig, name: str, value: float | str) -> ModelConfig:
    """With a setting of the source's own, unless it is out of bounds."""
    try:
        checked = msgspec.convert({name: value}, ModelConfig, strict=False)
    except msgspec.ValidationError:
        return config
    return msgspec.structs.replace(config, **{name: getattr(checked, name)})


def _with_paths(value: object, names: Collection[str], folder: Path) -> object:
    """An option's value, in which the name of one of the model's files becomes that file's path."""
    if isinstance(value, str):
        return str(folder / value) if value in names else value
    if isinstance(value, dict):
        items = cast("dict[str, object]", value).items()
        return {key: _with_paths(inner, names, folder) for key, inner in items}
    if isinstance(value, list):
        return [_with_paths(inner, names, folder) for inner in cast("list[object]", value)]
    return value


def _read_facts(path: Path) -> _Facts:
    if path.is_dir():
        folder = read_folder(path)
        if folder.backend is None:
            raise ModelLoadFailed(
                f"{path.name}: no backend serves such a folder (config.json and safetensors are needed)"
            )
        return _Facts(
            backend=folder.backend,
            type=folder.type,
            architecture=folder.architecture or None,
            quantization=folder.quantization,
            context_length=folder.context_length,
            capabilities=folder_abilities(folder, path),
        )
    header = read_model(path)
    return _Facts(
        backend="llamacpp",
        type=header.type,
        architecture=header.architecture,
        quantization=header.quantization,
        parameters=header.parameters,
        context_length=header.context_length or None,
        capabilities=gguf_abilities(header),
    )
