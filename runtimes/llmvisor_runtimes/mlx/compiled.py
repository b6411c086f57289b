"""Keeps what MLX compiles for the processor (a C++ compiler makes each kernel, once) from one worker to the next.

MLX looks for its kernels in `mlx` of the folder for temporary files, which a confined worker has for itself alone.
"""

from __future__ import annotations

import os
import struct
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

_OURS_ALONE = 0o700
_ELF_HEADER = struct.Struct("<4s36xQ10xHH2x")
"""Of 64 bits: where the table of sections begins, the bytes of an entry, the entries."""


def keep_compiled(state_dir: str) -> None:
    """Have MLX keep its kernels in the model's own folder; nothing where there is none, or temporary files are shared.

    To be called before MLX is imported.
    """
    temporary = Path(tempfile.gettempdir())
    if (
        sys.platform != "linux"
        or not state_dir
        or temporary.stat().st_mode & 0o777 != _OURS_ALONE
        or os.path.lexists(temporary / "mlx")
    ):
        return
    kept = Path(state_dir) / "mlx"
    with suppress(OSError):  # a full disk, a folder where nothing may be executed: they are compiled anew
        kept.mkdir(mode=_OURS_ALONE, parents=True, exist_ok=True)
        if not os.statvfs(kept).f_flag & os.ST_NOEXEC:
            _remove_cut(kept)
            (temporary / "mlx").symlink_to(kept)


def _remove_cut(folder: Path) -> None:
    """A worker that was killed in the middle of a kernel left a part of it: MLX would load that, and die of it."""
    for path in folder.rglob("*.so"):
        if not _is_whole(path):
            path.unlink()


def _is_whole(path: Path) -> bool:
    """Whether an ELF file reaches as far as its table of sections, which a linker writes last."""
    with path.open("rb") as file:
        header = file.read(_ELF_HEADER.size)
    if len(header) < _ELF_HEADER.size:
        return False
    magic, sections_at, entry_bytes, entries = _ELF_HEADER.unpack(header)
    return magic == b"\x7fELF" and sections_at > 0 and sections_at + entry_bytes * entries <= path.stat().st_size
