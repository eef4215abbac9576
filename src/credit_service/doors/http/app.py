"""The HTTP application: FastAPI with every route, and the shell with the hot ones around it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from functools import cache, partial
from typing import Any, cast

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi_offline import FastAPIOffline
from starlette import routing
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import compile_path

from credit_service import __version__
from credit_service.doors.http import (
    accounts,
    adjustments,
    api_keys,
    check,
    errors,
    events,
    fail_policies,
    feed,
    health,
    plugin_status,
    prices,
    shopify,
    transactions,
    webhook_endpoints,
)
from credit_service.doors.http.call import JSON, Answer, Application, Call, HotHandler, problem_answer
from credit_service.doors.http.openapi import completed
from credit_service.doors.http.problems import ERRORS, Problem, of_faults
from credit_service.doors.http.route_table import Route, RouteTable
from credit_service.doors.http.routes import PREFIX, Parts, ScopedRoute, call_of, respond
from credit_service.doors.http.shell import Shell
from credit_service.messages.envelope import MEDIA_TYPE
from credit_service.messages.faults import Invalid, of_errors
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

_RESOURCES = (
    accounts,
    transactions,
    adjustments,
    check,
    prices,
    events,
    feed,
    plugin_status,
    fail_policies,
    shopify,
    webhook_endpoints,
    api_keys,
    health,
)
_ROUTERS = (*((PREFIX, resource.ROUTERS) for resource in _RESOURCES), ("", health.BARE))
_LARGE = frozenset(
    PREFIX + path for path in (transactions.MANY, events.EVENTS, plugin_status.STATUS + "/batch", shopify.WEBHOOKS)
)


def make_app(parts: Parts, running: Lifespan | None = None) -> Application:
    """The ASGI application that serves these parts, while `running` lasts."""
    fastapi = make_fastapi(parts, running)
    routes = RouteTable([*_own_routes(parts), *_pages(fastapi, parts.settings)])
    app: Any = Shell(fastapi, parts.keyring, parts.settings, routes, parts.metrics.answered)
    origins = [origin.strip() for origin in parts.settings.cors_origins.split(",") if origin.strip()]
    if origins:
        app = CORSMiddleware(app, origins, allow_methods=["*"], allow_headers=["*"], expose_headers=_EXPOSED)
    return cast(Application, app)


def _own_routes(parts: Parts) -> Iterator[Route]:
    """The routes of the resources, as the shell needs them."""
    settings = parts.settings
    hot: dict[str, Mapping[bytes, HotHandler]] = {
        "get_plugin_status": {b"": partial(plugin_status.hot_status, parts)},
        "post_transaction": {JSON: partial(transactions.hot_one, parts)},
        "post_transactions": {JSON: partial(transactions.hot_many, parts)},
        "post_events": {MEDIA_TYPE.encode(): partial(events.hot_event, parts)},
    }
    for prefix, routers in _ROUTERS:
        for route in (route for router in routers for route in router.routes if isinstance(route, ScopedRoute)):
            path, name = prefix + route.path, str(route.operation_id)
            is_status = name == "get_plugin_status"
            yield Route(
                template=path,
                methods=frozenset(route.methods or ()),
                pattern=compile_path(path)[0],
                scope=plugin_status.needed_scope(settings) if is_status else route.needed,
                body_max_bytes=settings.batch_body_max_bytes if path in _LARGE else settings.body_max_bytes,
                is_counted=name != "livez",
                stale_seconds=settings.gate_stale_seconds if is_status else 0,
                hot=hot.get(name, {}),
            )


def _pages(app: FastAPI, settings: Settings) -> Iterator[Route]:
    """The routes that FastAPI adds: documentation and its assets."""
    for route in app.routes:
        if isinstance(route, routing.Route | routing.Mount):
            hot: Mapping[bytes, HotHandler] = {b"": _openapi} if route.path == app.openapi_url else {}
            yield Route(route.path, frozenset({"GET"}), route.path_regex, None, settings.body_max_bytes, hot=hot)


async def _openapi(call: Call) -> Answer:
    return Answer(200, openapi_document())


@cache
def openapi_document() -> bytes:
    """The OpenAPI document. Building it takes a tenth of a second, and writing it as JSON a millisecond."""
    return encode(make_fastapi(None).openapi())


def make_fastapi(parts: Parts | None, running: Lifespan | None = None) -> FastAPI:
    """FastAPI with every route. `parts` may be None where only its OpenAPI document is asked for."""
    app = FastAPIOffline(
        docs_url="/docs",
        redoc_url=None,
        title="credit-service",
        version=__version__,
        summary="A prepaid-credit ledger and access gate.",
        license_info={"name": "Apache License 2.0", "identifier": "Apache-2.0"},
        redirect_slashes=False,
        lifespan=running,
        # Its own would tell of each request once more, with all of its query.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.parts = parts
    for prefix, routers in _ROUTERS:
        for router in routers:
            app.include_router(router, prefix=prefix)
    app.add_route(ERRORS, _errors, include_in_schema=False)
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(Invalid, _invalid)
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(Exception, _unforeseen)
    routes = [route for _, routers in _ROUTERS for router in routers for route in router.routes]
    scoped = {str(route.operation_id): route for route in routes if isinstance(route, ScopedRoute)}
    scopes = {name: route.needed for name, route in scoped.items()}
    vars(app)["openapi"] = partial(
        completed, app.openapi, scopes, {name for name, route in scoped.items() if not route.media_types}
    )
    return app


async def _errors(request: Request) -> Response:
    return HTMLResponse(errors.page())


def _told(request: Request, problem: Problem) -> Response:
    return respond(problem_answer(problem, call_of(request).request_id))


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return _told(request, error)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, Invalid)
    return _told(request, of_faults(error.faults))


async def _not_valid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # A place in the body is a JSON Pointer into it; elsewhere it says where: /query/limit, /path/merchant_id.
    entries = [
        {**entry, "loc": entry["loc"][1:] if entry["loc"][0] == "body" else entry["loc"]} for entry in error.errors()
    ]
    return _told(request, of_faults(of_errors(entries)))


async def _http_exception(request: Request, error: Exception) -> Response:
    # Unknown paths and methods do not come here, but a page of the documentation may be missing.
    return _told(request, Problem("not_found", f"There is nothing at {call_of(request).path}."))


async def _unforeseen(request: Request, error: Exception) -> Response:
    # Of a route it would have been told already; this is FastAPI's own, and is raised and logged after it is answered.
    return _told(request, Problem("internal", "Something broke on our side. The log tells of it."))
