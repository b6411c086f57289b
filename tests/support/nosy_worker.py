"""A real worker whose model has turned against it: it does what the last message of a conversation says, as Python.

Code runs on the prompt thread, which the process starts after it has been confined. `said` takes the answer; what it
raises is told by its name and number.
"""

from __future__ import annotations

import sys

from llmvisor_runtimes import process
from llmvisor_runtimes.mock import MockBackend
from llmvisor_runtimes.protocol import ChatPrompt


class NosyBackend(MockBackend):
    """The mock; `apply_template` runs the last message."""

    def apply_template(self, prompt: ChatPrompt) -> str:
        said: list[str] = []
        try:
            exec(prompt.messages[-1].content, {"said": said.append, "__name__": "nosy"})
        except BaseException as error:  # noqa: BLE001 - that is the finding
            said.append(f"{type(error).__name__} {getattr(error, 'errno', '')}".strip())
        return "\n".join(said)


def find_backend(_name: str) -> NosyBackend:
    return NosyBackend()


def main() -> None:
    process._find_backend = find_backend  # pyright: ignore[reportPrivateUsage]
    sys.exit(process.main(sys.argv[1:]))


if __name__ == "__main__":
    from llmvisor_runtimes import parent_death

    parent_death.die_with_parent()
    main()
