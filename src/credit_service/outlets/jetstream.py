"""The publisher sends events to the JetStream stream CREDITS, each event once and in its account's order.

The messages of a page are sent without waiting in between; only the first and the last are acknowledged. The first one
names the sequence that the stream must have reached, each other one the message before it. So JetStream refuses a
message whose predecessor it did not store, and the messages of a publisher that was paused while another one took over
(docs/decisions/0019-a-chain-of-messages.md).
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from typing import Any, Final

from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, Header, StreamConfig
from nats.js.errors import APIError, NoStreamResponseError

from credit_service.broker import FAILURES, Broker, StreamConflict, reason
from credit_service.messages.outbound import PAYLOADS, PREFIX, encode, event_id, event_type
from credit_service.outlets.reader import OutboxReader, Undelivered
from credit_service.outlets.wake import Wake
from credit_service.storage.outbox import Outbox, StoredEvent

STREAM: Final = "CREDITS"
"""The stream of outbound events. Only this publisher writes to it."""

SUBJECTS: Final = [PREFIX + name for name in PAYLOADS]
"""One by one, because evt.credits.manual_adjustment is inbound."""

READER: Final = "jetstream"
"""The name of the cursor."""

_PAGE: Final = 1000  # events sent at once
_LOOKED_AT: Final = (
    4 * _PAGE
)  # messages at the end of the stream; they include all that two crashes kept from the cursor
_AT_A_STRETCH: Final = 100
_ANSWER_SECONDS: Final = 3.0
_PATIENCE_SECONDS: Final = 2.0
_WRONG_LAST_SEQUENCE: Final = 10071
HEADERS: Final = {"Content-Type": "application/cloudevents+json", Header.EXPECTED_STREAM.value: STREAM}
"""The headers of every message, beside its id."""
_SAME: Final = "".join([f"{name}: {value}\r\n" for name, value in HEADERS.items()])


class Publisher:
    """The publisher's part of an `OutboxReader`: `begin` and `deliver`.

    `source`: the service's name in its events. `on_published` receives the number of published events by type.
    """

    def __init__(self, broker: Broker, source: str, on_published: Callable[[Counter[str]], None]) -> None:
        self._broker = broker
        self._source = source
        self._on_published = on_published
        self._last = 0  # sequence of the stream's last message
        self._there: frozenset[str] = frozenset()  # ids of its last messages when we began

    async def begin(self) -> None:
        """Make sure that the stream exists, and read its end. Raises Undelivered."""
        with self._undelivered():
            async with asyncio.timeout(
                _PATIENCE_SECONDS
            ):  # without it, a process without NATS would hold the cursor for ever
                streams = await self._broker.jetstream()
            await ensure_stream(self._broker)
            self._last = (await streams.stream_info(STREAM)).state.last_seq
            first = max(1, self._last - _LOOKED_AT + 1)
            async with aclosing(stored_ids(streams, first)) as ids:
                self._there = frozenset([id_ async for id_ in ids])

    async def deliver(self, events: Sequence[StoredEvent]) -> None:
        """Publish the events that the stream does not have yet. Raises Undelivered."""
        ids = [event_id(event.account, event.announcement.number) for event in events]
        missing = [index for index, id_ in enumerate(ids) if id_ not in self._there]
        if missing:
            with self._undelivered():
                await self._publish([(ids[index], events[index]) for index in missing])
        self._on_published(Counter([event_type(event) for event in events]))

    async def _publish(self, named: Sequence[tuple[str, StoredEvent]]) -> None:
        client = await self._broker.client()
        inbox = client.new_inbox()
        answers = await client.subscribe(inbox)
        try:
            expected = f"{Header.EXPECTED_LAST_SEQUENCE.value}: {self._last}"
            answered = {named[0][0], named[-1][0]}
            for start in range(0, len(named), _AT_A_STRETCH):
                await asyncio.sleep(0)  # let requests have their turn
                commands = []
                for id_, event in named[start : start + _AT_A_STRETCH]:
                    reply = inbox if id_ in answered else ""
                    commands.append(_command(event_type(event), reply, id_, expected, encode(event, self._source)))
                    expected = f"{Header.EXPECTED_LAST_MSG_ID.value}: {id_}"
                await self._broker.send(client, b"".join(commands))
            for _ in answered:  # the first answer gives the reason of a refusal
                self._last = await _stored_at(answers)
        finally:
            with suppress(*FAILURES):
                await answers.unsubscribe()

    @contextmanager
    def _undelivered(self) -> Iterator[None]:
        try:
            yield
        except StreamConflict as error:
            raise Undelivered(str(error)) from None
        except FAILURES as error:
            if isinstance(error, APIError) and error.err_code == _WRONG_LAST_SEQUENCE:
                raise Undelivered(f"Another publisher wrote to the stream {STREAM}.") from None
            raise Undelivered(f"{self._broker.name} does not take events: {reason(error)}.") from None


def _command(subject: str, reply: str, id_: str, expected: str, body: bytes) -> bytes:
    """A message in NATS' protocol (HPUB). `expected`: the header that names the message that must stand before it."""
    head = f"NATS/1.0\r\n{Header.MSG_ID.value}: {id_}\r\n{expected}\r\n{_SAME}\r\n".encode()
    return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (
        subject.encode(), reply.encode(), len(head), len(head) + len(body), head, body,
    )  # fmt: skip


def publishing(outbox: Outbox, publisher: Publisher, wake: Wake) -> OutboxReader:
    """The reader that publishes the outbox."""
    return OutboxReader(outbox, READER, publisher.deliver, begin=publisher.begin, wake=wake, page=_PAGE)


async def ensure_stream(broker: Broker) -> None:
    """Make sure that our stream carries all our subjects. Raises StreamConflict, FAILURES."""
    carriers = await broker.carriers(SUBJECTS)
    if set(carriers.get(STREAM, ())) != set(SUBJECTS):
        await broker.create_stream(StreamConfig(name=STREAM, subjects=SUBJECTS))
    broker.agreed(STREAM)


async def stored_ids(streams: JetStreamContext, first: int = 1) -> AsyncGenerator[str]:
    """The ids of the stream's messages from this sequence on. Raises FAILURES."""
    config = ConsumerConfig(
        deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=first,
        ack_policy=AckPolicy.NONE,
        headers_only=True,
        mem_storage=True,
        num_replicas=1,
    )
    consumer = await streams.pull_subscribe("", stream=STREAM, config=config)
    try:
        left = (await consumer.consumer_info()).num_pending or 0
        while left > 0:
            for message in await consumer.fetch(min(left, 500), timeout=_ANSWER_SECONDS):
                left = message.metadata.num_pending
                if (id_ := (message.headers or {}).get(Header.MSG_ID.value)) is not None:
                    yield id_
    finally:
        with suppress(*FAILURES):
            await consumer.unsubscribe()


async def _stored_at(answers: Subscription) -> int:
    """The sequence of a stored message, from the next answer. Raises FAILURES."""
    message = await answers.next_msg(_ANSWER_SECONDS)
    if not message.data:  # no stream listens to the subject
        raise NoStreamResponseError
    told: dict[str, Any] = json.loads(message.data)
    if "error" in told:
        raise APIError.from_error(told["error"])
    return int(told["seq"])
