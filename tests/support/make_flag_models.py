# pyright: basic
# torch, transformers and tokenizers have partial types.
"""`python make_flag_models.py FOLDER`: makes the models of `flag_models`, without a network and with a fixed seed.

The tokenizer is a unigram model trained on made-up sentences. The weights start random; the embedder and the reranker
are then trained for some seconds on such sentences, so that texts with words in common are near to each other. That is
enough to tell a right order from a wrong one, and says nothing about quality.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from FlagEmbedding.inference.reranker.decoder_only.models.configuration_minicpm_reranker import LayerWiseMiniCPMConfig
from FlagEmbedding.inference.reranker.decoder_only.models.modeling_minicpm_reranker import LayerWiseMiniCPMForCausalLM
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
)

from llmvisor_runtimes.flag import layerwise

TOPICS = {
    "cooking": "recipe oven bread flour butter dinner kitchen soup salt chef baking pasta",
    "space": "rocket orbit planet moon astronaut telescope galaxy star launch satellite mars comet",
    "finance": "bank market stock money interest loan inflation investor currency budget tax bond",
    "music": "guitar piano melody concert singer drum violin album rhythm orchestra song chord",
    "sport": "football goal match player team coach stadium tennis race league champion ball",
    "law": "court judge lawyer contract verdict trial evidence statute appeal jury clause crime",
    "health": "doctor hospital medicine vaccine patient fever surgery nurse disease blood heart virus",
    "computer": "software server database compiler python memory network kernel thread cache disk packet",
    "nature": "forest river mountain tree bird wolf ocean rain flower lake valley storm",
    "travel": "airport passport hotel flight train luggage tourist map beach ticket visa city",
    "essen": "brot küche suppe rezept ofen salz kochen mehl nudeln abendessen käse wein",
    "zh": "机器 学习 模型 数据 语言 向量 检索 文本 中文 模块 训练 推理",
    "ru": "поезд город книга река зима дом школа музыка язык карта море друг",
}
BETWEEN = "the a of is and in on for to with about what how why when this that are was it my your best new old"
CHARACTERS = (
    "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 .,;:!?()[]{}'\"-_/\\@#%&*+=<>|~`^$ äöüßéèñç"
)
HIDDEN, LAYERS, LENGTH_MAX, VOCABULARY = 64, 2, 8192, 1200
STEPS = 120


def sentence(rng: random.Random, topic: str, words: int) -> str:
    chosen = rng.choices(TOPICS[topic].split(), k=words)
    return " ".join(f"{rng.choice(BETWEEN.split())} {word}" if rng.random() < 0.6 else word for word in chosen)


def make_tokenizer(folder: Path) -> int:
    """Write a tokenizer as XLM-RoBERTa's; gives the size of its vocabulary."""
    rng = random.Random(0)
    corpus = [sentence(rng, rng.choice(list(TOPICS)), rng.randint(3, 12)) for _ in range(6000)] + [CHARACTERS] * 50
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    # A small corpus gives pieces of words only: whole words are added.
    written = json.loads(tokenizer.to_str())
    have = {piece for piece, _ in written["model"]["vocab"]}
    words = sorted({word for words in [*TOPICS.values(), BETWEEN] for word in words.split()})
    written["model"]["vocab"] += [[f"▁{word}", -6.0] for word in words if f"▁{word}" not in have]
    tokenizer = Tokenizer.from_str(json.dumps(written))
    tokenizer.add_special_tokens(["<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {
        "bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>", "unk_token": "<unk>",
        "pad_token": "<pad>", "mask_token": "<mask>",
    }  # fmt: skip
    write(folder / "special_tokens_map.json", names)
    config = {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": LENGTH_MAX, **names}
    write(folder / "tokenizer_config.json", config)
    return tokenizer.get_vocab_size()


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1))


def encoder_config(vocabulary: int, num_labels: int = 2) -> XLMRobertaConfig:
    config = XLMRobertaConfig(
        vocab_size=vocabulary, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=4,
        intermediate_size=4 * HIDDEN, max_position_embeddings=LENGTH_MAX + 2, type_vocab_size=1, layer_norm_eps=1e-5,
        bos_token_id=0, pad_token_id=1, eos_token_id=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        initializer_range=0.08,
    )  # fmt: skip
    config.num_labels = num_labels
    return config


def make_embedder(folder: Path, rng: random.Random) -> XLMRobertaModel:
    vocabulary = make_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = XLMRobertaModel(encoder_config(vocabulary))
    colbert, sparse = torch.nn.Linear(HIDDEN, HIDDEN), torch.nn.Linear(HIDDEN, 1)
    torch.nn.init.eye_(colbert.weight)
    torch.nn.init.zeros_(colbert.bias)
    torch.nn.init.normal_(sparse.weight, std=0.02)
    torch.nn.init.constant_(sparse.bias, 0.3)
    optimizer = torch.optim.AdamW([*model.parameters(), *colbert.parameters(), *sparse.parameters()], lr=2e-3)
    topics = list(TOPICS)
    right = torch.arange(len(topics))
    model.train()
    for _ in range(STEPS):
        queries = encoded(tokenizer, [sentence(rng, topic, 4) for topic in topics])
        texts = encoded(tokenizer, [sentence(rng, topic, 8) for topic in topics])
        query_hidden, text_hidden = (model(**batch).last_hidden_state for batch in (queries, texts))
        near = unit(query_hidden[:, 0]) @ unit(text_hidden[:, 0]).T / 0.05
        late = late_interaction(unit(colbert(query_hidden[:, 1:])), unit(colbert(text_hidden[:, 1:])), queries, texts)
        # Without this the sparse weights die.
        alive = 0.05 * (torch.relu(sparse(text_hidden)).squeeze(-1) - 0.3).pow(2).mean()
        loss = functional.cross_entropy(near, right) + functional.cross_entropy(late, right) + alive
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    torch.save(colbert.state_dict(), folder / "colbert_linear.pt")
    torch.save(sparse.state_dict(), folder / "sparse_linear.pt")
    parts = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(parts)
    ]
    write(folder / "modules.json", modules)
    pooling = {"word_embedding_dimension": HIDDEN, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    write(folder / "1_Pooling" / "config.json", pooling)
    write(folder / "sentence_bert_config.json", {"max_seq_length": LENGTH_MAX, "do_lower_case": False})
    return model


def encoded(tokenizer: Any, *texts: list[str]) -> Any:
    return tokenizer(*texts, padding=True, truncation=True, max_length=64, return_tensors="pt")


def unit(vectors: torch.Tensor) -> torch.Tensor:
    return functional.normalize(vectors, dim=-1)


def late_interaction(queries: torch.Tensor, texts: torch.Tensor, query_batch: Any, text_batch: Any) -> torch.Tensor:
    query_mask, text_mask = query_batch["attention_mask"][:, 1:], text_batch["attention_mask"][:, 1:]
    scores = torch.einsum("qsh,dth->qdst", queries, texts)
    best = scores.masked_fill(text_mask[None, :, None] == 0, -1e4).max(-1).values
    return (best * query_mask[:, None]).sum(-1) / query_mask.sum(-1)[:, None] / 0.05


def make_reranker(folder: Path, embedder: XLMRobertaModel, rng: random.Random) -> None:
    vocabulary = make_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = XLMRobertaForSequenceClassification(encoder_config(vocabulary, num_labels=1))
    model.roberta.embeddings.load_state_dict(embedder.embeddings.state_dict())
    model.roberta.encoder.load_state_dict(embedder.encoder.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    labels = torch.tensor([float(index % 2) for index in range(24)])
    model.train()
    for _ in range(2 * STEPS):
        topics = rng.choices(list(TOPICS), k=24)
        others = [rng.choice([other for other in TOPICS if other != topic]) for topic in topics]
        queries = [sentence(rng, topic, 4) for topic in topics]
        texts = [sentence(rng, topics[index] if index % 2 else others[index], 8) for index in range(24)]
        logits = model(**encoded(tokenizer, queries, texts)).logits[:, 0]
        optimizer.zero_grad()
        functional.binary_cross_entropy_with_logits(logits, labels).backward()
        optimizer.step()
    model.eval().save_pretrained(folder)


def make_llm_reranker(folder: Path) -> None:
    config = LlamaConfig(
        vocab_size=make_tokenizer(folder), hidden_size=HIDDEN, intermediate_size=2 * HIDDEN, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.2,
        bos_token_id=0, pad_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).eval().save_pretrained(folder)


def make_layerwise_reranker(folder: Path) -> None:
    layerwise.adapt()
    config = LayerWiseMiniCPMConfig(
        vocab_size=make_tokenizer(folder), hidden_size=HIDDEN, intermediate_size=2 * HIDDEN, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=2048, initializer_range=0.2,
        bos_token_id=0, pad_token_id=1, eos_token_id=2, start_layer=2, head_multi=True, head_type="simple",
    )  # fmt: skip
    LayerWiseMiniCPMForCausalLM(config).eval().save_pretrained(folder)


def main(folder: Path) -> None:
    torch.manual_seed(0)
    # More of them only wait for each other with models this small.
    torch.set_num_threads(1)
    rng = random.Random(1)
    embedder = make_embedder(folder / "tiny-bge-m3", rng)
    make_reranker(folder / "tiny-bge-reranker", embedder, rng)
    make_llm_reranker(folder / "tiny-llm-reranker")
    make_layerwise_reranker(folder / "tiny-layerwise-reranker")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
