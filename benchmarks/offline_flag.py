# pyright: standard
# FlagEmbedding's and torch's types are partial.
"""The peer of embeddings and rerankers: FlagEmbedding itself, loaded once, called offline with all texts at once.

`OfflineFlag` starts it as a process of its own (torch stays out of the one that measures) and asks it line by line:
`python -m benchmarks.offline_flag dense|reranker FOLDER` reads a JSON list of texts or pairs from each line of standard
input, and writes how many seconds that one call took. FlagEmbedding computes its first batch twice, to find out whether
it fits in memory: that is part of the call.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import msgspec

from benchmarks.figures import BenchmarkError

Kind = Literal["dense", "reranker"]
Item = str | tuple[str, str]
STOP_SECONDS_MAX = 20.0


class OfflineFlag:
    """FlagEmbedding in its process."""

    def __init__(self, process: subprocess.Popen[bytes], output: IO[bytes]) -> None:
        self._process = process
        self._output = output

    def seconds(self, items: Sequence[Item]) -> float:
        """How long one call over all of these texts (or pairs) takes. Raises `BenchmarkError`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(msgspec.json.encode(items) + b"\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._output.seek(0)
            raise BenchmarkError(f"FlagEmbedding ended\n{self._output.read()[-2000:].decode(errors='replace')}")
        return float(line)


@contextlib.contextmanager
def offline_flag(kind: Kind, folder: Path) -> Generator[OfflineFlag]:
    """FlagEmbedding with this model folder. Raises `BenchmarkError` where it is not installed."""
    require_flag()
    argv = [sys.executable, "-m", "benchmarks.offline_flag", kind, str(folder)]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    with tempfile.TemporaryFile() as output:
        pipe = subprocess.PIPE
        process = subprocess.Popen(argv, env=environ, stdin=pipe, stdout=pipe, stderr=output)
        try:
            yield OfflineFlag(process, output)
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def require_flag() -> None:
    """Raises `BenchmarkError` where the backend's libraries are missing."""
    if importlib.util.find_spec("FlagEmbedding") is None:
        raise BenchmarkError("FlagEmbedding is not installed: pip install 'llmvisor[flag]'")


def _serve(kind: str, folder: str) -> None:
    # What the library prints goes elsewhere: standard output has answers alone.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
    warnings.simplefilter("ignore")
    import FlagEmbedding  # noqa: PLC0415 - it takes seconds, and only this process needs it
    import torch  # noqa: PLC0415 - as above

    torch.set_num_threads(os.cpu_count() or 1)
    call: Any
    if kind == "dense":
        call = FlagEmbedding.FlagModel(folder, pooling_method="mean", use_fp16=False, devices="cpu").encode
    else:
        call = FlagEmbedding.FlagReranker(folder, use_fp16=False, devices="cpu").compute_score
    decoder = msgspec.json.Decoder(list[str] if kind == "dense" else list[tuple[str, str]])
    for line in sys.stdin.buffer:
        items = decoder.decode(line)
        began = time.perf_counter()
        call(items)
        answers.write(f"{time.perf_counter() - began}\n")


if __name__ == "__main__":
    _serve(*sys.argv[1:])
