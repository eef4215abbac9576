"""uvicorn's HTTP protocol, with limits on what happens before there is a request: headers too large, or too slow.

uvicorn has neither. It also reads on while answers are owed, keeps a connection of which a request was answered before
it had arrived, drops the body of a request that offers another protocol, and tells of broken framing in plain text, if
need be in the middle of another answer. Everything after the headers is the shell's.
"""

import asyncio
from collections.abc import Callable, Sized
from typing import Any

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from credit_service.doors.http.problems import MEDIA_TYPE, Problem

LINGER_SECONDS = 2.0
"""Time in which a client may read a refusal while it still sends."""
_TICK_SECONDS = 0.001
"""The loop's timers may be so much early."""


class _PatientFlow(FlowControl):
    """Reads no further while requests wait for those before them, or a pipeline would grow without end."""

    def __init__(self, transport: asyncio.Transport, pipeline: Sized) -> None:
        super().__init__(transport)
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        if not self._pipeline:
            super().resume_reading()


class LimitedProtocol(HttpToolsProtocol):
    """Closes a connection whose headers do not end in time or size, with a problem that says so."""

    headers_max_bytes = 16 * 1024
    header_timeout_seconds = 10.0

    def connection_made(self, transport: Any) -> None:
        """A client connected: its first request must come soon."""
        super().connection_made(transport)
        self.flow = _PatientFlow(transport, self.pipeline)
        self._in_body = False  # between the headers of a request and its end
        self._ended = False  # whether a request ended in the bytes just read
        self._header_bytes = 0  # read of headers that have not ended yet
        self._timer: asyncio.TimerHandle | None = None
        self._looks_at = 0.0  # when the timer does, which is at `_due_at` or sooner
        self._due_at = 0.0
        self._late: Callable[[], None] | None = None  # what to do then, unless what is waited for came
        self._refusal: Problem | None = None
        self._listening = True  # to what else is sent
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client went away."""
        self._await_nothing()
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes arrived."""
        if not self._listening:
            return
        if not self._in_body:
            self._expect_headers()
        self._ended = False
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as offer:
            self._pass_over(data[offer.args[0] :])
        except HttpParserError:
            self._refuse(Problem("bad_request", "The request is not valid HTTP/1.1."))
        if self._in_body:
            return
        # Headers that have ended are measured by the shell, exactly; this is for those that would never end.
        self._header_bytes = 0 if self._ended else self._header_bytes + len(data)
        if self._header_bytes > 2 * self.headers_max_bytes:
            self._refuse(Problem("headers_too_large", f"Headers may have {self.headers_max_bytes} bytes at most."))

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._expect_headers()

    def on_headers_complete(self) -> None:
        """Its headers are complete."""
        if self.parser.should_upgrade():
            return
        self._stop_expecting()
        super().on_headers_complete()
        self._in_body = True

    def on_message_complete(self) -> None:
        """It is complete."""
        if self.parser.should_upgrade():
            return
        self._in_body = False
        self._ended = True
        super().on_message_complete()
        scope: Any = self.scope
        scope["credit.arrived"] = True  # so that nobody need watch how long its body takes

    def on_response_complete(self) -> None:
        """It was answered."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._refusal is not None:
            self._tell(self._refusal)
        elif self._in_body:  # nobody will read the rest of it, so where the next one begins cannot be known
            self._close_gently()
        elif self._late is None:
            self._await(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _pass_over(self, rest: bytes) -> None:
        """Read a request that offers another protocol (HTTP/2, WebSocket) again, as if it did not."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":  # offers nothing else
            self._refuse(Problem("bad_request", "This is not a proxy."))
            return
        lines = [name + b": " + value + b"\r\n" for name, value in self.headers if name != b"upgrade"]
        self.parser = HttpRequestParser(self)
        self.data_received(b"%s %s HTTP/%s\r\n%s\r\n%s" % (method, self.url, version, b"".join(lines), rest))

    def _expect_headers(self) -> None:
        if self._late != self._headers_late:
            self._await(self.header_timeout_seconds, self._headers_late)

    def _stop_expecting(self) -> None:
        self._header_bytes = 0
        self._await_nothing()

    def _await(self, seconds: float, late: Callable[[], None]) -> None:
        """What comes next has so much time. One timer serves for many requests, and looks again when it was early."""
        self._due_at, self._late = self.loop.time() + seconds, late
        if self._timer is not None and self._looks_at > self._due_at:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._look_later()

    def _await_nothing(self) -> None:
        self._late = None

    def _look_later(self) -> None:
        self._looks_at = self._due_at
        self._timer = self.loop.call_at(self._due_at, self._look)

    def _look(self) -> None:
        self._timer = None
        late = self._late
        if late is None:
            return
        if self._due_at - self.loop.time() > _TICK_SECONDS:
            self._look_later()
            return
        self._late = None
        late()

    def _unset_keepalive_if_required(self) -> None:
        if self._late == self.timeout_keep_alive_handler:
            self._await_nothing()

    def _headers_late(self) -> None:
        if self.flow.read_paused:  # it is us who are late
            self._expect_headers()
            return
        detail = f"The headers did not arrive within {self.header_timeout_seconds:g} seconds."
        self._refuse(Problem("request_timeout", detail))

    def _refuse(self, problem: Problem) -> None:
        """Tell of a problem, after all answers that are owed, and read no more."""
        if not self._listening or self.transport.is_closing():
            return
        self._listening, self._refusal = False, problem
        self._stop_expecting()
        latest: Any = self.cycle  # None before the first request, whatever its type says
        if latest is None or latest.response_complete:
            self._tell(problem)
        elif not self._in_body:
            pass  # it is about the next request: `on_response_complete` tells when its turn has come
        elif self.pipeline:
            self.pipeline.popleft()  # it is about this one, which still waits for its turn
        elif latest.response_started:
            self.transport.close()
        else:
            latest.disconnected = True
            latest.message_event.set()
            self._tell(problem)

    def _tell(self, problem: Problem) -> None:
        body = problem.body(None)
        head = b"content-type: %s\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % (MEDIA_TYPE, len(body))
        self.transport.write(STATUS_LINE[problem.status] + head + body)
        self._close_gently()

    def _close_gently(self) -> None:
        """Close, but read on for a moment: a connection closed at once would be reset, with its answer unread."""
        self._unset_keepalive_if_required()
        self._listening = False
        self.flow.resume_reading()
        self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)
