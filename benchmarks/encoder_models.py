# pyright: standard
# torch's and transformers' types are partial.
"""A BGE-M3 and a reranker as large as all-MiniLM-L6-v2, 6 layers × 384.

Computing a text and answering it then stand in about the proportion that models have which people use; of models as
small as those of the tests, answering takes longest. The BGE-M3 has random weights and the tokenizer of the tests', the
reranker is all-MiniLM-L6-v2 with a random head. `python -m benchmarks.encoder_models FOLDER` makes them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.flag_models import bge_m3_folder
from tests.support.minilm import minilm_folder
from tests.support.model_cache import made_once

from benchmarks.figures import BenchmarkError

VERSION = 1


def m3_folder() -> Path:
    return _family() / "bge-m3"


def reranker_folder() -> Path:
    return _family() / "bge-reranker"


def _family() -> Path:
    return made_once(f"bench-encoders-{VERSION}", _make)


def _make(folder: Path) -> None:
    # torch stays out of the process that measures.
    command = [sys.executable, "-m", "benchmarks.encoder_models", str(folder)]
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    output = subprocess.run(
        command, cwd=Path(__file__).resolve().parents[1], env=environ, capture_output=True, check=False, timeout=600
    )
    if output.returncode:
        raise BenchmarkError(f"models cannot be made: {output.stderr[-2000:].decode(errors='replace')}")


def _write_m3(source: Path, folder: Path) -> None:
    """The tests' BGE-M3, wider and deeper."""
    import torch  # noqa: PLC0415 - only the process that makes models needs it
    from transformers import XLMRobertaConfig, XLMRobertaModel  # noqa: PLC0415 - as above

    torch.manual_seed(1)
    fields = json.loads((source / "config.json").read_text(encoding="utf-8"))
    size = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    XLMRobertaModel(XLMRobertaConfig(**{**fields, **size})).save_pretrained(folder)
    for name, outputs in (("colbert_linear", size["hidden_size"]), ("sparse_linear", 1)):
        torch.save(torch.nn.Linear(size["hidden_size"], outputs).state_dict(), folder / f"{name}.pt")
    _copy_tokenizer(source, folder)


def _write_reranker(source: Path, folder: Path) -> None:
    """all-MiniLM-L6-v2 with a head that gives one score."""
    import torch  # noqa: PLC0415 - as above
    from transformers import AutoModelForSequenceClassification  # noqa: PLC0415 - as above

    torch.manual_seed(1)
    AutoModelForSequenceClassification.from_pretrained(source, num_labels=1).save_pretrained(folder)
    _copy_tokenizer(source, folder)


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(source / name, folder / name)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    _write_m3(bge_m3_folder(), target / "bge-m3")
    _write_reranker(minilm_folder(), target / "bge-reranker")
