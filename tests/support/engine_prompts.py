"""Prompts of a tiny model, and the sampling that has it write letters."""

from __future__ import annotations

from tests.support.tiny_gguf import BOS, FIRST_BYTE, VOCABULARY, byte_tokens

from llmvisor_runtimes.protocol import Sampling

LETTERS = dict.fromkeys(byte_tokens("abcdefghijklmnopqrstuvwxyz"), 0.0)
LETTERS_ONLY = Sampling(temperature=0, logit_bias={token: -1e9 for token in range(VOCABULARY) if token not in LETTERS})


def prompt_of(length: int, seed: int = 0) -> list[int]:
    """A prompt of so many tokens that shares its beginning with no other seed's."""
    return [BOS, *(FIRST_BYTE + (seed * 89 + place * (7 + seed)) % 256 for place in range(1, length))]
