"""NATS as a peer of the service sees it: what he publishes, and how far the service is with it."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Self, TypeVar

from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import ConsumerInfo
from nats.js.errors import NotFoundError

from credit_service.storage.letters import Letter, LetterQuery, Letters
from tests.doors.running import Running
from tests.servers.nats import connected
from tests.servers.processes import wait_until

T = TypeVar("T")
STREAM, CONSUMER = "CREDITS_IN", "credit-service"
Message = tuple[str, bytes]
"""A subject and a body."""


def event(type_: str, data: Any, **more: Any) -> bytes:
    """A CloudEvent."""
    return json.dumps(
        {"specversion": "1.0", "id": "e", "source": "tests", "type": type_, "data": data, **more}
    ).encode()


def older(type_: str, data: Any, **more: Any) -> bytes:
    """The platform's older envelope."""
    return json.dumps({"event_type": type_, "payload": data, **more}).encode()


class Peer:
    """A connection of somebody else to NATS. Every call makes one of its own, since the server comes and goes."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._runner = asyncio.Runner()
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.submit(self._runner.close).result()
        self._thread.shutdown()

    def ask(self, what: Callable[[JetStreamContext], Coroutine[Any, Any, T]]) -> T:
        """Do something with JetStream."""

        async def do() -> T:
            async with connected(self._url) as client:
                return await what(client.jetstream(timeout=30))

        return self._thread.submit(self._runner.run, do()).result()

    def send(self, *messages: Message, stream: str = STREAM) -> None:
        """Publish messages in their order, as soon as there is a stream for them."""
        wait_until(lambda: self.has(stream), f"the stream {stream}")

        async def publish(streams: JetStreamContext) -> None:
            client: Client = streams._nc
            for start in range(0, len(messages), 1_000):
                *some, last = messages[start : start + 1_000]
                for subject, body in some:
                    await client.publish(subject, body)
                await streams.publish(*last)  # behind all the others, and acknowledged

        self.ask(publish)

    def has(self, stream: str) -> bool:
        """Whether there is a stream."""

        async def look(streams: JetStreamContext) -> bool:
            try:
                await streams.stream_info(stream)
            except NotFoundError:
                return False
            return True

        return self.ask(look)

    def consumer(self, stream: str = STREAM, consumer: str = CONSUMER) -> ConsumerInfo:
        """How far a consumer is, once the service has created it."""
        found: list[ConsumerInfo] = []

        def exists() -> bool:
            with suppress(NotFoundError):
                found.append(self.ask(lambda streams: streams.consumer_info(stream, consumer)))
            return bool(found)

        wait_until(exists, f"the consumer of {stream}")
        return found[0]

    def settle(self, stream: str = STREAM, consumer: str = CONSUMER) -> None:
        """Wait until the service has acknowledged, or terminated, all that was published."""

        def settled() -> bool:
            info = self.consumer(stream, consumer)
            return (info.num_pending, info.num_ack_pending) == (0, 0)

        wait_until(settled, f"the end of {stream}")

    def published(self, count: int, subject: str = "dlq.credits.>") -> list[tuple[str, Any, str]]:
        """So many dead letters as NATS has them: subject, body, id."""

        async def read(streams: JetStreamContext) -> list[tuple[str, Any, str]]:
            subscription = await streams.subscribe(subject, ordered_consumer=True)
            found = [await subscription.next_msg(30) for _ in range(count)]
            return [(one.subject, json.loads(one.data), (one.headers or {})["Nats-Msg-Id"]) for one in found]

        wait_until(lambda: self.has("CREDITS_DLQ"), "the stream of dead letters")
        return self.ask(read)


def letters(running: Running) -> list[Letter]:
    """The dead letters of a service, oldest first."""
    return running.run(Letters(running.service.engine).page(LetterQuery(), None, 1000))[::-1]


def consumed(running: Running) -> dict[tuple[str, str], float]:
    """How many events were consumed, by subject and outcome."""
    found = {}
    for metric in running.service.metrics.registry.collect():
        for sample in metric.samples:
            if sample.name == "credits_events_consumed_total":
                found[sample.labels["subject"], sample.labels["outcome"]] = sample.value
    return found


def total(running: Running, name: str) -> float:
    """The sum of a metric."""
    metrics = running.service.metrics.registry.collect()
    return sum(sample.value for metric in metrics for sample in metric.samples if sample.name == name)


def orders(merchant: str, numbers: Iterable[int], subject: str = "evt.shopify.webhook.order_paid") -> list[Message]:
    """Orders of one credit each."""
    return [
        (subject, event("evt.shopify.webhook.order_paid", {"merchant_id": merchant, "order_id": one, "credits": 1}))
        for one in numbers
    ]
