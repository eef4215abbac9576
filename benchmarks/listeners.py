"""The stream of events with 500 listeners: the memory of the service, and the events that reach the listeners.

The benchmark reads the memory without listeners, with all listeners connected, after the first tenth of the events, and
at the end. Memory that grows after the first tenth is a leak of the event stream.
"""

import json
import select
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import count

from benchmarks.client import HOST, Connection, post
from benchmarks.http_spend import open_accounts
from benchmarks.ledger import folder
from benchmarks.measure import Figure, figure, ratio
from benchmarks.servers import Server, running

LISTENERS = 500
MERCHANTS = 100
STEPS = 10
_MARK = b"\nevent: "
_numbers = count(1)


class Listener:
    """A connection to the stream that counts the received events."""

    def __init__(self, server: Server) -> None:
        self.socket = socket.create_connection((HOST, server.port))
        self.socket.sendall(
            f"GET /api/v1/credits/events?start=now HTTP/1.1\r\nHost: {HOST}\r\nAccept: text/event-stream\r\n"
            f"Authorization: Bearer {server.key}\r\n\r\n".encode()
        )
        self._end = self.socket.recv(65536)  # the headers, and perhaps the first line of the stream
        if not self._end.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(self._end.decode("latin-1"))

    def receive(self) -> int:
        """Read the data that has arrived. Returns the number of new events."""
        data = self._end + self.socket.recv(1 << 20)
        self._end = data[1 - len(_MARK) :]
        return data.count(_MARK)


async def run(quick: bool) -> list[Figure]:
    """Measure the resident memory and the events sent per second."""
    rounds = 1 if quick else 20
    with folder() as path, running(path, "service") as server, ExitStack() as stack:
        merchants = open_accounts(server, MERCHANTS)
        poster = stack.enter_context(Connection(server.port))
        alone = server.megabytes()
        listeners = [Listener(server) for _ in range(LISTENERS)]
        connected, taken, rates = server.megabytes(), [], []
        for _ in range(STEPS):
            started = time.perf_counter()
            for _ in range(rounds):
                poster.ask(_batch(server, merchants))
                _wait_for_events(listeners, MERCHANTS)
            rates.append(rounds * MERCHANTS * LISTENERS / (time.perf_counter() - started))
            taken.append(server.megabytes())
        for listener in listeners:
            listener.socket.close()
    sent = STEPS * rounds * MERCHANTS
    return [
        ratio("memory at the end over memory after the first tenth", taken[-1:], taken[:1], less_is_better=True),
        figure("memory without listeners", [alone], "MB"),
        figure(f"memory with {LISTENERS} listeners", [connected], "MB"),
        figure("memory after a tenth of the events", taken[:1], "MB"),
        figure(f"memory after {sent:,} events to each listener", taken[-1:], "MB"),
        figure(f"deliveries to {LISTENERS} listeners", rates, "/s"),
    ]


def _wait_for_events(listeners: Sequence[Listener], events: int) -> None:
    """Read until each listener has received `events` more events."""
    by_number = {listener.socket.fileno(): listener for listener in listeners}
    left = dict.fromkeys(by_number, events)
    with select.epoll() as epoll:
        for number in left:
            epoll.register(number, select.EPOLLIN)
        while left:
            for number, _ in epoll.poll():
                left[number] -= by_number[number].receive()
                if left[number] <= 0:
                    epoll.unregister(number)
                    del left[number]


def _batch(server: Server, merchants: Sequence[str]) -> bytes:
    """Return a batch with one increase for each merchant. Each increase announces one event."""
    items = [
        {
            "merchant_id": str(merchant),
            "operation_type": "INCREASE",
            "transaction_type": "SUBSCRIPTION",
            "amount": 1,
            "idempotency_key": f"payment-{next(_numbers):012}",
        }
        for merchant in merchants
    ]
    body = json.dumps({"items": items}).encode()
    return post("/api/v1/credits/transactions/batch", body, Authorization=f"Bearer {server.key}")
