"""Tells how far a load is that tells nothing of itself: by the memory that the process has taken since."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import LoadProgressCallback
from llmvisor_runtimes.host import rss_bytes


@contextmanager
def told_by_memory(progress: LoadProgressCallback, total_bytes: int) -> Generator[None]:
    """Report the stage `weights` while the body loads so many bytes."""
    ended = threading.Event()
    began = rss_bytes()

    def tell() -> None:
        while not ended.wait(limits.tick_interval_seconds):
            progress("weights", max(0, min(rss_bytes() - began, total_bytes)), total_bytes, "bytes")

    progress("weights", 0, total_bytes, "bytes")
    teller = threading.Thread(target=tell, name="load progress", daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()
    progress("weights", total_bytes, total_bytes, "bytes")
