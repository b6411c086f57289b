"""What goes into an embeddings or rerank request, and what becomes of vectors, scores and long documents."""

from __future__ import annotations

import base64
import json
import math
from array import array

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llmvisor import limits
from llmvisor.errors import ContextLengthExceeded, InternalError, InvalidRequest
from llmvisor.http import vectors
from llmvisor.http.chunks import best, chunks
from llmvisor.http.decode import BodyDecoder
from llmvisor.http.encoding import join_slices, named_as, texts_of
from llmvisor.http.openai.embeddings import EmbeddingsRequest
from llmvisor.http.openai.rerank import RerankRequest, ScoreRequest

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
SCORES = st.floats(allow_nan=False, allow_infinity=False)


def embeddings(**fields: object) -> EmbeddingsRequest:
    return BodyDecoder(EmbeddingsRequest).decode(json.dumps({"input": "a", **fields}).encode())


# ------------------------------------------------------------------------------------------------------- the request


def test_input_has_four_forms() -> None:
    """A text, texts, the ids of one text, and those of several."""
    for form, inputs in [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ]:
        assert texts_of(embeddings(input=form).input, "input") == inputs


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ("", "input"),
        (["a", ""], "input[1]"),
        (["a", 1], "input"),
        (["a", [1]], "input"),
        ([1, [1]], "input"),
        (["a"] * (limits.embedding_inputs_max + 1), "input"),
    ],
)
def test_input_that_cannot_be_names_its_place(form: object, param: str) -> None:
    """Empty texts, mixtures, and more than OpenAI takes."""
    with pytest.raises(InvalidRequest) as caught:
        texts_of(embeddings(input=form).input, "input")
    assert caught.value.param == param
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("form", [None, 3, {}, [], [[]], [None], [1.5], ["a", {}], [-1], [[2**31]]])
def test_input_of_another_type_is_refused(form: object) -> None:
    """Before anything looks at it."""
    with pytest.raises(InvalidRequest) as caught:
        embeddings(input=form)
    assert (caught.value.param or "").startswith("input")


def test_kinds_are_those_asked_for_once() -> None:
    """`embedding_type` is the one that is always there, the others come beside it."""
    assert embeddings().kinds() == ["dense"]
    assert embeddings(return_sparse=True, return_colbert=True).kinds() == ["dense", "sparse", "colbert"]
    assert embeddings(embedding_type="sparse", return_sparse=True).kinds() == ["sparse"]
    assert embeddings(embedding_type="colbert", return_sparse=True).kinds() == ["colbert", "sparse"]
    with pytest.raises(InvalidRequest, match="dense vectors alone"):
        embeddings(embedding_type="sparse", dimensions=3).kinds()


def test_top_of_both_names_has_to_agree() -> None:
    """One of them is enough, and two that differ are a mistake."""
    decoder = BodyDecoder(RerankRequest)

    def top(**fields: object) -> int | None:
        return decoder.decode(json.dumps({"query": "q", "documents": ["d"], **fields}).encode()).top()

    assert (top(), top(top_k=2), top(top_n=3), top(top_k=2, top_n=2)) == (None, 2, 3, 2)
    with pytest.raises(InvalidRequest, match="top_n"):
        top(top_k=1, top_n=2)


def test_pairs_are_one_with_each_or_each_with_its_own() -> None:
    """vLLM's rules."""
    decoder = BodyDecoder(ScoreRequest)

    def pairs(first: object, second: object) -> list[tuple[str, str]]:
        return decoder.decode(json.dumps({"text_1": first, "text_2": second}).encode()).pairs()

    assert pairs("a", "b") == [("a", "b")]
    assert pairs("a", ["b", "c"]) == pairs(["a"], ["b", "c"]) == [("a", "b"), ("a", "c")]
    assert pairs(["a", "b"], ["c", "d"]) == [("a", "c"), ("b", "d")]
    for wrong in ((["a", "b"], "c"), (["a", "b"], ["c", "d", "e"])):
        with pytest.raises(InvalidRequest) as caught:
            pairs(*wrong)
        assert caught.value.param == "text_2"


def test_error_of_a_worker_names_the_field_of_the_dialect() -> None:
    """In its message as well; other fields stay as they are."""
    with pytest.raises(ContextLengthExceeded) as caught, named_as({"pairs": "documents"}):
        raise ContextLengthExceeded("pairs[3] has 600 tokens", param="pairs[3]")
    assert (caught.value.param, str(caught.value)) == ("documents[3]", "documents[3] has 600 tokens")
    with pytest.raises(ContextLengthExceeded) as caught, named_as({"input": "input"}, single=True):
        raise ContextLengthExceeded("too long", param="input[0]")
    assert caught.value.param == "input"
    with pytest.raises(InvalidRequest) as other, named_as({"input": "inputs"}):
        raise InvalidRequest("no", param="model")
    assert other.value.param == "model"


# ----------------------------------------------------------------------------------------------------------- vectors


@given(st.lists(FINITE, min_size=1, max_size=40))
def test_vector_is_the_same_as_list_and_as_base64(values: list[float]) -> None:
    """Both forms give back the very float32 numbers."""
    sent = array("f", values)
    read = vectors.floats(sent.tobytes())
    assert array("f", json.loads(bytes(vectors.as_json(read)))) == sent
    assert base64.b64decode(json.loads(bytes(vectors.as_base64(read)))) == sent.tobytes()


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_vector_of_no_numbers_is_an_error(wrong: float) -> None:
    """Nothing that JSON cannot say gets into an answer."""
    with pytest.raises(InternalError):
        vectors.floats(array("f", [1.0, wrong, 2.0]).tobytes())
    with pytest.raises(InternalError):
        vectors.weights({1: wrong})
    with pytest.raises(InternalError):
        vectors.checked_scores([0.5, wrong], raw=True)


def test_cut_vector_has_length_one_again() -> None:
    """The direction of its first numbers; more than it has is refused, all of them leave it as it is."""
    vector = array("f", [0.6, 0.0, 0.8])
    assert vectors.cut(vector, 2).tolist() == [1.0, 0.0]
    assert vectors.cut(vector, 3) is vector
    assert vectors.cut(array("f", [0.0, 1.0]), 1).tolist() == [0.0]
    with pytest.raises(InvalidRequest, match="at most 3") as caught:
        vectors.cut(vector, 4)
    assert caught.value.param == "dimensions"


def test_vectors_that_stand_one_after_another_are_split() -> None:
    """ColBERT's, of one length each."""
    joined = array("f", [1.0, 2.0, 3.0, 4.0]).tobytes()
    assert [vector.tolist() for vector in vectors.split(joined, 2)] == [[1.0, 2.0], [3.0, 4.0]]
    assert list(vectors.split(b"", 0)) == []


@given(st.lists(SCORES, min_size=1))
def test_scores_are_within_zero_and_one_and_keep_their_order(scores: list[float]) -> None:
    """Whatever a model's logits are."""
    assume(math.isfinite(sum(scores)))
    found = vectors.checked_scores(scores, raw=False)
    assert all(0 <= score <= 1 for score in found)
    order = sorted(range(len(scores)), key=scores.__getitem__)
    assert [found[index] for index in order] == sorted(found)
    assert vectors.checked_scores(scores, raw=True) == scores
    assert vectors.sigmoid(0.0) == 0.5


async def test_slices_join_to_one_list() -> None:
    """What is still being written leaves no mark."""
    pieces = [(None, 5), (b"1", limits.answer_slice_floats), (None, 1), (b"2", 1)]
    assert json.loads(await join_slices(pieces, begin=b"[", end=b"]")) == [1, 2]
    assert await join_slices([], begin=b"[", end=b"]") == b"[]"


# ------------------------------------------------------------------------------------------------------------ chunks


def test_short_document_stays_whole() -> None:
    """Nothing is cut that fits."""
    assert chunks("one two", [b"one", b" two"], 2, 5) == ["one two"]
    assert chunks("", [], 2, 5) == [""]


def test_long_document_is_cut_at_blanks() -> None:
    """Nothing of it is lost or said twice, and no chunk is longer than the room."""
    text = " ".join(f"word{number:03}" for number in range(100))
    pieces = [character.encode() for character in text]
    parts = chunks(text, pieces, 80, 100)
    assert "".join(parts) == text
    assert all(0 < len(part) <= 80 for part in parts)
    assert all(part.endswith(" ") for part in parts[:-1])


@given(
    st.text(min_size=1, max_size=200),
    st.integers(1, 50),
    st.integers(1, 10),
    st.sampled_from([1, 2, 3]),
)
def test_chunks_of_any_text_are_its_beginning(text: str, room: int, chunks_max: int, piece_bytes: int) -> None:
    """At most so many, one after another from the start, whole with enough of them, also where pieces differ."""
    pieces = [b"x" * piece_bytes for _ in text]
    parts = chunks(text, pieces, room, chunks_max)
    assert 1 <= len(parts) <= chunks_max
    assert text.startswith("".join(parts))
    assert all(parts)
    assert "".join(chunks(text, pieces, room, 1000)) == text


def test_best_chunk_counts() -> None:
    """Each document has the highest of its own scores."""
    assert best([1.0, 3.0, 2.0, -1.0, 5.0], [2, 1, 2]) == [3.0, 2.0, 5.0]
