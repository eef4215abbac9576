"""The outermost ASGI application: ids, limits of size and time, problems; then the hot routes, then FastAPI.

It reads each body whole before anything looks at it, so a slow or endless one meets the limits here, once, for every
route. Written as plain ASGI: a middleware that wraps tasks would cancel postings with their callers.
"""

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping
from random import getrandbits
from time import perf_counter
from typing import Any, NamedTuple

import structlog

from credit_service.doors.http.keys import Keyring, includes, require
from credit_service.doors.http.problems import MEDIA_TYPE, Problem
from credit_service.doors.http.rate_limits import Admission
from credit_service.messages.content import Limits
from credit_service.posting import DeadlineExceeded, Overloaded
from credit_service.settings import Settings
from credit_service.storage.engine import Conflict, OutcomeUnknown, StorageError
from credit_service.storage.keys import ApiKey

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_ID = re.compile(rb"^[\x21-\x7e]{1,128}$")
_TRACEPARENT = re.compile(rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
JSON = b"application/json"
API = "/api/"
_NONE: Headers = []
_HOT = "write"
"""The scope that all hot routes need."""
_WANT_MORE = frozenset({b"expect", b"traceparent", b"transfer-encoding"})
"""Headers of requests that are not answered at once."""
SELDOM_SECONDS = 10.0
"""Between two warnings of one kind that every request would bring."""
LINGER_SECONDS = 2.0
"""How long a connection that is given up is still read from, so that its client gets to read the answer."""
_log = structlog.get_logger()


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    body: bytes
    headers: Headers = []  # noqa: RUF012 - never written to
    media_type: bytes = JSON


class Call:
    """One request as the hot routes see it: what was sent, who sent it, and how to name it."""

    __slots__ = (
        "_admission",
        "_keyring",
        "_sent",
        "actor",
        "address",
        "body",
        "correlation_id",
        "headers",
        "limits",
        "path",
        "query",
        "request_id",
        "told",
    )

    def __init__(
        self,
        keyring: Keyring,
        admission: Admission | None,
        limits: Limits,
        address: str,
        path: str,
        query: bytes,
        sent: Headers,
        headers: dict[bytes, bytes],
        told: Headers,
    ) -> None:
        self._keyring = keyring
        self._admission = admission
        self.limits = limits
        self.told = told  # headers that the answer will have, whatever it is; its ids stand first
        self.address = address
        self.path = path
        self.query = query
        self.headers = headers
        self.request_id = told[0][1].decode()
        self.correlation_id = told[1][1].decode()
        self.actor = ""  # who calls, once that is known
        self.body = b""
        self._sent = sent

    @property
    def media_type(self) -> bytes:
        """The media type of the body, without its parameters."""
        return _media_type(self.headers)

    async def caller(self, needed: str, *, leniently: bool = False) -> str:
        """Who calls, as the actor of what is posted. Raises Problem unless the key has the needed scope.

        `leniently`: see `Keyring.authenticate`.
        """
        try:
            key = await self._keyring.authenticate(self.sent(b"authorization"), leniently=leniently)
        except Problem:
            self.admit_address()
            raise
        if not self.actor:  # once, also where a hot route leaves it to FastAPI
            self.admit(key)
        self.actor = f"key:{key.id}"
        require(key, needed)
        return self.actor

    def known_caller(self, needed: str) -> ApiKey | None:
        """As `caller`, where that is known at once and in order; whoever is told this has to `admit` the key."""
        key = self._keyring.known(self.sent(b"authorization"))
        if key is None or not includes(key, needed):
            return None
        self.actor = f"key:{key.id}"
        return key

    def admit(self, key: ApiKey) -> None:
        """Count a request with a valid key. Raises Problem when too many came."""
        if self._admission is None:
            return
        if key.scope == "status":  # one key in everybody's page: nobody may use up what the others need
            self.admit_address()
        else:
            self.told += self._admission.key(key.id)

    def admit_address(self) -> None:
        """Count a request without a valid key. Raises Problem when its address has called too often."""
        if self._admission is not None:
            self.told += self._admission.address(self.address)

    def sent(self, name: bytes) -> list[bytes]:
        """Every value that was sent of a header."""
        return [value for other, value in self._sent if other == name]


HotRoute = Callable[[Call], Coroutine[Any, Any, Answer] | None]
"""Answers a request of a caller with scope `write`, or None, at once, to leave it to FastAPI."""

StatusRoute = Callable[[Call], Awaitable[Answer | None]]
"""Answers a request for one status, or None to leave it to FastAPI."""

KnownRoute = Callable[[str, Mapping[bytes, bytes]], Answer | None]
"""Answers a path and its headers at once, from memory, or None to leave it to a hot route."""


class Shell:
    """See the module.

    `cors` gives the headers that let a page of an origin, with a cookie or without, see an answer that is made at once.
    `hot`: routes by (method, path, media type), answered before FastAPI. `status`: the beginning of the paths of single
    plugin statuses, their route while they are known, and their hot route. `large`: paths whose bodies may be as large
    as a batch. `measured` is told of each answer but those from `status` while they are known: method, route, status,
    seconds.
    """

    def __init__(
        self,
        app: Application,
        keyring: Keyring,
        settings: Settings,
        hot: Mapping[tuple[str, str, bytes], HotRoute],
        status: tuple[str, KnownRoute, StatusRoute],
        large: frozenset[str],
        measured: Callable[[str, str, int, float], None],
    ) -> None:
        self._app = app
        self._admission = Admission(settings) if settings.rate_limit_enabled else None
        self._measured = measured
        self._keyring = keyring
        self._settings = settings
        self._headers_max_bytes = settings.headers_max_bytes
        self._body_max_bytes = min(settings.body_max_bytes, settings.batch_body_max_bytes)  # of any route
        self._limits = Limits(settings.key_max_length, settings.metadata_max_bytes)
        self._hot = hot
        self._hot_urls = frozenset([path.encode() for _, path, _ in hot])
        self.cors: Callable[[bytes, bool], Headers] = _nothing_to_pages
        self._status_prefix, self._known_status, self._status = status
        self._status_url = self._status_prefix.encode()
        # Where every request is told of, those that are answered from memory go the way of all others.
        self._tells_each = settings.log_level == "debug" or settings.tracing_enabled
        if self._tells_each:
            self._known_status = _nothing_known
        self._large = large

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        if method == "HEAD":
            scope, send = {**scope, "method": "GET", "credit.head": True}, _without_body(send)
        started_at = perf_counter()
        headers = dict(scope["headers"])
        own_id = _own_or_new(headers.get(b"x-request-id"))
        trace_id = _trace_id(scope["headers"]) if b"traceparent" in headers else None
        shared_id = _own_or_new(headers.get(b"x-correlation-id"), trace_id or own_id)
        ids = [(b"x-request-id", own_id), (b"x-correlation-id", shared_id)]
        if scope["method"] == "GET" and scope["path"].startswith(self._status_prefix) and not self._is_oversized(scope):
            # Asked by every storefront page, so without what only other requests need: half the time goes into that.
            known = self._known_status(scope["path"], headers)
            if known is not None:
                await _answer(send, self._refused(_address(scope), own_id) or known, ids)
                return
        call = self._call(_address(scope), scope["path"], scope["query_string"], scope["headers"], headers, ids)
        # A pipelined request's task begins with the names of the one before it.
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=call.request_id, correlation_id=call.correlation_id)
        if trace_id is not None:
            structlog.contextvars.bind_contextvars(trace_id=trace_id.decode())
        started, answered_at = 0, 0.0

        async def named(message: Message) -> None:
            nonlocal started, answered_at
            if message["type"] == "http.response.start":
                started, answered_at = message["status"], perf_counter()
                message["headers"] = [*message.get("headers", []), *ids]
            await send(message)

        try:
            await self._guarded(scope, receive, send, named, call, lambda: started)
        finally:
            # A stream was answered when it began; how long its listener stays is no matter of speed.
            ended_at = answered_at if "credit.stream" in scope else perf_counter()
            route, seconds = _route(scope), ended_at - started_at
            self._measured(method, route, started, seconds)
            if self._tells_each:
                _log.debug("request", method=method, route=route, status=started, milliseconds=round(seconds * 1000, 3))
                if (traced := scope.get("credit.traced")) is not None:  # by whoever wants to know what became of it
                    traced(route, started)

    def may_be_at_once(self, method: bytes, url: bytes) -> bool:
        """Whether `at_once` is worth to be asked about such a request, once it has arrived."""
        if self._tells_each:
            return False
        return url in self._hot_urls if method == b"POST" else method == b"GET" and url.startswith(self._status_url)

    def at_once(
        self, method: bytes, url: bytes, sent: Headers, address: str, body: bytes
    ) -> Answer | Awaitable[Answer] | None:
        """Answer a request that has arrived whole, or begin to; None, with nothing done, leaves it to `__call__`.

        So does an exception. Most are plainly in order, and of a caller who was here a moment ago, or ask for what is
        known. Then there is no need for what ASGI is made for: the server takes bodies and answers piece by piece.
        """
        started_at = perf_counter()
        headers = dict(sent)
        if not _WANT_MORE.isdisjoint(headers) or len(body) > self._body_max_bytes:
            return None
        if _size(sent) + len(url) > self._headers_max_bytes:
            return None
        path = url.decode("latin-1")
        own_id = _own_or_new(headers.get(b"x-request-id"))
        ids = [(b"x-request-id", own_id), (b"x-correlation-id", _own_or_new(headers.get(b"x-correlation-id"), own_id))]
        if b"origin" in headers:
            ids += self.cors(headers[b"origin"], b"cookie" in headers)
        if method == b"GET":
            known = self._known_status(path, headers)
            if known is None:
                return None
            status, told, headers_of_it, media_type = self._refused(address, own_id) or known
            return Answer(status, told, [*headers_of_it, *ids], media_type)
        hot = self._hot.get(("POST", path, _media_type(headers)))
        call = self._call(address, path, b"", sent, headers, ids)
        key = call.known_caller(_HOT)
        if hot is None or key is None:
            return None
        call.body = body
        answering = hot(call)
        return None if answering is None else self._answered(call, key, answering, started_at)

    async def _answered(
        self, call: Call, key: ApiKey, answering: Coroutine[Any, Any, Answer], started_at: float
    ) -> Answer:
        try:
            call.admit(key)
            answer = await answering
        except (Exception, asyncio.CancelledError) as error:  # cancelled when the server stops, and has waited enough
            with structlog.contextvars.bound_contextvars(
                request_id=call.request_id, correlation_id=call.correlation_id
            ):
                problem = as_problem(OutcomeUnknown() if isinstance(error, asyncio.CancelledError) else error)
            answer = problem_answer(problem, call.request_id)
        finally:
            answering.close()  # where it was not begun
        self._measured("POST", call.path, answer.status, perf_counter() - started_at)
        return Answer(answer.status, answer.body, [*answer.headers, *call.told], answer.media_type)

    def _call(
        self, address: str, path: str, query: bytes, sent: Headers, headers: dict[bytes, bytes], ids: Headers
    ) -> Call:
        return Call(self._keyring, self._admission, self._limits, address, path, query, sent, headers, ids)

    async def _guarded(
        self, scope: Scope, receive: Receive, send: Send, named: Send, call: Call, started: Callable[[], int]
    ) -> None:
        """Serve, and answer whatever goes wrong with a problem while nothing has been answered yet."""
        request_id = call.request_id
        try:
            await self._serve(scope, receive, named, call)
        except TooMuch as error:
            await _answer(named, problem_answer(error, request_id), last=False)
            if error.unread:
                await _linger(receive)
            await send({"type": "http.response.body", "body": b""})
        except Exception as error:
            if started():
                raise
            await _answer(named, problem_answer(as_problem(error), request_id))
        except asyncio.CancelledError:
            # The server stops, and has waited for long enough.
            if started():
                raise
            await _answer(named, problem_answer(as_problem(OutcomeUnknown()), request_id))

    async def _serve(self, scope: Scope, receive: Receive, send: Send, call: Call) -> None:
        if self._is_oversized(scope):
            detail = f"The headers, and what is asked for, may have {self._headers_max_bytes} bytes at most."
            raise TooMuch("headers_too_large", detail)
        path, method = call.path, scope["method"]
        if path.startswith(API) and b"authorization" not in call.headers:
            call.admit_address()
        if method == "GET" and path.startswith(self._status_prefix):
            scope["credit.route"] = self._status_prefix + "{merchant_id}"
            answer = await self._status(call)
            if answer is not None:
                await _answer(send, answer)
                return
        call.body = await self._body(call, receive, arrived="credit.arrived" in scope)
        hot = self._hot.get((method, path, call.media_type))
        if hot is not None:
            scope["credit.route"] = path
            await call.caller(_HOT)
            answering = hot(call)
            if answering is not None:
                await _answer(send, await answering)
                return
        scope["credit.call"] = call
        await self._app(scope, _replay(call.body, receive), send)

    def _refused(self, address: str, request_id: bytes) -> Answer | None:
        """Count a call of this address, and refuse one too many."""
        try:
            if self._admission is not None:
                self._admission.count(address)
        except Problem as problem:
            return problem_answer(problem, request_id.decode())
        return None

    def _is_oversized(self, scope: Scope) -> bool:
        return _size(scope["headers"]) + len(scope["raw_path"]) + len(scope["query_string"]) > self._headers_max_bytes

    async def _body(self, call: Call, receive: Receive, *, arrived: bool) -> bytes:
        """All of the body. Raises Problem where it is too large, or too slow."""
        large = call.path in self._large
        limit = self._settings.batch_body_max_bytes if large else self._settings.body_max_bytes
        length = call.headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > limit:
            raise _too_large(limit)
        if arrived:  # as nearly always: a clock would cost more than to read it
            return await _read(receive, limit)
        try:
            async with asyncio.timeout(self._settings.body_timeout_seconds):
                return await _read(receive, limit)
        except TimeoutError:
            detail = f"The body did not arrive within {self._settings.body_timeout_seconds:g} seconds."
            raise Problem("request_timeout", detail, headers={"Connection": "close"}) from None


async def _read(receive: Receive, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Problem("bad_request", "The connection was closed before the body had arrived.")
        chunk, more = message.get("body", b""), message.get("more_body", False)
        size += len(chunk)
        if size > limit:
            raise _too_large(limit, unread=more)
        chunks.append(chunk)
        if not more:
            return b"".join(chunks)


def _nothing_to_pages(origin: bytes, has_cookie: bool) -> Headers:
    """For a shell around which nothing stands that lets pages of other origins call."""
    return _NONE


def _nothing_known(path: str, headers: Mapping[bytes, bytes]) -> None:
    """For a shell that answers nothing at once."""


def _trace_id(headers: Headers) -> bytes | None:
    """The trace that a caller names in the one `traceparent` of these headers, where it is well formed (W3C)."""
    (given, *more) = [value for name, value in headers if name == b"traceparent"]
    match = _TRACEPARENT.fullmatch(given)
    if match is None or more or (match[1] == b"00" and match[3] is not None):  # only later versions may add to it
        return None
    return match[2]


def _size(headers: Headers) -> int:
    return sum([len(name) + len(value) + 4 for name, value in headers])


def _media_type(headers: Mapping[bytes, bytes]) -> bytes:
    return headers.get(b"content-type", b"").partition(b";")[0].strip().lower()


def _address(scope: Scope) -> str:
    return str(scope["client"][0]) if scope.get("client") else ""


def _route(scope: Scope) -> str:
    """The template of the route that served a request, so that there are as many as there are routes."""
    if "credit.route" in scope:
        return str(scope["credit.route"])
    template = getattr(scope.get("route"), "path", None)
    if template is None:
        return "none"
    # FastAPI's is that of the router, without the prefix (/api/v1) under which it was included.
    prefix = "/".join(scope["path"].split("/", 3)[:3]) if scope["path"].startswith(API) else ""
    return f"{prefix}{template}"


def _without_body(send: Send) -> Send:
    """The answer to HEAD is that to GET, but for its body."""

    async def headed(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return headed


class TooMuch(Problem):
    """A request refused before all of it was read, after which its connection is of no further use."""

    def __init__(self, code: str, detail: str, *, unread: bool = True) -> None:
        super().__init__(code, detail, headers={"Connection": "close"})
        self.unread = unread  # whether there may be more of it


def _too_large(limit: int, *, unread: bool = True) -> TooMuch:
    return TooMuch("body_too_large", f"The body may have {limit} bytes at most.", unread=unread)


async def _linger(receive: Receive) -> None:
    """Read on for a moment: closed while the client still sends, a connection would be reset with its answer unread."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while (await receive()).get("more_body", False):
                pass


def _own_or_new(given: bytes | None, otherwise: bytes | None = None) -> bytes:
    """An id taken from the caller where it is one, else made."""
    if given is not None and _ID.match(given):
        return given
    # Not a secret, so not from the operating system: each call of it would hand the interpreter to another thread.
    return otherwise or b"%032x" % getrandbits(128)


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replayed() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def _answer(send: Send, answer: Answer, more_headers: Headers = _NONE, *, last: bool = True) -> None:
    status, body, headers, media_type = answer
    if status == 304:
        headers = headers + more_headers
    else:
        headers = [(b"content-type", media_type), (b"content-length", b"%d" % len(body)), *headers, *more_headers]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": not last})


def problem_answer(problem: Problem, request_id: str | None) -> Answer:
    """The answer that tells of a problem."""
    headers = [(name.lower().encode(), value.encode()) for name, value in problem.headers.items()]
    return Answer(problem.status, problem.body(request_id), headers, MEDIA_TYPE)


class _Seldom:
    """Warnings that come with each request while the database is away: one of each event in a while, with their number.

    A log that fills the disk, or hides everything else, would be an outage of its own.
    """

    def __init__(self) -> None:
        self._next_at: dict[str, float] = {}
        self._untold: Counter[str] = Counter()

    def warn(self, event: str, reason: str) -> None:
        """Tell the log, unless it was told lately."""
        now = perf_counter()
        if now < self._next_at.get(event, now):
            self._untold[event] += 1
        else:
            _log.warning(event, reason=reason, untold_before=self._untold.pop(event, 0))
            self._next_at[event] = now + SELDOM_SECONDS


_seldom = _Seldom()


def as_problem(error: Exception) -> Problem:
    """The problem behind an exception; what nobody foresaw is logged, and answered without a word about its inside."""
    match error:
        case Problem():
            return error
        case Overloaded():
            return Problem("overloaded", "Too many postings are waiting. Try again in a moment.")
        case DeadlineExceeded():
            return Problem("deadline_exceeded", "It waited too long for its turn. Repeat it with the same key.")
        case OutcomeUnknown():
            _seldom.warn("outcome_unknown", str(error))
            detail = "Whether it was posted is not known. Repeat the request with the same key to find out."
            return Problem("outcome_unknown", detail)
        case Conflict() | StorageError():
            _seldom.warn("storage_unavailable", str(error))
            return Problem(
                "storage_unavailable",
                "The database cannot be used right now. Repeat it later, a posting with the same key.",
            )
    _log.error("internal_error", exc_info=error)
    return Problem("internal", "Something broke on our side. The log names this request.")
