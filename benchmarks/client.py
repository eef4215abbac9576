"""A cheap HTTP client, so that the server is most of the measured time.

The caller prepares the requests, and the client reads only the length of each response.
"""

import select
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

HOST = "127.0.0.1"


def get(path: str, **headers: str) -> bytes:
    """Return a GET request. In the header names, `_` stands for `-`."""
    return f"{_head('GET', path, headers)}\r\n".encode()


def post(path: str, body: bytes, **headers: str) -> bytes:
    """Return a POST request with a JSON body. In the header names, `_` stands for `-`."""
    head = f"{_head('POST', path, headers)}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _head(method: str, path: str, headers: Mapping[str, str]) -> str:
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()]
    return f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nAccept: */*\r\n{''.join(lines)}"


class Connection:
    """A connection for one request at a time. Each response must have the expected status code."""

    def __init__(self, port: int, status: int = 200) -> None:
        self.socket = socket.create_connection((HOST, port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._begin = b"HTTP/1.1 %d " % status
        self._arrived = b""
        self._asked_at = 0.0

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def ask(self, request: bytes) -> float:
        """Send the request, and return the seconds until the response."""
        self.send(request)
        while (took := self.receive()) is None:
            pass
        return took

    def send(self, request: bytes) -> None:
        """Send the request without waiting for the response."""
        self._asked_at = time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> float | None:
        """Read the data that has arrived. Returns the seconds since the request, or None if more data must come."""
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("the server closed a connection")
        if self._arrived:
            data = self._arrived + data
        if not self._is_whole(data):
            self._arrived = data
            return None
        self._arrived = b""
        return time.perf_counter() - self._asked_at

    def _is_whole(self, data: bytes) -> bool:
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return False
        if not data.startswith(self._begin):
            raise RuntimeError(data.decode("latin-1"))
        length = data.index(b"content-length: ") + len(b"content-length: ")
        return len(data) >= end + 4 + int(data[length : data.index(b"\r\n", length)])


class Run(NamedTuple):
    """The result of a run: its total seconds, and the seconds of each response."""

    seconds: float
    waits: Sequence[float]


def load(port: int, requests: Iterable[bytes], connections: int, status: int = 200) -> Run:
    """Send all requests over `connections`. Each connection sends its next request as soon as it has a response.

    This is a plain loop over epoll. An event loop reads everything before it sends again, so client and server would
    work in turns and not side by side.
    """
    waits: list[float] = []
    left = iter(requests)

    def ask_next(connection: Connection) -> bool:
        request = next(left, None)
        if request is not None:
            connection.send(request)
        return request is not None

    with ExitStack() as stack:
        epoll = stack.enter_context(select.epoll())
        made = [stack.enter_context(Connection(port, status)) for _ in range(connections)]
        by_number = {connection.socket.fileno(): connection for connection in made}
        for number in by_number:
            epoll.register(number, select.EPOLLIN)
        started = time.perf_counter()
        pending = sum([ask_next(connection) for connection in made])
        while pending:
            for number, _ in epoll.poll():
                took = by_number[number].receive()
                if took is not None:
                    waits.append(took)
                    pending -= not ask_next(by_number[number])
        return Run(time.perf_counter() - started, waits)
