"""What files promise of a model before it is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
from tests.support.tiny_gguf import write_tiny_gguf

from llmvisor.models.abilities import folder_abilities, gguf_abilities
from llmvisor.models.folders import read_folder
from llmvisor.models.gguf import read_header

TEXT = ["completions", "tokenize", "structured_output"]
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
TEMPLATE = "{% if tools %}{{ tools }}{% endif %}<think>"


def folder(path: Path, config: Mapping[str, object], **files: object) -> list[str]:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (path / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder_abilities(read_folder(path), path)


def test_gguf_with_a_template_can_chat(tmp_path: Path) -> None:
    """Without tools in the template it promises none."""
    assert gguf_abilities(read_header(write_tiny_gguf(tmp_path / "tiny.gguf"))) == ["chat", *TEXT]


def test_template_of_a_gguf_tells_tools_and_thinking(tmp_path: Path) -> None:
    """By the words that it has for them."""
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_chat_template(TEMPLATE)
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.zeros((2, 2), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert gguf_abilities(read_header(tmp_path / "a.gguf")) == ["chat", *TEXT, "tools", "thinking"]


@pytest.mark.parametrize(
    "template", [TEMPLATE, [{"name": "default", "template": "hi"}, {"name": "tool_use", "template": TEMPLATE}]]
)
def test_folder_has_its_template_in_the_tokenizers_description(tmp_path: Path, template: object) -> None:
    """One, or several by name."""
    found = folder(tmp_path, CONFIG, tokenizer_config={"chat_template": template})
    assert found == ["chat", *TEXT, "tools", "thinking"]


def test_folder_has_its_template_in_a_file_of_its_own(tmp_path: Path) -> None:
    """As newer models have it."""
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert folder(tmp_path, CONFIG) == ["chat", *TEXT]


@pytest.mark.parametrize("said", ["{", "[1]", '{"chat_template": 5}', "{}"])
def test_description_of_nonsense_promises_nothing_more(tmp_path: Path, said: str) -> None:
    """What cannot be read is not there."""
    assert set(folder(tmp_path, CONFIG, tokenizer_config=said)) - {"chat"} == set(TEXT)


def test_encoder_promises_what_encoders_do(tmp_path: Path) -> None:
    """Vectors, or scores."""
    assert folder(tmp_path, {"architectures": ["BertModel"]}) == ["embedding", "tokenize"]
    assert folder(tmp_path, {"architectures": ["BertForSequenceClassification"]}) == ["rerank", "tokenize"]
