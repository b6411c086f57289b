"""A daemon with the real starter model and three mocks, as the tests of the official `openai` client ask it."""

from __future__ import annotations

from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam
from tests.support.daemon import Daemon, mock_model, starter_model

MODEL = "smol"
COUNTING = "1, 2, 3, 4,"
"""What follows is beyond doubt, so that greedy texts do not hang on the noise of floats."""
QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Name three trees."}]


def openai_daemon() -> Daemon:
    """Not started yet."""
    models = {
        # One thread: llama.cpp's threads wait for each other by spinning, which a busy machine makes very slow.
        MODEL: starter_model(n_ctx=1024, parallel=4, n_threads=1, aliases=["gpt-4o-mini"]),
        "hopeless": mock_model(failpoints="load=exit(78)"),
        "mock": mock_model(token_delay_ms=10),
        "sleepy": mock_model(token_delay_ms=60_000),
    }
    return Daemon({"models": models})


def openai_client(daemon: Daemon) -> OpenAI:
    """One that asks once, and waits long enough for a real model."""
    return OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0, timeout=100)
