"""A hundred streams of real models whose worker is killed five times: the long form of
`tests/fault/test_resumed_streams.py`.

It prints how many texts are those of an undisturbed run to the last token, and what the others differ by.
"""

from __future__ import annotations

import pytest
from tests.support.daemon import Daemon, Json, starter_model
from tests.support.kills import MLX_NOISE, RESTARTS, STARTER_NOISE, assert_kills_change_nothing
from tests.support.leaks import no_leaks
from tests.support.mlx_models import tiny_folder

STREAMS = 100
KILLS = 5
PROMPTS = [f"Here is a long text about the number {number}. It" for number in range(STREAMS)]
pytestmark = [pytest.mark.soak, pytest.mark.model, pytest.mark.timeout(1800)]


@pytest.mark.parametrize(("model", "noise"), [("llama", STARTER_NOISE), ("mlx", MLX_NOISE)])
def test_hundred_streams_of_a_real_model_survive_five_kills_each(model: str, noise: float) -> None:
    """All of them are inside at each kill, and go on in the next worker where they broke off."""
    shared: Json = {"n_ctx": 128 * STREAMS, "parallel": STREAMS, "restart": RESTARTS}
    models: Json = {"llama": starter_model(**shared), "mlx": {"path": str(tiny_folder()), **shared}}
    with no_leaks(), Daemon({"models": {model: models[model]}}) as daemon:
        assert_kills_change_nothing(daemon, model, PROMPTS, kills=KILLS, tokens=40, noise=noise)
