"""A backend from outside that reads images: it answers with what it was given of them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec

from llmvisor_runtimes.backend import LoadProgressCallback
from llmvisor_runtimes.mock import MockBackend
from llmvisor_runtimes.protocol import ChatPrompt, Generate, Load, ModelInfo
from llmvisor_runtimes.structured import Constraint


class SeeingBackend(MockBackend):
    """The mock, but its reply is the digest of each image."""

    name = "seeing"

    def load(self, load: Load, progress: LoadProgressCallback) -> ModelInfo:
        info = super().load(load, progress)
        return msgspec.structs.replace(info, capabilities=[*info.capabilities, "vision"])

    def generate(self, request: Generate, prompt_tokens: list[int], constraint: Constraint | None = None) -> None:
        assert isinstance(request.prompt, ChatPrompt)
        images = [digest(each) for message in request.prompt.messages for each in message.media]
        self._options = msgspec.structs.replace(self._options, reply=" ".join(images))
        super().generate(request, prompt_tokens, constraint)


def digest(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()[:16]


def install(folder: Path) -> dict[str, str]:
    """Register this backend as an installed package would; gives the environment in which it is found."""
    info = folder / "seeing-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: seeing\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[llmvisor.runtimes]\nseeing = tests.support.seeing_backend:SeeingBackend\n")
    return {"PYTHONPATH": f"{folder}{os.pathsep}{Path(__file__).parents[2]}"}
