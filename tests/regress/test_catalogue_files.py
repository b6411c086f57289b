"""When the catalogue looks at files."""

from __future__ import annotations

from pathlib import Path

from tests.support.tiny_gguf import write_tiny_gguf

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


async def test_memory_counts_a_projector_and_a_draft_model(tmp_path: Path) -> None:
    """A model was loaded into memory that its mmproj then had not, because the estimate knew of the model alone."""
    file, mmproj = write_tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "mmproj.gguf"
    mmproj.write_bytes(bytes(5000))
    options: dict[str, object] = {"mmproj": str(mmproj), "draft_model": str(tmp_path / "absent.gguf"), "n_ubatch": 8}
    catalogue = Catalogue(
        {
            "plain": ModelConfig(path=str(file), backend="llamacpp"),
            "seeing": ModelConfig(path=str(file), backend="llamacpp", options=options),
        }
    )
    for name in ("plain", "seeing"):
        await catalogue.inspect(name)
    plain = catalogue.memory_estimated("plain")
    assert plain is not None
    assert catalogue.memory_estimated("seeing") == plain + 5000
    mmproj.write_bytes(bytes(7000))
    await catalogue.inspect("seeing")
    assert catalogue.memory_estimated("seeing") == plain + 7000
