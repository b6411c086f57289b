"""What a worker gives up when memory runs low."""

from __future__ import annotations

from tests.support.leaks import no_leaks
from tests.support.worker_client import Worker, text_request

from llmvisor_runtimes.llamacpp.parked import Parked, ParkedSequences
from llmvisor_runtimes.mlx.prefixes import PrefixCache
from llmvisor_runtimes.protocol import Trim


def cached_tokens(worker: Worker, id: int, text: str) -> int:
    done = worker.generate(text_request(id, text, max_tokens=2))[id].done
    assert done is not None
    return done.cached_tokens


def test_worker_forgets_what_it_only_kept_to_be_faster() -> None:
    """1. A prompt comes twice: the second time it is there already. 2. Trim. Result: it is computed anew, and requests
    that run go on."""
    with no_leaks(), Worker() as worker:
        worker.load()
        assert cached_tokens(worker, 1, "hello you") == 0
        assert cached_tokens(worker, 2, "hello you") > 0
        worker.send(Trim())
        assert cached_tokens(worker, 3, "hello you") == 0


def test_worker_that_is_asked_before_it_has_loaded_loads_all_the_same() -> None:
    """The command may overtake nothing, and finds nothing to give up."""
    with no_leaks(), Worker() as worker:
        worker.send(Trim())
        worker.load()
        assert cached_tokens(worker, 1, "hello") == 0


def test_parked_sequences_are_all_forgotten() -> None:
    """Their bytes too, and there is room for new ones."""
    parked = ParkedSequences(bytes_max=1000, bytes_per_token=1)
    parked.keep(Parked([1, 2, 3], bytearray(900)))
    parked.clear()
    assert (len(parked), parked.bytes, parked.best([1, 2, 3], 3)) == (0, 0, None)
    parked.keep(Parked([4], bytearray(900)))
    assert len(parked) == 1


def test_kept_prefixes_are_all_forgotten() -> None:
    """As on MLX."""
    prefixes: PrefixCache[str] = PrefixCache(sequences_max=4, bytes_max=1000)
    prefixes.put([1, 2, 3], "state", 900, can_cut=True)
    prefixes.clear()
    assert (len(prefixes), prefixes.match([1, 2, 3], 3)) == (0, None)
