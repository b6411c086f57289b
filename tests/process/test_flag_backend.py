"""The flag backend in a worker of its own, against FlagEmbedding itself."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
import zipfile
from array import array
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest
from tests.support.flag_models import bge_m3_folder, layerwise_reranker_folder, llm_reranker_folder, reranker_folder
from tests.support.flag_reference import Answer, Question, ask
from tests.support.flag_worker import FlagWorker, flag_worker
from tests.support.minilm import minilm_folder
from tests.support.worker_client import Worker

from llmvisor_runtimes.protocol import (
    Cancel,
    ChatMessage,
    ChatPrompt,
    Embedding,
    EmbeddingKind,
    Failed,
    Generate,
    LoadFailed,
    Sampling,
    SetThreads,
    TextPrompt,
    Tokenize,
    Tokens,
)

pytestmark = pytest.mark.timeout(600)  # the first run makes the models

ALL: list[EmbeddingKind] = ["dense", "sparse", "colbert"]
TEXTS = [
    "the rocket is in orbit about the moon",
    "bread and butter in the kitchen oven",
    "judge and jury in the court trial",
    "python memory cache on the server, and what else there is of it on that old machine of mine",
    "机器 学习 模型 训练",
    "",
    "how to launch a satellite to a planet",
    "Äpfel? Nein! 123",
]
PAIRS = [(TEXTS[6], text) for text in TEXTS[:5]] + [("best recipe for bread and soup", text) for text in TEXTS[:3]]
"""Of texts that come out of the tokenizer as they went in: FlagEmbedding scores others, under transformers 5, as what
came out."""
BAD = "<bad>"
"""A token that the tokenizer knows and the model does not: its input cannot be computed."""
CUTOFF_LAYER = 3


@pytest.fixture(scope="module")
def reference() -> Answer:
    """What FlagEmbedding answers when it is called directly."""
    question = Question(
        TEXTS, PAIRS, str(bge_m3_folder()), str(minilm_folder()), str(reranker_folder()), str(llm_reranker_folder()),
        str(layerwise_reranker_folder()), CUTOFF_LAYER,
    )  # fmt: skip
    return ask(question)


@pytest.fixture(scope="module")
def m3(tmp_path_factory: pytest.TempPathFactory) -> Generator[FlagWorker]:
    """BGE-M3, whose tokenizer has one token that the model does not have."""
    folder = tmp_path_factory.mktemp("m3") / "model"
    shutil.copytree(bge_m3_folder(), folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    id = 1 + max(token["id"] for token in tokenizer["added_tokens"])
    id = max(id, len(tokenizer["model"]["vocab"]) + 1)
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][-1], "id": id, "content": BAD})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with flag_worker(folder) as worker:
        yield worker


@pytest.fixture(scope="module")
def minilm() -> Generator[FlagWorker]:
    with flag_worker(minilm_folder()) as worker:
        yield worker


@pytest.fixture(scope="module")
def reranker() -> Generator[FlagWorker]:
    with flag_worker(reranker_folder()) as worker:
        yield worker


def floats(raw: bytes) -> list[float]:
    values = array("f", raw)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()


def near(left: Sequence[float], right: Sequence[float]) -> bool:
    return len(left) == len(right) and all(abs(a - b) <= 1e-4 for a, b in zip(left, right, strict=True))


def assert_same(item: Embedding, reference: Answer, index: int, kinds: Sequence[EmbeddingKind]) -> None:
    """The embedding of a text is FlagEmbedding's, in the kinds asked for, and has no others."""
    assert near(floats(item.dense), reference.dense[index] if "dense" in kinds else [])
    weights = {int(id): weight for id, weight in reference.sparse[index].items()} if "sparse" in kinds else {}
    assert item.sparse == pytest.approx(weights, abs=1e-4)
    vectors = reference.colbert[index] if "colbert" in kinds else []
    assert item.colbert_vectors == len(vectors)
    assert near(floats(item.colbert), [value for vector in vectors for value in vector])


# ---------------------------------------------------------------------------------------------------------- BGE-M3


def test_m3_says_what_it_is_and_how_far_the_load_is(m3: FlagWorker) -> None:
    """What the daemon lists of the model, and the stages that it showed meanwhile."""
    assert {"embedding", "sparse", "colbert"} <= set(m3.info.capabilities)
    assert (m3.info.embedding_dimension, m3.info.n_ctx, m3.info.architecture) == (64, 8192, "xlm-roberta")
    assert m3.info.memory.weights_bytes == 4 * m3.info.parameters > 0
    assert list(dict.fromkeys(m3.stages)) == ["library", "weights", "warm-up"]


@pytest.mark.parametrize("kinds", [["dense"], ["sparse"], ["colbert"], ["dense", "sparse"], ALL])
def test_m3_gives_what_flagembedding_gives(m3: FlagWorker, reference: Answer, kinds: list[EmbeddingKind]) -> None:
    """Dense, sparse and ColBERT, in any mix, texts of any length together."""
    for index, item in enumerate(m3.embed(*TEXTS, kinds=kinds)):
        assert_same(item, reference, index, kinds)


def test_m3_gives_the_same_for_a_text_alone(m3: FlagWorker, reference: Answer) -> None:
    """What else is in a batch changes nothing."""
    for index, text in enumerate(TEXTS):
        (item,) = m3.embed(text, kinds=ALL)
        assert_same(item, reference, index, ALL)


def test_m3_gives_the_same_in_mixed_concurrent_batches(m3: FlagWorker, reference: Answer) -> None:
    """Requests of different kinds, lanes and clients that are computed together."""
    mixes: list[list[EmbeddingKind]] = [["dense"], ["sparse", "colbert"], ALL, ["colbert"]]
    requests = [
        m3.embedding(*TEXTS[index % 4 :], kinds=mixes[index % 4], client=f"client-{index % 3}", lane=lane)
        for index in range(12)
        for lane in ("interactive", "bulk")
    ]
    m3.worker.send(*requests)
    answers = m3.collect([request.id for request in requests])
    for request in requests:
        items = answers[request.id]
        assert isinstance(items, list)
        assert len(items) == len(request.inputs)
        for text, item in zip(request.inputs, items, strict=True):
            assert isinstance(text, str)
            assert_same(item, reference, TEXTS.index(text), request.kinds)


def test_m3_takes_token_ids(m3: FlagWorker, reference: Answer) -> None:
    """A text's own ids without special tokens give its vectors; ids that there are not are refused."""
    m3.worker.send(Tokenize(9000, TextPrompt(TEXTS[0]), add_special=False))
    tokens = m3.worker.receive_until(Tokens).tokens
    (item,) = m3.embed(tokens, kinds=ALL)
    assert item.tokens == len(tokens) + 2
    assert_same(item, reference, 0, ALL)
    refused = m3.refusal(m3.embedding("fine", [5, 1_000_000]))
    assert (refused.kind, refused.param) == ("invalid_value", "input")


def test_m3_refuses_what_is_too_long_unless_it_may_truncate(m3: FlagWorker) -> None:
    """8,192 tokens with the special ones; a longer text is an error, or cut where the request says so."""
    long = "moon " * 9000
    refused = m3.refusal(m3.embedding("short", long))
    assert (refused.kind, refused.param) == ("context_length_exceeded", "input")
    assert "input 1" in refused.message
    assert "8192" in refused.message
    cut, short = m3.embed(long, "moon", truncate=True)
    assert (cut.tokens, short.tokens) == (8192, 3)


def test_bad_input_fails_its_own_request_alone(m3: FlagWorker, reference: Answer) -> None:
    """Whoever is in a batch with it gets an answer all the same."""
    requests = [m3.embedding(text, kinds=ALL) for text in TEXTS]
    bad = m3.embedding("fine", f"some {BAD} words")
    m3.worker.send(*requests[:4], bad, *requests[4:])
    answers = m3.collect([bad.id, *(request.id for request in requests)])
    assert isinstance(answers[bad.id], Failed)
    for index, request in enumerate(requests):
        items = answers[request.id]
        assert isinstance(items, list)
        assert_same(items[0], reference, index, ALL)


def test_interactive_request_does_not_wait_for_a_bulk_job(m3: FlagWorker) -> None:
    """A text that comes while thousands wait is answered long before them."""
    bulk = m3.embedding(*(f"{TEXTS[index % 4]} {index}" for index in range(3000)), lane="bulk")
    m3.worker.send(bulk)
    single = m3.embedding("planet moon star")
    m3.worker.send(single)
    answers = m3.collect([bulk.id, single.id])
    assert m3.ended[-2:] == [single.id, bulk.id]
    items = answers[bulk.id]
    assert isinstance(items, list)
    assert len(items) == 3000
    assert m3.frames[bulk.id] > 1


def test_cancelled_job_ends_at_once(m3: FlagWorker, reference: Answer) -> None:
    """Its answer is an empty last one, and the worker goes on with the next request."""
    bulk = m3.embedding(*(f"{TEXTS[index % 4]} {index}" for index in range(20_000)), kinds=ALL, lane="bulk")
    m3.worker.send(bulk, m3.embedding("soon"))
    m3.collect([bulk.id + 1])
    m3.worker.send(Cancel(bulk.id))
    items = m3.collect([bulk.id])[bulk.id]
    assert isinstance(items, list)
    assert len(items) < 20_000
    assert_same(m3.embed(TEXTS[0], kinds=ALL)[0], reference, 0, ALL)


def test_duplicates_are_computed_once(m3: FlagWorker) -> None:
    """Ten thousand copies of a text take no longer than a few texts, and are all answered."""
    items = m3.embed(*["the same text again"] * 10_000)
    assert len(items) == 10_000
    assert len({item.dense for item in items}) == 1


def test_large_vectors_come_in_several_frames(m3: FlagWorker) -> None:
    """No frame holds much more than its share, and nothing is lost between them."""
    texts = [f"{number} " + "moon " * 4000 for number in range(12)]
    request = m3.embedding(*texts, kinds=["colbert"])
    m3.worker.send(request)
    items = m3.collect([request.id])[request.id]
    assert isinstance(items, list)
    assert [len(item.colbert) for item in items] == [item.colbert_vectors * 64 * 4 for item in items]
    assert m3.frames[request.id] > 1


def test_m3_refuses_text_and_scores(m3: FlagWorker) -> None:
    """Other operations are refused by name, not attempted."""
    assert m3.refusal(m3.scoring([("a", "b")])).kind == "unsupported_operation"
    for id, prompt in ((8000, TextPrompt("a")), (8001, ChatPrompt([ChatMessage("user", "a")]))):
        m3.worker.send(Generate(id, "req", prompt, Sampling()))
        failed = m3.worker.receive_until(Failed)
        assert (failed.id, failed.kind) == (id, "unsupported_operation")


def test_thread_count_changes_at_run_time(m3: FlagWorker, reference: Answer) -> None:
    """The daemon hands out cores while requests run; the vectors stay the same."""
    m3.worker.send(SetThreads(2))
    assert_same(m3.embed(TEXTS[0], kinds=ALL)[0], reference, 0, ALL)
    m3.worker.send(SetThreads(1))
    assert_same(m3.embed(TEXTS[0], kinds=ALL)[0], reference, 0, ALL)


def test_worker_holds_one_openmp_runtime(m3: FlagWorker) -> None:
    """The memory map has torch's OpenMP and no other, no other engine, and no switch that hides a second one."""
    maps = Path(f"/proc/{m3.worker.pid}/maps")
    if not maps.exists():
        pytest.skip("the system has no /proc")
    mapped = {Path(line.split()[-1]).name for line in maps.read_text().splitlines() if "/" in line}
    openmp = {name for name in mapped if re.match(r"lib(gomp|omp|iomp)", name)}
    assert len(openmp) == 1, openmp
    assert not [name for name in mapped if "llama" in name or "mlx" in name]
    assert b"KMP_DUPLICATE_LIB_OK" not in Path(f"/proc/{m3.worker.pid}/environ").read_bytes()


# ------------------------------------------------------------------------------------------------------ dense models


def test_threads_that_wait_leave_the_cores_to_others(minilm: FlagWorker) -> None:
    """torch's OpenMP was told so before it was loaded, which is when it asks."""
    if sys.platform != "linux":
        pytest.skip("OpenMP's own runtime is libgomp on Linux alone")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in minilm.worker.log()


def test_dense_model_pools_as_its_folder_says(minilm: FlagWorker, reference: Answer) -> None:
    """all-MiniLM-L6-v2 pools by mean: its vectors are those of `FlagModel` told so."""
    assert minilm.info.capabilities == ["tokenize", "embedding"]
    assert (minilm.info.embedding_dimension, minilm.info.n_ctx) == (384, 256)
    for item, expected in zip(minilm.embed(*TEXTS), reference.mean, strict=True):
        assert near(floats(item.dense), expected)


def test_dense_model_finds_the_right_neighbours(minilm: FlagWorker) -> None:
    """Each question's nearest text is the one that answers it."""
    answers = {
        "How do I bake bread?": "Mix flour, water and yeast, let the dough rise, then put it in a hot oven.",
        "What is the capital of France?": "Paris is where the French government sits.",
        "My computer is slow": "Closing programs that use much memory makes the machine faster.",
        "Symptoms of the flu": "Influenza begins with fever, cough and aching muscles.",
        "How are planets formed?": "Worlds grow out of the disk of dust around a young star.",
    }
    questions = [floats(item.dense) for item in minilm.embed(*answers)]
    texts = [floats(item.dense) for item in minilm.embed(*answers.values())]
    for index, question in enumerate(questions):
        products = [sum(a * b for a, b in zip(question, text, strict=True)) for text in texts]
        assert products.index(max(products)) == index


def test_dense_model_refuses_other_kinds(minilm: FlagWorker) -> None:
    """Sparse weights are asked of a model that has none."""
    assert minilm.refusal(minilm.embedding("a", kinds=["sparse"])).kind == "unsupported_operation"


def test_token_texts_round_trip(minilm: FlagWorker) -> None:
    """A text's tokens say it again."""
    minilm.worker.send(Tokenize(9000, TextPrompt("hello moon"), add_special=True))
    tokens = minilm.worker.receive_until(Tokens)
    assert [piece.decode() for piece in tokens.pieces] == ["[CLS]", "hello", "moon", "[SEP]"]


# -------------------------------------------------------------------------------------------------------- rerankers


def test_reranker_gives_what_flagembedding_gives(reranker: FlagWorker, reference: Answer) -> None:
    """Scores of a cross-encoder, in one request and in many at once; tokens are counted exactly."""
    scores = reranker.score(PAIRS)
    assert near(scores.scores, reference.reranker)
    requests = [reranker.scoring([pair]) for pair in PAIRS]
    reranker.worker.send(*requests)
    answers = reranker.collect([request.id for request in requests])
    alone = [answers[request.id] for request in requests]
    assert near([answer.scores[0] for answer in alone if not isinstance(answer, list | Failed)], reference.reranker)
    assert sum(answer.tokens for answer in alone if not isinstance(answer, list | Failed)) == scores.tokens


def test_reranker_puts_the_right_text_first(reranker: FlagWorker) -> None:
    """Of some texts the one on the query's topic has the best score."""
    scores = reranker.score(PAIRS[:3]).scores
    assert scores.index(max(scores)) == 0


def test_reranker_truncates_only_where_it_may(reranker: FlagWorker) -> None:
    """A document that is too long is an error, or gives way; a query keeps three quarters."""
    long = "bread " * 9000
    assert reranker.refusal(reranker.scoring([("bread", long)])).kind == "context_length_exceeded"
    cut = reranker.score([("bread", long), (long, "bread"), (long, long)], truncate=True)
    assert len(cut.scores) == 3
    assert cut.tokens == 8192 + (6144 + 4 + 1) + 8192


def test_truncated_pair_is_the_pair_of_the_cut_texts(reranker: FlagWorker) -> None:
    """A document that is cut scores as the part of it that is kept."""
    fits = "bread oven " * 4093
    assert reranker.score([("planet moon", fits)]).tokens == 8192
    whole, cut = (reranker.score([("planet moon", text)], truncate=True).scores for text in (fits, fits + "moon star"))
    assert near(whole, cut)


def test_reranker_refuses_embeddings(reranker: FlagWorker) -> None:
    """A cross-encoder has no vectors."""
    assert reranker.refusal(reranker.embedding("a")).kind == "unsupported_operation"


def test_llm_reranker_gives_what_flagembedding_gives(reference: Answer) -> None:
    """A causal model, asked whether a passage answers a query."""
    with flag_worker(llm_reranker_folder()) as worker:
        assert near(worker.score(PAIRS).scores, reference.llm_reranker)
        assert near(worker.score(PAIRS[:1]).scores, reference.llm_reranker[:1])


def test_layerwise_reranker_gives_what_flagembedding_gives(reference: Answer) -> None:
    """A causal model with a score at each layer."""
    with flag_worker(layerwise_reranker_folder(), cutoff_layer=CUTOFF_LAYER) as worker:
        assert near(worker.score(PAIRS).scores, reference.layerwise_reranker)


# ------------------------------------------------------------------------------------------------- folders that are bad


def test_weights_that_would_run_code_are_refused(tmp_path: Path) -> None:
    """A head whose pickle calls a function ends the load; the function is not called."""
    folder = tmp_path / "model"
    shutil.copytree(bge_m3_folder(), folder)
    marker = tmp_path / "was-here"
    (folder / "sparse_linear.pt").write_bytes(torch_archive(f"cos\nmkdir\n(V{marker}\ntR."))
    with Worker("flag") as worker:
        failed = FlagWorker(worker).load(folder)
    assert isinstance(failed, LoadFailed)
    assert failed.permanent
    assert "Weights only load failed" in failed.reason
    assert not marker.exists()


def test_damaged_weights_are_a_permanent_load_error(tmp_path: Path) -> None:
    """A file that is cut is named, and not tried for ever."""
    folder = tmp_path / "model"
    shutil.copytree(reranker_folder(), folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with Worker("flag") as worker:
        failed = FlagWorker(worker).load(folder)
    assert isinstance(failed, LoadFailed)
    assert failed.permanent
    assert str(folder) in failed.reason


def torch_archive(pickle: str) -> bytes:
    """A file of `torch.save` with this pickle in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()
