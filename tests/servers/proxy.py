"""A network that fails on request: a TCP proxy between clients and any server (PostgreSQL, Redis, NATS).

It does what leaves a caller not knowing: a connection dies before or after the server was told to commit, or is silent.
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
    """Cuts the connection whose client sends this."""

    pattern: bytes
    occurrences_left: int
    delivered: bool
    sprung: threading.Event = field(default_factory=threading.Event)

    def find(self, before: bytes, sent: bytes) -> int | None:
        """Where in what is sent the occurrence begins that counts; part of it may have been sent before."""
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
    """Passes everything on until told otherwise, in a thread of its own: for tests with an event loop and without."""

    def __init__(self, url: str) -> None:
        """Listen in front of the server of this URL; `url` then is the same by way of the proxy."""
        parts = urlsplit(url)
        self._host, self._port = parts.hostname, parts.port
        self._connections: set[asyncio.Task[None]] = set()
        self._trap: _Trap | None = None
        self._delay = 0.0
        self._loop = asyncio.SelectorEventLoop()  # whatever loop the program under test has chosen
        self._passing = asyncio.Event()
        self._passing.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        # Not asyncio's own server: it loses sight of a connection between accepting and serving it.
        self._loop.add_reader(self._listener, self._accept)
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        user, at, _ = parts.netloc.rpartition("@")
        self.url = parts._replace(netloc=f"{user}{at}127.0.0.1:{self.port}").geturl()

    def cut(self) -> None:
        """Reset every open connection, at both ends. New ones pass."""
        self._do(self._cut())

    def cut_before(self, pattern: bytes, occurrence: int = 1) -> threading.Event:
        """Cut off the client that sends this pattern for the n-th time from now: the server never sees it.

        The event is set when it has happened; everything later passes.
        """
        return self._do(self._set_trap(_Trap(pattern, occurrence, delivered=False)))

    def cut_after(self, pattern: bytes, occurrence: int = 1) -> threading.Event:
        """Like `cut_before`, but the server gets it, does it and answers: only the client never hears of it."""
        return self._do(self._set_trap(_Trap(pattern, occurrence, delivered=True)))

    def hold(self) -> None:
        """Be a black hole: connections open and take what is sent, and nothing arrives."""
        self._do(self._let_pass(False))

    def release(self) -> None:
        """Go on after `hold`, with what was held: as on a network that was away, nothing is lost but by a cut."""
        self._do(self._let_pass(True))

    def delay(self, seconds: float) -> None:
        """From now on hold up all that is sent so long, in each direction."""
        self._delay = seconds

    def close(self) -> None:
        """Reset every connection and listen no more."""
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        """Do this in the proxy's thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _close(self) -> None:
        self._loop.remove_reader(self._listener)
        self._listener.close()
        await self._cut()

    async def _cut(self) -> None:
        await asyncio.sleep(0)  # those just accepted begin: cancelled before, they would leave a socket open
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
        with suppress(OSError):  # it may be gone again
            accepted, _ = self._listener.accept()
            connection = self._loop.create_task(self._connect(accepted))
            self._connections.add(connection)
            connection.add_done_callback(self._connections.discard)

    async def _connect(self, accepted: socket.socket) -> None:
        """One connection, to its end. A client whose server is away is reset."""
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
            _reset(ends[0])  # the server reads to the end what it was given
        except* (OSError, asyncio.CancelledError):
            for end in ends:
                _reset(end)
        for end in ends:
            end.close()
        try:
            await asyncio.gather(*(end.wait_closed() for end in ends), return_exceptions=True)
        except asyncio.CancelledError:  # cut while a last word was still to be delivered
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
    """A client and the server, with the trap that it went into."""

    requests: asyncio.StreamReader
    answers: asyncio.StreamReader
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    trap: _Trap | None = None


def _reset(end: asyncio.StreamWriter) -> None:
    """Close so that the other side is told of an error, not of an end."""
    with suppress(OSError):
        end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_WHEN_CLOSED)
    end.transport.abort()
