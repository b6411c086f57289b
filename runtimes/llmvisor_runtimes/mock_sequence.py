"""The mock's requests and the choices of each, token by token; knows no clock."""

from __future__ import annotations

from llmvisor_runtimes import mock_text
from llmvisor_runtimes.failpoints import Passage
from llmvisor_runtimes.mock_script import ScriptedReply, script_parser
from llmvisor_runtimes.output import Parts
from llmvisor_runtimes.protocol import Delta, Done, FinishReason, Generate, TokenLogprob
from llmvisor_runtimes.resumption import ids_of_calls, not_resumable, sent_before, sent_tokens
from llmvisor_runtimes.text import TextAssembler

MAX_TOKENS_DEFAULT = 64


class MockRequest:
    """One request under way. Times are seconds of the backend's clock."""

    __slots__ = (
        "cached_tokens", "first_token_at", "generate", "id", "passage", "prefill_began", "prefill_ends", "prompt",
        "script", "sequences",
    )  # fmt: skip

    def __init__(
        self,
        generate: Generate,
        prompt: list[int],
        *,
        room: int,
        reply_tokens: int | None,
        passage: Passage | None,
        script: str | None = None,
    ) -> None:
        """`room` is what the context has left for the reply; `passage` is what the failpoints have for it.

        `script` is the reply where it is set. Raises `RequestError` where it has begun in a way that is not the mock's.
        """
        self.script = ScriptedReply(script) if script is not None else None
        self.id = generate.id
        self.generate = generate
        self.prompt = prompt
        self.passage = passage
        self.cached_tokens = 0
        self.prefill_began: float | None = None
        self.prefill_ends = 0.0
        self.first_token_at: float | None = None
        left, finish = _length(generate, room, reply_tokens) if script is None else self._script_length(room)
        self.sequences = [MockSequence(self, index, left, finish) for index in range(generate.n)]

    def _script_length(self, room: int) -> tuple[int, FinishReason]:
        assert self.script is not None
        most = room if self.generate.max_tokens is None else min(room, self.generate.max_tokens)
        return min(len(self.script), most), "stop" if len(self.script) <= most else "length"

    def done(self, now: float) -> Done:
        """The end of the request."""
        began = now if self.prefill_began is None else self.prefill_began
        first = now if self.first_token_at is None else self.first_token_at
        return Done(
            self.id,
            prompt_tokens=len(self.prompt),
            cached_tokens=self.cached_tokens,
            completion_tokens=sum(sequence.completion_tokens for sequence in self.sequences),
            prompt_ms=(first - began) * 1000,
            predicted_ms=(now - first) * 1000,
        )


class MockSequence:
    """One choice of a request."""

    __slots__ = (
        "_assembler", "_echoed", "_finish", "_number", "_parser", "_reply", "began", "due", "ended", "index", "left",
        "request",
    )  # fmt: skip

    def __init__(self, request: MockRequest, index: int, left: int, finish: FinishReason) -> None:
        generate = request.generate
        sampling = generate.sampling
        self.request = request
        self.index = index
        self.due = 0.0
        """When its next token comes."""
        self.left: int = left
        """Tokens still to come."""
        self.began = False
        self.ended = False
        # Greedy replies depend on the prompt alone. Where no seed is given the mock takes 0: it has no chance in it.
        seed = None if sampling.temperature == 0 else (sampling.seed or 0) + index
        scripted = request.script is not None
        self._reply = mock_text.Reply(request.prompt, seed) if request.script is None else request.script
        self._number: int = self._reply.first_number
        self._finish: FinishReason = finish
        self._assembler = TextAssembler(generate.stop) if generate.stop or scripted else None
        resumed = sent_before(generate, index)
        self._parser = script_parser(generate, ids_of_calls(resumed)) if scripted else None
        self._echoed, written = sent_tokens(generate, resumed, request.prompt)
        self._replay(written, resumed.finish)

    @property
    def completion_tokens(self) -> int:
        """Tokens so far."""
        return self._number - self._reply.first_number

    @property
    def tokens_held(self) -> int:
        """Cells of a context that a real engine would use."""
        return len(self.request.prompt) + self.completion_tokens

    def advance(self, count: int) -> Delta:
        """The next `count` tokens, or as many as are left."""
        request = self.request
        self.began = True
        if self._assembler is not None:
            return self._advance_to_stop(self._assembler, count)
        assert isinstance(self._reply, mock_text.Reply), "a script has an assembler"
        count = min(count, self.left)
        text, tokens = self._reply.run(self._number, count) if count else ("", [])
        self._number += count
        self.left -= count
        finish = None
        if not self.left:
            self.ended = True
            finish = self._finish
        return Delta(request.id, self.index, text, tokens, finish, self._logprobs(tokens))

    def echo(self) -> Delta | None:
        """The prompt, where it is due: before the first token of the reply."""
        request = self.request
        prompt = request.prompt
        if self.began or not request.generate.echo or self._echoed == len(prompt):
            return None
        text = b"".join([mock_text.piece(token) for token in prompt]).decode("utf-8", "replace")
        logprobs = self._logprobs(prompt)
        if logprobs:
            logprobs[0] = TokenLogprob(prompt[0], mock_text.piece(prompt[0]), None, [])
        self.began = True
        self.ended = not self.left
        finish = self._finish if self.ended else None
        # Of an echo in several frames the last one brings the text.
        return Delta(request.id, self.index, text, prompt[self._echoed :], finish, logprobs[self._echoed :])

    def cancel(self) -> Delta:
        """The last delta of a choice that is cancelled, with the text held back for stop strings."""
        self.ended = True
        held = self._assembler.flush() if self._assembler else ""
        return self._delta(held, [], "cancelled")

    def _replay(self, written: list[int], finish: FinishReason | None) -> None:
        """Go on behind what another worker wrote. Raises `RequestError` where the mock would have written else."""
        said = self.advance(len(written)).tokens if written else []
        if said != written:
            raise not_resumable(f"the mock wrote {said} and not {written}")
        if self.ended and finish is None:
            raise not_resumable(f"choice {self.index} has ended with token {len(written)}")
        self.began = False
        self.ended = finish is not None

    def _advance_to_stop(self, assembler: TextAssembler, count: int) -> Delta:
        """Token by token, since a stop string may end the choice in the middle."""
        texts: list[str] = []
        tokens: list[int] = []
        finish: FinishReason | None = None
        while self.left and len(tokens) < count and not assembler.stopped:
            piece, token = self._reply.piece(self._number)
            self._number += 1
            self.left -= 1
            tokens.append(token)
            texts.append(assembler.push(piece))
        if not self.left and not assembler.stopped:
            texts.append(assembler.flush())
            finish = self._finish
        if assembler.stopped:
            finish = "stop"
        self.ended = finish is not None
        return self._delta("".join(texts), tokens, finish)

    def _delta(self, text: str, tokens: list[int], finish: FinishReason | None) -> Delta:
        """A piece of the reply, taken apart where its form asks for it."""
        parser, logprobs = self._parser, self._logprobs(tokens)
        if parser is None:
            return Delta(self.request.id, self.index, text, tokens, finish, logprobs)
        parts = [parser.feed(text), parser.finish() if finish else Parts()]
        if finish == "stop" and parser.called:
            finish = "tool_calls"
        text, reasoning = "".join([part.text for part in parts]), "".join([part.reasoning for part in parts])
        calls = [call for part in parts for call in part.tool_calls]
        return Delta(self.request.id, self.index, text, tokens, finish, logprobs, reasoning, calls)

    def _logprobs(self, tokens: list[int]) -> list[TokenLogprob]:
        alternatives = self.request.generate.logprobs
        if alternatives is None:
            return []
        return [mock_text.token_logprob(token, alternatives) for token in tokens]


def _length(generate: Generate, room: int, reply_tokens: int | None) -> tuple[int, FinishReason]:
    """How many tokens a choice gets where no stop string ends it, and how it then ends."""
    most = generate.max_tokens
    if most is None:
        most = room if reply_tokens is not None and not generate.ignore_eos else MAX_TOKENS_DEFAULT
    most = min(most, room)
    if reply_tokens is not None and not generate.ignore_eos and reply_tokens < most:
        return reply_tokens, "stop"
    return most, "length"
