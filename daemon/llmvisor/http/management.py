"""The management paths: what `llmctl` talks to. They answer on the Unix socket alone.

Names of models are resolved here, so that `llmctl load light` means the same as a request for `light`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, TypeVar, get_args

import msgspec
from aiohttp import web
from msgspec import Meta

from llmvisor import limits
from llmvisor.control.api import (
    CacheCleared,
    ConfigCheckAnswer,
    ConfigPut,
    Job,
    JobParams,
    JobRequest,
    JobState,
    ListAnswer,
    ModelState,
    ModelStatus,
    UpgradeRequest,
)
from llmvisor.errors import InvalidRequest, ModelNotFound
from llmvisor.http.answers import ENCODER, json_answer
from llmvisor.http.body import read_struct
from llmvisor.http.decode import BodyDecoder, shown
from llmvisor.http.front import FRONT, Front
from llmvisor.http.query import count, one_of
from llmvisor.jobs.params import check_request

Item = TypeVar("Item", ModelStatus, Job)
_JOB = BodyDecoder(JobRequest)


class ConfigCheck(msgspec.Struct, forbid_unknown_fields=True):
    text: Annotated[str, Meta(max_length=limits.config_file_bytes_max)]
    name: str = "config.yaml"
    """What the messages call it."""


class ShutdownAnswer(msgspec.Struct):
    status: str


_CHECK = BodyDecoder(ConfigCheck)
_PUT = BodyDecoder(ConfigPut)
_UPGRADE = BodyDecoder(UpgradeRequest)


async def status(request: web.Request) -> web.Response:
    """All that `llmctl status` shows."""
    return json_answer(request.app[FRONT].control.daemon_status())


async def runtimes(request: web.Request) -> web.Response:
    return _listed(request.app[FRONT].control.runtimes())


async def runtime(request: web.Request) -> web.Response:
    front = request.app[FRONT]
    return json_answer(front.control.runtime(await front.find(request.match_info["id"])))


async def postmortems(request: web.Request) -> web.Response:
    """The last crashes, newest first: of one model, or of all."""
    front = request.app[FRONT]
    asked = request.match_info.get("id")
    return _listed(front.control.postmortems(None if asked is None else await front.find(asked)))


async def backends(request: web.Request) -> web.Response:
    """Takes seconds: each backend's engine is imported."""
    return _listed(await request.app[FRONT].control.backends())


async def cache_stats(request: web.Request) -> web.Response:
    return json_answer(request.app[FRONT].control.cache_stats())


async def clear_cache(request: web.Request) -> web.Response:
    return json_answer(CacheCleared(request.app[FRONT].control.clear_cache()))


async def restart_runtime(request: web.Request) -> web.Response:
    """A job that unloads and loads again; earlier crashes are forgotten."""
    front = request.app[FRONT]
    params = JobParams(model=await front.find(request.match_info["id"]), restart=True)
    return json_answer(await front.control.submit_job(JobRequest(type="load", params=params)), status=202)


async def models(request: web.Request) -> web.Response:
    """Filters `type`, `state`, `service`, `tier` and `q` (a part of id or alias); pages of `limit` after `cursor`."""
    query = request.query
    await request.app[FRONT].installed.wait_open()
    state = one_of(query.get("state"), get_args(ModelState), "state")
    wanted = {"type": query.get("type"), "state": state, "service": query.get("service"), "tier": query.get("tier")}
    found = _after(request.app[FRONT].service.models(), query.get("cursor"))
    for name, value in wanted.items():
        if value is not None:
            found = [model for model in found if getattr(model, name) == value]
    if text := query.get("q", "").lower():
        found = [model for model in found if _contains(model, text)]
    return _page(found, query)


async def model(request: web.Request) -> web.Response:
    front = request.app[FRONT]
    name = await front.find(request.match_info["name"])
    await front.control.read_header(name)
    return json_answer(front.service.model(name))


async def submit_job(request: web.Request) -> web.Response:
    """202 with the job: a new one, or the one that does the same already."""
    front = request.app[FRONT]
    asked = await read_struct(request, _JOB, front.settings)
    check_request(asked)
    if asked.params.model:
        params = msgspec.structs.replace(asked.params, model=await _meant(front, asked))
        asked = msgspec.structs.replace(asked, params=params)
    return json_answer(await front.control.submit_job(asked), status=202)


async def jobs(request: web.Request) -> web.Response:
    """Newest first; filters `state`, `type` and `model`; pages of `limit` after `cursor`."""
    front, query = request.app[FRONT], request.query
    await front.control.jobs_known()
    state = one_of(query.get("state"), get_args(JobState), "state")
    named = query.get("model")
    name = None if named is None else await _job_model(front, named)
    found = [
        job
        for job in _after(front.control.jobs(), query.get("cursor"))
        if state in {None, job.state} and query.get("type") in {None, job.type} and name in {None, job.params.model}
    ]
    return _page(found, query)


async def job(request: web.Request) -> web.Response:
    await request.app[FRONT].control.jobs_known()
    return json_answer(request.app[FRONT].control.job(request.match_info["id"]))


async def cancel_job(request: web.Request) -> web.Response:
    await request.app[FRONT].control.jobs_known()
    return json_answer(await request.app[FRONT].control.cancel_job(request.match_info["id"]), status=202)


async def forget_job(request: web.Request) -> web.Response:
    await request.app[FRONT].control.jobs_known()
    request.app[FRONT].control.forget_job(request.match_info["id"])
    return web.Response(status=204)


async def config(request: web.Request) -> web.Response:
    """Every effective value, and who set it."""
    return _listed(request.app[FRONT].control.config_values())


async def check_config(request: web.Request) -> web.Response:
    """What is wrong with a configuration file, without applying it."""
    front = request.app[FRONT]
    asked = await read_struct(request, _CHECK, front.settings)
    problems = front.control.check_config(asked.text, asked.name)
    return json_answer(ConfigCheckAnswer(valid=not problems, problems=problems))


async def restart(request: web.Request) -> web.Response:
    """Upgrade in place; the answer says that it has begun, and the status how it goes."""
    front = request.app[FRONT]
    asked = await read_struct(request, _UPGRADE, front.settings) if request.body_exists else UpgradeRequest()
    return json_answer(front.control.restart(asked), status=202)


async def reload_config(request: web.Request) -> web.Response:
    """Read the configuration's files again."""
    return json_answer(await request.app[FRONT].control.reload_config())


async def put_config(request: web.Request) -> web.Response:
    """Another text of the configuration file, written and applied, or neither."""
    front = request.app[FRONT]
    asked = await read_struct(request, _PUT, front.settings)
    return json_answer(await front.control.put_config(asked.text))


async def shutdown(request: web.Request) -> web.Response:
    """Drain and stop; the answer says that it has begun."""
    request.app[FRONT].control.shutdown()
    return json_answer(ShutdownAnswer("stopping"), status=202)


async def _meant(front: Front, asked: JobRequest) -> str:
    """The model that a job is about. What only installed models can be told goes to the one of that very name, whatever
    the configuration means by it."""
    named = asked.params.model
    if asked.type in {"update", "delete"} and await front.installed.wait_open() and front.installed.installed(named):
        return named
    return await front.find(named)


async def _job_model(front: Front, named: str) -> str:
    """A model's name, also of one that is gone: its jobs are still there."""
    try:
        return await front.find(named)
    except ModelNotFound:
        return named


def ended(change: Job) -> bool:
    return change.state in {"cancelled", "succeeded", "failed"}


def _listed(items: Iterable[object], *, next_cursor: str | None = None) -> web.Response:
    data = [msgspec.Raw(ENCODER.encode(item)) for item in items]
    return json_answer(ListAnswer(data, next_cursor=next_cursor))


def _page(found: Sequence[Item], query: Mapping[str, str]) -> web.Response:
    """The first `limit` objects, and where to go on."""
    page = found[: count(query.get("limit"), "limit", limits.list_items_max)]
    return _listed(page, next_cursor=page[-1].id if page and len(page) < len(found) else None)


def _contains(model: ModelStatus, text: str) -> bool:
    return any(text in name.lower() for name in (model.id, *model.aliases))


def _after(found: Sequence[Item], cursor: str | None) -> Sequence[Item]:
    """What comes after the object of `cursor`: of all, since the filters may not give that one any more."""
    if cursor is None:
        return found
    for place, item in enumerate(found):
        if item.id == cursor:
            return found[place + 1 :]
    raise InvalidRequest(f"cursor: there is no {shown(cursor)} in this list", param="cursor")
