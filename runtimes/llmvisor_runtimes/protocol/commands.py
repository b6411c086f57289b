"""What the daemon sends to a worker."""

from __future__ import annotations

from typing import Literal

from llmvisor_runtimes.protocol.parts import (
    AdapterScale,
    ChatPrompt,
    EmbeddingKind,
    Frame,
    Grammar,
    Lane,
    ModelOptions,
    Prompt,
    Resumed,
    Sampling,
)


class Load(Frame, frozen=True, tag="load"):
    """Load this model; sent once, first."""

    model: str
    """The model's name, for log lines."""
    path: str
    """The model's file or folder; empty where the backend needs none."""
    options: ModelOptions


class Generate(Frame, frozen=True, tag="generate"):
    """Continue a prompt `n` times. `id` is never used twice in one worker."""

    id: int
    request_id: str
    """The X-Request-Id, for log lines."""
    prompt: Prompt
    sampling: Sampling
    n: int = 1
    max_tokens: int | None = None
    """Tokens of each choice; None goes on until the context is full."""
    stop: list[str] = []
    logprobs: int | None = None
    """None = none; else this many alternatives beside each chosen token."""
    echo: bool = False
    """The prompt itself comes first in each choice (with its log-probabilities where they are asked for)."""
    ignore_eos: bool = False
    cache_prompt: bool = True
    grammar: Grammar | None = None
    adapters: list[AdapterScale] | None = None
    """None = as the model's options say; others than these are off."""
    speculative: Literal["off", "lookup", "draft"] | None = None
    """How tokens are guessed ahead; None = as the model's options say. The text is distributed the same."""
    resumed: list[Resumed] = []
    """One for each choice where another worker had begun this: it goes on after what was sent, and sends nothing of
    that again. `Done` counts the whole."""


class Embed(Frame, frozen=True, tag="embed"):
    """Vectors of texts; answered by `Embeddings`, in as many frames as it takes."""

    id: int
    request_id: str
    inputs: list[str | list[int]]
    """Texts, or the token ids of texts, special ones not included."""
    kinds: list[EmbeddingKind]
    truncate: bool = False
    """Cut what is longer than the model takes; otherwise the request fails."""
    lane: Lane = "interactive"
    client: str = ""
    """Whose it is: clients take turns within a lane."""


class Score(Frame, frozen=True, tag="score"):
    """How well the second text of each pair answers the first; answered by one `Scores`."""

    id: int
    request_id: str
    pairs: list[tuple[str, str]]
    truncate: bool = False
    lane: Lane = "interactive"
    client: str = ""


class Cancel(Frame, frozen=True, tag="cancel"):
    """Stop this request within one step; answered by its `Done`, or nothing if it has ended already."""

    id: int


class Pause(Frame, frozen=True, tag="pause"):
    """Decode no more for this request until `Resume`: its reader is slow."""

    id: int


class Resume(Frame, frozen=True, tag="resume"):
    id: int


class Tokenize(Frame, frozen=True, tag="tokenize"):
    """Answered by `Tokens`."""

    id: int
    prompt: Prompt
    add_special: bool = True
    parse_special: bool = True
    """Whether text such as `<|im_end|>` becomes the special token."""


class Detokenize(Frame, frozen=True, tag="detokenize"):
    """Answered by `Text`."""

    id: int
    tokens: list[int]


class ApplyTemplate(Frame, frozen=True, tag="apply_template"):
    """Render a conversation without running it; answered by `Text`."""

    id: int
    prompt: ChatPrompt


class SetThreads(Frame, frozen=True, tag="set_threads"):
    """Compute with so many threads from the next step on."""

    count: int


class Trim(Frame, frozen=True, tag="trim"):
    """Memory runs low: give up what is only kept to be faster."""


class Close(Frame, frozen=True, tag="close"):
    """Free everything and exit 0."""


Command = (
    Load
    | Generate
    | Embed
    | Score
    | Cancel
    | Pause
    | Resume
    | Tokenize
    | Detokenize
    | ApplyTemplate
    | SetThreads
    | Trim
    | Close
)
