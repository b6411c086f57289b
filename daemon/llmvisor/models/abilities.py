"""What a model can do, as far as its files tell before a worker has loaded it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from llmvisor import limits
from llmvisor.models.folders import ModelFolder
from llmvisor.models.gguf import GgufHeader

_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
_THINKING = ("<think>", "enable_thinking", "reasoning_content", "<|channel|>")
_TOOLS = ("tools", "tool_call")
_OTHERS = {"embeddings": ("embedding", "tokenize"), "reranker": ("rerank", "tokenize"), "unknown": ()}
"""Of models that write no text, by type."""


class _TokenizerConfig(msgspec.Struct):
    chat_template: object = None


def gguf_abilities(header: GgufHeader) -> list[str]:
    """Of a GGUF file, by its type and its chat template."""
    return _abilities(header.type, header.chat_template or "")


def folder_abilities(folder: ModelFolder, path: Path) -> list[str]:
    """Of a model's folder. Blocks on the disk, for one or two small files."""
    return _abilities(folder.type, _template(path))


def _abilities(type: str, template: str) -> list[str]:
    if type in _OTHERS:
        return [*_OTHERS[type]]
    found = ["chat"] if template else []
    found += ["completions", "tokenize", "structured_output"]
    found += ["tools"] if any(word in template for word in _TOOLS) else []
    return found + (["thinking"] if any(word in template for word in _THINKING) else [])


def _template(path: Path) -> str:
    """The folder's chat template, or several of them in one text."""
    for name in _TEMPLATE_FILES:
        if data := _beginning(path / name):
            return data.decode(errors="replace")
    try:
        said = msgspec.json.decode(_beginning(path / "tokenizer_config.json"), type=_TokenizerConfig).chat_template
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return ""
    return said if isinstance(said, str) else msgspec.json.encode(said).decode() if said else ""


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limits.model_folder_json_bytes_max)
    except OSError:
        return b""
