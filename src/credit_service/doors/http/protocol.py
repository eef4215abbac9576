"""uvicorn's HTTP protocol, with limits on everything that is not a body: connections, headers, trailers, chunk sizes.

uvicorn has no such limits. This class also mends five things: uvicorn reads on while answers are owed, takes trailers
as headers, keeps a connection whose request was answered before it had arrived, drops the body of a request that offers
another protocol, and answers invalid HTTP in plain text, even in the middle of another answer.

The class relies on the inside of `HttpToolsProtocol`: its attributes, the order in which httptools calls it, and when
it pauses reading. So pyproject.toml pins both libraries to the versions that were read.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Sized
from typing import Any

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from credit_service.doors.http.connections import Connections
from credit_service.doors.http.framing import framing_fault
from credit_service.doors.http.problems import MEDIA_TYPE, Problem

_LINGER_SECONDS = 2.0
"""Time in which a client may read a refusal while it still sends."""
_PIECE_BYTES = 4096
"""Bytes that are parsed at once. They may hold a hundred pipelined requests, so nothing more is parsed meanwhile."""
_OVERHEAD_PER_BYTE = 8
"""Bytes of chunk sizes and the like that each byte of a body may cost: clients may send single bytes as chunks."""
_TRAILERS: Any = deque(maxlen=0)
"""Takes the headers that come after the body, and keeps none of them."""


class _PatientFlow(FlowControl):
    """Parses no further while requests of the pipeline wait, and reads no further until all that was read is parsed."""

    def __init__(self, transport: asyncio.Transport, pipeline: Sized, resumed: Callable[[], None]) -> None:
        super().__init__(transport)
        self._pipeline = pipeline
        self._resumed = resumed

    def resume_reading(self) -> None:
        if self.read_paused and not self._pipeline:
            self.read_paused = False
            self._resumed()


class LimitedProtocol(HttpToolsProtocol):
    """Refuses what is too much, too slow or not HTTP/1.1, with a problem that says so, and closes the connection."""

    limits = Connections(2**31, 2**31)
    headers_max_bytes = 16 * 1024
    header_timeout_seconds = 10.0

    def connection_made(self, transport: Any) -> None:
        """A client connected: its first request must come soon."""
        super().connection_made(transport)
        self.flow = _PatientFlow(transport, self.pipeline, self._resumed)
        self._unparsed = b""  # read, but not parsed yet
        self._phase = 0  # changes where the headers of a request end, and where its body ends
        self._in_headers = False  # between the beginning of a request and the end of its headers
        self._in_body = False  # between the headers of a request and its end
        self._body_bytes = 0  # of the body so far
        self._overhead = 0  # bytes of this phase that are not body
        self._overhead_since = 0  # the same since the last byte of the body
        self._serving: Any = None  # the request that is being answered; `cycle` is the last one that arrived
        self._piece_bytes = 0  # of the piece that is being parsed
        self._fault: Problem | None = None  # what is wrong with the headers of a request
        self._timer: asyncio.TimerHandle | None = None
        self._awaits_headers = False  # whether the timer is for headers, and not for the next request
        self._refusal: Problem | None = None
        self._gently = False  # whether to close gently after the answer that is being sent
        self._listening = True  # whether what is sent is parsed
        self._address = self.client[0] if self.client else ""
        no_room = self.limits.open(self._address)
        if no_room is None:
            self._expect_headers()
        elif self.limits.may_tell:
            self._refuse(Problem("overloaded", no_room))
        else:
            self._listening = False
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.limits.close(self._address)
        self._listening = False
        self._await_nothing()
        if self._serving is not None:  # uvicorn tells only the last request that arrived
            self._serving.disconnected = True
            self._serving.message_event.set()
        super().connection_lost(exc)

    # ---- parsing

    def data_received(self, data: bytes) -> None:
        """Bytes arrived. They are parsed piece by piece, unless earlier ones still wait."""
        if not self._listening:
            return
        self._unparsed = self._unparsed + data if self._unparsed else data
        self._parse()

    def _resumed(self) -> None:
        if self._awaits_headers:  # they may have waited behind other requests, so their time begins anew
            self._awaits_headers = False
            self._expect_headers()
        if self._unparsed:  # later, so that other connections have their turn
            self.loop.call_soon(self._parse_rest)
        else:
            self.transport.resume_reading()

    def _parse_rest(self) -> None:
        self._parse()
        if not (self._unparsed or self.flow.read_paused or self.transport.is_closing()):
            self.transport.resume_reading()

    def _parse(self) -> None:
        data, at = self._unparsed, 0
        while at < len(data) and self._listening and not self.flow.read_paused:
            piece = data[at : at + _PIECE_BYTES]
            at += len(piece)
            try:
                self._parse_piece(piece)
            except HttpParserUpgrade as offer:
                data, at = self._without_offer() + piece[offer.args[0] :] + data[at:], 0
            except HttpParserError:
                self._refuse(self._fault or Problem("bad_request", "The request is not valid HTTP/1.1."))
        self._unparsed = data[at:] if self._listening else b""
        if self._in_headers or (self._overhead and not self._in_body):  # empty lines before a request are a part of it
            self._expect_headers()

    def _parse_piece(self, piece: bytes) -> None:
        phase, body_bytes, self._piece_bytes = self._phase, self._body_bytes, len(piece)
        self.parser.feed_data(piece)
        if self._phase != phase:
            self._overhead = self._overhead_since = 0
            return
        body = self._body_bytes - body_bytes
        self._overhead += len(piece) - body
        self._overhead_since = 0 if body else self._overhead_since + len(piece)
        most = 2 * self.headers_max_bytes  # headers that have ended are measured exactly
        if self._overhead_since > most or self._overhead > most + _OVERHEAD_PER_BYTE * self._body_bytes:
            self._refuse(self._too_large())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = True

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._check_headers()
        self._phase += 1
        self._in_headers = False
        self._await_nothing()
        scope: Any = self.scope
        scope["headers"] = tuple(self.headers)
        scope["credit.close_gently"] = self._keep_for_closing
        super().on_headers_complete()
        if not self.pipeline:
            self._serving = self.cycle
        self.headers = _TRAILERS
        self._in_body = True
        self._body_bytes = 0

    def _check_headers(self) -> None:
        """Raise ValueError, of which httptools makes an HttpParserError, if the headers are refused."""
        fault = framing_fault(self.parser.get_http_version(), self.headers)
        if fault is not None:
            self._fault = Problem("bad_request", fault)
        elif self._overhead + self._piece_bytes > self.headers_max_bytes:  # else they cannot be too large
            size = len(self.url) + sum([len(name) + len(value) + 4 for name, value in self.headers])
            self._fault = self._too_large() if size > self.headers_max_bytes else None
        if self._fault is not None:
            raise ValueError(self._fault)

    def _too_large(self) -> Problem:
        detail = f"Path, query, headers, trailers and chunk sizes may have {self.headers_max_bytes} bytes at most."
        return Problem("headers_too_large", detail)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._phase += 1
        self._in_body = False
        super().on_message_complete()
        scope: Any = self.scope
        scope["credit.arrived"] = True  # so the shell needs no timeout for the body

    def _without_offer(self) -> bytes:
        """The head of a request that offers another protocol (HTTP/2, WebSocket), without the offer, to parse again."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":  # it has no meaning without the offer
            self._refuse(Problem("bad_request", "This is not a proxy."))
        lines = [name + b": " + value + b"\r\n" for name, value in self.headers if name != b"upgrade"]
        self.parser = HttpRequestParser(self)
        return b"%s %s HTTP/%s\r\n%s\r\n" % (method, self.url, version, b"".join(lines))

    # ---- answers

    def on_response_complete(self) -> None:
        if self.pipeline or self.transport.is_closing():
            self._serving = self.pipeline[-1][0] if self.pipeline else None
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        if self._refusal is not None:
            self._tell(self._refusal)
        elif self._in_body or self._gently:  # where a rest is not read, the next request has no known beginning
            self._close_gently()
        elif not self._awaits_headers:
            self._await_nothing()
            self._timer = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _keep_for_closing(self) -> None:
        """Close gently after this answer, where uvicorn would close at once for its `Connection: close`."""
        self._gently = self._serving.keep_alive = True

    def _refuse(self, problem: Problem) -> None:
        """Send a problem after all answers that are owed, and read no more."""
        if not self._listening or self.transport.is_closing():
            return
        self._listening, self._refusal = False, problem
        self._await_nothing()
        latest: Any = self.cycle  # None before the first request, whatever its type says
        if latest is None or latest.response_complete:
            self._tell(problem)
        elif not self._in_body:
            pass  # it is about the next request: `on_response_complete` sends it
        elif self.pipeline:
            self.pipeline.popleft()  # it is about this request, which has not begun
        elif latest.response_started:
            self.transport.close()
        else:
            latest.disconnected = True
            latest.message_event.set()
            self._tell(problem)

    def _tell(self, problem: Problem) -> None:
        body = problem.body(None)
        headers = [
            *self.server_state.default_headers,
            (b"content-type", MEDIA_TYPE),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            *[(name.lower().encode(), value.encode()) for name, value in problem.headers.items()],
        ]
        lines = b"".join([b"%b: %b\r\n" % line for line in headers])
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[problem.status], lines, body))
        self._close_gently()

    def _close_gently(self) -> None:
        """Close, but read on for a moment: a connection closed at once is reset, and its answer may be lost."""
        self._await_nothing()
        self._listening, self._unparsed = False, b""
        self.flow.resume_reading()
        self.transport.write_eof()
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    # ---- time

    def _expect_headers(self) -> None:
        """Refuse the request if its headers are late. Waits once for all of them, also if they arrive in pieces."""
        if self._listening and not self._awaits_headers:
            self._await_nothing()
            self._timer = self.loop.call_later(self.header_timeout_seconds, self._headers_late)
            self._awaits_headers = True

    def _headers_late(self) -> None:
        self._awaits_headers = False
        if self.flow.read_paused or self._unparsed:  # the server is late, not the client
            self._expect_headers()
            return
        detail = f"The headers did not arrive within {self.header_timeout_seconds:g} seconds."
        self._refuse(Problem("request_timeout", detail))

    def _await_nothing(self) -> None:
        self._awaits_headers = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def close_unread(connections: Collection[LimitedProtocol], seconds: float) -> None:
    """Abort each connection whose client reads nothing for `seconds` while the server waits for it; until cancelled."""
    waiting: dict[LimitedProtocol, tuple[int, float]] = {}  # unsent bytes, and since when they are so many
    while True:
        await asyncio.sleep(seconds / 4)
        now = time.monotonic()
        before, waiting = waiting, {}
        for connection in list(connections):
            transport = connection.transport
            if not (connection.flow.write_paused or transport.is_closing()):
                continue
            unsent = transport.get_write_buffer_size()
            known, since = before.get(connection, (0, now))
            if not unsent:
                continue
            if unsent == known and now - since >= seconds:
                transport.abort()
            waiting[connection] = (unsent, since if unsent == known else now)
