"""Files that the catalogue cannot look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmvisor.config.tree import ModelConfig
from llmvisor.models.catalogue import Catalogue, file_signature
from llmvisor.models.gguf import GgufError


async def test_path_with_a_null_is_no_file() -> None:
    """It raised a ValueError out of every list of models, and ended the daemon at its start."""
    config = ModelConfig(path="/models/a\0b.gguf", backend="llamacpp")
    assert file_signature(config) is None
    catalogue = Catalogue({"broken": config})
    with pytest.raises(GgufError):
        await catalogue.inspect("broken")
    assert catalogue.signature("broken") is None


async def test_lists_of_models_touch_no_disk(tmp_path: Path) -> None:
    """Each request asked the file system for each model's file, and a mount that hangs held up everyone."""
    file = tmp_path / "weights"
    file.write_bytes(b"1234")
    catalogue = Catalogue({"one": ModelConfig(path=str(file), backend="plugin")})
    assert catalogue.signature("one") is None
    await catalogue.inspect("one")
    file.unlink()
    signature = catalogue.signature("one")
    assert signature is not None
    assert signature.size == 4
