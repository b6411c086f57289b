"""A conversation with images and sounds, as the tokens and units that the engine computes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.llamacpp.media_encoder import Unit
from llmvisor_runtimes.llamacpp.media_tokens import UNIT_TOKENS_MAX, has_media, unit_tokens
from llmvisor_runtimes.llamacpp.projector import Chunks, MediaChunk, Projector
from llmvisor_runtimes.llamacpp.vocabulary import Vocabulary
from llmvisor_runtimes.protocol import MEDIA_MARKER, ChatPrompt


class MediaPrompt(list[int]):
    """The tokens of a prompt, those of its units among them."""

    units: Sequence[Unit] = ()
    """In the order in which they stand."""

    @property
    def written(self) -> list[int]:
        """Its tokens without those of units."""
        return [token for token in self if token >= 0]


class MediaReader:
    """Makes prompts of conversations with media. For the prompt thread.

    Files are told apart by their SHA-256, and numbered as they come: equal ones get the same tokens for as long as the
    last few thousand are remembered.
    """

    def __init__(self, projector: Projector, vocabulary: Vocabulary, *, batch_tokens_max: int) -> None:
        """A unit whose places look at each other may have so many."""
        self._projector = projector
        self._vocabulary = vocabulary
        self._batch_tokens_max = batch_tokens_max
        self._serials: OrderedDict[tuple[bytes, int, int, int], int] = OrderedDict()
        self._last_serial = 0

    def prompt(self, conversation: ChatPrompt, rendered: str) -> MediaPrompt:
        """A conversation that its template has `rendered`, with all its media. Raises `RequestError`."""
        files = [file for message in conversation.messages for file in message.media]
        found = rendered.count(MEDIA_MARKER)
        if found != len(files):
            message = f"the chat template wrote {found} of {len(files)} images and sounds"
            raise RequestError("template_error", f"{message}; chat_template in the model's options sets another")
        return self._assembled(self._projector.chunks(rendered, files))

    def _assembled(self, chunks: Chunks) -> MediaPrompt:
        prompt = MediaPrompt()
        units: list[Unit] = []
        bos = self._vocabulary.bos
        first = chunks.parts[0] if chunks.parts else []
        if self._vocabulary.adds_bos and (isinstance(first, MediaChunk) or first[:1] != [bos]):
            prompt.append(bos)
        before = b""
        ordinal = 0
        for part in chunks.parts:
            if not isinstance(part, MediaChunk):
                prompt += self._checked(part)
                continue
            ordinal = ordinal + 1 if part.digest == before else 0
            before = part.digest
            self._check(part)
            units.append(Unit(part, len(prompt)))
            prompt += unit_tokens(self._serial(part, ordinal), part.length, part.positions)
        prompt.units = units
        return prompt

    def _checked(self, tokens: list[int]) -> list[int]:
        """Raises `RequestError` where libmtmd marks images with tokens that are not there: it has -1 for these."""
        if has_media(tokens):
            message = "messages: the mmproj marks images with tokens that this model does not have; it is another's"
            raise RequestError("unsupported_operation", message, "messages")
        return tokens

    def _check(self, chunk: MediaChunk) -> None:
        if not 0 < chunk.length <= UNIT_TOKENS_MAX:
            raise RequestError("invalid_value", f"messages: an image or sound of {chunk.length} tokens", "messages")
        if chunk.non_causal and chunk.length > self._batch_tokens_max:
            message = (
                f"messages: an image takes {chunk.length} tokens, which this model computes at once, but n_batch or "
                f"options.n_ubatch is {self._batch_tokens_max}"
            )
            raise RequestError("unsupported_operation", message, "messages")

    def _serial(self, chunk: MediaChunk, ordinal: int) -> int:
        """`ordinal`: an image may come in several slices, which have its digest in common."""
        key = chunk.digest, ordinal, chunk.length, chunk.positions
        serial = self._serials.pop(key, None)
        if serial is None:
            serial = self._last_serial = self._last_serial + 1
        self._serials[key] = serial
        if len(self._serials) > limits.media_digests_max:
            self._serials.popitem(last=False)
        return serial
