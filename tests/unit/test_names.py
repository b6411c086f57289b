"""Names of models: what each spelling means, what is refused, and what may stand in configuration."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmvisor import limits
from llmvisor.errors import ModelNotFound, TierNotConfigured
from llmvisor.routing.names import NamedModel, NameIndex, Purpose, check_name, resolve

SMOL = NamedModel("smollm2-135m", "light", ("smol", "gpt-4o-mini"))
STORIES = NamedModel("stories15m", "light")
QWEN = NamedModel("Qwen2.5-7B", "heavy", ("big",))
BGE = NamedModel("bge-m3", "embedding")
PLAIN = NamedModel("plain", None, ("Plain-Alias",))
CATALOGUE = [BGE, SMOL, STORIES, QWEN, PLAIN]


def loaded(*models: NamedModel) -> list[NamedModel]:
    """The catalogue with these models loaded."""
    return [NamedModel(model.name, model.tier, model.aliases, loaded=model in models) for model in CATALOGUE]


@pytest.mark.parametrize(
    ("requested", "expected"),
    [
        ("smollm2-135m", SMOL),
        ("light/smollm2-135m", SMOL),
        ("smol", SMOL),
        ("light/smol", SMOL),
        ("gpt-4o-mini", SMOL),
        ("light", SMOL),
        ("heavy", QWEN),
        ("embedding", BGE),
        ("Light", SMOL),
        ("qwen2.5-7b", QWEN),
        ("HEAVY/QWEN2.5-7B", QWEN),
        ("stories15m:latest", STORIES),
        ("Stories15M:latest", STORIES),
        ("light:latest", SMOL),
        ("plain-alias", PLAIN),
    ],
)
def test_name_means_its_model(requested: str, expected: NamedModel) -> None:
    """Names, ids, aliases and tiers resolve, with or without capitals and Ollama's tag."""
    assert resolve(requested, CATALOGUE) is expected


def test_name_spelled_exactly_wins_over_other_capitals() -> None:
    """Models whose names differ in capitals alone are told apart; a third spelling is none of them."""
    upper, lower = NamedModel("Model"), NamedModel("model")
    assert resolve("Model", [lower, upper]) is upper
    assert resolve("model", [upper, lower]) is lower
    with pytest.raises(ModelNotFound):
        resolve("MODEL", [upper, lower])


def test_name_that_is_a_tier_means_the_model_of_that_name() -> None:
    """A model called like its tier is meant before the tier's first model."""
    first, named = NamedModel("first", "light"), NamedModel("light", "light")
    assert resolve("light", [first, named]) is named


def test_name_with_latest_as_part_of_it_is_kept() -> None:
    """A configured tag is no tag to leave away."""
    tagged, bare = NamedModel("llama:latest"), NamedModel("llama")
    assert resolve("llama:latest", [bare, tagged]) is tagged
    assert resolve("llama", [tagged, bare]) is bare
    assert resolve("llama", [tagged]) is tagged


@pytest.mark.parametrize("requested", [None, "", "default", "Default", "default:latest"])
def test_name_left_out_takes_the_first_loaded_model(requested: str | None) -> None:
    """Without a name the first loaded model that writes text answers."""
    assert resolve(requested, loaded(BGE, STORIES, QWEN)).name == STORIES.name
    assert resolve(requested, loaded(PLAIN)).name == PLAIN.name
    assert resolve(requested, loaded(BGE)).name == BGE.name


def test_name_left_out_takes_the_first_configured_model_where_none_is_loaded() -> None:
    """With nothing loaded, or loaded models out of the question, it is the first of a tier that writes text."""
    assert resolve(None, CATALOGUE) is SMOL
    assert resolve(None, loaded(QWEN), fallback_to_loaded=False).name == SMOL.name
    assert resolve(None, [PLAIN, BGE]) is PLAIN


def test_name_default_of_a_model_is_that_model() -> None:
    """An alias `default` would be taken at its word."""
    assert resolve("default", [*loaded(SMOL), NamedModel("x", aliases=("default",))]).name == "x"


@pytest.mark.parametrize(("requested", "tier"), [("medium", "medium"), ("reranker", "reranker"), ("Medium", "medium")])
def test_tier_without_a_model_says_so(requested: str, tier: str) -> None:
    """The message is the one that clients know."""
    with pytest.raises(TierNotConfigured) as caught:
        resolve(requested, CATALOGUE)
    assert caught.value.message == f"No models available for tier: {tier}"
    assert (caught.value.status, caught.value.code) == (404, "tier_not_configured")


@pytest.mark.parametrize(
    ("requested", "nearest"),
    [
        ("smollm2", "light/smollm2-135m"),
        ("storys15m", "light/stories15m"),
        ("qwen", "heavy/Qwen2.5-7B"),
        ("gpt-4o", "light/smollm2-135m"),
        ("heavy/stories15m", "light/stories15m"),
    ],
)
def test_name_unknown_is_answered_with_the_nearest(requested: str, nearest: str) -> None:
    """A near miss names what was meant and how to list the rest; no other model serves it."""
    with pytest.raises(ModelNotFound) as caught:
        resolve(requested, CATALOGUE)
    assert f"{requested!r} does not exist. Nearest: " in caught.value.message
    assert nearest in caught.value.message
    assert "/v1/models" in caught.value.message
    assert (caught.value.status, caught.value.param) == (404, "model")


def test_name_unknown_among_many_lists_five() -> None:
    """The message stays short, whatever is configured and whatever is asked for."""
    many = [NamedModel(f"model-{index}") for index in range(100)]
    with pytest.raises(ModelNotFound) as caught:
        resolve("model", many)
    assert caught.value.message.count("model-") == 5
    with pytest.raises(ModelNotFound) as caught:
        resolve("x" * 100_000, many)
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize("requested", [None, "x", "default"])
def test_name_without_any_model_is_not_found(requested: str | None) -> None:
    """An empty configuration says that it is empty."""
    with pytest.raises(ModelNotFound, match="is configured"):
        resolve(requested, [])


@given(st.text(max_size=20))
def test_name_of_any_text_is_a_model_or_an_error(requested: str) -> None:
    """Whatever a client sends, the outcome is a configured model or one of the two errors."""
    try:
        found = resolve(requested, CATALOGUE)
    except (ModelNotFound, TierNotConfigured):
        found = None
    assert found is None or found in CATALOGUE


@pytest.mark.parametrize(
    "name", ["a", "light", "smollm2-135m", "Qwen2.5_7B:q4", "0", "x" * limits.model_name_chars_max]
)
def test_check_name_takes_plain_names(name: str) -> None:
    """Letters, digits and `. _ - :` make a name."""
    assert check_name(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "a/b",
        "a~b",
        "../x",
        ".hidden",
        "-x",
        ":x",
        "a b",
        "a\n",
        "é",
        "a\0",
        "default",
        "Default",
        "x" * 257,
        "a,b",
    ],
)
def test_check_name_refuses_what_would_be_read_otherwise(name: str) -> None:
    """Separators, blanks, paths and the reserved word are refused with a reason."""
    assert check_name(name)


# --------------------------------------------------------------------------- names that look like a kind of model

RERANKER = NamedModel("ranker", "reranker")
MEDIUM = NamedModel("middle", "medium")
EVERY_TIER = [*CATALOGUE, RERANKER, MEDIUM]


@pytest.mark.parametrize(
    ("requested", "expected"),
    [
        ("text-embedding-3-small", BGE),
        ("nomic-embed-text:latest", BGE),
        ("BAAI/bge-large-en-v1.5", BGE),
        ("intfloat/multilingual-e5-large", BGE),
        ("e5-mistral-7b-instruct", BGE),
        ("BAAI/bge-reranker-v2-m3", RERANKER),
        ("rerank-english-v3.0", RERANKER),
        ("cross-encoder/ms-marco-MiniLM-L6-v2", RERANKER),
        ("qwen2.5-0.5b-instruct", SMOL),
        ("SmolLM2-360M-Instruct", SMOL),
        ("llama3.2:3b", SMOL),
        ("meta-llama/Llama-3.1-8B-Instruct", MEDIUM),
        ("qwen-7b", MEDIUM),
        ("mistral-small-22b-q4_k_m", MEDIUM),
        ("llama-3.3-70b", QWEN),
        ("qwen3-30b-a3b", QWEN),
        ("mixtral-8x7b", QWEN),
    ],
)
def test_name_that_looks_like_a_kind_of_model_means_that_tier(requested: str, expected: NamedModel) -> None:
    """Embedders and rerankers by their families, models that write text by their size."""
    assert resolve(requested, EVERY_TIER, purpose="text") is expected


@pytest.mark.parametrize(
    "requested",
    ["gpt-4o", "heavy/other-7b", "openai~text-embedding-3-small", "phi-code5", "gemma-4bit", "bloom", "7bit"],
)
def test_name_that_looks_like_nothing_stays_unknown(requested: str) -> None:
    """Also one that says its tier or its service itself."""
    with pytest.raises(ModelNotFound):
        resolve(requested, EVERY_TIER, purpose="text")


def test_names_of_models_win_over_what_they_look_like() -> None:
    """A model called so is meant, whatever tier it is in."""
    own = NamedModel("bge-7b-embed", "heavy")
    assert resolve("bge-7b-embed", [BGE, own, MEDIUM], purpose="text") is own


@pytest.mark.parametrize("requested", ["bge-large", "some-rerank", "llama-7b", "qwen-0.5b", "qwen-70b"])
def test_name_that_looks_like_a_tier_without_a_model_is_unknown(requested: str) -> None:
    """No other tier steps in."""
    with pytest.raises(ModelNotFound):
        resolve(requested, [PLAIN], purpose="text")


@pytest.mark.parametrize("requested", ["llama-7b", "bge-large", "qwen-0.5b"])
def test_model_to_be_managed_is_never_guessed(requested: str) -> None:
    """Whoever unloads `llama-7b` does not mean another model."""
    with pytest.raises(ModelNotFound):
        resolve(requested, EVERY_TIER)


def test_size_alone_makes_no_embedder() -> None:
    """Vectors of a text model of that size are not what was asked for."""
    with pytest.raises(ModelNotFound):
        resolve("gte-qwen2-7b-instruct", EVERY_TIER, purpose="embedding")
    assert resolve("e5-mistral-7b-instruct", EVERY_TIER, purpose="embedding") is BGE


@pytest.mark.parametrize("requested", [None, "", "default"])
def test_name_left_out_of_an_embeddings_request_takes_the_model_that_does_it(requested: str | None) -> None:
    """Of its tier, a loaded one before the others; else the only one of that type."""
    second = NamedModel("second", "embedding", loaded=True)
    untiered = NamedModel("gte", type="embeddings")
    assert resolve(requested, EVERY_TIER, purpose="embedding") is BGE
    assert resolve(requested, EVERY_TIER, purpose="reranker") is RERANKER
    assert resolve(requested, [*EVERY_TIER, second], purpose="embedding") is second
    assert resolve(requested, [SMOL, untiered], purpose="embedding") is untiered
    with pytest.raises(TierNotConfigured, match="tier: reranker"):
        resolve(requested, [SMOL, untiered], purpose="reranker")
    with pytest.raises(ModelNotFound, match="gte, other"):
        resolve(requested, [SMOL, untiered, NamedModel("other", type="embeddings")], purpose="embedding")


@given(st.text(max_size=40), st.sampled_from(["text", "embedding", "reranker"]))
def test_name_of_any_text_is_a_model_or_an_error_for_every_purpose(requested: str, purpose: Purpose) -> None:
    """Whatever a client sends."""
    try:
        found = resolve(requested, EVERY_TIER, purpose=purpose)
    except (ModelNotFound, TierNotConfigured):
        found = None
    assert found is None or found in EVERY_TIER


# ------------------------------------------------------------------------------------------------ the index


def test_configured_model_comes_before_an_installed_one_with_its_alias() -> None:
    """What a person wrote down counts; the installed one keeps its id with a tier."""
    configured = NamedModel("one", "light", ("qwen",))
    installed = NamedModel("qwen", "heavy", installed=True)
    assert resolve("qwen", [configured, installed]) is configured
    assert resolve("qwen", [installed, configured]) is configured
    assert resolve("heavy/qwen", [configured, installed]) is installed


_MODELS = st.builds(
    NamedModel,
    name=st.sampled_from(["a", "A", "b", "a:latest", "light", "7b"]),
    tier=st.sampled_from([None, "light", "heavy", "embedding"]),
    aliases=st.lists(st.sampled_from(["c", "C", "c:latest"]), max_size=2),
    type=st.sampled_from(["llm", "embeddings"]),
)
_ASKED = st.sampled_from([None, "a", "A", "a:latest", "b", "c", "light", "heavy/a", "LIGHT/A", "embedding", "x", "3b"])


def outcome(index: NameIndex, requested: str | None, purpose: Purpose) -> object:
    try:
        return index.resolve(requested, purpose=purpose)
    except (ModelNotFound, TierNotConfigured) as error:
        return str(error)


@given(
    changes=st.lists(st.tuples(st.booleans(), _MODELS), max_size=12),
    requested=_ASKED,
    purpose=st.sampled_from(["name", "text", "embedding"]),
)
def test_index_that_was_changed_is_as_one_that_is_new(
    changes: list[tuple[bool, NamedModel]], requested: str | None, purpose: Purpose
) -> None:
    """Whatever models came, changed and went, a name means what it means among those that are there."""
    index = NameIndex()
    there: dict[str, NamedModel] = {}
    for stays, model in changes:
        if stays:
            index.put(model)
            before = there.get(model.name)
            if before is not None and before.tier != model.tier:
                # Its place among those of its new tier is the last one; elsewhere it keeps its own.
                index.remove(model.name)
                index.put(model)
                del there[model.name]
            there[model.name] = model
        else:
            index.remove(model.name)
            there.pop(model.name, None)
    fresh = NameIndex()
    for model in there.values():
        fresh.put(model)
    assert outcome(index, requested, purpose) == outcome(fresh, requested, purpose)


def test_name_among_very_many_is_found_and_a_wrong_one_told_apart() -> None:
    """Those that begin alike are compared; the nearest is among them."""
    index = NameIndex()
    for number in range(10_000):
        index.put(NamedModel(f"model-{number:05}"))
    assert index.resolve("model-07777").name == "model-07777"
    with pytest.raises(ModelNotFound, match="Nearest: model-07777,"):
        index.resolve("model-07777-7b")


def test_what_is_said_of_a_name_that_is_none_is_of_the_models_as_they_are() -> None:
    """Asked again it is the same; once a model has come or gone it is another."""
    index = NameIndex()
    index.put(NamedModel("qwen-7b"))

    def said() -> str:
        with pytest.raises(ModelNotFound) as caught:
            index.resolve("qwen-8b")
        return str(caught.value)

    assert said() == said()
    assert "Nearest: qwen-7b;" in said()
    index.put(NamedModel("qwen-8b-it"))
    assert "Nearest: qwen-7b, qwen-8b-it;" in said()
    index.remove("qwen-7b")
    assert "Nearest: qwen-8b-it;" in said()
