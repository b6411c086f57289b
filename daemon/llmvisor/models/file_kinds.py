"""What a file is that should have been a model, told from its first bytes."""

from __future__ import annotations

_MAGICS = (
    (b"version https://git-lfs", "a git-lfs pointer (run `git lfs pull` for the file itself)"),
    (b"PK\x03\x04", "a zip archive (a PyTorch checkpoint?)"),
    (b"lmgg", "a GGML file, the format before GGUF (convert the model again)"),
    (b"fmgg", "a GGMF file, the format before GGUF (convert the model again)"),
    (b"tjgg", "a GGJT file, the format before GGUF (convert the model again)"),
    (b"algg", "a GGLA adapter, the format before GGUF (convert it again)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\x00", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x7fELF", "a program"),
)
_SAFETENSORS_HEADER_BYTES_MAX = 100_000_000


def recognised(beginning: bytes) -> str:
    """A phrase for the kind of file that begins with these (about 500) bytes."""
    if not beginning:
        return "empty"
    for magic, kind in _MAGICS:
        if beginning.startswith(magic):
            return kind
    if beginning[0] == 0x80 and beginning[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}:
        return "a Python pickle (a PyTorch checkpoint?)"
    if beginning[8:9] == b"{" and 2 <= int.from_bytes(beginning[:8], "little") <= _SAFETENSORS_HEADER_BYTES_MAX:
        return "a safetensors file (convert it to GGUF, or serve its folder with the mlx backend)"
    if not beginning.strip(b"\x00"):
        return "all zeros where it begins (a download that did not finish?)"
    return _text_kind(beginning)


def _text_kind(beginning: bytes) -> str:
    text = beginning.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page (a download link that needs a login?)"
    if text.startswith(b"<?xml"):
        return "an XML document (a server's error message?)"
    if text.startswith((b"{", b"[")):
        return "a JSON document"
    return f"of an unknown kind (it begins with {beginning[:4]!r})"
