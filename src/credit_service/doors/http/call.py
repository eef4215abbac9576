"""A request and its answer, as every handler sees them.

The shell makes one `Call` for each request. Admission adds the API key, and the shell adds the body, before any handler
sees it.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from random import getrandbits
from types import MappingProxyType
from typing import Any, NamedTuple

from credit_service.doors.http.keys import require
from credit_service.doors.http.problems import MEDIA_TYPE, Problem
from credit_service.doors.http.rate_limits import RateLimit
from credit_service.messages.content import Limits
from credit_service.storage.keys import ApiKey

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]

JSON = b"application/json"
_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_TRACEPARENT = re.compile(rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


class Answer(NamedTuple):
    """A complete answer."""

    status: int
    body: bytes
    headers: Headers = ()
    media_type: bytes = JSON


class Call:
    """One request: its path, query, headers and body, its ids, and the caller.

    `headers` maps each name to its last value; `sent` gives every value of a name. Both are read-only. `address` is the
    client's, also behind a trusted proxy. `key` is None on public routes. `rate_limit` is the limit that the request
    counted for, and the seconds until it is unused again.
    """

    __slots__ = (
        "_sent",
        "address",
        "answered_at",
        "body",
        "correlation_id",
        "has_body",
        "headers",
        "is_head",
        "is_read",
        "is_stream",
        "key",
        "limits",
        "method",
        "path",
        "query",
        "rate_limit",
        "request_id",
        "status",
        "trace_id",
    )

    def __init__(self, scope: Scope, limits: Limits) -> None:
        self._sent: Headers = scope["headers"]
        headers = dict(self._sent)
        self.headers: Mapping[bytes, bytes] = MappingProxyType(headers)
        self.has_body = b"content-length" in headers or b"transfer-encoding" in headers
        self.is_head = scope["method"] == "HEAD"  # answered as GET; the server leaves out the body
        self.method: str = "GET" if self.is_head else scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self.limits = limits
        trace_id = _trace_id(self.sent(b"traceparent")) if b"traceparent" in headers else None
        # The id is no secret. os.urandom would release the GIL, and another thread could keep it for milliseconds.
        self.request_id = _own_id(headers, b"x-request-id") or f"{getrandbits(128):032x}"
        self.correlation_id = _own_id(headers, b"x-correlation-id") or trace_id or self.request_id
        self.trace_id = trace_id
        self.rate_limit: tuple[RateLimit, float] | None = None
        self.address = ""
        self.key: ApiKey | None = None
        self.body = b""
        self.is_read = False  # whether `body` is complete
        self.is_stream = False  # whether the answer is a stream of events
        self.status = 0  # of the answer, once it has begun
        self.answered_at = 0.0  # when an answer in parts began

    @property
    def actor(self) -> str:
        """The caller, as postings record it."""
        return "" if self.key is None else f"key:{self.key.id}"

    def log_names(self) -> dict[str, str]:
        """What every log line of this request carries."""
        names = {"request_id": self.request_id, "correlation_id": self.correlation_id}
        return names if self.trace_id is None else {**names, "trace_id": self.trace_id}

    @property
    def answer_headers(self) -> Headers:
        """The headers that the answer gets, whatever it is: ids, and what is left of the rate limit."""
        ids = [(b"x-request-id", self.request_id.encode()), (b"x-correlation-id", self.correlation_id.encode())]
        if self.rate_limit is None:
            return ids
        limit, full_in_seconds = self.rate_limit
        return [*ids, *limit.headers(full_in_seconds)]

    @property
    def media_type(self) -> bytes:
        """The media type of the body, without its parameters."""
        return self.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()

    def sent(self, name: bytes) -> list[bytes]:
        """Every value of a header, in order."""
        return [value for other, value in self._sent if other == name]

    def require(self, scope: str) -> None:
        """Raise Problem unless the caller's key includes a scope. Admission has checked the scope of the route."""
        assert self.key is not None
        require(self.key, scope)


def problem_answer(problem: Problem, request_id: str | None) -> Answer:
    headers = [(name.lower().encode(), value.encode()) for name, value in problem.headers.items()]
    return Answer(problem.status, problem.body(request_id), headers, MEDIA_TYPE)


Result = Answer | Application
"""A complete answer, or an application that sends one piece by piece."""
Handler = Callable[[Call], Awaitable[Result]]
"""Answers a request that was admitted and whose body was read."""


def _trace_id(given: Sequence[bytes]) -> str | None:
    """The trace id of the one `traceparent` header, if it is well formed (W3C)."""
    match = _TRACEPARENT.fullmatch(given[0])
    if match is None or len(given) > 1 or (match[1] == b"00" and match[3] is not None):  # only later versions add to it
        return None
    return match[2].decode()


def _own_id(headers: Mapping[bytes, bytes], name: bytes) -> str | None:
    """The caller's own id in a header, if it is well formed."""
    return headers[name].decode() if name in headers and _ID.fullmatch(headers[name]) else None
