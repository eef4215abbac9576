"""Recent events in memory equal those of the outbox, and no event is skipped."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID

import pytest

from credit_service.ledger.account import Announcement
from credit_service.ledger.policy import Policy
from credit_service.outlets import fresh as fresh_module
from credit_service.outlets.fresh import Fresh
from credit_service.outlets.reader import OutboxReader
from credit_service.outlets.wake import Wake
from credit_service.posting import Posting
from credit_service.storage.engine import Committed, Engine, Writes
from credit_service.storage.outbox import Outbox, StoredEvent
from credit_service.storage.postgres.lanes import lane_of
from tests.ledger.telling import T0, days, opening, order, payment, refund, use
from tests.storage import values
from tests.storage.contract import Clock, merchant
from tests.storage.engines import only_on, opened
from tests.storage.values import of


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(new_ledger: Callable[[], str], clock: Clock) -> AsyncIterator[Engine]:
    store = opened(new_ledger(), clock=clock)
    yield store
    await store.close()


async def tell(store: Engine, wake: Wake, *told: Any) -> None:
    """Post as the service does, which tells of each commit."""
    posting = Posting(store, Policy(), on_committed=wake.committed)
    posting.start()
    await posting.submit_many(told)
    await posting.drain()


def writes(*ids: int, lane: int = 0, at: int = T0) -> Committed:
    """Announcements of an account that stand in the outbox under these ids."""
    made = Writes()
    made.accounts[lane] = values.account(lane, str(UUID(int=lane)))
    made.announcements = [(lane, Announcement(id_, "account.created", None, 0, at)) for id_ in ids]
    return Committed(made, [(lane, id_) for id_ in ids])


def asked(lanes: int = 2) -> Fresh:
    fresh = Fresh()
    assert fresh.after((0,) * lanes, 1) == []
    return fresh


def ids(events: Any) -> list[tuple[int, int]]:
    return [(event.lane, event.id) for event in events]


async def test_memory_holds_the_same_events_as_the_outbox(store: Engine) -> None:
    wake, start = Wake(), (0,) * store.lanes
    assert wake.fresh.after(start, 1) == []
    history = (
        opening(),
        payment("P", 100, expires_at=T0 + days(2)),
        order("1", 150),
        refund("R", "1", credits=7),
        use(3),
    )
    for one in range(3):
        await tell(store, wake, *[of(merchant(one), told) for told in history])
        await tell(store, wake, of(merchant(0), use(1)))
    there = await Outbox(store).events(start, 1000)
    assert len(there) > 20
    assert sorted(wake.fresh.after(start, 1000)) == sorted(there)
    first = await Outbox(store).events(start, 5)
    position = list(start)
    for event in first:
        position[event.lane] = event.id
    assert sorted([*first, *wake.fresh.after(tuple(position), 1000)]) == sorted(there)


def test_events_are_kept_only_while_a_reader_asks() -> None:
    fresh = Fresh()
    fresh.keep(writes(1))
    assert fresh.after((0, 0), 9) == []
    fresh.keep(writes(2))
    fresh.forget()
    fresh.keep(writes(3))
    assert fresh.after((0, 0), 9) == []
    fresh.keep(writes(4))
    assert fresh.after((2, 0), 9) == []
    assert ids(fresh.after((3, 0), 9)) == [(0, 4)]


def test_events_of_other_processes_in_between_are_not_skipped() -> None:
    fresh = asked()
    fresh.keep(writes(1, 2))
    fresh.keep(writes(4))  # the third is another's
    assert fresh.after((2, 0), 9) == []
    assert ids(fresh.after((3, 0), 9)) == [(0, 4)]
    fresh.keep(writes(6, lane=1))
    assert fresh.after((3, 0), 9) == [], "of the other lane there is something before"


def test_lanes_are_merged_by_time_and_keep_their_order() -> None:
    fresh = asked()
    fresh.keep(writes(1, 2, at=T0 + 1))
    fresh.keep(writes(1, lane=1, at=T0))
    fresh.keep(writes(3, at=T0 + 3))
    fresh.keep(writes(2, lane=1, at=T0 + 2))
    assert ids(fresh.after((0, 0), 9)) == [(1, 1), (0, 1), (0, 2), (1, 2), (0, 3)]
    assert ids(fresh.after((0, 0), 3)) == [(1, 1), (0, 1), (0, 2)]
    assert ids(fresh.after((2, 1), 9)) == [(1, 2), (0, 3)]


def test_read_events_are_dropped_and_all_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fresh_module, "_MOST", 3)
    fresh = asked()
    fresh.keep(writes(1, 2, 3))
    assert ids(fresh.after((1, 0), 9)) == [(0, 2), (0, 3)]
    assert fresh.after((0, 0), 9) == []
    fresh.keep(writes(1, lane=1))
    fresh.keep(writes(4))
    assert fresh.after((1, 0), 9) == []
    fresh.keep(writes(5))
    assert ids(fresh.after((4, 1), 9)) == [(0, 5)]


def test_events_of_a_lost_answer_come_from_the_outbox() -> None:
    fresh = asked()
    fresh.keep(Committed(writes(1).writes))
    assert fresh.after((0, 0), 9) == []


# ---- a reader


class Counted:
    """Reads as the publisher does, and counts how often the outbox was asked."""

    def __init__(self, store: Engine, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.taken: list[StoredEvent] = []
        self._takes = asyncio.Event()
        self.asked = 0
        self.wake = Wake()
        self.meanwhile = lambda: None
        outbox = Outbox(store)
        events = outbox.events

        async def counted(*arguments: Any) -> list[StoredEvent]:
            self.asked += 1
            return await events(*arguments)

        monkeypatch.setattr(outbox, "events", counted)
        self.reader = OutboxReader(outbox, "receiver", self._deliver, wake=self.wake, poll_seconds=1000, **options)

    async def took(self, announced: int) -> None:
        """Wait until so many were taken."""
        async with asyncio.timeout(20):
            while len(self.taken) < announced:
                self._takes.clear()
                await self._takes.wait()

    async def _deliver(self, events: Any) -> None:
        self.taken += events
        self._takes.set()
        self.meanwhile()


async def test_reader_asks_the_outbox_only_for_events_not_in_memory(
    store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(store, monkeypatch)
    await tell(store, counted.wake, opening(), use(1))
    await counted.reader.once()  # what was announced before anybody asked
    assert counted.asked == 1
    await tell(store, counted.wake, use(2))
    await counted.reader.once()
    assert counted.asked == 2, "at the beginning it looks whether all is at hand"
    for amount in (3, 4):
        await tell(store, counted.wake, use(amount))
        await counted.reader.once()
    assert counted.asked == 2
    await tell(store, Wake(), use(5))  # another process
    await tell(store, counted.wake, use(6))
    await counted.reader.once()
    assert counted.asked == 3
    assert [event.announcement.number for event in counted.taken] == list(range(1, len(counted.taken) + 1))
    assert counted.taken == await Outbox(store).events_of(counted.taken[0].account, 0, 1000)


@only_on("postgres")  # an SQLite ledger has one process
async def test_events_in_lanes_of_other_processes_are_found_by_polling(
    store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, others = merchant(0), next(one for one in map(merchant, range(1, 99)) if lane_of(one) != lane_of(merchant(0)))
    counted = Counted(store, monkeypatch)
    await tell(store, counted.wake, of(mine, opening()), of(others, opening()))
    await counted.reader.once()
    for _ in range(2):
        await tell(store, counted.wake, of(mine, use(1)))
        await counted.reader.once()
    asked = counted.asked
    await tell(store, Wake(), of(others, use(1)))  # another process
    await tell(store, counted.wake, of(mine, use(1)))
    await counted.reader.once()
    assert (counted.asked, counted.taken[-1].merchant_id) == (asked, mine)
    assert others not in {event.merchant_id for event in counted.taken[6:]}
    monkeypatch.setattr(counted.reader, "_look_at", 0.0)  # a second later
    await tell(store, counted.wake, of(mine, use(1)))
    await counted.reader.once()
    assert {event.merchant_id for event in counted.taken[-2:]} == {mine, others}
    assert {event[:2] for event in counted.taken} == {
        event[:2] for event in await Outbox(store).events((0,) * store.lanes, 99)
    }


@pytest.mark.parametrize(("many", "most_seconds"), [(49, 0.02), (50, 0.5)])
async def test_large_page_from_memory_is_followed_by_a_longer_rest(
    store: Engine, monkeypatch: pytest.MonkeyPatch, many: int, most_seconds: float
) -> None:
    counted = Counted(store, monkeypatch)
    await tell(store, counted.wake, payment("P", 1000))
    await counted.reader.once()
    await tell(store, counted.wake, *[use(1) for _ in range(many)])
    assert not await counted.reader.once()
    assert counted.reader._rest_seconds[1] == most_seconds
    (cursor,) = await Outbox(store).cursors()
    assert sum(cursor.position) == len(counted.taken), "the cursor is where it is delivered to"


async def test_remaining_events_leave_at_once_when_postings_pause(
    store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(store, monkeypatch, page=60)
    await tell(store, counted.wake, payment("P", 1000))
    await counted.reader.once()
    await tell(store, counted.wake, *[use(1) for _ in range(160)])
    assert [await counted.reader.once() for _ in range(3)] == [False, True, False]
    assert counted.reader._rest_seconds == (0.02, 0.02)
    assert len(counted.taken) == 3 + 160


async def test_cursor_moves_once_for_many_pages_while_postings_flow(
    store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(store, monkeypatch, page=5)
    counted.meanwhile = lambda: counted.wake.send()
    moved = []

    async def position() -> int:
        (cursor,) = await Outbox(store).cursors()
        return sum(cursor.position)

    await tell(store, counted.wake, opening())  # three announcements
    for _ in range(6):
        await counted.reader.once()
        moved.append((len(counted.taken), await position()))
        await tell(store, counted.wake, use(1))
    assert moved == [(3, 0), (4, 0), (5, 5), (6, 5), (7, 5), (8, 5)], "at most a page less than was delivered"
    counted.meanwhile = lambda: None
    await counted.reader.once()
    assert (len(counted.taken), await position()) == (9, 9), "and as soon as no more comes in"


async def test_reader_continues_after_a_full_page_without_new_postings(
    store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(store, monkeypatch, page=60)
    await tell(store, counted.wake, payment("P", 1000))
    await counted.reader.once()
    await tell(store, counted.wake, *[use(1) for _ in range(160)])
    running = asyncio.create_task(counted.reader.run())
    await counted.took(163)  # it would look again after 1,000 seconds
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_reader_without_its_claim_keeps_no_events(
    store: Engine, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(store, monkeypatch)
    await tell(store, counted.wake, opening())
    await counted.reader.once()
    await tell(store, counted.wake, use(1))
    clock.now += 6_000_000
    assert await Outbox(store).claim("receiver", "another", clock.now, 5) is not None
    assert not await counted.reader.once()
    await tell(store, counted.wake, use(1))
    assert not counted.wake.fresh._wanted
    assert not counted.wake.fresh._lanes


async def test_events_that_differ_from_the_outbox_come_from_the_outbox(
    store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(store, monkeypatch)
    await tell(store, counted.wake, opening())
    await counted.reader.once()
    await tell(store, counted.wake, use(7))
    kept = next(events for events in counted.wake.fresh._lanes.values() if events)
    kept.append(kept.pop()._replace(account=1))  # of a database that has lost its last commits
    await counted.reader.once()
    assert counted.taken == await Outbox(store).events_of(counted.taken[0].account, 0, 1000)


async def test_lagging_cursor_is_moved_when_the_reader_stops(store: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(store, monkeypatch)
    counted.meanwhile = lambda: counted.wake.send()
    running = asyncio.create_task(counted.reader.run())
    await tell(store, counted.wake, opening())
    await counted.took(1)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    (cursor,) = await Outbox(store).cursors()
    assert (sum(cursor.position), cursor.leased_until) == (3, 0)
