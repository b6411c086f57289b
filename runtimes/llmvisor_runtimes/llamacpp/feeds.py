"""What of each choice is computed in the next step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from llmvisor_runtimes import limits
from llmvisor_runtimes.llamacpp.adapters import Adapters
from llmvisor_runtimes.llamacpp.batch import Turns, compose, divide
from llmvisor_runtimes.llamacpp.choice import Choice
from llmvisor_runtimes.llamacpp.context import LlamaContext
from llmvisor_runtimes.llamacpp.kvcache import KvCache
from llmvisor_runtimes.llamacpp.media_encoder import Unit
from llmvisor_runtimes.llamacpp.parked import AdapterSet
from llmvisor_runtimes.llamacpp.vocabulary import Vocabulary
from llmvisor_runtimes.prefill import PrefillPace


class Feed(NamedTuple):
    """Tokens of a choice in the batch of this step, and the `rows` of logits that they bring."""

    choice: Choice
    tokens: list[int]
    rows: int
    drafted: int = 0
    """So many at the end are guessed."""
    unit: Unit | None = None
    """The tokens stand for embeddings of this one, and have a batch of their own."""


class Feeder:
    """Composes steps. Those that stream come first; prompts share what is left, those of images as well.

    An image whose places look at each other is computed whole, one in a step, after what all others got.
    """

    def __init__(
        self, context: LlamaContext, kv: KvCache, adapters: Adapters, vocabulary: Vocabulary, pace: PrefillPace
    ) -> None:
        self._context = context
        self._kv = kv
        self._adapters = adapters
        self._vocabulary = vocabulary
        self._pace = pace
        self._turns: Turns[AdapterSet] = Turns(steps=limits.adapter_turn_steps)

    def next(self, running: Sequence[Choice], turn: int) -> list[Feed]:
        """The feeds of the step number `turn`."""
        active = self._together(running)
        pending = [choice.next_count for choice in active]
        if pending and min(pending) == max(pending) == 1 and len(pending) <= self._context.n_batch:
            return [self._feed(choice, 1) for choice in active]  # mostly: everybody decodes
        if scoring := [place for place, choice in enumerate(active) if choice.wants_rows]:
            share = max(1, limits.scored_prompt_step_tokens // len(scoring))
            for place in scoring:
                pending[place] = min(pending[place], share)
        whole = [place for place, choice in enumerate(active) if pending[place] and _due_whole(choice)]
        lengths = {place: pending[place] for place in whole}
        for place in whole:
            pending[place] = 0
        slices = compose(
            pending,
            n_batch=self._context.n_batch,
            prefill_tokens_max=self._pace.tokens(pending.count(1)),
            turn=turn,
        )
        feeds = [self._feed(active[place], length) for place, length in slices]
        if whole:
            place = whole[turn % len(whole)]
            feeds.append(self._feed(active[place], lengths[place]))
        return feeds

    def with_drafts(self, feeds: list[Feed], reserved: int) -> list[Feed]:
        """The same with guessed tokens behind those that want some, as far as there is room for nothing better.

        `reserved` cells are for other batches of the step.
        """
        wants = [feed.choice.draft_tokens_max for feed in feeds]
        if not any(wants):
            return feeds
        tokens, rows = sum(len(feed.tokens) for feed in feeds), sum(feed.rows for feed in feeds)
        context = self._context
        room = min(context.n_batch - tokens, context.n_outputs_max - rows, self._kv.free - tokens - reserved)
        shares = divide(wants, max(0, room))
        return [self._with_draft(feed, share) for feed, share in zip(feeds, shares, strict=True)]

    def _together(self, choices: Sequence[Choice]) -> Sequence[Choice]:
        """Those that may share a batch now: adapters act on all of it."""
        if not self._adapters:
            return choices
        choices = [choice for choice in choices if choice.next_count]  # no turn for those whose image is encoded
        if not choices:
            return choices
        adapters = self._turns.next(choice.request.adapters for choice in choices)
        self._adapters.act(self._context.pointer, adapters)
        return [choice for choice in choices if choice.request.adapters == adapters]

    def _feed(self, choice: Choice, length: int) -> Feed:
        start = choice.computed
        tokens = choice.tokens[start : start + length]
        rows = length if choice.wants_rows else int(start + length in (len(choice.tokens), choice.unrepeated))
        return Feed(choice, tokens, rows, 0, choice.unit) if tokens[0] < 0 else Feed(choice, tokens, rows)

    def _with_draft(self, feed: Feed, count: int) -> Feed:
        choice = feed.choice
        if choice.drafter is None or count == 0:
            return feed
        draft = choice.drafter.propose(choice.tokens, count)
        ends = (place for place, token in enumerate(draft, 1) if token in self._vocabulary.end_tokens)
        draft = draft[: next(ends, count)]
        return Feed(choice, feed.tokens + draft, 1 + len(draft), len(draft))


def _due_whole(choice: Choice) -> bool:
    unit = choice.unit
    return unit is not None and unit.start == choice.computed and unit.chunk.non_causal
