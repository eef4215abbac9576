"""Reading bodies whole, under limits of size and time, and within a budget for all bodies of the process.

Admission comes before, so only admitted callers fill memory. Handlers come after, so none of them waits for a client.
"""

import asyncio

from credit_service.doors.http.call import Call, Receive
from credit_service.doors.http.problems import Problem
from credit_service.settings import Settings


class Bodies:
    """Reads bodies. The caller must `release` each body when its request is answered."""

    def __init__(self, settings: Settings) -> None:
        self._seconds = settings.body_timeout_seconds
        self._budget = settings.bodies_in_flight_max_bytes
        self._held = 0  # bytes of bodies of requests that are not answered yet

    async def read(self, call: Call, receive: Receive, limit: int, *, arrived: bool) -> bytes:
        """The body of a request, at most `limit` bytes. `arrived`: whether the server has received all of it.

        Raises Problem if the body is compressed, too large or too slow, or if the bodies in flight fill the budget.
        """
        length = call.headers.get(b"content-length", b"0")
        encoding = call.headers.get(b"content-encoding", b"").strip().lower()
        if encoding not in (b"", b"identity"):
            raise Problem("unsupported_media_type", "Send the body uncompressed, without Content-Encoding.")
        if length.isdigit() and int(length) > limit:
            raise _too_large(limit)
        if arrived:  # nearly always; a timeout would cost more than the reading
            return await self._read(receive, limit)
        try:
            async with asyncio.timeout(self._seconds):
                return await self._read(receive, limit)
        except TimeoutError:
            raise Problem("request_timeout", f"The body did not arrive within {self._seconds:g} seconds.") from None

    async def _read(self, receive: Receive, limit: int) -> bytes:
        chunks: list[bytes] = []
        size = 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Problem("bad_request", "The connection was closed before the body had arrived.")
                chunk = message.get("body", b"")
                size += len(chunk)
                self._held += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                if self._held > self._budget:
                    raise Problem("overloaded", "The bodies of other requests fill the memory. Try again in a moment.")
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return b"".join(chunks)
        except BaseException:
            self._held -= size
            raise

    def release(self, body: bytes) -> None:
        self._held -= len(body)


def _too_large(limit: int) -> Problem:
    return Problem("body_too_large", f"The body may have {limit} bytes at most.")
