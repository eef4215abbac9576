"""The outbox as server-sent events, for any number of listeners at once, each at its own pace.

While anybody listens, one tail reads what is posted and hands it to all of them, written out once. It keeps the newest
alone: who listens from further back, or takes too slowly, reads the outbox by itself until it has caught up. So what is
kept for a listener is at most one page, and many of them ask the database as often as one.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol
from uuid import UUID

import structlog

from credit_service.messages.outbound import encode, event_type
from credit_service.outlets.wake import Signal, Wake
from credit_service.storage.engine import StorageError
from credit_service.storage.outbox import Outbox, Position, StoredEvent
from credit_service.supervision import Supervisor

POLL_SECONDS: Final = 0.5
"""How often the tail looks for what other processes posted, and how long a listener waits before it looks around."""

_GATHER_SECONDS: Final = 0.01  # what is posted meanwhile is read at once
_AWAY_SECONDS: Final = 1.0
_TAIL_PAGE: Final = 100
_PAGE: Final = 50  # of one who catches up: there may be hundreds
_KEPT: Final = 50
_CATCH_UP_AT_ONCE: Final = 4
_log = structlog.get_logger()

Cursor = Callable[[UUID | None, Position], str]
"""Writes where a listener stands as the text it resumes with: of a merchant's events, or of all."""


class _Event(NamedTuple):
    """An event as the tail hands it out; `told` are its lines but for the cursor's."""

    lane: int
    id: int
    account: int
    number: int
    merchant_id: UUID
    told: bytes


class _Chunk(NamedTuple):
    """What the tail read at once: `told` is all of it for whoever stands where it begins."""

    before: Position
    after: Position
    events: Sequence[_Event]
    told: bytes


class _Place(Protocol):
    """Where a listener stands."""

    async def read(self, outbox: Outbox) -> list[StoredEvent]:
        """The next page of events from there."""
        ...

    def take(self, events: Iterable[_Event]) -> bytes:
        """Go on behind these, and tell those that are new there."""
        ...

    def take_chunk(self, chunk: _Chunk) -> bytes:
        """The same with what the tail read."""
        ...


class _Everywhere:
    """In the events of all accounts."""

    def __init__(self, position: Position, cursor: Cursor) -> None:
        self._position = position
        self._cursor = cursor

    async def read(self, outbox: Outbox) -> list[StoredEvent]:
        """See `_Place`."""
        return await outbox.events(self._position, _PAGE)

    def take(self, events: Iterable[_Event]) -> bytes:
        """See `_Place`."""
        told = []
        for event in events:
            if event.id > self._position[event.lane]:
                self._position = _moved(self._position, event.lane, event.id)
                told.append(_lines(self._cursor(None, self._position), event.told))
        return b"".join(told)

    def take_chunk(self, chunk: _Chunk) -> bytes:
        """See `_Place`."""
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
        """See `_Place`."""
        return await outbox.events_of(self._account, self._number, _PAGE)

    def take(self, events: Iterable[_Event]) -> bytes:
        """See `_Place`."""
        told = []
        for event in events:
            if event.account == self._account and event.number > self._number:
                self._number = event.number
                told.append(_lines(self._cursor(event.merchant_id, (event.number,)), event.told))
        return b"".join(told)

    def take_chunk(self, chunk: _Chunk) -> bytes:
        """See `_Place`."""
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
        self._chunks: deque[_Chunk] = deque(maxlen=_KEPT)  # the newest of all that the tail read
        self._news = Signal()  # its count is the number of the next chunk
        self._closed = False

    def close(self) -> None:
        """End all streams, since the service stops."""
        self._closed = True
        self._chunks.clear()
        self._news.send()

    async def follow(self, account: int | None, position: Position) -> AsyncGenerator[bytes]:
        """Lines of events after a position, of one account or of all, until `close`.

        Empty where there was nothing new for a while: look then whether anybody still listens. A database that is away
        makes for silence, and no event is missing afterwards.
        """
        place = (
            _Everywhere(position, self._cursor) if account is None else _InAccount(account, position[0], self._cursor)
        )
        with self._listening():
            while not self._closed:
                # What the tail hands out from here on follows on what is read until then.
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
        """The tail reads on while somebody listens."""
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
        """What a listener reads by itself, and whether there is more."""
        try:
            async with self._catching_up:
                found = await place.read(self._outbox)
        except StorageError:
            await self._news.wait(self._news.count, _AWAY_SECONDS)
            return b"", not self._closed
        return place.take(map(self._event, found)), len(found) == _PAGE and not self._closed

    async def _read_on(self) -> None:
        """Hand out what is posted, from now on."""
        position: Position | None = None
        while not self._closed:
            seen = self._wake.count
            try:
                if position is None:
                    position = await self._outbox.end()
                    found: list[StoredEvent] = []
                else:
                    found = await self._outbox.events(position, _TAIL_PAGE)
                if found or not self._chunks:  # the first one is empty, and says that there is a tail
                    position = self._hand_out(position, found)
            except Exception as error:  # nothing is lost: it is read again
                _log.warning("event_stream_waits", reason=str(error), exc_info=not isinstance(error, StorageError))
                await asyncio.sleep(_AWAY_SECONDS)
            else:
                if len(found) < _TAIL_PAGE and await self._wake.wait(seen, POLL_SECONDS):
                    await asyncio.sleep(_GATHER_SECONDS)

    def _hand_out(self, before: Position, found: Sequence[StoredEvent]) -> Position:
        """Add a chunk of what was found; returns where it ends."""
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
