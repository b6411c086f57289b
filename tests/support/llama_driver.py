"""Drives the llama.cpp backend in this process, step by step, and keeps what it reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from llmvisor_runtimes.llamacpp import LlamaCppBackend
from llmvisor_runtimes.llamacpp.choice import Choice
from llmvisor_runtimes.llamacpp.context import LlamaContext
from llmvisor_runtimes.llamacpp.engine import Engine
from llmvisor_runtimes.protocol import (
    AdapterScale,
    ChatPrompt,
    Delta,
    Done,
    Failed,
    Generate,
    Grammar,
    Load,
    LoadProgress,
    ModelInfo,
    ModelOptions,
    Resumed,
    Sampling,
    Step,
    TokenLogprob,
    TokenPrompt,
    ToolCallDelta,
)

GREEDY = Sampling(temperature=0)
STEPS_MAX = 20_000


class Output:
    """What has come of one choice."""

    def __init__(self) -> None:
        self.text = ""
        self.texts: list[str] = []
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.reasoning = ""
        self.tool_calls: list[ToolCallDelta] = []
        self.finish: str | None = None


class LlamaDriver:
    """One loaded model; `run` steps until there is nothing left to do."""

    def __init__(self, path: Path, options: ModelOptions) -> None:
        self.backend = LlamaCppBackend()
        self.load_progress: list[LoadProgress] = []
        self.info: ModelInfo = self.backend.load(
            Load("tiny", str(path), options),
            lambda stage, done, total, unit: self.load_progress.append(LoadProgress(stage, done, total, unit)),
        )
        self.outputs: dict[tuple[int, int], Output] = {}
        self.deltas: dict[int, list[Delta]] = {}
        self.done: dict[int, Done] = {}
        self.failed: dict[int, Failed] = {}
        self.order: list[int] = []
        """Request ids in the order in which they ended."""
        self._ids = 0

    def submit(
        self,
        prompt: list[int],
        *,
        sampling: Sampling = GREEDY,
        n: int = 1,
        max_tokens: int | None = 16,
        stop: list[str] | None = None,
        logprobs: int | None = None,
        echo: bool = False,
        ignore_eos: bool = False,
        cache_prompt: bool = True,
        speculative: Literal["off", "lookup", "draft"] | None = None,
        adapters: list[AdapterScale] | None = None,
        grammar: Grammar | None = None,
        conversation: ChatPrompt | None = None,
        resumed: list[Resumed] | None = None,
    ) -> int:
        """Hand a request in; gives its id. The tokens are those of `conversation`, where there is one."""
        self._ids += 1
        request = Generate(
            id=self._ids,
            request_id=f"request-{self._ids}",
            prompt=conversation or TokenPrompt(prompt),
            sampling=sampling,
            n=n,
            max_tokens=max_tokens,
            stop=stop or [],
            logprobs=logprobs,
            echo=echo,
            ignore_eos=ignore_eos,
            cache_prompt=cache_prompt,
            speculative=speculative,
            adapters=adapters,
            grammar=grammar,
            resumed=resumed or [],
        )
        self.backend.generate(request, prompt, self.backend.constraint(request))
        self.deltas[self._ids] = []
        for index in range(n):
            self.outputs[self._ids, index] = Output()
        return self._ids

    def step(self) -> None:
        """One step of the engine."""
        for report in self.backend.step():
            if isinstance(report, Failed):
                self.failed[report.id] = report
                continue
            assert isinstance(report, Step)
            for delta in report.deltas:
                assert delta.id not in self.failed, "nothing comes after Failed"
                self.deltas.setdefault(delta.id, []).append(delta)
                output = self.outputs[delta.id, delta.index]
                assert output.finish is None, "nothing comes after the last delta"
                output.text += delta.text
                output.texts.append(delta.text)
                output.tokens += delta.tokens
                output.logprobs += delta.logprobs
                output.reasoning += delta.reasoning
                output.tool_calls += delta.tool_calls
                output.finish = delta.finish
            for done in report.done:
                assert done.id not in self.failed, "nothing comes after Failed"
                self.done[done.id] = done
                self.order.append(done.id)

    def run(self, until: Callable[[], bool] | None = None) -> None:
        """Step until nothing is left, or until a condition holds."""
        for _ in range(STEPS_MAX):
            if until() if until else self.backend.delay_seconds() is None:
                return
            delay = self.backend.delay_seconds()
            assert delay is not None, "the engine has stopped before the condition held"
            time.sleep(delay)
            self.step()
        raise AssertionError("the engine does not come to an end")

    def converse(self, conversation: ChatPrompt, **wanted: object) -> int:
        """Hand a conversation in, as the prompt thread would make it ready; gives its id."""
        prompt = self.backend.tokenize(conversation, add_special=True, parse_special=True)
        return self.submit(prompt, conversation=conversation, **wanted)  # type: ignore[arg-type]

    def generate(self, prompt: list[int], **wanted: object) -> Output:
        """Run one request alone; gives its first choice."""
        id = self.submit(prompt, **wanted)  # type: ignore[arg-type]
        self.run()
        return self.outputs[id, 0]

    @property
    def context(self) -> LlamaContext:
        """The context inside, for tests that make it fail."""
        model = self.backend._model  # pyright: ignore[reportPrivateUsage]
        assert model is not None
        return model.context

    def choices(self, id: int) -> list[Choice]:
        """Those of a request that have not ended, for tests that look inside."""
        return self._engine._requests[id].choices  # pyright: ignore[reportPrivateUsage]

    def send_back(self, choice: Choice) -> None:
        """As if another one needed its room."""
        self._engine._admission.preempt(choice)  # pyright: ignore[reportPrivateUsage]

    @property
    def _engine(self) -> Engine:
        engine = self.backend._engine  # pyright: ignore[reportPrivateUsage]
        assert isinstance(engine, Engine)
        return engine

    def close(self) -> None:
        self.backend.close()


@contextmanager
def llama_driver(path: Path, **options: object) -> Generator[LlamaDriver]:
    """A driver of a model loaded with these `ModelOptions`, one thread unless they say otherwise."""
    driver = LlamaDriver(path, msgspec.convert({"n_ctx": 512, "n_threads": 1, **options}, ModelOptions))
    try:
        yield driver
    finally:
        driver.close()


def assert_same_up_to_noise(first: Output, second: Output, *, epsilon: float) -> None:
    """Two greedy runs with `logprobs` are equal, or part where both tokens were as good as equally likely.

    A batch of another shape adds floats in another order. Where two tokens' log-probabilities differ by less than that
    noise, either may win, and what follows is another text.
    """
    for place, (left, right) in enumerate(zip(first.logprobs, second.logprobs, strict=False)):
        if left.token == right.token:
            assert left.logprob is not None
            assert right.logprob is not None
            assert abs(left.logprob - right.logprob) < epsilon, f"token {place} has another probability"
            continue
        for mine, other in ((left, right), (right, left)):
            likely = {top.token: top.logprob for top in mine.top}
            assert other.token in likely, f"token {place}: {other.token} is not even likely"
            assert mine.logprob is not None
            assert abs(mine.logprob - likely[other.token]) < epsilon, f"token {place} differs by more than noise"
        return
    assert first.tokens == second.tokens
