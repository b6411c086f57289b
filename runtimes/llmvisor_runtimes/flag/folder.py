"""What a model folder holds, told from its JSON files and names alone."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import LoadError
from llmvisor_runtimes.flag.options import FlagOptions, Kind, Pooling

T = TypeVar("T")

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_HEADS = ("sparse_linear.pt", "colbert_linear.pt")
_POSITIONS_AFTER_PADDING = frozenset(
    {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "data2vec-text", "esm"}
)
"""These count positions from the padding token's id on, so that many of the table are never used."""


class _Config(msgspec.Struct, frozen=True):
    """`config.json` of transformers, as far as it is of interest here."""

    architectures: list[str] | None = None
    model_type: str = ""
    hidden_size: int = 0
    vocab_size: int = 0
    max_position_embeddings: int | None = None
    pad_token_id: int | None = None
    num_labels: int | None = None
    id2label: dict[str, str] | None = None
    start_layer: int | None = None
    """A MiniCPM layerwise reranker has it."""

    @property
    def architecture(self) -> str:
        return (self.architectures or [""])[0]

    @property
    def labels(self) -> int:
        if self.id2label is not None:
            return len(self.id2label)
        return 2 if self.num_labels is None else self.num_labels


class _Module(msgspec.Struct, frozen=True):
    """One entry of sentence-transformers' `modules.json`."""

    type: str
    path: str = ""


class _Transformer(msgspec.Struct, frozen=True):
    """`sentence_bert_config.json`."""

    max_seq_length: int | None = None


class ModelFolder(msgspec.Struct, frozen=True):
    """A folder that can be loaded."""

    path: Path
    kind: Kind
    architecture: str
    pooling: Pooling
    normalize: bool
    hidden_size: int
    vocabulary: int
    length_max: int | None
    """Tokens of one input, special ones included, as far as the files say."""
    weights_bytes: int


def read_folder(path: str, options: FlagOptions) -> ModelFolder:
    """Tell a folder's kind. Raises `LoadError` (permanent) for what is missing, damaged or not supported."""
    folder = Path(path)
    if not folder.is_dir():
        what = "is a file; this backend loads folders" if folder.exists() else "does not exist"
        raise LoadError(f"{path} {what}", permanent=True)
    config = _read(folder / "config.json", _Config)
    if config is None:
        raise LoadError(f"{path} has no config.json: it is no model folder of transformers", permanent=True)
    _check_files(folder)
    modules = _read(folder / "modules.json", list[_Module])
    kind = _kind(folder, config, modules, options)
    pooling, normalize = _pooling(folder, modules, options) if kind in {"m3", "dense"} else ("cls", False)
    return ModelFolder(
        path=folder,
        kind=kind,
        architecture=config.model_type or config.architecture,
        pooling=pooling,
        normalize=normalize,
        hidden_size=config.hidden_size,
        vocabulary=config.vocab_size,
        length_max=_length_max(folder, config),
        weights_bytes=_weights_bytes(folder),
    )


def _read(file: Path, kind: type[T]) -> T | None:
    """A JSON file, or None where there is none. Raises `LoadError` for one that is damaged."""
    try:
        with file.open("rb") as stream:
            text = stream.read(limits.model_json_bytes_max + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LoadError(f"{file}: {error.strerror}", permanent=True) from error
    if len(text) > limits.model_json_bytes_max:
        raise LoadError(f"{file} is longer than {limits.model_json_bytes_max} bytes", permanent=True)
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise LoadError(f"{file}: {error}", permanent=True) from error


def _check_files(folder: Path) -> None:
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise LoadError(f"{folder} has no weights (model.safetensors)", permanent=True)
    if not (folder / "tokenizer.json").is_file():
        raise LoadError(
            f"{folder} has no tokenizer.json; AutoTokenizer.from_pretrained(…).save_pretrained(…) writes one",
            permanent=True,
        )


def _weights_bytes(folder: Path) -> int:
    """Of the files that are loaded: many folders hold the same weights in both forms."""
    for suffix in (".safetensors", ".bin"):
        if found := sum(file.stat().st_size for file in folder.glob(f"*{suffix}")):
            return found
    return 0


def _kind(folder: Path, config: _Config, modules: list[_Module] | None, options: FlagOptions) -> Kind:
    heads = [name for name in _HEADS if (folder / name).is_file()]
    if options.kind != "auto":
        kind = options.kind
    elif heads:
        kind = "m3"
    elif config.architecture.endswith("ForSequenceClassification"):
        kind = "reranker"
    elif modules is None and (config.start_layer is not None or config.architecture.startswith("LayerWise")):
        kind = "layerwise_reranker"
    elif modules is None and config.architecture.startswith("CostWise"):
        raise LoadError(f"lightweight rerankers ({config.architecture}) are not supported", permanent=True)
    elif modules is None and config.architecture.endswith("ForCausalLM"):
        kind = "llm_reranker"
    else:
        kind = "dense"
    # FlagEmbedding itself would make up random weights for a head that is missing.
    if kind == "m3" and len(heads) < len(_HEADS):
        missing = ", ".join(name for name in _HEADS if name not in heads)
        raise LoadError(f"{folder} has no {missing}: it is no whole BGE-M3", permanent=True)
    if kind == "reranker" and config.labels != 1:
        raise LoadError(f"a classifier of {config.labels} labels is no reranker: that has 1", permanent=True)
    return kind


def _pooling(folder: Path, modules: list[_Module] | None, options: FlagOptions) -> tuple[Pooling, bool]:
    """How a text's vector is made of its tokens', and whether it is brought to length 1."""
    pooling: Pooling = "cls"
    normalize = True
    pooling_folder = "1_Pooling"
    if modules is not None:
        names = [module.type.rpartition(".")[2] for module in modules]
        others = sorted(set(names) - {"Transformer", "Pooling", "Normalize"})
        if others:
            raise LoadError(f"{folder} has a part that is not supported: {', '.join(others)}", permanent=True)
        normalize = "Normalize" in names
        pooling_folder = next((module.path for module in modules if module.type.endswith("Pooling")), pooling_folder)
    if options.pooling != "auto":
        pooling = options.pooling
    elif (modes := _read(folder / pooling_folder / "config.json", dict[str, object])) is not None:
        pooling = _pooling_mode(folder, modes)
    return pooling, normalize if options.normalize is None else options.normalize


def _pooling_mode(folder: Path, modes: dict[str, object]) -> Pooling:
    by_name: dict[str, Pooling] = {
        "pooling_mode_cls_token": "cls",
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_lasttoken": "last",
        # As newer versions of sentence-transformers write it.
        "cls": "cls",
        "mean": "mean",
        "lasttoken": "last",
    }
    named = modes.get("pooling_mode")
    chosen = (
        [str(named)]
        if named
        else [name for name, on in modes.items() if name.startswith("pooling_mode_") and on is True]
    )
    pooling = by_name.get(chosen[0]) if len(chosen) == 1 else None
    if pooling is None:
        raise LoadError(
            f"{folder} pools by {' and '.join(chosen) or 'nothing'}, which is not supported", permanent=True
        )
    return pooling


def _length_max(folder: Path, config: _Config) -> int | None:
    bounds: list[int] = []
    if config.max_position_embeddings:
        unused = 0
        if config.model_type in _POSITIONS_AFTER_PADDING:
            unused = (1 if config.pad_token_id is None else config.pad_token_id) + 1
        bounds.append(config.max_position_embeddings - unused)
    transformer = _read(folder / "sentence_bert_config.json", _Transformer)
    if transformer is not None and transformer.max_seq_length:
        bounds.append(transformer.max_seq_length)
    return min(bounds, default=None)
