"""Tokens and their bytes, by the two ways in which tokenizers write them."""

# pyright: standard
# The library of tokenizers ships no complete types.

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from llmvisor_runtimes.backend import LoadError, RequestError
from llmvisor_runtimes.mlx.vocabulary import Vocabulary


def sentencepiece(path: Path) -> Path:
    """As llama's: `▁` for a space, single bytes as a last resort, a leading token in front."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "<tool>"]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in tokens[:3]])
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(path))
    return path


def byte_level(path: Path) -> Path:
    """As GPT-2's: each byte is a printable sign."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({sign: id for id, sign in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|im_end|>", normalized=False)])
    tokenizer.save(str(path))
    return path


def test_byte_level_pieces_join_to_the_text(tmp_path: Path) -> None:
    """Whatever is written, the bytes of its tokens are its own."""
    vocabulary = Vocabulary(byte_level(tmp_path / "t.json"), bos_token="", end_token="", end_token_ids=[])
    text = "a bé\n\t🙂\x00\x7f«»"
    tokens = vocabulary.tokenize(text, add_special=True, parse_special=True)
    assert b"".join(map(vocabulary.piece, tokens)) == text.encode()
    assert vocabulary.detokenize(tokens) == text
    assert not vocabulary.adds_bos


def test_sentencepiece_pieces_are_bytes(tmp_path: Path) -> None:
    """A space for its sign, one byte for a byte's token, and characters may be cut between tokens."""
    vocabulary = Vocabulary(sentencepiece(tmp_path / "t.json"), bos_token="<s>", end_token="</s>", end_token_ids=[2])
    tokens = vocabulary.tokenize("a é", add_special=True, parse_special=True)
    assert tokens[0] == vocabulary.bos == 1
    assert vocabulary.adds_bos
    assert [vocabulary.piece(token) for token in tokens[1:]] == [b" a", b" ", b"\xc3", b"\xa9"]
    assert vocabulary.tokenize_rendered("a")[0] == 1
    assert vocabulary.tokenize_rendered("<s>a").count(1) == 1


def test_control_tokens_are_silent_and_others_are_not(tmp_path: Path) -> None:
    """A special token's text is only written out on request; a token that was merely added is text."""
    vocabulary = Vocabulary(sentencepiece(tmp_path / "t.json"), bos_token="<s>", end_token="</s>", end_token_ids=[])
    assert (vocabulary.piece(2), vocabulary.written_piece(2)) == (b"", b"</s>")
    (tool,) = vocabulary.tokenize("<tool>", add_special=False, parse_special=True)
    assert vocabulary.piece(tool) == b"<tool>"
    assert vocabulary.end_tokens == {2}


def test_special_text_is_text_where_it_is_not_parsed(tmp_path: Path) -> None:
    """A user who writes `<|im_end|>` ends nothing."""
    vocabulary = Vocabulary(byte_level(tmp_path / "t.json"), bos_token="", end_token="", end_token_ids=[])
    (end,) = vocabulary.tokenize("<|im_end|>", add_special=False, parse_special=True)
    assert vocabulary.end_tokens == {end}, "the name alone tells what it is"
    assert len(vocabulary.tokenize("<|im_end|>", add_special=False, parse_special=False)) == 10
    assert vocabulary.tokenize("<|im_end|>", add_special=False, parse_special=True) == [end]


def test_broken_surrogate_is_replaced(tmp_path: Path) -> None:
    """Half a pair from JSON has no UTF-8, and is no reason to fail."""
    vocabulary = Vocabulary(byte_level(tmp_path / "t.json"), bos_token="", end_token="", end_token_ids=[])
    assert vocabulary.detokenize(vocabulary.tokenize("a\ud800b", add_special=False, parse_special=True)) == "a?b"


def test_token_out_of_range_is_refused(tmp_path: Path) -> None:
    """Rows of logits beyond the tokens are in range, and write nothing."""
    vocabulary = Vocabulary(byte_level(tmp_path / "t.json"), bos_token="", end_token="", end_token_ids=[])
    assert vocabulary.tokens == vocabulary.size == 257
    vocabulary.size = 300
    assert vocabulary.detokenize([299]) == ""
    with pytest.raises(RequestError, match="token 300 is not"):
        vocabulary.detokenize([300])


def test_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    """With the library's reason."""
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(LoadError, match=r"t\.json cannot be read"):
        Vocabulary(tmp_path / "t.json", bos_token="", end_token="", end_token_ids=[])
