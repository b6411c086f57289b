"""Files that are no models, models that lie, and models that are too large: told clearly, at nobody else's cost."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.support import gguf_bytes as made
from tests.support.daemon import Daemon, Json, alive, mock_model
from tests.support.leaks import no_leaks
from tests.support.polling import eventually_sync
from tests.support.tiny_gguf import write_tiny_gguf

CONTEXT = 1024


def llama(path: Path, **settings: object) -> Json:
    return {"backend": "llamacpp", "path": str(path), "n_ctx": CONTEXT, "n_threads": 1, "parallel": 2, **settings}


# ------------------------------------------------------------------------------------------------- files of all kinds


def patched(tiny: bytes, key: str, value: int) -> bytes:
    """The file with another number behind this key of its header."""
    place = tiny.index(key.encode()) + len(key) + 4
    return tiny[:place] + struct.pack("<I", value) + tiny[place + 4 :]


def safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(16)


NO_MODELS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "it is empty"),
    "garbage": (lambda _: bytes(range(200, 250)) * 100, "of an unknown kind"),
    "safetensors": (lambda _: safetensors(), "a safetensors file"),
    "pickle": (lambda _: pickle.dumps({"weights": [1.0] * 100}), "a Python pickle"),
    "zip": (lambda _: b"PK\x03\x04" + bytes(100), "a zip archive"),
    "page": (lambda _: b"<!DOCTYPE html><html>log in</html>", "a web page"),
    "cut-header": (lambda tiny: tiny[:1000], "it ends inside its header"),
    "cut-tensors": (lambda tiny: tiny[: len(tiny) * 2 // 3], "it is cut"),
    "absurd-tensors": (lambda _: made.gguf(tensor_count=2**60), str(2**60)),
    "absurd-entries": (lambda _: made.gguf(entry_count=2**62), str(2**62)),
    "absurd-text": (lambda _: made.gguf({"general.architecture": made.string("x")[:4] + struct.pack("<Q", 2**63)}), ""),
}
"""What our own reader refuses, with a part of the reason: no worker starts for it."""

LIARS: dict[str, Callable[[bytes], bytes]] = {
    "layers": lambda tiny: patched(tiny, "llama.block_count", 9),
    "width": lambda tiny: patched(tiny, "llama.embedding_length", 4096),
    "heads": lambda tiny: patched(tiny, "llama.attention.head_count", 7),
    "no-heads": lambda tiny: patched(tiny, "llama.attention.head_count", 0),
    "feed-forward": lambda tiny: patched(tiny, "llama.feed_forward_length", 3),
    "end-token": lambda tiny: patched(tiny, "tokenizer.ggml.eos_token_id", 4_000_000_000),
    "architecture": lambda tiny: tiny.replace(b"llama", b"lhama"),
}
"""Headers that can be read and do not say the truth: llama.cpp finds out, in the worker."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def tiny(folder: Path) -> bytes:
    return write_tiny_gguf(folder / "good.gguf", context_length=CONTEXT).read_bytes()


@pytest.fixture(scope="module")
def daemon(folder: Path, tiny: bytes) -> Generator[Daemon]:
    models: Json = {"other": mock_model(), "good": llama(folder / "good.gguf"), "absent": llama(folder / "absent.gguf")}
    for name, (make, _) in NO_MODELS.items():
        (folder / f"{name}.gguf").write_bytes(make(tiny))
        models[name] = llama(folder / f"{name}.gguf")
    for name, make in LIARS.items():
        (folder / f"liar-{name}.gguf").write_bytes(make(tiny))
        models[f"liar-{name}"] = llama(folder / f"liar-{name}.gguf")
    models["mutant"] = llama(folder / "mutant.gguf", restart={"max": 1000, "backoff": [0.01, 0.05]})
    models["mended"] = llama(folder / "mended.gguf")
    models["late"] = llama(folder / "late.gguf")
    models["option-type"] = llama(folder / "good.gguf", options={"n_ubatch": "many"})
    models["option-name"] = llama(folder / "good.gguf", options={"flash_atn": "on"})
    models["mock-option"] = {"backend": "mock", "options": {"token_delay_ms": "soon"}}
    models["template"] = llama(folder / "good.gguf", options={"chat_template": "{% for %}"})
    with no_leaks(), Daemon({"models": models}) as one:
        yield one


def unharmed(daemon: Daemon) -> None:
    """The other model serves, and no worker is left of the one that failed."""
    assert daemon.complete("other", max_tokens=2)[0] == 200
    assert daemon.request("GET", "/livez")[0] == 200


def refused(daemon: Daemon, model: str) -> str:
    """Why a model cannot be loaded: the first request is told, and the second at once, without another try."""
    status, answer = daemon.complete(model, "abc", max_tokens=2)
    assert (status, answer["error"]["type"]) == (503, "model_error"), answer
    assert answer["error"]["code"] in {"model_load_failed", "model_unavailable"}
    reason: str = answer["error"]["message"]
    runtime = daemon.runtime(model)
    assert (runtime["state"], runtime["pid"]) == ("unavailable", None)
    assert runtime["error"]
    status, again = daemon.complete(model, "abc", max_tokens=2)
    assert (status, again["error"]["code"]) == (503, "model_unavailable")
    assert runtime["error"] in again["error"]["message"]
    assert daemon.runtime(model)["restarts"] == 0
    return reason


# --------------------------------------------------------------------------------------------------------- no models


@pytest.mark.parametrize("name", NO_MODELS)
def test_file_that_is_no_model_is_refused_with_what_it_is(daemon: Daemon, folder: Path, name: str) -> None:
    """Nothing loads it: our reader looks first, and says which file and what is wrong with it."""
    reason = refused(daemon, name)
    print(reason)
    assert f"{folder / name}.gguf" in reason
    assert NO_MODELS[name][1] in reason
    unharmed(daemon)


def test_file_that_is_absent_is_named(daemon: Daemon, folder: Path) -> None:
    """With its whole path."""
    assert f"{folder}/absent.gguf: there is no such file" in refused(daemon, "absent")
    unharmed(daemon)


@pytest.mark.parametrize("name", LIARS)
def test_header_that_lies_harms_its_own_worker_alone(daemon: Daemon, name: str) -> None:
    """Whatever llama.cpp makes of it, the answer is a clear error (or the model works), and everyone else is served."""
    model = f"liar-{name}"
    status, answer = daemon.complete(model, "abc", max_tokens=2)
    print(status, answer)
    if status == 200:
        assert name in {"end-token", "feed-forward"}, "it was served although its header lies"
    else:
        assert (status, answer["error"]["code"]) in {(503, "model_load_failed"), (422, "poison_request")}
        assert len(answer["error"]["message"]) > 20
    unharmed(daemon)


def test_header_with_changed_bytes_harms_its_own_worker_alone(daemon: Daemon, folder: Path, tiny: bytes) -> None:
    """Twenty files with some bytes of the header changed: refused by our reader, by llama.cpp, fatal to the worker, or
    served; the daemon and the other model go on, and the whole file is served at the end."""
    random = Random(20)
    header_bytes = tiny.index(b"blk.1.ffn_down.weight")
    found: Counter[str] = Counter()
    for _ in range(20):
        changed = bytearray(tiny)
        for _ in range(random.choice([1, 3, 10])):
            changed[random.randrange(4, header_bytes)] ^= 1 << random.randrange(8)
        _replace(folder / "mutant.gguf", bytes(changed))
        status, answer = daemon.complete("mutant", "abc", max_tokens=2)
        assert status in {200, 400, 503}, answer
        found[str(status) if status == 200 else answer["error"]["code"]] += 1
        assert daemon.request("GET", "/livez")[0] == 200
        # Else the next file would not be looked at.
        daemon.control("POST", "/jobs", {"type": "unload", "params": {"model": "mutant"}})
        daemon.wait_for_state("mutant", "not_loaded", "unavailable")
    print(found)
    assert len(found) > 1
    _replace(folder / "mutant.gguf", tiny)
    assert daemon.complete("mutant", "abc", max_tokens=2)[0] == 200
    unharmed(daemon)


def _replace(path: Path, content: bytes) -> None:
    """As a download that has ended does it."""
    part = path.with_suffix(".part")
    part.write_bytes(content)
    os.replace(part, path)


def test_models_that_cannot_be_read_are_listed_all_the_same(daemon: Daemon) -> None:
    """The list of models is whole, and so is what is known of the good ones."""
    status, answer = daemon.request("GET", "/v1/models")
    assert status == 200
    listed = {model["id"]: model for model in answer["data"]}
    assert {"good", "absent", *NO_MODELS} <= set(listed)
    assert listed["good"]["context_length"] == CONTEXT
    assert listed["absent"]["size"] is None


def test_model_whose_file_is_replaced_works_without_a_restart(daemon: Daemon, folder: Path, tiny: bytes) -> None:
    """1. A cut download is refused for good. 2. The whole file takes its place. Result: the next request is served."""
    path = folder / "mended.gguf"
    path.write_bytes(tiny[: len(tiny) // 2])
    assert "it is cut" in refused(daemon, "mended")
    _replace(path, tiny)
    status, answer = daemon.complete("mended", "abc", max_tokens=2)
    assert (status, daemon.runtime("mended")["error"]) == (200, None), answer


def test_model_whose_file_appears_works_without_a_restart(daemon: Daemon, folder: Path, tiny: bytes) -> None:
    """As above, where there was nothing at all."""
    assert "there is no such file" in refused(daemon, "late")
    (folder / "late.gguf").write_bytes(tiny)
    status, answer = daemon.complete("late", "abc", max_tokens=2)
    assert status == 200, answer


# ----------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("option-type", "n_ubatch"),
        ("option-name", "did you mean 'flash_attn'"),
        ("mock-option", "token_delay_ms"),
        ("template", "template"),
    ],
)
def test_option_that_the_backend_does_not_take_is_named(daemon: Daemon, model: str, said: str) -> None:
    """Only the backend knows its options; what it says reaches who asked, and it is not asked again."""
    reason = refused(daemon, model)
    print(reason)
    assert said in reason
    unharmed(daemon)


# ----------------------------------------------------------------------------------------------------------- prompts


def test_prompt_longer_than_the_context_is_refused_with_both_numbers(daemon: Daemon) -> None:
    """One token more than fits beside an answer is one too many; one less is served."""
    too_long: dict[str, Any] = {"model": "good", "prompt": [5] * CONTEXT, "max_tokens": 1}
    status, answer = daemon.request("POST", "/v1/completions", too_long)
    print(answer)
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert answer["error"]["message"].count(str(CONTEXT)) == 2
    status, answer = daemon.request("POST", "/v1/completions", {**too_long, "prompt": [5] * 3000, "stream": True})
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert "3000" in answer["error"]["message"]
    chat = {"model": "good", "messages": [{"role": "user", "content": "x" * 2000}]}
    status, answer = daemon.request("POST", "/v1/chat/completions", chat)
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert str(CONTEXT) in answer["error"]["message"]
    status, answer = daemon.request("POST", "/v1/completions", {**too_long, "prompt": [5] * (CONTEXT - 1)})
    assert (status, answer["usage"]["prompt_tokens"]) == (200, CONTEXT - 1)


def test_answer_ends_where_the_context_does(daemon: Daemon) -> None:
    """Whatever `max_tokens` asks for: it is cut at the context's length, and says so."""
    asked = {"model": "good", "prompt": [5] * 1000, "max_tokens": 5000, "ignore_eos": True}
    status, answer = daemon.request("POST", "/v1/completions", asked)
    assert (status, answer["choices"][0]["finish_reason"]) == (200, "length")
    assert answer["usage"]["total_tokens"] == CONTEXT


def test_token_that_the_model_does_not_have_is_a_bad_request(daemon: Daemon) -> None:
    """An index beyond the vocabulary never reaches native code."""
    for prompt in ([5, 10**6], [2**31 - 1]):
        status, answer = daemon.request("POST", "/v1/completions", {"model": "good", "prompt": prompt})
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error"), answer
        assert str(prompt[-1]) in answer["error"]["message"]
    assert daemon.complete("good", "abc", max_tokens=1)[0] == 200


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages", "/api/chat", "/v1/nothing", "/"])
def test_endpoint_that_is_not_there_is_not_found_in_json(daemon: Daemon, path: str) -> None:
    """Every path answers in the one form of errors."""
    status, answer = daemon.request("POST", path, {"model": "good", "input": "abc"})
    assert (status, answer["error"]["type"], answer["error"]["code"]) == (404, "invalid_request_error", "not_found")
    assert path in answer["error"]["message"]


# ------------------------------------------------------------------------------------------------------------ memory


def test_model_that_exceeds_memory_is_refused_and_told_what_holds_it(folder: Path, tiny: bytes) -> None:
    """1. One model that is pinned takes most of `memory.limit`. 2. Another is asked for. Result: 503 with what it
    needs, what is free and who holds the rest; no worker was started. 3. The first is unloaded. Result: the other is
    served."""
    del tiny
    models = {
        "first": llama(folder / "good.gguf", n_ctx=65_536, pinned=True),
        "second": llama(folder / "good.gguf", n_ctx=65_536),
        "giant": llama(folder / "good.gguf", n_ctx=16_000_000),
        "other": mock_model(),
    }
    with Daemon({"models": models, "memory": {"limit": "150MiB"}}) as daemon:
        status, answer = daemon.complete("giant", "abc", max_tokens=1)
        assert (status, answer["error"]["code"]) == (503, "insufficient_memory")
        assert "no model is loaded" in answer["error"]["message"]
        assert daemon.complete("first", "abc", max_tokens=1)[0] == 200
        pid = daemon.worker_pid("first")
        status, answer = daemon.complete("second", "abc", max_tokens=1)
        print(answer)
        error = answer["error"]
        assert (status, error["type"], error["code"]) == (503, "model_error", "insufficient_memory")
        parts = (
            r"second: it needs about (\d+) MiB; (\d+) MiB is left of the limit of 150 MiB, "
            r"and .+ is free on the machine; held by first \((\d+) MiB\) \(unload a model"
        )
        found = re.search(parts, error["message"])
        assert found is not None, error["message"]
        needed, left, held = map(int, found.groups())
        assert left < needed == held
        assert abs(left + held - 150) <= 1
        assert daemon.runtime("second")["state"] == "not_loaded"
        assert daemon.runtime("second")["pid"] is None
        assert daemon.worker_pid("first") == pid
        unharmed(daemon)
        status, job = daemon.control("POST", "/jobs", {"type": "unload", "params": {"model": "first"}})
        assert status == 202, job
        daemon.wait_for_state("first", "not_loaded")
        eventually_sync(lambda: not alive(pid), 10)
        assert daemon.complete("second", "abc", max_tokens=1)[0] == 200
