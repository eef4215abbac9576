"""The stream of events: one tail for all listeners, bounded memory, each event once."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from typing import Any, cast
from uuid import UUID

import pytest

from credit_service.ledger.account import Announcement
from credit_service.outlets import stream
from credit_service.outlets.stream import Stream
from credit_service.outlets.wake import Wake
from credit_service.storage.engine import StorageUnavailable
from credit_service.storage.outbox import Outbox, Position, StoredEvent
from tests.ledger.telling import T0

ACCOUNTS = 3
START = (0, 0)


class FakeOutbox:
    """A store of nothing but an outbox of two lanes, which counts how often it is asked."""

    lanes = 2

    def __init__(self) -> None:
        self.stored: list[StoredEvent] = []
        self.asked = 0
        self.away = False
        self._last = [0, 0]
        self._announced = dict.fromkeys(range(ACCOUNTS), 0)

    def post(self, account: int, count: int = 1) -> None:
        """Announce something of an account; which is always in the same lane."""
        for _ in range(count):
            lane = account % self.lanes
            self._last[lane] += 1
            self._announced[account] += 1
            told = Announcement(self._announced[account], "account.created", None, 0, T0 + len(self.stored))
            self.stored.append(StoredEvent(lane, self._last[lane], account, str(UUID(int=account)), told, None))

    async def events(self, after: Position, limit: int) -> list[StoredEvent]:
        """See `Outbox.events`."""
        await self._ask()
        return [stored for stored in self.stored if stored.id > after[stored.lane]][:limit]

    async def events_of(self, account: int, after: int, limit: int) -> list[StoredEvent]:
        """See `Outbox.events_of`."""
        await self._ask()
        found = [one for one in self.stored if one.account == account and one.announcement.number > after]
        return found[:limit]

    async def end(self) -> Position:
        """See `Outbox.end`."""
        await self._ask()
        return tuple(self._last)

    async def _ask(self) -> None:
        self.asked += 1
        await asyncio.sleep(0)
        if self.away:
            raise StorageUnavailable("away")


class Told:
    """What one listener has heard, as it goes on listening."""

    def __init__(self, follow: AsyncGenerator[bytes]) -> None:
        self._follow = follow
        self.cursors: list[str] = []
        self.numbers: dict[str, list[int]] = {}

    async def until(self, count: int) -> "Told":
        """Listen until so many events were heard in all."""
        async with asyncio.timeout(10):
            while len(self.cursors) < count:
                self.take(await anext(self._follow))
        return self

    def take(self, lines: bytes) -> None:
        """Hear some more."""
        text = lines.decode()
        self.cursors += re.findall("^id: (.*)$", text, flags=re.MULTILINE)
        for subject, number in re.findall('"subject":"([^"]*)".*"sequence":"([^"]*)"', text):
            self.numbers.setdefault(subject[-1], []).append(int(number))


@pytest.fixture
def outbox() -> FakeOutbox:
    return FakeOutbox()


@pytest.fixture
def wake() -> Wake:
    return Wake()


@pytest.fixture
def streamed(outbox: FakeOutbox, wake: Wake, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stream]:
    """A stream that is never idle for long."""
    monkeypatch.setattr(stream, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(stream, "_AWAY_SECONDS", 0.01)
    made = Stream(
        cast(Outbox, outbox),
        wake,
        "tests",
        lambda merchant, position: f"{merchant and UUID(merchant).int}{position}",
    )
    yield made
    made.close()


async def test_listener_gets_earlier_and_later_events(streamed: Stream, outbox: FakeOutbox) -> None:
    outbox.post(0, 3)
    async with aclosing(streamed.follow(None, START)) as follow:
        told = await Told(follow).until(3)
        outbox.post(1, 2)
        await told.until(5)
    assert told.numbers == {"0": [1, 2, 3], "1": [1, 2]}
    assert told.cursors == ["None(1, 0)", "None(2, 0)", "None(3, 0)", "None(3, 1)", "None(3, 2)"]


async def test_commit_of_this_process_reaches_listeners_at_once(
    streamed: Stream, outbox: FakeOutbox, wake: Wake, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with aclosing(streamed.follow(None, START)) as follow:
        outbox.post(0)
        told = await Told(follow).until(1)
        monkeypatch.setattr(stream, "POLL_SECONDS", 3600)
        for count in range(2, 6):
            outbox.post(0)
            wake.send()
            await told.until(count)


async def test_listener_of_one_account_gets_only_its_events(streamed: Stream, outbox: FakeOutbox) -> None:
    outbox.post(0, 2)
    outbox.post(2, 2)
    async with aclosing(streamed.follow(2, (1,))) as follow:
        told = await Told(follow).until(1)
        outbox.post(0, 5)
        outbox.post(2, 3)
        outbox.post(1, 5)
        await told.until(4)
    assert (told.numbers, told.cursors) == ({"2": [2, 3, 4, 5]}, ["2(2,)", "2(3,)", "2(4,)", "2(5,)"])


async def test_hundred_listeners_ask_the_store_as_often_as_one(streamed: Stream, outbox: FakeOutbox) -> None:
    follows = [streamed.follow(None, START) for _ in range(100)]
    outbox.post(0)
    told = [await Told(follow).until(1) for follow in follows]
    before = outbox.asked
    for count in range(2, 12):
        outbox.post(count % ACCOUNTS)
        await asyncio.gather(*[one.until(count) for one in told])
    # The tail looks again and again; had each of them asked, it would be a thousand times.
    assert outbox.asked - before < 200
    assert len({tuple(one.cursors) for one in told}) == 1
    for follow in follows:
        await follow.aclose()


async def test_store_is_not_asked_without_listeners(streamed: Stream, outbox: FakeOutbox) -> None:
    outbox.post(0)
    async with aclosing(streamed.follow(None, START)) as follow:
        await Told(follow).until(1)
    before = outbox.asked
    await asyncio.sleep(0.05)  # five times as long as between two looks
    assert outbox.asked == before


async def test_slow_listener_delays_no_other_and_catches_up_itself(
    streamed: Stream, outbox: FakeOutbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = streamed._chunks.maxlen or 0
    slow = streamed.follow(None, START)
    slow_told = Told(slow)
    outbox.post(0)
    await slow_told.until(1)
    async with aclosing(streamed.follow(None, START)) as quick:
        quick_told = await Told(quick).until(1)
        for count in range(2, kept + 20):
            outbox.post(0)
            await quick_told.until(count)
        assert len(streamed._chunks) == kept
        before = outbox.asked
        await slow_told.until(kept + 19)
        assert outbox.asked > before
    assert slow_told.cursors == quick_told.cursors
    await slow.aclose()


async def test_no_event_is_missing_after_an_outage_of_the_store(streamed: Stream, outbox: FakeOutbox) -> None:
    outbox.post(0)
    async with aclosing(streamed.follow(None, START)) as follow:
        told = await Told(follow).until(1)
        outbox.away = True
        outbox.post(1, 120)
        async with aclosing(streamed.follow(None, START)) as late:
            assert [await anext(late) for _ in range(3)] == [b""] * 3
            outbox.away = False
            await told.until(121)
            assert (await Told(late).until(121)).cursors == told.cursors


async def test_listeners_that_come_and_go_get_each_event_once(streamed: Stream, outbox: FakeOutbox, wake: Wake) -> None:
    async def post() -> None:
        for number in range(600):
            outbox.post(number % ACCOUNTS)
            wake.send()
            await asyncio.sleep(0)

    async def listen(account: int | None, count: int, stays: int) -> Told:
        position: Position = START if account is None else (0,)
        heard = Told(streamed.follow(account, position))
        while len(heard.cursors) < count:
            heard._follow = streamed.follow(account, position)
            async with aclosing(heard._follow):
                await heard.until(min(len(heard.cursors) + stays, count))
            last = heard.cursors[-1]
            position = tuple(map(int, re.findall(r"\d+", last[last.index("(") :])))
        return heard

    async with asyncio.timeout(30):
        posting = asyncio.create_task(post())
        of_all = await asyncio.gather(*[listen(None, 600, stays) for stays in (7, 60, 600)])
        of_one = await asyncio.gather(*[listen(account, 200, 9) for account in range(ACCOUNTS)])
        await posting
    for told in of_all:
        assert told.numbers == {str(account): [*range(1, 201)] for account in range(ACCOUNTS)}
    for account, told in enumerate(of_one):
        assert told.numbers == {str(account): [*range(1, 201)]}


@pytest.mark.parametrize("post", [lambda outbox: None, lambda outbox: outbox.post(0, 500)], ids=["idle", "behind"])
async def test_every_stream_ends_with_the_service(
    streamed: Stream, outbox: FakeOutbox, post: Callable[[FakeOutbox], Any]
) -> None:
    follow = streamed.follow(None, START)
    assert await anext(follow) == b""
    post(outbox)
    await anext(follow)
    streamed.close()
    async with asyncio.timeout(10):
        async for _ in follow:
            pass
        assert [lines async for lines in streamed.follow(None, START)] == []
