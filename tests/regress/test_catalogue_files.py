"""When the catalogue looks at files."""

from __future__ import annotations

from pathlib import Path

from llmvisor.config.tree import ModelConfig
from llmvisor.models.catalogue import Catalogue


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
