"""The outermost ASGI application. Each request takes one way: admission, body, handler.

The shell names each request, logs and measures it, and turns every exception into a problem. It is plain ASGI: a
middleware that wraps tasks would cancel postings together with their callers.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from time import perf_counter

import structlog

from credit_service.doors.http.admission import Admission
from credit_service.doors.http.bodies import Bodies
from credit_service.doors.http.call import (
    Answer,
    Application,
    Call,
    Message,
    Receive,
    Result,
    Scope,
    Send,
    problem_answer,
)
from credit_service.doors.http.keys import Keyring
from credit_service.doors.http.problems import of_exception
from credit_service.doors.http.route_table import Route, RouteTable
from credit_service.messages.content import Limits
from credit_service.observability import request_names
from credit_service.settings import Settings
from credit_service.storage.engine import OutcomeUnknown

_HTML_POLICY = (b"content-security-policy", b"frame-ancestors 'none'; base-uri 'none'; form-action 'self'")
_CLOSING = ("body_too_large", "request_timeout")
"""Problems that end the connection, whatever else arrived."""
_log = structlog.get_logger()


class Shell:
    """See the module. `measured` receives each answer: method, template of the route, status, seconds."""

    def __init__(
        self,
        app: Application,
        keyring: Keyring,
        settings: Settings,
        routes: RouteTable,
        measured: Callable[[str, str, int, float], None],
    ) -> None:
        self._app = app
        self._routes = routes
        self._admission = Admission(settings, keyring)
        self._bodies = Bodies(settings)
        self._measured = measured
        self._limits = Limits(
            settings.key_max_length,
            settings.metadata_max_bytes,
            settings.json_max_depth,
            settings.page_max_limit,
            settings.batch_max_items,
        )
        self._logs_each = settings.log_level == "debug"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at = perf_counter()
        call = Call(scope, self._limits)
        request_names.set(call.log_names)
        route = self._routes.find(call.method, call.path)
        try:
            result = await self._result(scope, receive, call, route)
            if isinstance(result, Answer):
                await _send_answer(send, call, result)
            else:
                await result({**scope, "method": call.method}, receive, partial(_send_part, send, call))
        except (Exception, asyncio.CancelledError) as error:
            if call.status:
                raise
            await self._refuse(error, scope, send, call)
        finally:
            if call.body:
                self._bodies.release(call.body)
            # A stream is answered when it begins. The time its listener stays says nothing about speed.
            seconds = (call.answered_at if call.is_stream else perf_counter()) - started_at
            template = self._routes.template(call.path) if route is None else route.template
            self._measured(scope["method"], template, call.status, seconds)
            if self._logs_each:
                milliseconds = round(seconds * 1000, 3)
                method, status = scope["method"], call.status
                _log.debug("request", method=method, route=template, status=status, milliseconds=milliseconds)
            if "credit.traced" in scope:  # by tracing, which wants to know what became of the request
                scope["credit.traced"](template, call.status)

    async def _result(self, scope: Scope, receive: Receive, call: Call, route: Route | None) -> Result:
        """Admit a request, read its body, and ask its handler."""
        client = scope.get("client")
        peer = client[0] if client else ""
        if route is None:
            self._admission.admit_anybody(call, peer)
            raise self._routes.missing(call.method, call.path)
        if route.scope is None:
            self._admission.admit_anybody(call, peer, is_counted=route.is_counted)
        else:
            await self._admission.admit_key(call, peer, route)
        has_arrived = "credit.arrived" in scope
        if call.has_body or not has_arrived:
            call.body = await self._bodies.read(call, receive, route.body_max_bytes, arrived=has_arrived)
        call.is_read = True
        return self._app if route.handler is None else await route.handler(call)

    async def _refuse(self, error: BaseException, scope: Scope, send: Send, call: Call) -> None:
        """Answer with the problem behind an exception."""
        # The server cancels requests when it stops and has waited long enough.
        problem = of_exception(error if isinstance(error, Exception) else OutcomeUnknown())
        closing = None
        if problem.code in _CLOSING or not (call.is_read or "credit.arrived" in scope):
            # The rest of the body is not read, so no later request of the connection can be.
            problem.headers["Connection"] = "close"
            closing = scope.get("credit.close_gently")
        await _send_answer(send, call, problem_answer(problem, call.request_id), closing)


async def _send_answer(send: Send, call: Call, answer: Answer, closing: Callable[[], None] | None = None) -> None:
    """Send a complete answer. `closing` is called before its end."""
    call.status, body, headers, media_type = answer
    told = [(b"content-type", media_type), (b"content-length", b"%d" % len(body))] if call.status != 304 else []
    told += headers
    told += call.answer_headers
    await send({"type": "http.response.start", "status": call.status, "headers": told})
    if closing is not None:
        closing()
    await send({"type": "http.response.body", "body": body})


async def _send_part(send: Send, call: Call, message: Message) -> None:
    """Send a part of the answer of an application."""
    if message["type"] == "http.response.start":
        call.status, call.answered_at = message["status"], perf_counter()
        headers = [*message.get("headers", []), *call.answer_headers]
        if any(name == b"content-type" and value.startswith(b"text/html") for name, value in headers):
            headers.append(_HTML_POLICY)
        message["headers"] = headers
    await send(message)
