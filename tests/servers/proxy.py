"""A network that fails on request: a TCP proxy between clients and any server (PostgreSQL, Redis, NATS).

It makes outcomes unknown to a caller: it breaks a connection before or after the server gets a commit, or holds it.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")
_CHUNK = 65536
_LONGEST_PATTERN = 256
_RESET_WHEN_CLOSED = struct.pack("ii", 1, 0)


@dataclass
class _Trap:
    """Cuts the connection of the client that sends the pattern."""

    pattern: bytes
    occurrences_left: int
    delivered: bool
    sprung: threading.Event = field(default_factory=threading.Event)

    def find(self, before: bytes, sent: bytes) -> int | None:
        """Return where the awaited occurrence of the pattern starts in `sent`. Part of it may be in `before`."""
        both = before + sent
        start = max(0, len(before) - len(self.pattern) + 1)
        while (found := both.find(self.pattern, start)) >= 0:
            self.occurrences_left -= 1
            if self.occurrences_left == 0:
                return max(0, found - len(before))
            start = found + len(self.pattern)
        return None


class _Sprung(Exception):
    """The trap has cut this connection."""


class Proxy:
    """Forwards all data until a test asks for a fault. It runs in its own thread, so tests need no event loop."""

    def __init__(self, url: str) -> None:
        """Listen in front of the server of this URL. The attribute `url` is the same URL through the proxy."""
        parts = urlsplit(url)
        self._host, self._port = parts.hostname, parts.port
        self._connections: set[asyncio.Task[None]] = set()
        self._trap: _Trap | None = None
        self._delay = 0.0
        self._loop = asyncio.SelectorEventLoop()  # independent of the event loop policy of the test
        self._passing = asyncio.Event()
        self._passing.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        # We do not use the server of asyncio, because it cannot cut a connection between accept and serve.
        self._loop.add_reader(self._listener, self._accept)
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        user, at, _ = parts.netloc.rpartition("@")
        self.url = parts._replace(netloc=f"{user}{at}127.0.0.1:{self.port}").geturl()

    def cut(self) -> None:
        """Reset every open connection at both ends. New connections pass."""
        self._do(self._cut())

    def cut_before(self, pattern: bytes, occurrence: int = 1) -> threading.Event:
        """Cut the client that sends this pattern for the n-th time from now. The server does not receive the pattern.

        Returns an event that is set after the cut. All later data passes.
        """
        return self._do(self._set_trap(_Trap(pattern, occurrence, delivered=False)))

    def cut_after(self, pattern: bytes, occurrence: int = 1) -> threading.Event:
        """Like `cut_before`, but the server receives the pattern and answers. The client does not get the answer."""
        return self._do(self._set_trap(_Trap(pattern, occurrence, delivered=True)))

    def hold(self) -> None:
        """Hold all data: connections open and accept data, but forward nothing."""
        self._do(self._let_pass(False))

    def release(self) -> None:
        """Resume after `hold`, and forward the held data. As on a real network, only a cut loses data."""
        self._do(self._let_pass(True))

    def delay(self, seconds: float) -> None:
        """Delay all data by `seconds` in each direction from now on."""
        self._delay = seconds

    def close(self) -> None:
        """Reset every connection and stop listening."""
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the proxy's thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _close(self) -> None:
        self._loop.remove_reader(self._listener)
        self._listener.close()
        await self._cut()

    async def _cut(self) -> None:
        await asyncio.sleep(
            0
        )  # let new tasks start first, because a task cancelled before its start leaves its socket open
        for connection in (connections := list(self._connections)):
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _set_trap(self, trap: _Trap) -> threading.Event:
        self._trap = trap
        return trap.sprung

    async def _let_pass(self, passing: bool) -> None:
        if passing:
            self._passing.set()
        else:
            self._passing.clear()

    def _accept(self) -> None:
        with suppress(OSError):  # the client may have closed it already
            accepted, _ = self._listener.accept()
            connection = self._loop.create_task(self._connect(accepted))
            self._connections.add(connection)
            connection.add_done_callback(self._connections.discard)

    async def _connect(self, accepted: socket.socket) -> None:
        """Serve one connection to its end. If the server is down, reset the client."""
        ends: list[asyncio.StreamWriter] = []
        try:
            requests, client = await asyncio.open_connection(sock=accepted)
            ends.append(client)
            await self._passing.wait()
            answers, server = await asyncio.open_connection(self._host, self._port)
            ends.append(server)
            link = _Link(requests, answers, client, server)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass_requests(link))
                both.create_task(self._pass_answers(link))
        except* _Sprung:
            _reset(ends[0])  # the server still reads all the data that it got
        except* (OSError, asyncio.CancelledError):
            for end in ends:
                _reset(end)
        for end in ends:
            end.close()
        try:
            await asyncio.gather(*(end.wait_closed() for end in ends), return_exceptions=True)
        except asyncio.CancelledError:  # a cut during the last flush
            for end in ends:
                _reset(end)

    async def _pass_requests(self, link: "_Link") -> None:
        before = b""
        while sent := await link.requests.read(_CHUNK):
            await self._travel()
            trap = self._trap
            found = None if trap is None else trap.find(before, sent)
            before = (before + sent)[-_LONGEST_PATTERN:]
            if trap is None or found is None:
                link.server.write(sent)
            else:
                self._trap = None
                link.trap = trap
                link.server.write(sent if trap.delivered else sent[:found])
                if not trap.delivered:
                    trap.sprung.set()
                    raise _Sprung
            await link.server.drain()
        link.server.write_eof()

    async def _pass_answers(self, link: "_Link") -> None:
        while sent := await link.answers.read(_CHUNK):
            await self._travel()
            if link.trap is not None:
                link.trap.sprung.set()
                raise _Sprung
            link.client.write(sent)
            await link.client.drain()
        link.client.write_eof()

    async def _travel(self) -> None:
        await asyncio.sleep(self._delay)
        await self._passing.wait()


@dataclass
class _Link:
    """The connection between a client and the server, and the trap that it triggered."""

    requests: asyncio.StreamReader
    answers: asyncio.StreamReader
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    trap: _Trap | None = None


def _reset(end: asyncio.StreamWriter) -> None:
    """Close with a reset, so that the other side sees an error and not a regular end."""
    with suppress(OSError):
        end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_WHEN_CLOSED)
    end.transport.abort()
