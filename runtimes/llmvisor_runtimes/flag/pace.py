"""How many tokens fit into the time that a batch may take. Pure.

A batch that is under way holds up whoever comes: an interactive request waits for it to end. So the size of batches
follows how fast this machine computes.
"""

from __future__ import annotations

from llmvisor_runtimes import limits


class Pace:
    """The speed as measured from the batches so far."""

    def __init__(self) -> None:
        self.tokens_per_second = 0.0
        """0 until something was measured."""

    def measured(self, tokens: int, seconds: float) -> None:
        """A batch of so many tokens, padding included, took so long."""
        if tokens < limits.encoding_pace_tokens_min or seconds <= 0:
            # What a pass costs in any case would pass for slowness.
            return
        rate = tokens / seconds
        smooth = limits.encoding_pace_smoothing
        self.tokens_per_second = (
            rate if not self.tokens_per_second else (1 - smooth) * self.tokens_per_second + smooth * rate
        )

    def tokens_in(self, seconds: float) -> int:
        """How many tokens that time is good for."""
        return max(limits.encoding_batch_tokens_min, int(self.tokens_per_second * seconds))


def batch_seconds(*, bulk: bool, since_interactive_seconds: float) -> float:
    """How long a batch may take: long while only bulk is there, short where somebody may come who waits for it."""
    if not bulk:
        return limits.encoding_interactive_seconds
    if since_interactive_seconds < limits.encoding_interactive_memory_seconds:
        return limits.encoding_bulk_beside_interactive_seconds
    return limits.encoding_bulk_seconds
