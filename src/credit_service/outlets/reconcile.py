"""What NATS lost: compares the stream CREDITS with the outbox, and publishes again what it ought to hold and does not.

JetStream acknowledges before its disk has everything, so a power failure may take what was acknowledged; and a stream
may be deleted, or restored from an older copy. What its own limits removed is not lost. What is published again comes
late: a consumer knows it by its `sequence`.
"""

from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Final, NamedTuple
from uuid import UUID

from nats.js import JetStreamContext
from nats.js.api import Header, RetentionPolicy, StreamInfo

from credit_service.broker import StreamConflict
from credit_service.ledger.account import MICROSECONDS, Account
from credit_service.ledger.addresses import EVENT, parse
from credit_service.messages.outbound import encode, event_id, event_type
from credit_service.outlets.jetstream import HEADERS, READER, STREAM, stored_ids
from credit_service.storage.accounts import AccountQuery, Accounts
from credit_service.storage.outbox import Outbox, Position, StoredEvent

_AT_ONCE: Final = 500
_CLOCKS_APART: Final = 60 * MICROSECONDS  # NATS' and ours
_LARGEST_MESSAGE: Final = 64 * 1024


class Numbers:
    """Some of 1, 2, 3 …, as ranges: an account's events come in their order, so there are few."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []

    def add(self, number: int) -> None:
        """This one is there."""
        first, last = self._ranges[-1] if self._ranges else (number, number - 1)
        if number == last + 1:
            self._ranges[-1:] = [(first, number)]
        else:
            self._ranges.append((number, number))

    def gaps(self, upto: int) -> Iterator[tuple[int, int]]:
        """Those up to this one that are not there, as ranges."""
        expected = 1
        for first, last in sorted(self._ranges):
            if first > expected:
                yield expected, min(first - 1, upto)
            expected = max(expected, last + 1)
        if expected <= upto:
            yield expected, upto


class _Expected(NamedTuple):
    """What the stream ought to hold: what was published by now, and is not older than its limits allow."""

    published: Position
    since: int

    def holds(self, event: StoredEvent) -> bool:
        return event.id <= self.published[event.lane] and event.announcement.at >= self.since


class Reconciliation:
    """One comparison. `compared`: how many accounts were compared so far."""

    def __init__(self, accounts: Accounts, outbox: Outbox, streams: JetStreamContext) -> None:
        self._accounts = accounts
        self._outbox = outbox
        self._streams = streams
        self.compared = 0

    async def lost(self) -> AsyncGenerator[StoredEvent]:
        """What the stream ought to hold and does not, each account's in their order.

        Raises StreamConflict where that cannot be told; FAILURES and StorageError.
        """
        cursors = {cursor.reader: cursor.position for cursor in await self._outbox.cursors()}
        published = cursors.get(READER, (0,) * self._outbox.lanes)  # before the stream is read, which then has it
        there = await self._there()
        since = await self._since(await self._streams.stream_info(STREAM))
        expected = _Expected(published, since)
        after, query = None, AccountQuery(at=0, default_threshold=0)
        while page := await self._accounts.page(query, after, _AT_ONCE):
            for loaded in page:
                async for event in self._lost_of(loaded.account, there[loaded.account.number], expected):
                    yield event
                self.compared += 1
            after = page[-1].account.merchant_id

    async def publish(self, event: StoredEvent, source: str) -> bool:
        """Publish one again; False where NATS takes it for a repeat of what it remembers. Raises FAILURES."""
        headers = {Header.MSG_ID.value: _id(event), **HEADERS}
        stored = await self._streams.publish(event_type(event), encode(event, source), headers=headers)
        return not stored.duplicate

    async def _there(self) -> dict[int, Numbers]:
        """The events that the stream holds, by account."""
        there: dict[int, Numbers] = defaultdict(Numbers)
        async with aclosing(stored_ids(self._streams)) as ids:
            async for id_ in ids:
                try:
                    address = parse(UUID(id_))
                except ValueError:  # somebody else's
                    continue
                if address is not None and address.kind == EVENT:
                    there[address.account].add(address.number)
        return there

    async def _since(self, info: StreamInfo) -> int:
        """From when on the stream ought to hold everything, as far as its limits let it (microseconds)."""
        config, state = info.config, info.state
        if config.retention not in (None, RetentionPolicy.LIMITS) or (config.max_msgs_per_subject or 0) > 0:
            raise StreamConflict(f"The stream {STREAM} drops what was consumed or replaced: what it lost is not known.")
        since = 0
        if config.max_age:
            since = await self._outbox.now() - int(config.max_age * MICROSECONDS) + _CLOCKS_APART
        is_full = 0 < (config.max_msgs or 0) <= state.messages
        is_full |= 0 < (config.max_bytes or 0) <= state.bytes + _LARGEST_MESSAGE
        if is_full and state.messages:
            oldest = (await self._streams.get_msg(STREAM, state.first_seq)).time
            assert oldest is not None
            since = max(since, int(oldest.timestamp() * MICROSECONDS) + _CLOCKS_APART)
        return since

    async def _lost_of(self, account: Account, there: Numbers, expected: _Expected) -> AsyncGenerator[StoredEvent]:
        for first, last in there.gaps(account.announced):
            (newest,) = await self._outbox.events_of(account.number, last - 1, 1)
            if newest.announcement.at < expected.since:  # and so are all before it
                continue
            after = first - 1
            while after < last:
                page = await self._outbox.events_of(account.number, after, min(_AT_ONCE, last - after))
                for event in page:
                    if expected.holds(event):
                        yield event
                after = page[-1].announcement.number


def _id(event: StoredEvent) -> str:
    return event_id(event.account, event.announcement.number)
