"""The HTTP application: every endpoint, and the shell around them. FastAPI describes them and serves the pages."""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import cache, partial
from typing import Any, cast

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from fastapi_offline import FastAPIOffline
from starlette import routing
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import compile_path

from credit_service import __version__
from credit_service.doors.http import (
    accounts,
    api_keys,
    errors,
    events,
    health,
    plugin_status,
    shopify,
    transactions,
    webhook_endpoints,
)
from credit_service.doors.http.call import Answer, Application, Call
from credit_service.doors.http.health.alive import livez
from credit_service.doors.http.openapi import completed
from credit_service.doors.http.parts import Parts
from credit_service.doors.http.plugin_status.get import get_plugin_status, needed_scope
from credit_service.doors.http.problems import ERRORS
from credit_service.doors.http.route_table import Route, RouteTable
from credit_service.doors.http.shell import Shell
from credit_service.messages import patterns
from credit_service.messages.shapes import encode
from credit_service.settings import Settings

_EXPOSED = [
    "ETag",
    "Idempotency-Replayed",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "X-Correlation-ID",
    "X-Request-ID",
]
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

_RESOURCES = (accounts, transactions, events, plugin_status, shopify, webhook_endpoints, api_keys, health)
ENDPOINTS = [endpoint for resource in _RESOURCES for endpoint in resource.ENDPOINTS]


def make_app(parts: Parts, running: Lifespan | None = None) -> Application:
    """The ASGI application that serves these parts, while `running` lasts."""
    fastapi = make_fastapi(running)
    routes = RouteTable([*_own_routes(parts), *_pages(fastapi, parts.settings)])
    app: Any = Shell(fastapi, parts.keyring, parts.settings, routes, parts.metrics.answered)
    origins = [origin.strip() for origin in parts.settings.cors_origins.split(",") if origin.strip()]
    if origins:
        app = CORSMiddleware(app, origins, allow_methods=["*"], allow_headers=["*"], expose_headers=_EXPOSED)
    return cast(Application, app)


def _own_routes(parts: Parts) -> Iterator[Route]:
    """The routes of the endpoints, as the shell needs them."""
    settings = parts.settings
    # Plugin status is asked for most, so its pattern is tried first.
    for endpoint in sorted(ENDPOINTS, key=lambda one: one is not get_plugin_status):
        is_status = endpoint is get_plugin_status
        route = Route(
            template=endpoint.path,
            method=endpoint.method,
            pattern=compile_path(endpoint.path)[0],
            scope=needed_scope(settings) if is_status else endpoint.scope,
            body_max_bytes=settings.batch_body_max_bytes if endpoint.is_large else settings.body_max_bytes,
            handler=endpoint.handler(parts),
            is_counted=endpoint is not livez,
            stale_seconds=settings.gate_stale_seconds if is_status else 0,
        )
        if is_status and settings.plugin_status_auth == "none" and settings.plugin_status_public == "uuids":
            yield route._replace(pattern=re.compile(endpoint.path.format(merchant_id=f"({patterns.UUID[1:-1]})")))
            route = route._replace(scope="status")  # other ids can be guessed
        yield route


def _pages(app: FastAPI, settings: Settings) -> Iterator[Route]:
    """The routes that FastAPI serves: the documentation and its assets."""
    own = {endpoint.path for endpoint in ENDPOINTS}
    for route in app.routes:
        if isinstance(route, routing.Route | routing.Mount) and route.path not in own:
            handler = _openapi if route.path == app.openapi_url else None
            yield Route(route.path, "GET", route.path_regex, None, settings.body_max_bytes, handler)


async def _openapi(call: Call) -> Answer:
    return Answer(200, openapi_document())


@cache
def openapi_document() -> bytes:
    """The OpenAPI document. Building it takes a tenth of a second, and writing it as JSON a millisecond."""
    return encode(make_fastapi().openapi())


def make_fastapi(running: Lifespan | None = None) -> FastAPI:
    """FastAPI with a description of every endpoint, and the pages of the documentation."""
    app = FastAPIOffline(
        docs_url="/docs",
        redoc_url=None,
        title="credit-service",
        version=__version__,
        summary="A prepaid-credit ledger and access gate.",
        license_info={"name": "Apache License 2.0", "identifier": "Apache-2.0"},
        redirect_slashes=False,
        lifespan=running,
        # FastAPI's own telemetry would log each request once more, with all of its query.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    for endpoint in ENDPOINTS:
        endpoint.describe(app)
    app.add_route(ERRORS, _errors, include_in_schema=False)
    scopes = {endpoint.name: endpoint.scope for endpoint in ENDPOINTS}
    raw = {endpoint.name for endpoint in ENDPOINTS if not endpoint.media_types}
    vars(app)["openapi"] = partial(completed, app.openapi, scopes, raw)
    return app


async def _errors(request: Request) -> Response:
    return HTMLResponse(errors.page())
