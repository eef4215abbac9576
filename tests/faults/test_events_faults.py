"""The test kills the service, NATS and PostgreSQL while events come in and go out. No event is lost or counts twice.

FAULT_ROUNDS is the number of kills of each. The test prints its seed, and FAULT_SEED repeats the events and moments of
an earlier run.
"""

import asyncio
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from nats.js import JetStreamContext

from credit_service.broker import FAILURES
from credit_service.storage.engine import Engine
from credit_service.storage.letters import LetterQuery, Letters
from tests.commands import command
from tests.doors.streaming import CONSUMER, STREAM, event
from tests.outlets.publishing import check_stream, is_all_published
from tests.served import Served
from tests.servers import fixtures
from tests.servers.nats import Nats, connected
from tests.servers.postgres import Postgres
from tests.storage.engines import opened, rows

ROUNDS = int(os.environ.get("FAULT_ROUNDS", "1"))
SEED = int(os.environ.get("FAULT_SEED", random.SystemRandom().randrange(10**6)))
MERCHANTS = [str(UUID(int=number + 1)) for number in range(12)]
PATIENCE_SECONDS = 60.0
BETWEEN_SECONDS = 1.5  # longest time between two faults
PAUSE_SECONDS = 0.002  # pause of the platform between events; the test needs events in flight, not many events
REDELIVERED_SECONDS = 2.0
SETTINGS = {
    "DATABASE_ALLOW_UNSAFE": "true",  # the server of the test runs without fsync
    "DATABASE_TIMEOUT_SECONDS": "1",
    "POSTING_DEADLINE_SECONDS": "2",
    "LOG_FORMAT": "json",
}


class Sent(NamedTuple):
    """A sent event. It must become a transaction or a parked refund with this key, or a dead letter."""

    subject: str
    body: bytes
    key: str | None


class Platform:
    """Sends events until the test stops it. It repeats each event until NATS acknowledges it."""

    def __init__(self, url: str, seed: int) -> None:
        self._url = url
        self._chance = random.Random(seed)
        self._stopping = threading.Event()
        self.sent: list[Sent] = []
        self._thread = threading.Thread(target=lambda: asyncio.run(self._send()), name="platform")
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()

    async def _send(self) -> None:
        number = 0
        while not self._stopping.is_set():
            try:
                async with connected(self._url) as nats:
                    streams = nats.jetstream(timeout=1)
                    while not self._stopping.is_set():
                        for one in self._events(number):
                            await streams.publish(one.subject, one.body, headers={"Nats-Msg-Id": _name(one)})
                            self.sent.append(one)
                        number += 1
                        await asyncio.sleep(PAUSE_SECONDS)
            except (*FAILURES, OSError):
                await asyncio.sleep(0.05)

    def _events(self, number: int) -> list[Sent]:
        """Return an order, and sometimes an early refund, an unknown refund, a malformed event or a refused command."""
        chance = random.Random(f"{SEED} {number}")
        merchant = str(chance.choice(MERCHANTS))
        events = [_order(merchant, number)]
        if chance.random() < 0.2:
            events.insert(chance.randrange(2), _refund(merchant, number, number))
        if chance.random() < 0.03:
            events.append(_refund(merchant, f"{number} of nothing", f"none {number}"))
        if chance.random() < 0.03:
            events.append(Sent("evt.merchant.created", b'{"malformed": %d' % number, None))
        if chance.random() < 0.03:
            events.append(_uncovered(str(UUID(int=10**6 + number)), number))
        return events


def _name(one: Sent) -> str:
    return f"{SEED} {one.key or one.body.decode()}"


def _order(merchant: str, number: int) -> Sent:
    type_ = "evt.shopify.webhook.order_paid"
    data = {"merchant_id": merchant, "order_id": number, "total": "1.00", "currency": "EUR"}
    return Sent(type_, event(type_, data), f"shopify:order:{number}")


def _refund(merchant: str, refund: Any, order: Any) -> Sent:
    type_ = "evt.shopify.webhook.order_refunded"
    data = {"merchant_id": merchant, "refund_id": refund, "order_id": order, "refund_amount": "1.00", "currency": "EUR"}
    return Sent(type_, event(type_, data), f"shopify:refund:{refund}")


def _uncovered(merchant: str, number: int) -> Sent:
    type_ = "cmd.credits.manual_adjustment"
    data = {"merchant_id": merchant, "adjustment_id": number, "operation_type": "DECREASE", "credits": 10**6}
    return Sent(type_, event(type_, {**data, "reason": "r", "admin_id": "bo"}), None)


class World:
    """A service, its PostgreSQL and its NATS."""

    def __init__(self, postgres: Postgres, nats: Nats, folder: Path) -> None:
        self.postgres = postgres
        self.nats = nats
        self.folder = folder
        self.url = postgres.create_database()
        self.start()

    def start(self) -> None:
        settings = {**SETTINGS, "NATS_URL": self.nats.url}
        self.service = Served(self.url, folder=self.folder, settings=settings)

    def kill_service(self) -> None:
        self.service.kill()
        self.start()

    def kill_nats(self) -> None:
        self.nats.kill()
        self.nats.start()

    def kill_postgres(self) -> None:
        self.postgres.kill()
        self.postgres.start()


FAULTS: tuple[Callable[[World], None], ...] = (World.kill_service, World.kill_nats, World.kill_postgres)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with fixtures._have(lambda: Postgres()) as postgres, fixtures._have(lambda: Nats()) as nats:
        world = World(postgres, nats, tmp_path)
        yield world
        world.service.kill()


def test_kills_lose_no_incoming_event_and_no_announcement(world: World) -> None:
    print(f"FAULT_SEED={SEED} FAULT_ROUNDS={ROUNDS}")
    chance = random.Random(SEED)
    faults = [*FAULTS] * ROUNDS
    chance.shuffle(faults)
    asyncio.run(_deliver_again_soon(world))
    platform = Platform(world.nats.url, SEED)
    began = time.monotonic()
    try:
        for fault in faults:
            time.sleep(chance.uniform(0, BETWEEN_SECONDS))
            fault(world)
        time.sleep(BETWEEN_SECONDS)
    finally:
        platform.stop()
    asyncio.run(_settled(world))
    counts = asyncio.run(_check(world, platform.sent))
    killed = Counter(fault.__name__ for fault in faults)
    print(f"{dict(killed)}: {dict(counts)}, {time.monotonic() - began:.0f} s in all")
    ran = command("verify", "--json", cwd=world.folder, DATABASE_URL=world.url, DATABASE_ALLOW_UNSAFE="true")
    assert ran.code == 0, ran.out + ran.err
    assert '"level": "error"' not in world.service.errors()


async def _deliver_again_soon(world: World) -> None:
    """Shorten the time after which NATS redelivers the unacknowledged messages of a killed service."""
    async with connected(world.nats.url) as nats:
        streams = nats.jetstream(timeout=5)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await _is_consumed(streams):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        config = (await streams.consumer_info(STREAM, CONSUMER)).config
        await streams.add_consumer(STREAM, config.evolve(ack_wait=REDELIVERED_SECONDS))


async def _settled(world: World) -> None:
    """Wait until the service has acknowledged all incoming events and published all outgoing events."""
    store = opened(world.url)
    try:
        async with connected(world.nats.url) as nats:
            streams = nats.jetstream(timeout=5)
            until = time.monotonic() + PATIENCE_SECONDS
            while not (await _is_consumed(streams) and await is_all_published(store)):
                assert time.monotonic() < until, world.service.errors()[-3000:]
                await asyncio.sleep(0.1)
    finally:
        await store.close()


async def _is_consumed(streams: JetStreamContext) -> bool:
    try:
        info = await streams.consumer_info(STREAM, CONSUMER)
    except FAILURES:
        return False
    return (info.num_pending, info.num_ack_pending) == (0, 0)


async def _check(world: World, sent: list[Sent]) -> Counter[str]:
    """Check that each event is in exactly one place. Returns the number of events in each place."""
    posted = Counter(key for (key,) in rows(world.url, "SELECT key FROM transactions"))
    parked = Counter(key for (key,) in rows(world.url, "SELECT key FROM parked"))
    store = opened(world.url)
    try:
        originals = Counter(await _originals(store))
        messages = await check_stream(store, world.nats.url)
    finally:
        await store.close()
    counts: Counter[str] = Counter({"sent": len(sent), "announced": len(messages)})
    for one in sent:
        places = {
            "applied": 0 if one.key is None else posted[one.key],
            "parked": 0 if one.key is None else parked[one.key],
            "dead letter": originals[one.body],
        }
        assert sum(places.values()) == 1, f"{one}: {places}"
        counts.update({place: count for place, count in places.items() if count})
    return counts


async def _originals(store: Engine) -> list[bytes | None]:
    found, before = [], None
    while page := await Letters(store).page(LetterQuery(), before, 200):
        found += [letter.original for letter in page]
        before = page[-1].id
    return found
