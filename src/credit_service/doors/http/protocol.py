"""uvicorn's HTTP protocol, with limits on what happens before there is a request: headers too large, or too slow.

uvicorn has neither. It also reads on while answers are owed, keeps a connection of which a request was answered before
it had arrived, drops the body of a request that offers another protocol, and tells of broken framing in plain text, if
need be in the middle of another answer. Everything after the headers is the shell's; what has arrived whole it may
answer at once, without ASGI (docs/decisions/0030).
"""

import asyncio
from collections.abc import Awaitable, Callable, Sized
from typing import Any, ClassVar

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from credit_service.doors.http.problems import MEDIA_TYPE, Problem
from credit_service.doors.http.shell import LINGER_SECONDS, Answer, Shell

MOST_AT_ONCE = 16
"""So many requests of one connection are answered before others have their turn."""
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


class _AtOnce:
    """A request that is answered without ASGI, as far as uvicorn asks about it."""

    __slots__ = ("disconnected", "keep_alive", "response_complete")

    response_started = False  # an answer is written whole
    message_event = asyncio.Event()  # nobody waits for more of the request

    def __init__(self) -> None:
        self.disconnected = False
        self.keep_alive = True
        self.response_complete = False


class LimitedProtocol(HttpToolsProtocol):
    """Closes a connection whose headers do not end in time or size, with a problem that says so.

    Asks the shell first about a request that has arrived whole, where nothing else is under way on the connection.
    """

    shell: ClassVar[Shell | None] = None  # which answers at once what it can
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
        self._held: list[bytes] | None = None  # the body of a request that may be answered at once
        self._at_once = 0  # requests that were answered before anything else happened, of the bytes just read
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
        self._at_once = 0
        try:
            self.parser.feed_data(data)
            self._release()
        except HttpParserUpgrade as offer:
            self._pass_over(data[offer.args[0] :])
        except HttpParserError:
            self._held = None
            self._refuse(Problem("bad_request", "The request is not valid HTTP/1.1."))
        if self._in_body:
            return
        # Headers that have ended are measured by the shell, exactly; this is for those that would never end.
        self._header_bytes = 0 if self._ended else self._header_bytes + len(data)
        if self._header_bytes > 2 * self.headers_max_bytes:
            self._refuse(Problem("headers_too_large", f"Headers may have {self.headers_max_bytes} bytes at most."))

    def on_message_begin(self) -> None:
        """A request begins."""
        self.url, self.headers, self.expect_100_continue = b"", [], False
        self._expect_headers()

    def on_headers_complete(self) -> None:
        """Its headers are complete."""
        if self.parser.should_upgrade():
            return
        self._stop_expecting()
        if self._may_be_answered_at_once():
            self._held = []
        else:
            self._begin()
        self._in_body = True

    def on_body(self, body: bytes) -> None:
        """A part of its body."""
        if self._held is None:
            super().on_body(body)
        else:
            self._held.append(body)

    def on_message_complete(self) -> None:
        """It is complete."""
        if self.parser.should_upgrade():
            return
        self._in_body = False
        self._ended = True
        if self._held is not None and self._is_answered_at_once(b"".join(self._held)):
            self._held = None
            return
        self._release()
        super().on_message_complete()
        scope: Any = self.scope
        scope["credit.arrived"] = True  # so that nobody need watch how long its body takes

    def _may_be_answered_at_once(self) -> bool:
        """Whether to wait for the rest of this request, which nearly always is there, before anything is made of it."""
        latest: Any = self.cycle
        return (
            self.shell is not None
            and self.shell.may_be_at_once(self.parser.get_method(), self.url)
            and (latest is None or latest.response_complete)
            and self._at_once < MOST_AT_ONCE
            and not self.flow.write_paused
            and self.parser.get_http_version() == "1.1"
            and self.parser.should_keep_alive()
        )

    def _is_answered_at_once(self, body: bytes) -> bool:
        shell: Any = self.shell
        address = self.client[0] if self.client else ""
        try:
            answer = shell.at_once(self.parser.get_method(), self.url, self.headers, address, body)
        except Exception:  # comes again, and is told, where there is a way to tell it
            return False
        if answer is None:
            return False
        if isinstance(answer, Answer):
            self._at_once += 1
            self._write(answer)
            self.on_response_complete()
            return True
        cycle: Any = _AtOnce()
        self.cycle = cycle
        task = self.loop.create_task(self._answer(cycle, answer))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)
        return True

    async def _answer(self, cycle: "_AtOnce", answering: Awaitable[Answer]) -> None:
        answer = await answering
        if self.flow.write_paused and not cycle.disconnected:
            await self.flow.drain()
        cycle.response_complete = True
        if not cycle.disconnected and not self.transport.is_closing():
            self._write(answer, last=not cycle.keep_alive)
            self.on_response_complete()

    def _write(self, answer: Answer, *, last: bool = False) -> None:
        """Write a whole answer, in one piece."""
        status, body, headers, media_type = answer
        head = [*headers, *self.server_state.default_headers]
        if status != 304:
            head = [(b"content-type", media_type), (b"content-length", b"%d" % len(body)), *head]
        if last:
            head.append((b"connection", b"close"))
        lines = b"".join([b"%b: %b\r\n" % line for line in head])
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[status], lines, body))
        if last:
            self.transport.close()

    def _release(self) -> None:
        """Treat a request that was held as all others are."""
        if self._held is not None:
            held, self._held = self._held, None
            try:
                self._begin()
            except Exception as error:  # as the parser says it of whom it calls
                raise HttpParserCallbackError("the request cannot be read") from error
            if held:
                super().on_body(b"".join(held))

    def _begin(self) -> None:
        """Make of the headers what uvicorn makes of them."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.headers, self.expect_100_continue = url, headers, expects
        self.scope["headers"] = headers
        super().on_headers_complete()

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
