"""The outbox as server-sent events, for any number of listeners, each at its own pace.

While there are listeners, one tail reads new events, encodes them once, and hands them to all listeners. It keeps only
the newest events: a listener that starts further back, or is too slow, reads the outbox itself until it has caught up.
So a listener needs the memory of one page at most, and many listeners ask the database as often as one.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

import structlog

from credit_service.messages.outbound import encode, event_type
from credit_service.outlets.wake import Signal, Wake
from credit_service.storage.engine import StorageError
from credit_service.storage.outbox import Outbox, Position, StoredEvent
from credit_service.supervision import Supervisor

POLL_SECONDS: Final = 0.5
"""How often the tail looks for events of other processes, and how long a listener waits for news."""

_GATHER_SECONDS: Final = 0.01  # to get several postings into one read
_AWAY_SECONDS: Final = 1.0
_TAIL_PAGE: Final = 100
_PAGE: Final = 50  # of a listener that catches up: there may be hundreds
_KEPT: Final = 50
_CATCH_UP_AT_ONCE: Final = 4
_log = structlog.get_logger()

Cursor = Callable[[str | None, Position], str]
"""Encodes a listener's position as the text it resumes with: in a merchant's events, or in all."""


class _Event(NamedTuple):
    """An event as the tail hands it out; `told` are its lines without the cursor's."""

    lane: int
    id: int
    account: int
    number: int
    merchant_id: str
    told: bytes


class _Chunk(NamedTuple):
    """One read of the tail; `told` is its text for a listener that stands at its beginning."""

    before: Position
    after: Position
    events: Sequence[_Event]
    told: bytes


class _Place(Protocol):
    """A listener's position."""

    async def read(self, outbox: Outbox) -> list[StoredEvent]:
        """The next page of events from there."""
        ...

    def take(self, events: Iterable[_Event]) -> bytes:
        """Move past these events; returns the text of the new ones."""
        ...

    def take_chunk(self, chunk: _Chunk) -> bytes:
        """The same with a read of the tail."""
        ...


class _Everywhere:
    """In the events of all accounts."""

    def __init__(self, position: Position, cursor: Cursor) -> None:
        self._position = position
        self._cursor = cursor

    async def read(self, outbox: Outbox) -> list[StoredEvent]:
        return await outbox.events(self._position, _PAGE)

    def take(self, events: Iterable[_Event]) -> bytes:
        told = []
        for event in events:
            if event.id > self._position[event.lane]:
                self._position = _moved(self._position, event.lane, event.id)
                told.append(_lines(self._cursor(None, self._position), event.told))
        return b"".join(told)

    def take_chunk(self, chunk: _Chunk) -> bytes:
        if self._position != chunk.before:
            return self.take(chunk.events)
        self._position = chunk.after
        return chunk.told


class _InAccount:
    """In the events of one account, which are numbered without a gap."""

    def __init__(self, account: int, number: int, cursor: Cursor) -> None:
        self._account = account
        self._number = number
        self._cursor = cursor

    async def read(self, outbox: Outbox) -> list[StoredEvent]:
        return await outbox.events_of(self._account, self._number, _PAGE)

    def take(self, events: Iterable[_Event]) -> bytes:
        told = []
        for event in events:
            if event.account == self._account and event.number > self._number:
                self._number = event.number
                told.append(_lines(self._cursor(event.merchant_id, (event.number,)), event.told))
        return b"".join(told)

    def take_chunk(self, chunk: _Chunk) -> bytes:
        return self.take(chunk.events)


class Stream:
    """See the module. `source`: the service's own name (SERVICE_SOURCE). Of one event loop."""

    def __init__(
        self, outbox: Outbox, wake: Wake, source: str, cursor: Cursor, supervisor: Supervisor | None = None
    ) -> None:
        self._outbox = outbox
        self._supervisor = supervisor or Supervisor()
        self._wake = wake
        self._source = source
        self._cursor = cursor
        self._catching_up = asyncio.Semaphore(_CATCH_UP_AT_ONCE)
        self._listeners = 0
        self._tail: asyncio.Task[None] | None = None
        self._chunks: deque[_Chunk] = deque(maxlen=_KEPT)  # the newest reads of the tail
        self._news = Signal()  # its count is the number of the next chunk
        self._closed = False

    def close(self) -> None:
        """End all streams because the service stops."""
        self._closed = True
        self._chunks.clear()
        self._news.send()

    async def follow(self, account: int | None, position: Position) -> AsyncGenerator[bytes]:
        """Yield the lines of events after a position, of one account or of all, until `close`.

        Yields empty bytes if there was nothing new for a while; the caller then checks the connection. While the
        database is away nothing is yielded, and no event is lost.
        """
        place = (
            _Everywhere(position, self._cursor) if account is None else _InAccount(account, position[0], self._cursor)
        )
        with self._listening():
            while not self._closed:
                # Reads of the tail from here on follow the events that are read until then.
                mark, has_begun = self._news.count, bool(self._chunks)
                more = True
                while more:
                    told, more = await self._page(place)
                    yield told
                while has_begun and mark >= self._news.count - len(self._chunks):
                    if mark == self._news.count:
                        told = b""
                        await self._news.wait(mark, POLL_SECONDS)
                    else:
                        told = place.take_chunk(self._chunks[mark - self._news.count])
                        mark += 1
                    yield told
                if not has_begun:
                    await self._news.wait(mark, POLL_SECONDS)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Keep the tail running while there are listeners."""
        self._listeners += 1
        if self._tail is None:
            self._tail = self._supervisor.start("event stream", self._read_on)
        try:
            yield
        finally:
            self._listeners -= 1
            if self._listeners == 0:
                self._tail.cancel()
                self._tail = None
                self._chunks.clear()

    async def _page(self, place: _Place) -> tuple[bytes, bool]:
        """A page that a listener reads itself, and whether there is more."""
        try:
            async with self._catching_up:
                found = await place.read(self._outbox)
        except StorageError:
            await self._news.wait(self._news.count, _AWAY_SECONDS)
            return b"", not self._closed
        return place.take(map(self._event, found)), len(found) == _PAGE and not self._closed

    async def _read_on(self) -> None:
        """Hand out new events from now on."""
        position: Position | None = None
        while not self._closed:
            seen = self._wake.count
            try:
                if position is None:
                    position = await self._outbox.end()
                    found: list[StoredEvent] = []
                else:
                    found = await self._outbox.events(position, _TAIL_PAGE)
                if found or not self._chunks:  # the first chunk is empty and shows that the tail runs
                    position = self._hand_out(position, found)
            except Exception as error:  # no event is lost: it is read again
                _log.warning("event_stream_waits", reason=str(error), exc_info=not isinstance(error, StorageError))
                await asyncio.sleep(_AWAY_SECONDS)
            else:
                if len(found) < _TAIL_PAGE and await self._wake.wait(seen, POLL_SECONDS):
                    await asyncio.sleep(_GATHER_SECONDS)

    def _hand_out(self, before: Position, found: Sequence[StoredEvent]) -> Position:
        """Add a chunk of events; returns the position after it."""
        events, told, after = [*map(self._event, found)], [], before
        for event in events:
            after = _moved(after, event.lane, event.id)
            told.append(_lines(self._cursor(None, after), event.told))
        self._chunks.append(_Chunk(before, after, events, b"".join(told)))
        self._news.send()
        return after

    def _event(self, stored: StoredEvent) -> _Event:
        told = b"event: %s\ndata: %s\n\n" % (event_type(stored).encode(), encode(stored, self._source))
        number = stored.announcement.number
        return _Event(stored.lane, stored.id, stored.account, number, stored.merchant_id, told)


def _moved(position: Position, lane: int, last: int) -> Position:
    return (*position[:lane], last, *position[lane + 1 :])


def _lines(cursor: str, told: bytes) -> bytes:
    return b"id: %s\n%s" % (cursor.encode(), told)
