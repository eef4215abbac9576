"""The HTTP application: FastAPI with every route, and the shell with the hot ones around it."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from functools import lru_cache, partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

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
    shopify,
    transactions,
    webhook_endpoints,
)
from credit_service.doors.http.openapi import completed
from credit_service.doors.http.problems import ERRORS, Problem, of_faults
from credit_service.doors.http.routes import PREFIX, Parts, ScopedRoute, call_of, respond
from credit_service.doors.http.shell import JSON, Application, Shell, problem_answer
from credit_service.messages.envelope import MEDIA_TYPE
from credit_service.messages.faults import Invalid, of_errors

_EXPOSED = ["ETag", "Idempotency-Replayed", "RateLimit", "RateLimit-Policy", "X-Correlation-ID", "X-Request-ID"]
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

_RESOURCES = (
    accounts,
    transactions,
    adjustments,
    check,
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


def make_app(parts: Parts, running: Lifespan | None = None) -> tuple[Application, Shell]:
    """The ASGI application that serves these parts, while `running` lasts, and the shell in it."""
    hot = {
        ("POST", PREFIX + transactions.ONE, JSON): partial(transactions.hot_one, parts),
        ("POST", PREFIX + transactions.MANY, JSON): partial(transactions.hot_many, parts),
        ("POST", PREFIX + events.EVENTS, MEDIA_TYPE.encode()): partial(events.hot_event, parts),
    }
    known, asked = partial(plugin_status.known_status, parts), partial(plugin_status.hot_status, parts)
    status = (plugin_status.PATH, known, asked)
    measured = parts.metrics.answered
    shell = Shell(make_fastapi(parts, running), parts.keyring, parts.settings, hot, status, _LARGE, measured)
    app: Any = shell
    origins = [origin.strip() for origin in parts.settings.cors_origins.split(",") if origin.strip()]
    if origins:
        app = CORSMiddleware(app, origins, allow_methods=["*"], allow_headers=["*"], expose_headers=_EXPOSED)
        shell.cors = lru_cache(maxsize=1024)(partial(_cors_headers, app))
    return app, shell


def _cors_headers(cors: CORSMiddleware, origin: bytes, has_cookie: bool) -> list[tuple[bytes, bytes]]:
    """What the middleware adds to an answer, asked of itself."""
    message: dict[str, Any] = {"type": "http.response.start", "headers": []}
    asked = Headers(raw=[(b"origin", origin), *([(b"cookie", b"")] if has_cookie else [])])

    async def take(message: Any) -> None:
        pass

    with suppress(StopIteration):  # it waits for nothing but what takes the message
        cors.send(message, take, asked).send(None)
    return list(message["headers"])


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
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        own = (error.headers or {}).get("Allow", "GET").split(", ")  # of FastAPI's own pages
        allowed = ", ".join(sorted(_allowed(call_of(request).path) or own))
        detail = f"{request.method} is not allowed here; {allowed} is."
        return _told(request, Problem("method_not_allowed", detail, headers={"Allow": allowed}))
    return _told(request, Problem("not_found", f"There is nothing at {call_of(request).path}."))


async def _unforeseen(request: Request, error: Exception) -> Response:
    # Of a route it would have been told already; this is FastAPI's own, and is raised and logged after it is answered.
    return _told(request, Problem("internal", "Something broke on our side. The log tells of it."))


def _allowed(path: str) -> set[str]:
    """The methods of all routes at this path; Starlette names those of the first alone."""
    return {
        method
        for prefix, routers in _ROUTERS
        for router in routers
        for route in router.routes
        if isinstance(route, APIRoute) and path.startswith(prefix) and route.path_regex.match(path[len(prefix) :])
        for method in route.methods or ()
    }
