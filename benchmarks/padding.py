"""How much of what an encoder computes is padding, in a load of mixed lengths: from its planner, without a model."""

from __future__ import annotations

import random

from benchmarks.figures import Bound, Figure, Options, alone
from llmvisor_runtimes import limits
from llmvisor_runtimes.encoding import BatchPlanner, Input, Job
from llmvisor_runtimes.flag.options import FlagOptions

CLIENTS = 64
"""Each has one text at a time."""
BULK_TEXTS = 1000
MEDIAN_TOKENS = 60
SPREAD = 0.9
"""Of the lengths' logarithm: a tenth is under 19 tokens, a tenth over 190."""
TOKENS_MAX = 512


class Load:
    """Clients that ask for the next text once they have one, and a bulk job beside them."""

    def __init__(self, seed: int, singles: int) -> None:
        self._random = random.Random(seed)
        self._left = singles
        self._ids = 0
        self._bulk: int | None = None
        self.planner: BatchPlanner[int, int] = BatchPlanner(
            tokens_max=limits.encoding_batch_tokens_max,
            inputs_max=FlagOptions().batch_inputs,
            padding_free_tokens=limits.encoding_padding_free_tokens,
        )

    def run(self, *, bulk: bool) -> tuple[int, int, int]:
        """Tokens, the same with padding, and batches, until all is computed."""
        if bulk:
            self._submit(BULK_TEXTS)
            self._bulk = self._ids
        for _ in range(CLIENTS):
            self._next_single()
        tokens = padded = batches = 0
        while (batch := self.planner.next_batch()) is not None:
            tokens, padded, batches = tokens + batch.tokens, padded + batch.padded_tokens, batches + 1
            for part in self.planner.done(batch, batch.inputs):
                if part.last and part.id != self._bulk:
                    self._next_single()
        return tokens, padded, batches

    def _next_single(self) -> None:
        if self._left:
            self._left -= 1
            self._submit(1)

    def _submit(self, texts: int) -> None:
        self._ids += 1
        inputs = [Input((self._ids, index), self._length(), self._ids) for index in range(texts)]
        lane = "interactive" if texts == 1 else "bulk"
        self.planner.submit(Job(self._ids, inputs, lane=lane, client=str(self._ids % CLIENTS)))

    def _length(self) -> int:
        return min(TOKENS_MAX, 3 + int(MEDIAN_TOKENS * self._random.lognormvariate(0, SPREAD)))


def padding_figure(options: Options) -> Figure:
    """The share of padding while single texts and a bulk job are computed together; beside it, of each alone."""
    singles = options.scaled(5000, 500)
    shares: list[float] = []
    for seed in range(options.rounds):
        tokens, padded, _ = Load(seed, singles).run(bulk=True)
        shares.append(100 * (padded - tokens) / padded)
    tokens, padded, batches = Load(0, singles).run(bulk=False)
    return alone(
        "embeddings: padding in a load of mixed lengths",
        "% of tokens",
        shares,
        target=Bound("ours", "≤", 10),
        notes={
            "single_texts_alone_percent": 100 * (padded - tokens) / padded,
            "texts_in_a_batch_of_single_texts": singles / batches,
        },
    )
