"""A hundred streams of real models whose worker is killed again and again: the long form of
`tests/fault/test_resumed_streams.py`.

It prints how many texts are those of an undisturbed run to the last token, and what the others differ by; the same of
two undisturbed runs first.
"""

from __future__ import annotations

import pytest
from tests.support.daemon import Daemon, Json, starter_model
from tests.support.kills import MLX_NOISE, RESTARTS, STARTER_NOISE, assert_kills_change_nothing
from tests.support.leaks import no_leaks
from tests.support.mlx_models import tiny_folder

STREAMS = 100
PROMPTS = [f"Here is a long text about the number {number}. It" for number in range(STREAMS)]
pytestmark = [pytest.mark.soak, pytest.mark.model, pytest.mark.timeout(1800)]


@pytest.mark.parametrize(
    ("model", "kills", "tokens", "noise"), [("llama", 5, 120, STARTER_NOISE), ("mlx", 2, 160, MLX_NOISE)]
)
def test_hundred_streams_of_a_real_model_survive_kills(model: str, kills: int, tokens: int, noise: float) -> None:
    """All of them are inside at each kill, and go on in the next worker where they broke off. (Those that are read
    first write while the others are read: each text is long enough that none has ended by the last.)"""
    shared: Json = {"n_ctx": (tokens + 32) * STREAMS, "parallel": STREAMS, "restart": RESTARTS}
    models: Json = {"llama": starter_model(**shared), "mlx": {"path": str(tiny_folder()), **shared}}
    with no_leaks(), Daemon({"models": {model: models[model]}}) as daemon:
        # How much two runs differ that nothing disturbs.
        assert_kills_change_nothing(daemon, model, PROMPTS, kills=0, tokens=tokens, noise=noise, reads_max=4)
        assert_kills_change_nothing(daemon, model, PROMPTS, kills=kills, tokens=tokens, noise=noise, reads_max=4)
