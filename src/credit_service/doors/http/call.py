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
    client's, also behind a trusted proxy. `answer_headers` and `limit_headers` are added to the answer. `key` is None
    on public routes.
    """

    __slots__ = (
        "_sent",
        "address",
        "answer_headers",
        "body",
        "correlation_id",
        "headers",
        "is_head",
        "is_read",
        "is_stream",
        "key",
        "limit_headers",
        "limits",
        "method",
        "path",
        "query",
        "request_id",
        "trace_id",
    )

    def __init__(self, scope: Scope, limits: Limits) -> None:
        self._sent: Headers = tuple(scope["headers"])
        self.headers: Mapping[bytes, bytes] = MappingProxyType(dict(self._sent))
        self.is_head = scope["method"] == "HEAD"  # answered as GET; the server leaves out the body
        self.method: str = "GET" if self.is_head else scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self.limits = limits
        self.trace_id = _trace_id(self.sent(b"traceparent")) if b"traceparent" in self.headers else None
        request_id = _own_or_new(self.headers.get(b"x-request-id"))
        correlation_id = _own_or_new(self.headers.get(b"x-correlation-id"), self.trace_id or request_id)
        self.request_id = request_id.decode()
        self.correlation_id = correlation_id.decode()
        self.answer_headers = [(b"x-request-id", request_id), (b"x-correlation-id", correlation_id)]
        self.limit_headers: Headers = ()  # what is left of the rate limit
        self.address = ""
        self.key: ApiKey | None = None
        self.body = b""
        self.is_read = False  # whether `body` is complete
        self.is_stream = False  # whether the answer is a stream of events

    @property
    def actor(self) -> str:
        """The caller, as postings record it."""
        return "" if self.key is None else f"key:{self.key.id}"

    @property
    def names(self) -> dict[str, str]:
        """What every log line of this request carries."""
        names = {"request_id": self.request_id, "correlation_id": self.correlation_id}
        return names if self.trace_id is None else {**names, "trace_id": self.trace_id.decode()}

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
    """The answer that carries a problem."""
    headers = [(name.lower().encode(), value.encode()) for name, value in problem.headers.items()]
    return Answer(problem.status, problem.body(request_id), headers, MEDIA_TYPE)


Result = Answer | Application
"""A complete answer, or an application that sends one piece by piece."""
Handler = Callable[[Call], Awaitable[Result]]
"""Answers a request that was admitted and whose body was read."""


def _trace_id(given: Sequence[bytes]) -> bytes | None:
    """The trace id of the one `traceparent` header, if it is well formed (W3C)."""
    match = _TRACEPARENT.fullmatch(given[0])
    if match is None or len(given) > 1 or (match[1] == b"00" and match[3] is not None):  # only later versions add to it
        return None
    return match[2]


def _own_or_new(given: bytes | None, otherwise: bytes | None = None) -> bytes:
    """The caller's id if it is well formed, else a new one."""
    if given is not None and _ID.fullmatch(given):
        return given
    # The id is no secret. os.urandom would release the GIL, and another thread could keep it for milliseconds.
    return otherwise or b"%032x" % getrandbits(128)
