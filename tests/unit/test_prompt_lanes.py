"""The prompt thread: a text does not wait for images that came before it to be decoded."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

from llmvisor_runtimes.backend import Backend
from llmvisor_runtimes.pipes import Pipes
from llmvisor_runtimes.prompts import Prepared, Prompted, PromptThread
from llmvisor_runtimes.protocol import (
    MEDIA_MARKER,
    ChatMessage,
    ChatPrompt,
    Prompt,
    Report,
    TextPrompt,
    Tokenize,
    Tokens,
)
from llmvisor_runtimes.waiting import WaitingRequests

IMAGE = ChatPrompt([ChatMessage("user", MEDIA_MARKER, media=[b"png"])])
TEXT = ChatPrompt([ChatMessage("user", "hi")])


def test_texts_pass_images_and_images_keep_their_order() -> None:
    """Queued: image, image, text, text. Answered: the texts, then the images, their places as -1."""
    answers: list[Tokens] = []
    done = threading.Semaphore(0)

    def tokenize(prompt: Prompt, *, add_special: bool, parse_special: bool) -> list[int]:
        return [5, -700, -701] if prompt is IMAGE else [5]

    def unready(_: Prompted | Prepared) -> None:
        raise AssertionError("nothing is generated")

    def send(reports: Sequence[Report]) -> None:
        answers.extend(report for report in reports if isinstance(report, Tokens))
        done.release()

    def detokenize(tokens: Sequence[int]) -> tuple[str, list[bytes]]:
        return "", [b"" for _ in tokens]

    backend = SimpleNamespace(tokenize=tokenize, detokenize=detokenize)
    thread = PromptThread(
        cast("Backend", backend), cast("Pipes", SimpleNamespace(send=send)), WaitingRequests(), unready
    )
    thread.loaded = True
    for id, prompt in enumerate((IMAGE, IMAGE, TEXT, TextPrompt("hi")), 1):
        thread.put(Tokenize(id, prompt))
    threading.Thread(target=thread.run, daemon=True).start()
    for _ in range(4):
        assert done.acquire(timeout=20)
    assert [answer.id for answer in answers] == [3, 4, 1, 2]
    assert answers[2].tokens == [5, -1, -1]
