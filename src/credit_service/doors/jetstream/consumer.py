"""The consumer keeps the streams and durable consumers in place, and takes their messages while the service runs.

A lost connection, stream or consumer is looked for again, with a pause, for ever. NATS delivers unacknowledged messages
again by itself.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final, NamedTuple

import structlog
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import APIError, NotFoundError

from credit_service.broker import FAILURES, Broker, StreamConflict, reason
from credit_service.doors.jetstream.pull import Pull
from credit_service.doors.jetstream.subjects import Subjects, partition_filter, partitioned
from credit_service.doors.jetstream.taking import Taking
from credit_service.settings import Settings
from credit_service.supervision import Supervisor

STREAM: Final = "CREDITS_IN"
_AGAIN_SECONDS: Final = 1.0
_CONFLICT_SECONDS: Final = 10.0
_ANSWER_SECONDS: Final = 2.0
_log = structlog.get_logger()


class _Route(NamedTuple):
    """A durable consumer, its stream and its subjects."""

    stream: str
    consumer: str
    subjects: Sequence[str]


class Consumer:
    """Takes events from NATS until `stop`. `worker` of `workers` takes its share of the partitions."""

    def __init__(
        self, broker: Broker, subjects: Subjects, taking: Taking, settings: Settings, worker: int = 0, workers: int = 1
    ) -> None:
        self._broker = broker
        self._subjects = subjects
        self._taking = taking
        self._name = settings.nats_consumer
        self._batch = settings.nats_batch_size
        self._partitions = settings.nats_partitions
        self._mine = [number for number in settings.partitions_taken if number % workers == worker]
        # Long enough that NATS does not deliver a message again while its posting is under way.
        self._ack_wait = max(30.0, 4 * settings.posting_deadline_seconds + 10)
        self._longest = settings.posting_deadline_seconds + 1
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._told: str | None = None

    def start(self, supervisor: Supervisor | None = None) -> None:
        """Take events as soon as there is a connection."""
        self._task = (supervisor or Supervisor()).start("consumer", self._keep_consuming)

    async def stop(self) -> None:
        """Finish the current batch, return prefetched messages to NATS, and stop."""
        self._stopping.set()
        if self._task is not None:
            if self._broker.connected:
                await asyncio.wait([self._task], timeout=self._longest)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_consuming(self) -> None:
        """Take events until `stop`. A failure is logged, once while its reason stays the same."""
        while not self._stopping.is_set():
            try:
                routes, again = await self._routes(await self._broker.jetstream())
                self._told = None
                await self._consume_all(routes, again)
            except StreamConflict:
                await self._pause(_CONFLICT_SECONDS)  # the broker has logged it
            except FAILURES as error:
                if self._broker.connected:  # otherwise the broker has logged it
                    self._warn(reason(error))
                await self._pause(_AGAIN_SECONDS)

    # ---- streams and consumers

    async def _routes(self, streams: JetStreamContext) -> tuple[list[_Route], float | None]:
        """The consumers to take from, all created; and after how many seconds to look again, if at all."""
        patterns = self._subjects.patterns
        again = None
        try:
            carried = await self._broker.ensure_stream(STREAM, patterns)
        except StreamConflict:  # take the subjects that are carried
            carried, again = await self._broker.carriers(patterns), _CONFLICT_SECONDS
            if not carried:
                raise
        if self._partitions:
            stream = f"{STREAM}_{self._partitions}"
            carried.pop(stream, None)
            await self._broker.create_stream(partitioned(stream, carried, self._partitions))
            routes = [_Route(stream, f"{self._name}-{number}", [partition_filter(number)]) for number in self._mine]
        else:
            routes = [_Route(stream, self._name, subjects) for stream, subjects in carried.items()]
        for route in routes:
            await self._ensure_consumer(streams, route)
        return routes, again

    async def _ensure_consumer(self, streams: JetStreamContext, route: _Route) -> None:
        """Make sure that our durable consumer delivers these subjects; alter it if needed."""
        name = f"{route.stream} {route.consumer}"
        try:
            there = (await streams.consumer_info(route.stream, route.consumer)).config
            filtered = there.filter_subjects or ([there.filter_subject] if there.filter_subject else [])
            if set(filtered) == set(route.subjects) and there.ack_policy == AckPolicy.EXPLICIT:
                self._broker.agreed(name)
                return
        except NotFoundError:
            pass
        config = ConsumerConfig(
            name=route.consumer,
            durable_name=route.consumer,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=self._ack_wait,
            max_deliver=-1,
            max_ack_pending=max(1_000, 4 * self._batch),
            filter_subjects=list(route.subjects),
        )
        try:
            await streams.add_consumer(route.stream, config)
        except APIError as error:
            if error.code in (None, 503):
                raise
            sentence = f"The consumer {route.consumer} of {route.stream} cannot be created: {error.description}."
            raise self._broker.conflict(name, sentence) from None
        self._broker.agreed(name)

    # ---- taking

    async def _consume_all(self, routes: Sequence[_Route], again: float | None) -> None:
        if not routes:
            await self._stopping.wait()  # other workers have all partitions
            return
        tasks = [asyncio.create_task(self._consume(route, again), name=f"consumer {route.stream}") for route in routes]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _consume(self, route: _Route, again: float | None) -> None:
        pull = Pull(await self._broker.client(), route.stream, route.consumer, self._batch)
        loop = asyncio.get_running_loop()
        until = None if again is None else loop.time() + again

        ahead: list[Msg] = []  # read while the messages before them are posted

        async def pause(seconds: float) -> bool:
            await pull.hold(ahead)
            return await self._pause(seconds)

        await pull.open()
        taking: asyncio.Task[None] | None = None
        try:
            while not self._stopping.is_set() and (until is None or loop.time() < until):
                ahead += await pull.messages()
                events = await self._taking.read(ahead)
                if taking is not None and (events or taking.done()):
                    await taking
                    taking = None
                if self._stopping.is_set():
                    break  # prefetched messages go back
                ahead.clear()
                if events:
                    taking = loop.create_task(self._taking.take(events, pause), name=f"taking from {route.stream}")
            if taking is not None:
                await taking
        finally:
            if taking is not None:
                taking.cancel()
                await asyncio.gather(taking, return_exceptions=True)
            # NATS delivers these again at once, to any consumer.
            with contextlib.suppress(*FAILURES):
                async with asyncio.timeout(_ANSWER_SECONDS):
                    for message in [*ahead, *await pull.close()]:
                        await message.nak()

    async def _pause(self, seconds: float) -> bool:
        """Wait, and return whether to go on."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        return not self._stopping.is_set()

    def _warn(self, why: str) -> None:
        if why != self._told:
            _log.warning("events_not_consumed", reason=why)
        self._told = why
