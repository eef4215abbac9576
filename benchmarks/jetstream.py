"""Events over JetStream: what committing them costs over only fetching and decoding them, and publishing to postings.

Both ways of the first fetch, decode and acknowledge the same stream with the same code; one of them posts what it says.
Of the second, the postings come over HTTP, to a service that publishes and to one that does not; a round begins when
all of the round before is published.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Any, NamedTuple
from urllib.request import urlopen
from uuid import UUID

from benchmarks import postgres
from benchmarks.client import HOST, load
from benchmarks.http_spend import CONNECTIONS, open_accounts, spend
from benchmarks.ledger import MERCHANTS, Ledger, folder, open_ledger
from benchmarks.measure import Figure, figure, interleaved, ratio
from benchmarks.servers import Server, running
from credit_service.broker import Broker
from credit_service.doors.jetstream.consumer import Consumer
from credit_service.doors.jetstream.subjects import Subjects
from credit_service.doors.jetstream.taking import Event, Taking
from credit_service.observability import Metrics
from credit_service.settings import load as settings_with
from tests.servers.nats import broker, connected
from tests.servers.postgres import Databases

PAID = "evt.shopify.webhook.order_paid"
BATCH = 1_000
ENGINES = ("SQLite", "PostgreSQL")


class Seen(NamedTuple):
    """What is seen of a service beside its rate: events published a second, and processor time of a posting in µs."""

    published: list[float]
    cpu: list[float]


class CountedTaking(Taking):
    """Takes so many messages, and says so."""

    def __init__(self, wanted: int, *parts: Any) -> None:
        super().__init__(*parts)
        self._left = wanted
        self.done = asyncio.Event()

    async def take(self, events: Sequence[Event], pause: Callable[[float], Awaitable[bool]]) -> None:
        await super().take(events, pause)
        self._left -= len(events)
        if self._left <= 0:
            self.done.set()


class OnlyDecoding(CountedTaking):
    """Takes messages, and posts nothing of what they say."""

    async def _apply(self, events: Sequence[Any]) -> None:
        for event in events:
            event.outcomes = ["posted"] * len(event.commands)


async def run(quick: bool) -> list[Figure]:
    """The ratios of the two, and what they are made of."""
    with broker() as url, postgres.server() as databases:
        return [*await _taken(url, databases, quick), *await _published(url, databases, quick)]


# ---- events in


async def _taken(url: str, databases: Databases, quick: bool) -> list[Figure]:
    rounds, number = (3, 5_000) if quick else (7, 50_000)
    async with open_ledger() as ledger:
        await _tell(url, ledger.merchants, number)
    names = iter(range(10**6))

    async def taking(engine: str, kind: type[CountedTaking]) -> float:
        async with _fresh(engine, databases) as fresh:
            return await _rate(url, fresh, kind, number, f"benchmark-{next(names)}")

    ways = {engine: partial(taking, engine, CountedTaking) for engine in ENGINES}
    rates = await interleaved(rounds, {**ways, "decoded": partial(taking, ENGINES[0], OnlyDecoding)})
    what = "JetStream to committed over fetched and decoded"
    return [
        *[ratio(f"{what}, {engine}", rates[engine], rates["decoded"], owed=0.35, aim=0.7) for engine in ENGINES],
        *[figure(f"events committed, {engine}", rates[engine], "/s") for engine in ENGINES],
        figure("events decoded", rates["decoded"], "/s"),
    ]


@asynccontextmanager
async def _fresh(engine: str, databases: Databases) -> AsyncIterator[Ledger]:
    """A ledger to which nothing was posted yet but its merchants' trials."""
    if engine == "SQLite":
        async with open_ledger() as ledger:
            yield ledger
    else:
        with databases.database() as database:
            async with postgres.open_ledger(database) as ledger:
                yield ledger


async def _tell(url: str, merchants: Sequence[UUID], number: int) -> None:
    """Fill the stream with orders of all merchants in turn."""
    async with connected(url) as nats:
        streams = nats.jetstream()
        await streams.add_stream(name="CREDITS_IN", subjects=Subjects({}).patterns)
        for order in range(number):
            merchant = str(merchants[order % len(merchants)])
            data = {"merchant_id": merchant, "order_id": order, "total": "12.50", "currency": "EUR"}
            event = {"specversion": "1.0", "id": str(order), "source": "shop", "type": PAID, "data": data}
            await nats.publish(PAID, json.dumps(event).encode())
        await nats.flush(60)


async def _rate(url: str, ledger: Ledger, kind: type[CountedTaking], number: int, name: str) -> float:
    settings = settings_with(nats_consumer=name, nats_batch_size=BATCH)
    connection, subjects = Broker(url, name=name), Subjects({})
    async with ledger.posting(max_batch=BATCH) as posting:
        taking = kind(number, ledger.store, posting, Metrics(), subjects, settings)
        consumer = Consumer(connection, subjects, taking, settings)
        connection.start()
        await connection.jetstream()
        begun = time.perf_counter()
        consumer.start()
        await taking.done.wait()
        took = time.perf_counter() - begun
        await consumer.stop()
        await connection.close()
    return number / took


# ---- events out


async def _published(url: str, databases: Databases, quick: bool) -> list[Figure]:
    figures = []
    for engine in ENGINES:
        with ExitStack() as servers:
            ledgers: list[str | None] = [None, None]
            if engine == "PostgreSQL":
                ledgers = [servers.enter_context(databases.database()) for _ in ledgers]
            figures += await _slowed(engine, servers, ledgers, url, quick)
    return figures


async def _slowed(engine: str, stack: ExitStack, ledgers: Sequence[str | None], url: str, quick: bool) -> list[Figure]:
    rounds, number = (3, 3_000) if quick else (9, 15_000)
    path = stack.enter_context(folder())
    other = stack.enter_context(folder())
    quiet = stack.enter_context(running(path, "service", ledgers[0]))
    telling = stack.enter_context(running(other, "service", ledgers[1], NATS_URL=url, SERVICE_SOURCE=engine))
    seen = {name: Seen([], []) for name in ("not publishing", "publishing")}
    ways = {
        name: partial(_posted, server, open_accounts(server, MERCHANTS), number, seen[name])
        for name, server in zip(seen, (quiet, telling), strict=True)
    }
    for name, way in ways.items():
        await way()  # once, to have everything warm
        seen[name].published.clear()
        seen[name].cpu.clear()
    rates = await interleaved(rounds, ways)
    what = f"postings over HTTP, {CONNECTIONS} connections, {engine}"
    return [
        ratio(f"{what}: publishing over not publishing", rates["publishing"], rates["not publishing"], owed=0.9),
        *[figure(f"{what}, {name}", rates[name], "/s") for name in rates],
        *[figure(f"processor time of a posting, {engine}, {name}", seen[name].cpu, "µs") for name in rates],
        figure(f"published meanwhile, {engine}", seen["publishing"].published, "/s"),
    ]


async def _posted(server: Server, merchants: Sequence[UUID], number: int, seen: Seen) -> float:
    """Postings a second; what else is seen meanwhile is noted."""
    requests = [spend(server, merchants[index % len(merchants)]) for index in range(number)]
    before, cpu = _count(server), server.cpu_seconds()
    ran = load(server.port, requests, CONNECTIONS, 201)
    seen.cpu.append((server.cpu_seconds() - cpu) / number * 1e6)
    seen.published.append((_count(server) - before) / ran.seconds)
    while _metric(server, "credits_outbox_lag_seconds") > 0:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    return number / ran.seconds


def _count(server: Server) -> float:
    return _metric(server, "credits_events_published_total")


def _metric(server: Server, name: str) -> float:
    """The sum of a metric."""
    with urlopen(f"http://{HOST}:{server.port}/metrics") as answer:
        text = answer.read().decode()
    return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, flags=re.MULTILINE))
