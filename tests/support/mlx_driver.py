"""Drives the MLX backend in this process, step by step, and keeps what it reports."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from llmvisor_runtimes.mlx import MlxBackend
from llmvisor_runtimes.protocol import (
    ChatPrompt,
    Delta,
    Done,
    Failed,
    Generate,
    Load,
    ModelInfo,
    ModelOptions,
    Prompt,
    Sampling,
    Step,
    TextPrompt,
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
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.tool_calls: list[ToolCallDelta] = []
        self.finish: str | None = None


class MlxDriver:
    """One loaded model; `run` steps until there is nothing left to do."""

    def __init__(self, path: Path, options: ModelOptions) -> None:
        # Other tests of this process need the other engines' libraries.
        self.backend = MlxBackend(alone=False)
        self.stages: list[str] = []
        self.info: ModelInfo = self.backend.load(
            Load("tiny", str(path), options), lambda stage, _done, _total, _unit: self.stages.append(stage)
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
        prompt: str | list[int] | ChatPrompt,
        *,
        sampling: Sampling = GREEDY,
        max_tokens: int = 16,
        **wanted: object,
    ) -> int:
        """Hand a request in as the host does; gives its id. `wanted` are further fields of `Generate`."""
        self._ids += 1
        fields = {"id": self._ids, "request_id": f"request-{self._ids}", "max_tokens": max_tokens, **wanted}
        request = Generate(prompt=_prompt(prompt), sampling=sampling, **fields)  # type: ignore[arg-type]
        tokens = self.backend.tokenize(request.prompt, add_special=True, parse_special=True)
        self.backend.generate(request, tokens, self.backend.constraint(request))
        self.deltas[self._ids] = []
        for index in range(request.n):
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
                output.tokens += delta.tokens
                output.logprobs += delta.logprobs
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
            assert self.backend.delay_seconds() == 0, "the engine has stopped before the condition held"
            self.step()
        raise AssertionError("the engine does not come to an end")

    def generate(self, prompt: str | list[int] | ChatPrompt, **wanted: object) -> Output:
        """Run one request alone; gives its first choice."""
        id = self.submit(prompt, **wanted)  # type: ignore[arg-type]
        self.run()
        return self.outputs[id, 0]


def _prompt(prompt: str | list[int] | ChatPrompt) -> Prompt:
    if isinstance(prompt, ChatPrompt):
        return prompt
    return TextPrompt(prompt) if isinstance(prompt, str) else TokenPrompt(prompt)


@contextmanager
def mlx_driver(path: Path, **options: object) -> Generator[MlxDriver]:
    """A driver of a model loaded with these `ModelOptions`."""
    driver = MlxDriver(path, msgspec.convert({"n_ctx": 512, **options}, ModelOptions))
    try:
        yield driver
    finally:
        driver.backend.close()
