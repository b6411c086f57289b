"""A text that goes on from one seen before gets the tokens that it would have got anyway, for less work."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.models import starter_model_path

from llmvisor_runtimes import limits
from llmvisor_runtimes.llamacpp.native import llama_cpp
from llmvisor_runtimes.llamacpp.retokenize import Retokenizer, common_bytes
from llmvisor_runtimes.llamacpp.vocabulary import Vocabulary

STORY = " ".join(f"The river carries the town below the hill, {number}; it's naïve: 東京 🙂." for number in range(90))
CHAT = "".join(f"<|im_start|>user\nWhat about {number}?<|im_end|>\n" for number in range(120))
BLANKS = "word" + " " * 3000 + "word"
LETTERS = "a" * 4000

endings = st.one_of(
    st.text(max_size=60),
    st.sampled_from(["", "<|im_end|>", "  ", "\n\n\n", "ing", "'s", " 12345678", "a" * 50, "é", "<|im_st"]),
)


@pytest.fixture(scope="module")
def vocabulary() -> Iterator[Vocabulary]:
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(starter_model_path()).encode(), params)
    yield Vocabulary(model)
    llama_cpp.llama_model_free(model)


class Counted:
    """A tokenizer that tells how many bytes it was given."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.bytes = 0

    def whole(self, text: bytes) -> list[int]:
        return self.vocabulary.tokenize_bytes(text, add_special=False, parse_special=True)

    def __call__(self, text: bytes) -> list[int]:
        self.bytes += len(text)
        return self.whole(text)


@settings(max_examples=150, deadline=None)
@given(
    base=st.sampled_from([STORY, CHAT, BLANKS, LETTERS, STORY + CHAT]), cut=st.floats(0, 1), first=endings, then=endings
)
def test_text_that_goes_on_has_the_tokens_of_a_text_made_at_once(
    vocabulary: Vocabulary, base: str, cut: float, first: str, then: str
) -> None:
    """1. A text is tokenized. 2. So is another that parts from it anywhere. Result: as if each had been the first."""
    counted = Counted(vocabulary)
    retokenizer = Retokenizer(counted, vocabulary.written_piece)
    beginning = base[: int(cut * len(base))]
    for text in (base + first, beginning + then, base + then, base + first + then):
        data = text.encode("utf-8", "replace")
        assert retokenizer.tokens(data) == counted.whole(data)


def test_next_turn_tokenizes_only_what_is_new(vocabulary: Vocabulary) -> None:
    """Each turn of a long conversation costs its own length, whatever came before it."""
    counted = Counted(vocabulary)
    retokenizer = Retokenizer(counted, vocabulary.written_piece)
    text = CHAT
    retokenizer.tokens(text.encode())
    assert counted.bytes == len(text)
    for turn in range(5):
        counted.bytes = 0
        text += f"<|im_start|>assistant\nAnswer {turn}.<|im_end|>\n"
        retokenizer.tokens(text.encode())
        assert counted.bytes < 600


def test_texts_remembered_are_bounded(vocabulary: Vocabulary) -> None:
    """However many different texts come, only the last are kept; the oldest costs its whole length again."""
    counted = Counted(vocabulary)
    retokenizer = Retokenizer(counted, vocabulary.written_piece)
    texts = [f"{number} {STORY}".encode() for number in range(limits.retokenize_texts_max + 1)]
    for text in texts:
        retokenizer.tokens(text)
    counted.bytes = 0
    retokenizer.tokens(texts[-1])
    assert counted.bytes < 600
    counted.bytes = 0
    retokenizer.tokens(texts[0])
    assert counted.bytes == len(texts[0])


@given(st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=40))
def test_common_bytes_is_the_longest_common_beginning(beginning: bytes, first: bytes, second: bytes) -> None:
    first, second = beginning + first, beginning + second
    length = common_bytes(first, second)
    assert first[:length] == second[:length]
    assert length == min(len(first), len(second)) or first[length] != second[length]
