"""The application: its routes, and what every request passes on its way in and out."""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Awaitable, Callable

from aiohttp import web

from llmvisor import limits
from llmvisor.clock import Clock
from llmvisor.control.control import Control
from llmvisor.errors import (
    BodyTooLarge,
    InvalidApiKey,
    InvalidRequest,
    LlmvisorError,
    MethodNotAllowed,
    NotFound,
    OriginNotAllowed,
)
from llmvisor.http import access, feeds, health, keys, management, tei
from llmvisor.http import guard as rules
from llmvisor.http.answers import error_answer
from llmvisor.http.connections import FrontRunner, check_parser, is_unix
from llmvisor.http.front import ERROR, FRONT, MODEL, ORIGIN, REQUEST_ID, Front, NothingToOpen, Opening, Resolve
from llmvisor.http.generation import unexpected
from llmvisor.http.ids import Ids
from llmvisor.http.media_fetch import MediaFetcher
from llmvisor.http.openai.chat import chat_completions
from llmvisor.http.openai.completions import completions
from llmvisor.http.openai.embeddings import embeddings
from llmvisor.http.openai.models import list_models, show_model
from llmvisor.http.openai.rerank import rerank, rerank_any, rerank_cohere, score_pairs
from llmvisor.http.openai.tokenize import apply_template, detokenize, tokenize
from llmvisor.http.registry import registry_models
from llmvisor.http.settings import HttpSettings
from llmvisor.http.terms import has_deadline, within_deadline
from llmvisor.http.usage import ended_request, forget, usage
from llmvisor.keys.gate import Gate
from llmvisor.lean_structlog import structlog
from llmvisor.log import get_logger
from llmvisor.services.metered import METER, Meter
from llmvisor.services.service import Service
from llmvisor.store.usage import EndedRequest

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

GUARD = web.AppKey("guard", rules.Guard)
_REQUEST_ID = re.compile(rf"[A-Za-z0-9._:/+=@,-]{{1,{limits.request_id_chars_max}}}", re.ASCII)
_HEADER_NAMES = re.compile(r"[A-Za-z0-9_,\s-]{0,2048}", re.ASCII)
_EXPOSED = (
    "X-Request-Id, X-LLMVISOR-Model, X-LLMVISOR-Cache, X-LLMVISOR-Queue-Ms, X-LLMVISOR-Load-Ms, Retry-After, "
    f"{access.EXPOSED}"
)
_CLIENT_GONE = 499
_LOGGED_PATH_CHARS_MAX = 200
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_log = get_logger(__name__)


def build_app(
    *,
    service: Service,
    control: Control,
    settings: HttpSettings,
    clock: Clock,
    ids: Ids,
    resolve: Resolve,
    gate: Gate,
    installed: Opening | None = None,
    record: Callable[[EndedRequest], None] | None = None,
) -> web.Application:
    """The application that serves the TCP port and the Unix socket.

    `resolve` finds the model of a request's name, among the installed ones too once `installed` is open. `record` is
    told of each inference request that has ended.
    """
    app = web.Application(middlewares=[observe, guard], client_max_size=settings.max_body_bytes)
    media = MediaFetcher(settings)
    app[FRONT] = Front(
        service=service,
        control=control,
        settings=settings,
        clock=clock,
        ids=ids,
        resolve=resolve,
        media=media,
        installed=installed or NothingToOpen(),
        record=record or forget,
        gate=gate,
    )
    app[GUARD] = rules.Guard.of(settings)
    app.on_response_prepare.append(_stamp)
    app.on_cleanup.append(lambda _: media.close())
    app.router.add_routes(_inference())
    app.router.add_routes(_management())
    return app


def configure(app: web.Application, settings: HttpSettings) -> None:
    """Other settings hold from now on."""
    front = app[FRONT]
    front.settings.take(settings)
    front.media.configure()
    app[GUARD].take(rules.Guard.of(settings))


def _inference() -> list[web.RouteDef]:
    return [
        web.post("/v1/chat/completions", chat_completions),
        web.post("/v1/completions", completions),
        web.post("/v1/embeddings", embeddings),
        web.post("/v1/rerank", rerank),
        web.post("/v2/rerank", rerank_cohere),
        web.post("/rerank", rerank_any),
        web.post("/v1/score", score_pairs),
        web.post("/embed", tei.embed),
        web.post("/embed_sparse", tei.embed_sparse),
        web.get("/v1/models", list_models),
        web.get("/v1/models/{id:.+}", show_model),
        web.post("/tokenize", tokenize),
        web.post("/detokenize", detokenize),
        web.post("/apply-template", apply_template),
        web.get("/health", health.health),
        web.get("/livez", health.livez),
        web.get("/readyz", health.readyz),
        web.get("/internal/cache/stats", management.cache_stats),
    ]


def _management() -> list[web.RouteDef]:
    """On the Unix socket, and on TCP where that is set. Ids of models may have a slash in them."""
    return [
        web.get("/llm/status", management.status),
        web.get("/llm/runtimes", management.runtimes),
        web.get("/llm/backends", management.backends),
        web.post("/internal/cache/clear", management.clear_cache),
        web.post("/llm/runtimes/{id:.+}/restart", management.restart_runtime),
        web.get("/llm/runtimes/{id:.+}/postmortems", management.postmortems),
        web.get("/llm/postmortems", management.postmortems),
        web.get("/llm/runtimes/{id:.+}", management.runtime),
        web.get("/llm/models", management.models),
        web.get("/llm/registry/models", registry_models),
        web.get("/llm/models/{name:.+}", management.model),
        web.post("/jobs", management.submit_job),
        web.get("/jobs", management.jobs),
        web.get("/jobs/{id}", management.job),
        web.delete("/jobs/{id}", management.forget_job),
        web.get("/jobs/{id}/events", feeds.job_events, allow_head=False),
        web.post("/jobs/{id}/cancel", management.cancel_job),
        web.get("/logs", feeds.logs, allow_head=False),
        web.get("/events", feeds.state_events, allow_head=False),
        web.get("/usage", usage),
        web.get("/config", management.config),
        web.put("/config", management.put_config),
        web.post("/config/check", management.check_config),
        web.post("/config/reload", management.reload_config),
        web.get("/keys", keys.keys),
        web.post("/keys", keys.add_key),
        web.delete("/keys/{name}", keys.revoke_key),
        web.post("/restart", management.restart),
        web.post("/shutdown", management.shutdown),
    ]


def runner(app: web.Application) -> web.AppRunner:
    """What binds the application's sites, every bound spelled out: aiohttp's own defaults are too generous.

    Raises `StartError` where aiohttp lacks its compiled parser.
    """
    check_parser()
    return FrontRunner(app, app[FRONT].settings)


@web.middleware
async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The request's id, every error as JSON, and one line of log for each request."""
    front = request.app[FRONT]
    begun = front.clock.monotonic()
    given = request.headers.get("X-Request-Id", "")
    request[REQUEST_ID] = given if _REQUEST_ID.fullmatch(given) else front.ids.new("req_")
    status = _CLIENT_GONE
    # aiohttp runs each request in a task of its own, so this binds nothing for the next one.
    structlog.contextvars.bind_contextvars(request_id=request[REQUEST_ID])
    meter = Meter()
    METER.set(meter)
    try:
        response = await _answered(request, handler)
        status = response.status
        return response
    finally:
        ended = front.clock.monotonic()
        # The answer goes out first: it waits for nothing that is written down of it.
        asyncio.get_running_loop().call_soon(_write_down, request, meter, status, begun, ended)


def _write_down(request: web.Request, meter: Meter, status: int, begun: float, ended: float) -> None:
    """The line of log, and what is counted."""
    _log_access(request, status, ended - begun)
    if (counted := ended_request(request, meter, status, begun=begun, ended=ended)) is not None:
        request.app[FRONT].record(counted)


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except LlmvisorError as error:
        request[ERROR] = error.code
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun: no other can follow") from error
        response = error_answer(error)
        if isinstance(error, InvalidApiKey):
            response.headers["WWW-Authenticate"] = access.CHALLENGE
        return response
    except web.HTTPException as error:
        return _framework_answer(request, error)
    except ConnectionError:
        raise  # the client has gone
    except Exception:  # noqa: BLE001  # a bug: told without its traceback, logged with it
        _log.exception("a request failed", method=request.method, path=request.path)
        return error_answer(unexpected(request))


def _framework_answer(request: web.Request, error: web.HTTPException) -> web.Response:
    """aiohttp's own refusals, in our form."""
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        response = error_answer(MethodNotAllowed(f"{request.method} is not allowed here, only {allowed}"))
        response.headers["Allow"] = allowed
        return response
    if isinstance(error, web.HTTPNotFound):
        return error_answer(_not_found(request))
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return error_answer(BodyTooLarge("the body is too large"))
    refused = InvalidRequest(error.reason)
    response = error_answer(refused)
    response.set_status(error.status)
    return response


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Host, Origin and Content-Type, before anything of the body is read. Raises what is refused."""
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client has gone, and with it what tells a page from an owner")
    if (coding := rules.strange_coding(request.headers.getall("Transfer-Encoding", []))) is not None:
        response = error_answer(InvalidRequest(f"a body with Transfer-Encoding {coding[:100]!r} is not read"))
        response.force_close()  # whoever stands in between may have read another end into it
        return response
    tcp = not is_unix(transport)  # no browser reaches the Unix socket, and its mode says who may
    app, key = request.app, None
    if tcp:
        checks = app[GUARD]
        if (preflight := _check_tcp(request, transport, checks)) is not None:
            return preflight
        gate = app[FRONT].gate
        managed = checks.management and rules.is_management(request.path)
        if gate.asked or managed:
            key = await access.admit(request, gate, management=managed)
    has_body = request.method in _WITH_BODY and (tcp or request.body_exists)
    if has_body and request.match_info.http_exception is None:
        headers = request.headers
        rules.check_content_type(headers.getall("Content-Type", []), headers.get("Content-Encoding"))
    if has_deadline(request):
        handler = functools.partial(within_deadline, handler=handler)
    if key is not None and request.method == "POST" and not rules.is_management(request.path):
        return await access.counted(request, app[FRONT].gate, key, handler)
    return await handler(request)


def _check_tcp(request: web.Request, transport: asyncio.Transport, checks: rules.Guard) -> web.Response | None:
    """Raises what is refused; the answer to a preflight of an allowed origin."""
    local_address = str((transport.get_extra_info("sockname") or ("",))[0])
    headers = request.headers
    checks.check_host(headers.getall("Host", []), request.host, local_address)
    origins = headers.getall("Origin", [])
    if origins or "Sec-Fetch-Site" in headers:
        origin = checks.check_origin(origins, headers.get("Sec-Fetch-Site"), request.host)
        if origin is not None:
            request[ORIGIN] = origin
    if rules.is_management(request.path):
        if not checks.management or rules.is_for_the_socket_alone(request.path):
            raise _not_found(request)
        if origins and not rules.is_own_page(origins[0], request.host):
            raise OriginNotAllowed("other pages manage nothing, whatever server.cors_origins allows")
    if request.method == "OPTIONS" and ORIGIN in request and "Access-Control-Request-Method" in headers:
        return _preflight(request)
    return None


def _preflight(request: web.Request) -> web.Response:
    asked = request.headers.get("Access-Control-Request-Headers", "")
    headers = {
        "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
        "Access-Control-Allow-Headers": asked if _HEADER_NAMES.fullmatch(asked) else "Content-Type, Authorization",
        "Access-Control-Max-Age": str(limits.cors_preflight_seconds),
    }
    if request.headers.get("Access-Control-Request-Private-Network") == "true":
        headers["Access-Control-Allow-Private-Network"] = "true"
    return web.Response(status=204, headers=headers)


async def _stamp(request: web.Request, response: web.StreamResponse) -> None:
    """The headers of every answer, streams too."""
    headers = response.headers
    headers["Server"] = "llmvisor"
    access.stamp(request, headers)
    headers["X-Content-Type-Options"] = "nosniff"
    if (request_id := request.get(REQUEST_ID)) is not None:
        headers["X-Request-Id"] = request_id
    if (origin := request.get(ORIGIN)) is not None:
        headers["Access-Control-Allow-Origin"] = origin
        headers["Access-Control-Expose-Headers"] = _EXPOSED
        headers["Vary"] = "Origin"


def _not_found(request: web.Request) -> NotFound:
    return NotFound(f"there is nothing at {request.path[:_LOGGED_PATH_CHARS_MAX]}")


def _log_access(request: web.Request, status: int, seconds: float) -> None:
    log = _log.info if request.method == "POST" else _log.debug
    log(
        "request",
        method=request.method,
        path=request.rel_url.raw_path[:_LOGGED_PATH_CHARS_MAX],  # still encoded: no line breaks in the log
        status=status,
        ms=round(seconds * 1000, 3),
        model=model.name if (model := request.get(MODEL)) is not None else None,
        error=request.get(ERROR),
    )
