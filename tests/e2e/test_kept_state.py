"""What a model has computed of a prompt outlives its being unloaded."""

from __future__ import annotations

from pathlib import Path

from tests.support.daemon import Daemon, starter_model

PROMPT = "Once upon a time there was a river that carried the town below the hill. " * 20


def cached_tokens(daemon: Daemon, prompt: str) -> int:
    status, answer = daemon.complete("smol", prompt, max_tokens=2, temperature=0)
    assert status == 200, answer
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_prompt_computed_before_an_unload_is_not_computed_again(tmp_path: Path) -> None:
    """1. A prompt is answered. 2. The model is unloaded. 3. It is asked again. Result: the prompt comes from disk."""
    config = {"models": {"smol": starter_model(n_ctx=2048)}, "cache": {"state_dir": str(tmp_path / "state")}}
    with Daemon(config) as daemon:
        assert cached_tokens(daemon, PROMPT) == 0
        status, job = daemon.control("POST", "/jobs", {"type": "unload", "params": {"model": "smol"}})
        assert status == 202, job
        daemon.wait_for_state("smol", "not_loaded")
        assert len(list((tmp_path / "state").iterdir())) == 1
        assert cached_tokens(daemon, PROMPT + " And then?") > 200
