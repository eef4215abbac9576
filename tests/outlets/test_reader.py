"""The outbox reader: no event is skipped, one reader delivers at a time, and failures are retried.

Leases go by the store's clock, which the tests move; only renewing one goes by real time, as short as a test needs.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from credit_service.ledger.account import Announcement
from credit_service.ledger.announcements import PLUGIN_STATUS_CHANGED
from credit_service.ledger.types import CONSUMED
from credit_service.outlets.reader import OutboxReader, Undelivered
from credit_service.outlets.wake import Wake
from credit_service.storage.engine import Committed, Engine, StorageUnavailable, Writes
from credit_service.storage.outbox import Claim, Outbox, StoredEvent
from tests.ledger.telling import opening, use
from tests.posting.desk import now, timeless
from tests.resting import rest_by
from tests.storage import values
from tests.storage.contract import Clock, merchant, tell
from tests.storage.engines import opened
from tests.storage.values import of

NAME = "receiver"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(new_ledger: Callable[[], str], clock: Clock) -> AsyncIterator[Engine]:
    store = opened(new_ledger(), clock=clock)
    yield store
    await store.close()


class Receiver:
    """Takes what is delivered; it can fail, and take long."""

    def __init__(self) -> None:
        self.taken: list[StoredEvent] = []
        self.pages: list[int] = []
        self.failures: list[Exception] = []
        self.begun: list[int] = []
        self.takes_long = False
        self.called = asyncio.Event()
        self.cancelled = False

    async def begin(self) -> None:
        self.begun.append(len(self.taken))

    async def deliver(self, events: Sequence[StoredEvent]) -> None:
        self.called.set()
        if self.takes_long:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise
        if self.failures:
            failure = self.failures.pop(0)
            self.taken += events[: failure.delivered] if isinstance(failure, Undelivered) else []
            raise failure
        self.taken += events
        self.pages.append(len(events))

    async def took(self, announced: int) -> None:
        """Wait until so many were taken."""

        async def enough() -> bool:
            return len(self.taken) >= announced

        await until(enough)

    def assert_has_all(self, announced: int) -> None:
        """Everything once, and each account's in their order."""
        assert len(self.taken) == announced
        numbers: dict[int, list[int]] = {}
        for event in self.taken:
            numbers.setdefault(event.account, []).append(event.announcement.number)
        for found in numbers.values():
            assert found == list(range(1, len(found) + 1))


def reader(store: Engine, receiver: Receiver, **options: Any) -> OutboxReader:
    return OutboxReader(Outbox(store), NAME, receiver.deliver, begin=receiver.begin, **options)


async def position(store: Engine) -> tuple[int, ...]:
    (cursor,) = await Outbox(store).cursors()
    return cursor.position


async def leased_until(store: Engine) -> int:
    (cursor,) = await Outbox(store).cursors()
    return cursor.leased_until


async def renewed(store: Engine, before: int) -> None:
    """Wait until the lease lasts for longer than before."""

    async def longer() -> bool:
        return await leased_until(store) > before

    await until(longer)


async def announce(store: Engine, accounts: int) -> int:
    """Open accounts and spend on each; returns how much that announces."""
    merchants = [merchant(index) for index in range(accounts)]
    await tell(store, *[of(one, opening()) for one in merchants])
    await tell(store, *[of(one, use(2)) for one in merchants])
    return 4 * accounts  # opened, recharged, enabled, consumed


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until it is so."""
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def cancelled(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_events_are_delivered_once_in_pages_and_in_order(store: Engine):
    announced = await announce(store, 5)
    receiver = Receiver()
    one = reader(store, receiver, page=7)
    assert [await one.once() for _ in range(4)] == [True, True, False, False]
    assert receiver.pages == [7, 7, 6]
    receiver.assert_has_all(announced)
    assert await position(store) == await Outbox(store).end()

    again = Receiver()
    await one._let_go()
    assert not await reader(store, again).once()
    assert again.taken == [], "another goes on where this one stood"


@pytest.mark.parametrize("delivered", [0, 5])
async def test_only_undelivered_events_are_delivered_again(store: Engine, delivered: int):
    announced = await announce(store, 5)
    receiver = Receiver()
    receiver.failures = [Undelivered("The receiver is away.", delivered)]
    one = reader(store, receiver)
    with pytest.raises(Undelivered):
        await one.once()
    assert sum(await position(store)) == delivered
    assert not one.holds, "whoever else reaches the receiver may have it at once"
    await one.once()
    receiver.assert_has_all(announced)
    assert receiver.begun == [0, delivered], "it begins anew after a failure"


@pytest.mark.parametrize(
    "failure", [Undelivered("Away."), StorageUnavailable("Gone."), RuntimeError("a bug")], ids=repr
)
async def test_failure_is_logged_and_retried_within_five_seconds(
    store: Engine, failure: Exception, monkeypatch: pytest.MonkeyPatch
):
    announced = await announce(store, 1)
    receiver = Receiver()
    receiver.failures = [failure] * 6
    pauses: list[float] = []

    async def rest(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    sleep = rest_by(monkeypatch, rest)
    monkeypatch.setattr("credit_service.backoff.random.uniform", lambda low, high: high)
    with capture_logs() as told:
        task = asyncio.create_task(reader(store, receiver).run())
        await receiver.took(announced)
        await cancelled(task)
    assert [seconds for seconds in pauses if seconds >= 1][:6] == [1, 2, 4, 5, 5, 5]
    lines = [line for line in told if line["event"] == "outbox_reader_failed"]
    assert {line["reader"] for line in lines} == {NAME}
    assert lines


async def test_another_reader_takes_over_at_once_after_a_stop(store: Engine):
    receiver = Receiver()
    several = [reader(store, receiver, poll_seconds=0.01) for _ in range(3)]
    tasks = {one: asyncio.create_task(one.run()) for one in several}
    holders = []
    announced = 0
    for number in range(3):
        await tell(store, of(merchant(number), opening()))
        announced += 3
        await receiver.took(announced)
        (holder,) = [one for one in tasks if one.holds]
        holders.append(holder)
        await cancelled(tasks.pop(holder))
    receiver.assert_has_all(announced)
    assert set(holders) == set(several)


async def test_another_reader_takes_over_after_the_lease_of_a_dead_one(
    store: Engine, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    async def dies(*_: Any) -> None:
        pass

    announced = await announce(store, 1)
    receiver = Receiver()
    receiver.failures = [Undelivered("Away.", 2)]
    dead, next_one = reader(store, receiver), reader(store, receiver)
    with monkeypatch.context() as patch:
        patch.setattr(Outbox, "release", dies)
        with pytest.raises(Undelivered):
            await dead.once()
    clock.now += 4_999_999
    await next_one.once()
    assert not next_one.holds
    clock.now += 1
    await next_one.once()
    receiver.assert_has_all(announced)


async def test_claim_is_renewed_during_a_long_delivery(store: Engine, clock: Clock):
    await announce(store, 1)
    receiver = Receiver()
    receiver.takes_long = True
    one, other = reader(store, receiver, lease_seconds=0.03), reader(store, receiver, lease_seconds=0.03)
    task = asyncio.create_task(one.once())
    await receiver.called.wait()
    for _ in range(5):
        before = await leased_until(store)
        clock.now += 20_000
        await renewed(store, before)
        await other.once()
        assert not other.holds
    assert not receiver.cancelled
    await cancelled(task)


async def test_reader_paused_beyond_its_lease_stops(store: Engine, clock: Clock):
    announced = await announce(store, 2)
    late, receiver = Receiver(), Receiver()
    late.takes_long = True
    paused, next_one = reader(store, late, lease_seconds=0.5), reader(store, receiver)
    task = asyncio.create_task(paused.once())
    await late.called.wait()
    clock.now += 500_000
    await next_one.once()
    assert await task is False
    assert late.cancelled
    assert not paused.holds
    receiver.assert_has_all(announced)
    assert (await Outbox(store).cursors())[0].owner == next_one._owner


async def test_reader_paused_between_pages_can_only_repeat_events(store: Engine, clock: Clock):
    await announce(store, 2)
    late, receiver = Receiver(), Receiver()
    paused, next_one = reader(store, late, page=3), reader(store, receiver, page=3)
    await paused.once()
    clock.now += 5_000_000
    await next_one.once()
    reached = await position(store)
    await paused.once()
    assert not paused.holds
    assert late.taken[3:] == receiver.taken, "it had the right when it read, and not when it was done"
    assert await position(store) == reached
    await paused.once()
    assert len(late.taken) == 6


async def test_stop_between_delivery_and_commit_repeats_nothing(store: Engine, monkeypatch: pytest.MonkeyPatch):
    announced = await announce(store, 1)
    receiver = Receiver()
    one = reader(store, receiver)
    task = asyncio.create_task(one.run())
    advance = Outbox.advance
    advancing = asyncio.Event()

    async def slow(outbox: Outbox, *claim: Any) -> Any:
        if receiver.taken and not advancing.is_set():
            advancing.set()
            await asyncio.Event().wait()
        return await advance(outbox, *claim)

    monkeypatch.setattr(Outbox, "advance", slow)
    await advancing.wait()
    await cancelled(task)
    await reader(store, receiver).once()
    receiver.assert_has_all(announced)


@pytest.mark.parametrize(
    ("commits", "page", "spent_seconds", "more", "rest_seconds"),
    [
        (0, 5, 0.1, True, (0.02, 0.02)),  # idle
        (1, 50, 0.05, False, (0.12, 0.5)),
        (1, 50, 0.3, False, (0.3, 0.5)),
        (1, 5, 0.001, False, (0.02, 0.02)),  # a backlog
        (1, 5, 0.3, False, (0.3, 0.3)),
        (1, 5, 9, False, (1, 1)),
    ],
)
async def test_rest_depends_on_postings_backlog_and_work(
    store: Engine,
    commits: int,
    page: int,
    spent_seconds: float,
    more: bool,
    rest_seconds: tuple[float, float],
):
    await announce(store, 5)
    wake = Wake()
    instants = iter([100.0, 100.0 + spent_seconds])

    class Posting(Receiver):
        async def deliver(self, events: Sequence[StoredEvent]) -> None:
            for _ in range(commits):
                wake.send()

    one = reader(store, Posting(), wake=wake, page=page, timer=lambda: next(instants))
    assert await one.once() is more
    assert one._rest_seconds == pytest.approx(rest_seconds)


# ---- under full load, on a loop in which waiting takes no time


class MemoryOutbox:
    """An outbox of one lane, its one cursor, and commits that announce an event each."""

    lanes = 1

    def __init__(self) -> None:
        self.stored: list[StoredEvent] = []
        self.wake = Wake()
        self.looks = 0

    def commit(self, type_: str, *, elsewhere: bool = False) -> None:
        """Announce an event; `elsewhere`: in another process, which reports it only if it is urgent."""
        number = len(self.stored) + 1
        account = values.account(1, merchant(0))
        announcement = Announcement(number, type_, None, 0, round(now() * 1_000_000))
        self.stored.append(StoredEvent(0, number, 1, merchant(0), announcement, None))
        if not elsewhere:
            writes = Writes()
            writes.accounts[1] = account
            writes.announcements = [(1, announcement)]
            self.wake.committed(Committed(writes, [(0, number)]))
        elif type_ == PLUGIN_STATUS_CHANGED:
            self.wake.committed_elsewhere()

    async def now(self) -> int:
        return round(now() * 1_000_000)

    async def claim(self, name: str, owner: str, at: int, lease_seconds: float) -> Claim:
        return Claim(name, owner, 1, (0,), at + round(lease_seconds * 1_000_000))

    async def advance(self, claim: Claim, reached: Any, at: int, lease_seconds: float) -> Claim:
        return claim._replace(position=reached, leased_until=at + round(lease_seconds * 1_000_000))

    async def release(self, claim: Claim) -> None:
        pass

    async def events(self, position: tuple[int, ...], limit: int) -> list[StoredEvent]:
        self.looks += 1
        return self.stored[position[0] : position[0] + limit]


async def lags(per_second: int, *, elsewhere: bool = False) -> tuple[dict[str, list[float]], int]:
    """Post for ten seconds, every 97th event urgent; how long each event took to its receiver, and the pages."""
    outbox: Any = MemoryOutbox()
    took: dict[str, list[float]] = {CONSUMED: [], PLUGIN_STATUS_CHANGED: []}
    pages = 0

    async def deliver(events: Sequence[StoredEvent]) -> None:
        nonlocal pages
        pages += 1
        await asyncio.sleep(0.005 + 0.00005 * len(events))  # as long as a page takes on a busy service
        for event in events:
            took[event.announcement.type].append(now() - event.announcement.at / 1_000_000)

    one = OutboxReader(outbox, NAME, deliver, wake=outbox.wake, page=1000, timer=now)
    running = asyncio.create_task(one.run())
    await asyncio.sleep(1)
    for number in range(10 * per_second):
        outbox.commit(CONSUMED if number % 97 else PLUGIN_STATUS_CHANGED, elsewhere=elsewhere)
        await asyncio.sleep(1 / per_second)
    await asyncio.sleep(2)
    await cancelled(running)
    assert sum(map(len, took.values())) == 10 * per_second
    return took, pages


@pytest.mark.parametrize("elsewhere", [False, True], ids=["own", "of another process"])
@pytest.mark.parametrize("per_second", [20, 500, 3_000, 6_000])
@timeless
async def test_urgent_events_leave_within_250_ms_under_any_load(per_second: int, elsewhere: bool) -> None:
    took, _ = await lags(per_second, elsewhere=elsewhere)
    assert max(took[PLUGIN_STATUS_CHANGED]) < 0.25
    assert max(took[CONSUMED]) < 1.1


@timeless
async def test_pages_are_few_under_full_load_although_urgent_events_are_many() -> None:
    _, pages = await lags(3_000)
    assert pages < 10 * 10


async def test_idle_reader_keeps_its_claim_and_is_woken_by_a_commit(store: Engine, clock: Clock):
    receiver = Receiver()
    wake = Wake()
    one = reader(store, receiver, wake=wake, poll_seconds=3600)

    async def is_idle() -> bool:
        return one.holds and wake._next is not None

    task = asyncio.create_task(one.run())
    await until(is_idle)
    before = await leased_until(store)
    clock.now += 2_500_001
    wake.send()  # which another reader may have been quicker to see
    await renewed(store, before)
    await tell(store, of(merchant(0), opening()))
    wake.send()
    await receiver.took(3)
    await cancelled(task)
    (cursor,) = await Outbox(store).cursors()
    assert cursor.leased_until == 0, "at the stop it is let go"
