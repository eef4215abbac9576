"""Publishers on a real NATS, and what the stream holds afterwards."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

from nats.js.api import AckPolicy, ConsumerConfig, Header, StreamConfig
from nats.js.errors import ServiceUnavailableError

from credit_service.broker import Broker
from credit_service.messages.outbound import event_id
from credit_service.outlets import jetstream
from credit_service.outlets.jetstream import READER, STREAM, Publisher
from credit_service.outlets.reader import OutboxReader
from credit_service.storage.engine import Engine
from credit_service.storage.outbox import Outbox
from tests.servers.nats import connected

SOURCE = "credits-of-the-tests"


class Message(NamedTuple):
    """A message of the stream."""

    subject: str
    headers: dict[str, str]
    event: dict[str, Any]


class Publishing:
    """A publisher that its test drives, page after page, or lets run."""

    def __init__(self, store: Engine, broker: Broker, **options: Any) -> None:
        self.published: Counter[str] = Counter()
        self.publisher = Publisher(broker, SOURCE, self.published.update)
        self.reader = OutboxReader(
            Outbox(store), READER, self.publisher.deliver, **{"begin": self.publisher.begin, **options}
        )

    async def drain(self) -> None:
        """Publish all there is."""
        while await self.reader.once():
            pass


@asynccontextmanager
async def connection(url: str, **options: Any) -> AsyncIterator[Broker]:
    """The service's own connection to NATS."""
    broker = Broker(url, name="test", **options)
    broker.start()
    try:
        yield broker
    finally:
        await broker.close()


@asynccontextmanager
async def running(*several: Publishing) -> AsyncIterator[None]:
    """While inside, these publish by themselves."""
    tasks = [asyncio.create_task(one.reader.run()) for one in several]
    try:
        yield
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def create(url: str, name: str = STREAM, subjects: list[str] | None = None, **config: Any) -> None:
    """Make a stream as an operator would."""
    async with connected(url) as nats:
        await nats.jetstream().add_stream(StreamConfig(name=name, subjects=subjects or jetstream.SUBJECTS, **config))


async def stream(url: str) -> list[Message]:
    """All that the stream holds, in its order. A new leader may not answer at once, so this asks for some seconds."""
    for _ in range(50):
        with suppress(ServiceUnavailableError):
            return await _stream(url)
        await asyncio.sleep(0.1)
    raise TimeoutError("The stream has no leader.")


async def _stream(url: str) -> list[Message]:
    found: list[Message] = []
    async with connected(url) as nats:
        streams = nats.jetstream()
        left = (await streams.stream_info(STREAM)).state.messages
        consumer = await streams.pull_subscribe("", stream=STREAM, config=ConsumerConfig(ack_policy=AckPolicy.NONE))
        while len(found) < left:
            for message in await consumer.fetch(min(left, 500), timeout=5):
                found.append(Message(message.subject, message.headers or {}, json.loads(message.data)))
    return found


async def announced(store: Engine) -> list[str]:
    """The ids of all that was announced."""
    found = []
    position = [0] * store.lanes
    while page := await Outbox(store).events(tuple(position), 1000):
        for event in page:
            position[event.lane] = event.id
            found.append(event_id(event.account, event.announcement.number))
    return found


async def until_all_is_published(store: Engine, seconds: float = 30) -> None:
    """Wait for the cursor to reach the end of the outbox."""
    async with asyncio.timeout(seconds):
        while not await is_all_published(store):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def is_all_published(store: Engine) -> bool:
    """Whether the cursor is at the end of the outbox."""
    return [one.position for one in await Outbox(store).cursors() if one.reader == READER] == [
        await Outbox(store).end()
    ]


async def check_stream(store: Engine, url: str) -> list[Message]:
    """The stream holds every announcement once, and each account's from 1 on without a gap and in order."""
    messages = await stream(url)
    ids = [message.headers[Header.MSG_ID.value] for message in messages]
    assert Counter(ids) == Counter(await announced(store))
    numbers: dict[str, list[int]] = {}
    for message in messages:
        numbers.setdefault(message.event["subject"], []).append(int(message.event["sequence"]))
    for merchant_id, found in numbers.items():
        assert found == list(range(1, len(found) + 1)), f"{merchant_id}: {found}"
    return messages
