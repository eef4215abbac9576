"""The publisher: the stream holds each event once and in order, whatever fails."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from nats.js.api import DiscardPolicy, StreamConfig

from credit_service.ledger.policy import Policy
from credit_service.outlets.jetstream import READER, STREAM, SUBJECTS
from credit_service.outlets.reader import Undelivered
from credit_service.posting import Posting
from credit_service.storage.engine import Engine
from credit_service.storage.outbox import Outbox
from credit_service.storage.postgres.engine import PostgresEngine
from tests.ledger.telling import opening, order, use
from tests.outlets.publishing import (
    SOURCE,
    Publishing,
    check_stream,
    connection,
    create,
    running,
    stream,
    until_all_is_published,
)
from tests.servers.nats import Nats, connected
from tests.storage.contract import merchant, tell
from tests.storage.engines import only_on, opened
from tests.storage.values import of

RECOVERY_SECONDS = 10


@pytest.fixture
async def store(new_ledger: Callable[[], str]) -> AsyncIterator[Engine]:
    store = opened(new_ledger())
    yield store
    await store.close()


async def announce(store: Engine, accounts: int, first: int = 0) -> None:
    merchants = [merchant(first + index) for index in range(accounts)]
    await tell(store, *[of(one, opening()) for one in merchants])
    await tell(store, *[of(one, use(2)) for one in merchants])


async def test_stream_holds_every_announcement_as_cloud_event(store: Engine, nats_url: str):
    await announce(store, 100)
    async with connection(nats_url) as broker:
        one = Publishing(store, broker, page=150)
        await one.drain()
    messages = await check_stream(store, nats_url)
    assert len(messages) == 400
    types = Counter(message.subject for message in messages)
    assert (
        types
        == one.published
        == {
            f"evt.credits.{type_}": 100
            for type_ in ("account.created", "recharged", "plugin_status_changed", "consumed")
        }
    )
    for message in messages:
        assert message.headers["Content-Type"] == "application/cloudevents+json"
        assert message.headers["Nats-Msg-Id"] == message.event["id"]
        assert message.subject == message.event["type"]
        assert message.event["source"] == SOURCE
    async with connected(nats_url) as nats:
        made = (await nats.jetstream().stream_info(STREAM)).config
    assert made.subjects == SUBJECTS
    assert "evt.credits.manual_adjustment" not in SUBJECTS, "it comes in"


async def test_crash_before_the_cursor_moved_repeats_nothing(store: Engine, nats_url: str):
    await create(nats_url, duplicate_window=0.1)
    await announce(store, 20)
    async with connection(nats_url) as broker:
        for published in (30, 60):  # by two that died, the second one having begun like the first
            dying = Publishing(store, broker)
            await dying.publisher.begin()
            await dying.publisher.deliver(await Outbox(store).events((0,) * store.lanes, published))
            await asyncio.sleep(0.2)  # so that it is not the window that helps
            assert len(await stream(nats_url)) == published
        await Publishing(store, broker).drain()
    await check_stream(store, nats_url)


async def test_message_after_a_refused_one_is_not_stored(store: Engine, nats_url: str):
    await create(nats_url, max_msgs=7, discard=DiscardPolicy.NEW)
    await announce(store, 10)
    async with connection(nats_url) as broker:
        one = Publishing(store, broker)
        with pytest.raises(Undelivered):
            await one.reader.once()
        assert len(await stream(nats_url)) == 7
        with pytest.raises(Undelivered, match="maximum messages exceeded"):
            await one.reader.once()
        async with connected(nats_url) as nats:
            streams = nats.jetstream()
            config = (await streams.stream_info(STREAM)).config
            await streams.update_stream(config.evolve(max_msgs=-1))
        await one.drain()
    assert len(await check_stream(store, nats_url)) == 40


async def test_page_of_a_publisher_that_lost_its_claim_is_refused_whole(store: Engine, nats_url: str):
    await create(nats_url, duplicate_window=0.1)
    await announce(store, 10)
    async with connection(nats_url) as broker:
        paused, next_one = Publishing(store, broker), Publishing(store, broker)
        await paused.publisher.begin()
        events = await Outbox(store).events((0,) * store.lanes, 10)
        await next_one.drain()
        await asyncio.sleep(0.2)  # so that it is not the window that helps
        with pytest.raises(Undelivered, match="Another publisher wrote to the stream CREDITS"):
            await paused.publisher.deliver(events)
    await check_stream(store, nats_url)


async def test_other_stream_with_our_subjects_is_a_conflict(store: Engine, nats_url: str):
    await create(nats_url, "PLATFORM", ["evt.credits.consumed", "evt.other"])
    await announce(store, 2)
    async with connection(nats_url) as broker:
        one = Publishing(store, broker)
        with pytest.raises(Undelivered, match="stream CREDITS cannot be created: subjects overlap"):
            await one.reader.once()
        assert "overlap" in broker.conflicts[STREAM]
        async with connected(nats_url) as nats:
            assert [info.config.name for info in await nats.jetstream().streams_info()] == ["PLATFORM"]
            await nats.jetstream().delete_stream("PLATFORM")
        await one.drain()
        assert broker.conflicts == {}
    await check_stream(store, nats_url)


async def test_stream_without_one_of_our_subjects_is_a_conflict(store: Engine, nats_url: str):
    await create(nats_url, subjects=SUBJECTS[1:])
    await announce(store, 2)
    async with connection(nats_url) as broker:
        one = Publishing(store, broker)
        with pytest.raises(Undelivered, match=r"CREDITS is there, without the subject evt\.credits\.account\.created"):
            await one.reader.once()
        async with connected(nats_url) as nats:
            streams = nats.jetstream()
            assert (await streams.stream_info(STREAM)).config.subjects == SUBJECTS[1:]
            await streams.update_stream(StreamConfig(name=STREAM, subjects=["evt.credits.>"]))
        await one.drain()
    await check_stream(store, nats_url)


async def test_postings_work_without_nats_at_the_start(store: Engine, new_nats: Callable[..., Nats]):
    server = new_nats()
    server.stop()
    async with connection(server.url) as broker:
        one = Publishing(store, broker, longest_pause_seconds=0.1)
        async with running(one):
            await announce(store, 10)
            with pytest.raises(Undelivered, match=r"NATS 127.0.0.1:\d+ does not take events"):
                await Publishing(store, broker).publisher.begin()
            assert not any(one.position != (0,) * store.lanes for one in await Outbox(store).cursors())
            server.start()
            await until_all_is_published(store, RECOVERY_SECONDS)
    await check_stream(store, server.url)


@pytest.mark.parametrize("end", ["stop", "kill", "pause"])
async def test_publishing_survives_restarts_of_nats(store: Engine, new_nats: Callable[..., Nats], end: str):
    server = new_nats()
    async with connection(server.url) as broker:
        one = Publishing(store, broker, page=20, poll_seconds=0.01, longest_pause_seconds=0.1)
        async with running(one):
            for round_ in range(3):
                telling = asyncio.create_task(announce(store, 50, 50 * round_))
                await asyncio.sleep(random.uniform(0, 0.05))
                await asyncio.to_thread(getattr(server, end))
                await telling
                await asyncio.to_thread(server.resume if end == "pause" else server.start)
                await until_all_is_published(store, RECOVERY_SECONDS)
    assert len(await check_stream(store, server.url)) == 600


@pytest.mark.slow
@only_on("sqlite")
async def test_death_of_the_stream_leader_loses_and_repeats_nothing(store: Engine, new_nats: Callable[..., Nats]):
    servers = await asyncio.to_thread(cluster, new_nats)
    urls = ",".join(server.url for server in servers)
    async with connection(urls, replicas=3) as broker:
        one = Publishing(store, broker, page=20, poll_seconds=0.01, longest_pause_seconds=0.2)
        async with running(one):
            await announce(store, 20)
            await until_all_is_published(store)
            async with connected(servers[0].url) as nats:
                leader = (await nats.jetstream().stream_info(STREAM)).cluster
            assert leader is not None
            dead = servers[int(str(leader.leader)[-1])]
            telling = asyncio.create_task(announce(store, 100, 20))
            await asyncio.to_thread(dead.kill)
            await telling
            await until_all_is_published(store)
    assert len(await check_stream(store, next(server.url for server in servers if server is not dead))) == 480


def cluster(new_nats: Callable[..., Nats]) -> list[Nats]:
    """Three servers that keep streams together."""
    ports = random.sample(range(10_000, 32_768), 3)
    routes = ", ".join(f"nats://127.0.0.1:{port}" for port in ports)
    return [
        new_nats(settings=f"server_name: n{n}\ncluster {{ name: c, listen: 127.0.0.1:{port}, routes: [{routes}] }}")
        for n, port in enumerate(ports)
    ]


class SlowStore(PostgresEngine):
    """A store whose commits take their time, each another."""

    def __init__(self, url: str) -> None:
        super().__init__(url, optimistic=False)
        commit = self.locked.commit

        async def slow(connection: Any) -> None:
            await asyncio.sleep(random.uniform(0, 0.05))
            await commit(connection)

        self.locked.commit = slow  # type: ignore[method-assign]


@only_on("postgres")
async def test_many_slow_writers_and_publishers_keep_every_event_in_order(new_ledger: Callable[[], str], nats_url: str):
    url = new_ledger()
    stores = [PostgresEngine(url) for _ in range(3)]
    slow = [SlowStore(url) for _ in range(4)]
    postings = [Posting(store, Policy()) for store in slow]
    merchants = [merchant(index) for index in range(20)]

    async def write(writer: int) -> None:
        for number in range(15):
            one = merchants[(writer * 7 + number) % len(merchants)]
            await postings[writer % 4].submit(of(one, order(f"{writer} {number}")))

    async with connection(nats_url) as broker:
        options = {"page": 40, "poll_seconds": 0.01, "lease_seconds": 0.5}
        several = [Publishing(store, broker, **options) for store in stores]
        for posting in postings:
            posting.start()
        async with running(*several):
            disturbing = asyncio.create_task(disturb(several))
            await asyncio.gather(*[write(writer) for writer in range(64)])
            disturbing.cancel()
            await until_all_is_published(stores[0])
        (cursor,) = await Outbox(stores[0]).cursors()
        assert cursor.epoch > 5, "the cursor changed hands meanwhile"
    messages = await check_stream(stores[0], nats_url)
    assert sum(message.event["type"] == "evt.credits.consumed" for message in messages) == 64 * 15
    for posting in postings:
        await posting.drain()
    for store in [*stores, *slow]:
        await store.close()


async def disturb(several: list[Publishing]) -> None:
    """Take the cursor from whoever has it, again and again, in the midst of what he does."""
    while True:
        await asyncio.sleep(random.uniform(0.02, 0.1))
        for one in several:
            if (claim := one.reader._claim) is not None:
                outbox = one.reader._outbox
                await outbox.release(claim)
                await outbox.claim(READER, "another", await outbox.now(), 0.02)
