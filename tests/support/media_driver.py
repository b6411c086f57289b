"""Drives a tiny model beside a projector: conversations with images and sounds, and a gate before the encoder."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgspec
from tests.support.llama_driver import LlamaDriver, Output
from tests.support.tiny_gguf import write_tiny_gguf
from tests.support.tiny_mmproj import SLICE_TOKENS, Projector, write_tiny_mmproj

from llmvisor_runtimes.llamacpp.engine import Engine
from llmvisor_runtimes.llamacpp.media_encoder import MediaEncoder
from llmvisor_runtimes.llamacpp.projector import Embeddings, MediaChunk
from llmvisor_runtimes.protocol import ChatPrompt, ModelOptions

WAIT_SECONDS = 20


def media_files(folder: Path) -> dict[str, Path]:
    """A model and a projector of each kind."""
    made = {"tiny": write_tiny_gguf(folder / "tiny.gguf"), "mrope": write_tiny_gguf(folder / "m.gguf", mrope=True)}
    made["slices"] = write_tiny_gguf(folder / "slices.gguf", further_tokens=SLICE_TOKENS)
    for projector in ("janus_pro", "gemma3", "idefics3", "qwen2vl_merger", "ultravox"):
        made[projector] = write_tiny_mmproj(folder / f"mmproj-{projector}.gguf", projector)
    return made


def pair(files: dict[str, Path], projector: Projector) -> tuple[Path, Path]:
    return files[{"qwen2vl_merger": "mrope", "idefics3": "slices"}.get(projector, "tiny")], files[projector]


def raw(**own: object) -> dict[str, msgspec.Raw]:
    return {name: msgspec.Raw(msgspec.msgpack.encode(value)) for name, value in own.items()}


def seeing(files: dict[str, Path], projector: Projector = "janus_pro", **wanted: object) -> LlamaDriver:
    """A driver of a model beside its projector; the caller closes it. The model's own options may be among these."""
    model, mmproj = pair(files, projector)
    names = {"n_ubatch", "idle_cache_mb", "chat_template"}
    own = {name: wanted.pop(name) for name in list(wanted) if name in names}
    options = {"n_ctx": 512, "n_threads": 1, "options": raw(mmproj=str(mmproj), **own), **wanted}
    return LlamaDriver(model, msgspec.convert(options, ModelOptions))


def ask(driver: LlamaDriver, conversation: ChatPrompt, **wanted: object) -> Output:
    """Run one conversation alone."""
    id = driver.converse(conversation, **{"max_tokens": 8, "logprobs": 5, "ignore_eos": True, **wanted})
    driver.run()
    assert id not in driver.failed, driver.failed[id]
    return driver.outputs[id, 0]


def media_of(driver: LlamaDriver) -> MediaEncoder:
    media = cast("Engine", driver.backend._engine)._media  # pyright: ignore[reportPrivateUsage]
    assert media is not None
    return media


class Gate:
    """Holds up encoding until it is opened, piece after piece as a large image does, and counts it."""

    def __init__(self, driver: LlamaDriver) -> None:
        media = media_of(driver)
        projector = media.projector
        self._between: Callable[[], bool] = media._between  # pyright: ignore[reportPrivateUsage]
        self._encode: Callable[[MediaChunk], Embeddings | None] = projector.encode
        self.opened = threading.Event()
        self.reached = threading.Event()
        self.encoded = 0
        self.aborted = False
        projector.encode = self  # type: ignore[method-assign]

    def __call__(self, chunk: MediaChunk) -> Embeddings | None:
        self.reached.set()
        until = time.monotonic() + WAIT_SECONDS
        while not self.opened.wait(0.001):
            assert time.monotonic() < until
            if not self._between():
                self.aborted = True
                return None
        self.encoded += 1
        return self._encode(chunk)
