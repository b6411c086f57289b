"""`GET /v1/models` and `GET /v1/models/{id}`."""

from __future__ import annotations

from typing import Literal

import msgspec
from aiohttp import web

from llmvisor.control.api import ModelState, ModelStatus
from llmvisor.http.answers import json_answer
from llmvisor.http.front import FRONT, MODEL


class ModelObject(msgspec.Struct, kw_only=True):
    """OpenAI's fields, then ours."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    state: ModelState
    tier: str | None
    type: str
    context_length: int | None
    """As trained."""
    max_model_len: int | None
    """Tokens of one request as loaded, by vLLM's name."""
    capabilities: list[str]
    size: int | None
    loaded_at: str | None


class ModelList(msgspec.Struct):
    data: list[ModelObject]
    object: Literal["list"] = "list"


async def list_models(request: web.Request) -> web.Response:
    """Every model once, by its id; aliases and tiers resolve but are not listed."""
    front = request.app[FRONT]
    await front.installed.wait_open()
    return json_answer(ModelList([_object(status) for status in front.models()]))


async def show_model(request: web.Request) -> web.Response:
    """One model, by id, name, alias or tier."""
    model = await request.app[FRONT].model(request.match_info["id"])
    request[MODEL] = model
    return json_answer(_object(model))


def _object(status: ModelStatus) -> ModelObject:
    return ModelObject(
        id=status.id,
        created=status.created,
        owned_by=f"llmvisor-{status.tier}" if status.tier else "llmvisor",
        state=status.state,
        tier=status.tier,
        type=status.type,
        context_length=status.context_length,
        max_model_len=status.n_ctx,
        capabilities=status.capabilities,
        size=status.size,
        loaded_at=status.loaded_at,
    )
