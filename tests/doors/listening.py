"""A client that listens to the stream of events, in a thread of its own."""

import contextlib
import socket
import threading
from types import TracebackType
from typing import Any, NamedTuple

import httpx2
import msgspec

from tests.doors.running import API, Running

_SECONDS = 20


class Told(NamedTuple):
    """An event as it was told: the stream's own lines, and the CloudEvent."""

    cursor: str
    type: str
    event: dict[str, Any]


class Listener:
    """Listens until it is told to stop, or the stream ends."""

    def __init__(self, service: Running, query: dict[str, Any] | None = None, **headers: str) -> None:
        self.told: list[Told] = []
        self.comments = 0
        self.ended = False  # by the service, and properly
        self._service = service
        self._query = query or {}
        key = headers.pop("key", service.keys["read"])
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        self._headers = {"authorization": f"Bearer {key}", "accept": "text/event-stream", **names}
        self._news = threading.Condition()
        self._stop = False
        self._opened = threading.Event()
        self._socket: socket.socket | None = None
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._listen, name="listener")

    def __enter__(self) -> "Listener":
        self._thread.start()
        assert self._opened.wait(_SECONDS)
        if self._failed is not None:
            raise self._failed
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop = True
        if self._socket is not None:
            with contextlib.suppress(OSError):  # it may be gone already
                self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(_SECONDS)
        assert not self._thread.is_alive()
        if self._failed is not None:
            raise self._failed

    def wait_for(self, count: int) -> list[Told]:
        """Wait until so many events were told; returns them."""
        with self._news:
            assert self._news.wait_for(lambda: len(self.told) >= count, _SECONDS), f"{len(self.told)} of {count}"
            return self.told[:count]

    def wait_for_comments(self, count: int) -> None:
        """Wait until so many comments were told."""
        with self._news:
            assert self._news.wait_for(lambda: self.comments >= count, _SECONDS)

    def wait_for_the_end(self) -> None:
        """Wait until the service ended the stream."""
        with self._news:
            assert self._news.wait_for(lambda: self.ended, _SECONDS)

    def sequences(self) -> dict[str, list[int]]:
        """The numbers of the events that were told, by merchant."""
        found: dict[str, list[int]] = {}
        for told in self.told:
            found.setdefault(told.event["subject"], []).append(int(told.event["sequence"]))
        return found

    def _listen(self) -> None:
        try:
            path = f"{self._service.url}{API}/credits/events"
            with httpx2.stream("GET", path, params=self._query, headers=self._headers, timeout=_SECONDS) as answer:
                self._socket = answer.extensions["network_stream"].get_extra_info("socket")
                assert answer.status_code == 200, answer.read()
                assert answer.headers["content-type"].startswith("text/event-stream")
                self._opened.set()
                self._read(answer)
        except BaseException as error:
            if not self._stop:
                self._failed = error
        finally:
            self._opened.set()

    def _read(self, answer: httpx2.Response) -> None:
        fields: dict[str, str] = {}
        for line in answer.iter_lines():
            with self._news:
                if line.startswith(":"):
                    self.comments += 1
                elif line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
                elif "data" in fields:
                    event = msgspec.json.decode(fields["data"])
                    self.told.append(Told(fields["id"], fields["event"], event))
                    fields = {}
                self._news.notify_all()
        with self._news:
            self.ended = True
            self._news.notify_all()
