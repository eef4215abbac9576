"""The outermost ASGI application: ids, limits of size and time, problems; then the hot routes, then FastAPI.

It reads each body whole before anything looks at it, so a slow or endless one meets the limits here, once, for every
route. Written as plain ASGI: a middleware that wraps tasks would cancel postings with their callers.
"""

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, NamedTuple

import structlog

from credit_service.doors.http.keys import Keyring, require
from credit_service.doors.http.problems import MEDIA_TYPE, Problem
from credit_service.posting import DeadlineExceeded, Overloaded
from credit_service.settings import Settings
from credit_service.storage.base import Conflict, OutcomeUnknown, StorageError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_ID = re.compile(rb"^[\x21-\x7e]{1,128}$")
_JSON = b"application/json"
_log = structlog.get_logger()


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    body: bytes
    headers: Headers = []  # noqa: RUF012 - never written to
    media_type: bytes = _JSON


class Call:
    """One request as the hot routes see it: what was sent, who sent it, and how to name it."""

    __slots__ = ("_keyring", "_sent", "actor", "body", "correlation_id", "headers", "path", "query", "request_id")

    def __init__(
        self, keyring: Keyring, scope: Scope, headers: dict[bytes, bytes], request_id: str, correlation_id: str
    ) -> None:
        self._keyring = keyring
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self.headers = headers
        self.request_id = request_id
        self.correlation_id = correlation_id
        self.actor = ""  # who calls, once that is known
        self.body = b""
        self._sent: Headers = scope["headers"]

    async def caller(self, needed: str) -> str:
        """Who calls, as the actor of what is posted. Raises Problem unless the key has the needed scope."""
        key = await self._keyring.authenticate(self.headers.get(b"authorization"))
        require(key, needed)
        self.actor = f"key:{key.id}"
        return self.actor

    def sent(self, name: bytes) -> list[bytes]:
        """Every value that was sent of a header."""
        return [value for other, value in self._sent if other == name]


HotRoute = Callable[[Call], Awaitable[Answer | None]]
"""Answers a request, or None to leave it to FastAPI."""


class Shell:
    """See the module.

    `hot`: routes by (method, path), answered before FastAPI. `status`: the beginning of the paths of single plugin
    statuses, and their hot route. `large`: paths whose bodies may be as large as a batch.
    """

    def __init__(
        self,
        app: Application,
        keyring: Keyring,
        settings: Settings,
        hot: Mapping[tuple[str, str], HotRoute],
        status: tuple[str, HotRoute],
        large: frozenset[str],
    ) -> None:
        self._app = app
        self._keyring = keyring
        self._settings = settings
        self._hot = hot
        self._status_prefix, self._status = status
        self._large = large

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id = _own_or_new(headers.get(b"x-request-id"))
        correlation_id = _own_or_new(headers.get(b"x-correlation-id"), request_id)
        ids = [(b"x-request-id", request_id.encode()), (b"x-correlation-id", correlation_id.encode())]
        started = False

        async def named(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", []), *ids]
            await send(message)

        try:
            await self._serve(scope, receive, named, Call(self._keyring, scope, headers, request_id, correlation_id))
        except Exception as error:
            if started:
                raise
            await _answer(named, problem_answer(as_problem(error, request_id), request_id))

    async def _serve(self, scope: Scope, receive: Receive, send: Send, call: Call) -> None:
        size = sum([len(name) + len(value) + 4 for name, value in scope["headers"]])
        if size > self._settings.headers_max_bytes:
            raise Problem("headers_too_large", f"Headers may have {self._settings.headers_max_bytes} bytes at most.")
        path, method = call.path, scope["method"]
        if method == "GET" and path.startswith(self._status_prefix):
            answer = await self._status(call)
            if answer is not None:
                await _answer(send, answer)
                return
        call.body = await self._body(call, receive)
        hot = self._hot.get((method, path))
        if hot is not None and call.headers.get(b"content-type", b"").split(b";")[0].strip().lower() in _HOT_TYPES:
            answer = await hot(call)
            if answer is not None:
                await _answer(send, answer)
                return
        scope["credit.call"] = call
        await self._app(scope, _replay(call.body, receive), send)

    async def _body(self, call: Call, receive: Receive) -> bytes:
        large = call.path in self._large
        limit = self._settings.batch_body_max_bytes if large else self._settings.body_max_bytes
        length = call.headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > limit:
            raise _too_large(limit)
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._settings.body_timeout_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Problem("bad_request", "The connection was closed before the body had arrived.")
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    if size > limit:
                        raise _too_large(limit)
                    chunks.append(chunk)
                    if not message.get("more_body", False):
                        return b"".join(chunks)
        except TimeoutError:
            detail = f"The body did not arrive within {self._settings.body_timeout_seconds:g} seconds."
            raise Problem("request_timeout", detail, headers={"Connection": "close"}) from None


_HOT_TYPES = frozenset({_JSON, b"application/cloudevents+json", b"application/cloudevents-batch+json"})


def _too_large(limit: int) -> Problem:
    detail = f"The body may have {limit} bytes at most."
    return Problem("body_too_large", detail, headers={"Connection": "close"})


def _own_or_new(given: bytes | None, otherwise: str | None = None) -> str:
    """An id taken from the caller where it is one, else made."""
    if given is not None and _ID.match(given):
        return given.decode("ascii")
    return otherwise or os.urandom(16).hex()


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replayed() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def _answer(send: Send, answer: Answer) -> None:
    headers = [
        (b"content-type", answer.media_type),
        (b"content-length", str(len(answer.body)).encode()),
        *answer.headers,
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


def problem_answer(problem: Problem, request_id: str | None) -> Answer:
    """The answer that tells of a problem."""
    headers = [(name.lower().encode(), value.encode()) for name, value in problem.headers.items()]
    return Answer(problem.status, problem.body(request_id), headers, MEDIA_TYPE)


def as_problem(error: Exception, request_id: str) -> Problem:
    """The problem behind an exception; what nobody foresaw is logged, and answered without a word about its inside."""
    match error:
        case Problem():
            return error
        case Overloaded():
            return Problem("overloaded", "Too many postings are waiting. Try again in a moment.")
        case DeadlineExceeded():
            return Problem("deadline_exceeded", "The posting waited too long in the queue; nothing was posted.")
        case OutcomeUnknown():
            detail = "Whether it was posted is not known. Repeat the request with the same key to find out."
            return Problem("outcome_unknown", detail)
        case Conflict() | StorageError():
            _log.warning("storage_unavailable", reason=str(error), request_id=request_id)
            return Problem("storage_unavailable", "The database cannot be used right now. Nothing was posted.")
    _log.error("internal_error", request_id=request_id, exc_info=error)
    return Problem("internal", "Something broke on our side. The log names this request.")
