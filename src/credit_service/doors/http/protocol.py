"""uvicorn's HTTP protocol, with limits on what happens before there is a request: headers too large, or too slow.

uvicorn has neither, and answers broken framing in plain text. Everything after the headers is the shell's.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from credit_service.doors.http.problems import MEDIA_TYPE, Problem


class LimitedProtocol(HttpToolsProtocol):
    """Closes a connection whose headers do not end in time or size, with a problem that says so."""

    headers_max_bytes = 16 * 1024
    header_timeout_seconds = 10.0

    def connection_made(self, transport: Any) -> None:
        """A client connected: its first request must come soon."""
        super().connection_made(transport)
        self._header_bytes = 0
        self._in_headers = True
        self._header_timer: asyncio.TimerHandle | None = self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client went away."""
        self._headers_arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes arrived."""
        super().data_received(data)
        if self._in_headers:
            self._header_bytes += len(data)
            # The request line counts, too; the shell measures exactly what httptools let through.
            if self._header_bytes > 2 * self.headers_max_bytes and not self.transport.is_closing():
                detail = f"Headers may have {self.headers_max_bytes} bytes at most."
                self._refuse(Problem("headers_too_large", detail))

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_headers = True
        self._header_bytes = 0
        if self._header_timer is None:
            self._header_timer = self._expect_headers()

    def on_headers_complete(self) -> None:
        """Its headers are complete."""
        self._headers_arrived()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """The bytes are not HTTP."""
        self._refuse(Problem("bad_request", "The request is not valid HTTP/1.1."))

    def _expect_headers(self) -> asyncio.TimerHandle:
        return self.loop.call_later(self.header_timeout_seconds, self._headers_late)

    def _headers_arrived(self) -> None:
        self._in_headers = False
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _headers_late(self) -> None:
        self._header_timer = None
        detail = f"The headers did not arrive within {self.header_timeout_seconds:g} seconds."
        self._refuse(Problem("request_timeout", detail))

    def _refuse(self, problem: Problem) -> None:
        if self.transport.is_closing():
            return
        body = problem.body(None)
        head = b"content-type: %s\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % (MEDIA_TYPE, len(body))
        self.transport.write(STATUS_LINE[problem.status] + head + body)
        self.transport.close()
