"""Models in several GGUF files, as llama.cpp's own tools split them: only the first file says what the model is."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from tests.support.tiny_gguf import add_byte_tokenizer

from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.selection import select
from llmvisor.models.gguf import GgufError, read_header
from llmvisor.models.gguf_split import read_model

TENSORS = 7
ELEMENTS = 64


def split_model(folder: Path, name: str = "tiny") -> Path:
    """A model of three files; gives the path of the first."""
    writer = gguf.GGUFWriter(folder / f"{name}.gguf", "llama", split_max_tensors=3)
    writer.add_block_count(1)
    writer.add_context_length(128)
    add_byte_tokenizer(writer)
    for number in range(TENSORS):
        writer.add_tensor(f"blk.0.{number}.weight", np.ones(ELEMENTS, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert len(list(folder.glob(f"{name}-*-of-00003.gguf"))) == 3
    return folder / f"{name}-00001-of-00003.gguf"


def test_weights_of_all_files_are_counted(tmp_path: Path) -> None:
    """Else a model would seem to fit that does not."""
    path = split_model(tmp_path)
    header = read_model(path)
    assert (header.architecture, header.context_length, header.split_count) == ("llama", 128, 3)
    assert header.parameters == TENSORS * ELEMENTS
    assert header.weights_bytes == 4 * TENSORS * ELEMENTS
    assert header.file_bytes == sum(part.stat().st_size for part in tmp_path.iterdir())
    assert read_header(path).parameters < header.parameters


def test_missing_or_damaged_part_is_named(tmp_path: Path) -> None:
    """Before anything loads the model."""
    path = split_model(tmp_path)
    part = tmp_path / "tiny-00003-of-00003.gguf"
    data = part.read_bytes()
    part.write_bytes(data[:100])
    with pytest.raises(GgufError, match=r"tiny-00003-of-00003\.gguf: "):
        read_model(path)
    part.unlink()
    with pytest.raises(GgufError, match=r"tiny-00003-of-00003\.gguf: there is no such file"):
        read_model(path)


@pytest.mark.parametrize("name", ["tiny.gguf", "tiny-00001-of-00002.gguf", "tiny-00002-of-00003.gguf"])
def test_name_that_does_not_lead_to_the_other_parts_is_refused(tmp_path: Path, name: str) -> None:
    """The others are found by the first one's name."""
    path = split_model(tmp_path)
    renamed = path.rename(tmp_path / name)
    with pytest.raises(GgufError):
        read_model(renamed)


def test_model_in_one_file_is_read_as_it_is(tmp_path: Path) -> None:
    """Whatever its name looks like."""
    writer = gguf.GGUFWriter(tmp_path / "a-00002-of-00005.gguf", "llama")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.ones(ELEMENTS, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_model(tmp_path / "a-00002-of-00005.gguf").parameters == ELEMENTS


def test_import_of_a_split_model_takes_all_its_files(tmp_path: Path) -> None:
    """By its first file, or by the folder."""
    path = split_model(tmp_path)
    names = [f"tiny-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    for chosen in (select(path, code=False), select(tmp_path, code=False)):
        assert (list(chosen.paths), chosen.main) == (names, names[0])
    (tmp_path / names[1]).write_bytes(b"GGUF")
    with pytest.raises(FetchProblem, match="tiny-00002"):
        select(path, code=False)
