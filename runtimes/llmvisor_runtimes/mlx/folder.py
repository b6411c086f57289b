"""What a model's folder says, read without running anything of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeVar

import msgspec

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import LoadError

WEIGHTS = "model*.safetensors"
"""What mlx-lm loads."""
_T = TypeVar("_T", bound=msgspec.Struct)
_MODULE_NAME = re.compile(r"[A-Za-z0-9_]+")

_TEMPLATE_FOR_TOOLS = "tool_use"


class _TextConfig(msgspec.Struct):
    """The part of `config.json` that describes the language model, where there are more."""

    max_position_embeddings: int | None = None
    hidden_size: int | None = None
    eos_token_id: int | list[int] | None = None


class _Quantization(msgspec.Struct):
    bits: int | None = None
    mode: str = "affine"


class _Config(_TextConfig):
    model_type: str = ""
    model_file: str | None = None
    text_config: _TextConfig | None = None
    quantization: _Quantization | None = None


class _GenerationConfig(msgspec.Struct):
    eos_token_id: int | list[int] | None = None


class _NamedTemplate(msgspec.Struct):
    name: str
    template: str


class _Content(msgspec.Struct):
    content: str


_Token = str | _Content | None


class _TokenizerConfig(msgspec.Struct):
    bos_token: _Token = None
    eos_token: _Token = None
    chat_template: str | list[_NamedTemplate] | None = None
    add_bos_token: bool | None = None


class _ChatTemplateFile(msgspec.Struct):
    chat_template: str


class ModelFolder(msgspec.Struct, frozen=True):
    """The facts that loading needs."""

    path: Path
    model_type: str
    context_length: int
    """0 where the folder does not say."""
    hidden_size: int
    quantization_bits: int | None
    end_token_ids: list[int]
    end_token: str
    """Empty where the folder names none."""
    bos_token: str
    chat_template: str
    """Empty where there is none."""
    weight_bytes: int


def read_folder(path: Path) -> ModelFolder:
    """Read and check a folder. Raises `LoadError` (permanent) with what is missing or wrong."""
    if not path.exists():
        raise LoadError(f"there is no model folder at {path}", permanent=True)
    if not path.is_dir():
        raise LoadError(
            f"{path} is a file: the mlx backend loads folders of config.json and safetensors", permanent=True
        )
    config = _decoded(path / "config.json", _Config)
    if config is None:
        raise LoadError(f"{path} has no config.json: it is no MLX model", permanent=True)
    weights = sorted(path.glob(WEIGHTS))
    if not weights:
        raise LoadError(f"{path} has no weights ({WEIGHTS})", permanent=True)
    if config.model_file is not None:
        raise LoadError(
            f"{path} wants its own code to be run ({config.model_file!r}), which is never done", permanent=True
        )
    if not _MODULE_NAME.fullmatch(config.model_type):
        raise LoadError(f"config.json names no usable model_type: {config.model_type!r}", permanent=True)
    if not (path / "tokenizer.json").is_file():
        raise LoadError(f"{path} has no tokenizer.json", permanent=True)
    tokenizer = _decoded(path / "tokenizer_config.json", _TokenizerConfig) or _TokenizerConfig()
    text = config.text_config or config
    return ModelFolder(
        path=path,
        model_type=config.model_type,
        context_length=text.max_position_embeddings or config.max_position_embeddings or 0,
        hidden_size=text.hidden_size or config.hidden_size or 0,
        quantization_bits=config.quantization.bits if config.quantization else None,
        end_token_ids=_end_tokens(path, config),
        end_token=_content(tokenizer.eos_token),
        bos_token=_content(tokenizer.bos_token),
        chat_template=_chat_template(path, tokenizer),
        weight_bytes=sum(file.stat().st_size for file in weights),
    )


def _end_tokens(path: Path, config: _Config) -> list[int]:
    """As mlx-lm takes them: the generation's own where there are any, else the model's."""
    generation = _decoded(path / "generation_config.json", _GenerationConfig)
    named = (generation.eos_token_id if generation else None) or config.eos_token_id
    if named is None and config.text_config is not None:
        named = config.text_config.eos_token_id
    if named is None:
        return []
    return [named] if isinstance(named, int) else named


def _chat_template(path: Path, tokenizer: _TokenizerConfig) -> str:
    """`chat_template.jinja` goes before `chat_template.json`, and that before the tokenizer's, as in transformers."""
    file = path / "chat_template.jinja"
    if file.is_file():
        return _bytes_of(file, limits.template_source_bytes_max).decode("utf-8", "replace")
    if separate := _decoded(path / "chat_template.json", _ChatTemplateFile):
        return separate.chat_template
    template = tokenizer.chat_template
    if template is None or isinstance(template, str):
        return template or ""
    by_name = {each.name: each.template for each in template}
    return by_name.get(_TEMPLATE_FOR_TOOLS) or by_name.get("default") or next(iter(by_name.values()), "")


def _content(token: _Token) -> str:
    return token.content if isinstance(token, _Content) else token or ""


def _decoded(path: Path, type: type[_T]) -> _T | None:
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(_bytes_of(path, limits.model_json_bytes_max), type=type)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise LoadError(f"{path.name} cannot be read: {error}", permanent=True) from error


def _bytes_of(path: Path, bytes_max: int) -> bytes:
    with path.open("rb") as file:
        content = file.read(bytes_max + 1)
    if len(content) > bytes_max:
        raise LoadError(f"{path.name} is longer than {bytes_max} bytes", permanent=True)
    return content
