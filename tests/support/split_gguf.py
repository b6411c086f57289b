"""GGUF files in several parts, as llama.cpp's `gguf-split` makes them."""

# pyright: standard
# The library's reader ships no complete types.

from __future__ import annotations

from pathlib import Path

import gguf

_OF_THE_FILE = ("GGUF.", "general.architecture", "split.")
"""What the writer writes itself."""


def split_gguf(source: Path, folder: Path, stem: str, *, tensors_max: int) -> list[Path]:
    """Write a model again in parts of so many tensors; gives them in order, the first one with all metadata."""
    reader = gguf.GGUFReader(source)
    architecture = str(reader.fields["general.architecture"].contents())
    writer = gguf.GGUFWriter(folder / f"{stem}.gguf", architecture, split_max_tensors=tensors_max)
    for field in reader.fields.values():
        if not field.name.startswith(_OF_THE_FILE):
            sub_type = field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob(f"{stem}-*.gguf"))
