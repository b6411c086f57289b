"""Models, jobs and keys for completion, asked of the daemon; where anything goes wrong there is nothing to offer."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from llmctl import limits
from llmctl.client import Client, decode_list
from llmctl.complete import Candidate
from llmctl.errors import CtlError
from llmctl.main import socket_path
from llmctl.status_view import job_subject
from llmvisor.control.api import ConfigValue, Job, ModelStatus


def ask(words: Sequence[str], kind: str, current: str) -> Iterable[Candidate]:
    """What the daemon of this command line has of a kind: MODEL, ID or KEY."""
    client = Client(socket_path(_given_socket(words), os.environ), timeout_seconds=limits.completion_seconds_max)
    ask_for = {"MODEL": _models, "ID": _jobs, "KEY": _keys}[kind]
    try:
        return ask_for(client, current)
    except CtlError:
        return []


def _models(client: Client, current: str) -> list[Candidate]:
    query = {"q": current, "limit": str(limits.completion_items_max)}
    found = decode_list(client.get("/llm/models", query), ModelStatus)
    words = [Candidate(model.id, f"{model.type}, {model.state.replace('_', ' ')}") for model in found]
    for model in found:
        words += [Candidate(alias, f"an alias of {model.id}") for alias in model.aliases]
        words += [Candidate(model.tier, f"the tier of {model.id}")] if model.tier else []
        # Without its tier where that is how the person began.
        words += [] if model.id.startswith(current) else [Candidate(model.name, model.state.replace("_", " "))]
    return words


def _jobs(client: Client, current: str) -> list[Candidate]:
    del current
    found = decode_list(client.get("/jobs", {"limit": str(limits.completion_items_max)}), Job)
    return [Candidate(job.id, f"{job.type} {job_subject(job)}, {job.state}") for job in found]


def _keys(client: Client, current: str) -> list[Candidate]:
    del current
    found = decode_list(client.get("/config"), ConfigValue)
    return [Candidate(value.path, bytes(value.value).decode(errors="replace")) for value in found]


def _given_socket(words: Sequence[str]) -> Path | None:
    for place, word in enumerate(words):
        if word == "--socket" and place + 1 < len(words):
            return Path(words[place + 1])
        if word.startswith("--socket="):
            return Path(word.removeprefix("--socket="))
    return None
