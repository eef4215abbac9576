"""A client that costs little beside the server it measures: ready-made requests, and answers read by their length."""

import select
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

HOST = "127.0.0.1"


def get(path: str, **headers: str) -> bytes:
    """A GET request; headers by their names with _ for -."""
    return f"{_head('GET', path, headers)}\r\n".encode()


def post(path: str, body: bytes, **headers: str) -> bytes:
    """A POST request with a JSON body; headers by their names with _ for -."""
    head = f"{_head('POST', path, headers)}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _head(method: str, path: str, headers: Mapping[str, str]) -> str:
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()]
    return f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nAccept: */*\r\n{''.join(lines)}"


class Connection:
    """A connection on which one request at a time is under way, and each answer has the expected status."""

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
        """Ask, and return how long the answer took."""
        self.send(request)
        while (took := self.receive()) is None:
            pass
        return took

    def send(self, request: bytes) -> None:
        """Ask."""
        self._asked_at = time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> float | None:
        """Read what has arrived; how long the answer took, or None while there is more to come."""
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
    """What a run measured: the seconds it took, and those that each answer took."""

    seconds: float
    waits: Sequence[float]


def load(port: int, requests: Iterable[bytes], connections: int, status: int = 200) -> Run:
    """Ask all requests over so many connections, each of which takes the next as soon as it has an answer.

    A plain loop over epoll: an event loop sends only when it has read all that had arrived, so that client and server
    take turns where they should work side by side.
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
        begun = time.perf_counter()
        under_way = sum([ask_next(connection) for connection in made])
        while under_way:
            for number, _ in epoll.poll():
                took = by_number[number].receive()
                if took is not None:
                    waits.append(took)
                    under_way -= not ask_next(by_number[number])
        return Run(time.perf_counter() - begun, waits)
