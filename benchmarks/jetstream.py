"""Events over JetStream, in and out.

The first part compares a consumer that commits events with one that only fetches and decodes them. Both fetch, decode
and acknowledge the same stream with the same code, and only one posts. The second part compares postings over HTTP to a
service that publishes with postings to one that does not. A round starts when the service has published all events of
the round before. Every hundredth posting exhausts an account, so the service must publish urgent events under full
load. The lag of an urgent event is the time from its posting until NATS stored the event.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple
from urllib.request import urlopen

from nats.js.api import AckPolicy, ConsumerConfig

from benchmarks import postgres
from benchmarks.client import HOST, load
from benchmarks.http_spend import CONNECTIONS, open_accounts, spend
from benchmarks.ledger import MERCHANTS, POLICY, Ledger, folder, open_ledger
from benchmarks.measure import Figure, figure, interleaved, percentile, ratio
from benchmarks.servers import Server, running
from credit_service.broker import Broker
from credit_service.doors.jetstream.consumer import Consumer
from credit_service.doors.jetstream.subjects import Subjects
from credit_service.doors.jetstream.taking import Event, Taking
from credit_service.observability import Metrics
from credit_service.settings import load as settings_with
from credit_service.storage.letters import Letters
from tests.servers.nats import broker, connected
from tests.servers.postgres import Databases

PAID = "evt.shopify.webhook.order_paid"
URGENT = "evt.credits.plugin_status_changed"
BATCH = 1_000
ENGINES = ("SQLite", "PostgreSQL")


class Seen(NamedTuple):
    """Measurements besides the rate: events published per second, and processor time of a posting in µs."""

    published: list[float]
    cpu: list[float]


class CountedTaking(Taking):
    """Takes `wanted` messages, and then sets `done`."""

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
    """Takes messages without posting them."""

    async def _apply(self, events: Sequence[Any]) -> None:
        for event in events:
            event.outcomes = ["posted"] * len(event.commands)


async def run(quick: bool) -> list[Figure]:
    """Measure both parts on SQLite and on PostgreSQL."""
    with broker() as url, postgres.server() as databases:
        return [*await _taken(url, databases, quick), *await _published(url, databases, quick)]


# ---- events in


async def _taken(url: str, databases: Databases, quick: bool) -> list[Figure]:
    rounds, number = (3, 5_000) if quick else (7, 50_000)
    async with open_ledger() as ledger:
        await _fill_stream(url, ledger.merchants, number)
    names = iter(range(10**6))

    async def taking(engine: str, kind: type[CountedTaking]) -> float:
        async with _fresh(engine, databases) as fresh:
            return await _rate(url, fresh, kind, number, f"benchmark-{next(names)}")

    variants = {engine: partial(taking, engine, CountedTaking) for engine in ENGINES}
    rates = await interleaved(rounds, {**variants, "decoded": partial(taking, ENGINES[0], OnlyDecoding)})
    what = "JetStream to committed over fetched and decoded"
    return [
        *[ratio(f"{what}, {engine}", rates[engine], rates["decoded"], required=0.35, aim=0.7) for engine in ENGINES],
        *[figure(f"events committed, {engine}", rates[engine], "/s") for engine in ENGINES],
        figure("events decoded", rates["decoded"], "/s"),
    ]


@asynccontextmanager
async def _fresh(engine: str, databases: Databases) -> AsyncIterator[Ledger]:
    """Open a new ledger with only the trials of its merchants."""
    if engine == "SQLite":
        async with open_ledger() as ledger:
            yield ledger
    else:
        with databases.database() as database:
            async with postgres.open_ledger(database) as ledger:
                yield ledger


async def _fill_stream(url: str, merchants: Sequence[str], number: int) -> None:
    """Fill the stream with orders, in turn for all merchants."""
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
        taking = kind(number, Letters(ledger.store), posting, Metrics(), subjects, settings)
        consumer = Consumer(connection, subjects, taking, settings)
        connection.start()
        await connection.jetstream()
        started = time.perf_counter()
        consumer.start()
        await taking.done.wait()
        took = time.perf_counter() - started
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
    variants = {
        name: partial(_posted, server, open_accounts(server, MERCHANTS), number, seen[name])
        for name, server in zip(seen, (quiet, telling), strict=True)
    }
    for name, variant in variants.items():
        await variant()  # one round to warm up
        seen[name].published.clear()
        seen[name].cpu.clear()
    rates = await interleaved(rounds, variants)
    lags = await _urgent_lags(url, engine)
    what = f"postings over HTTP, {CONNECTIONS} connections, {engine}"
    return [
        ratio(f"{what}: publishing over not publishing", rates["publishing"], rates["not publishing"], required=0.9),
        *[figure(f"{what}, {name}", rates[name], "/s") for name in rates],
        *[figure(f"processor time of a posting, {engine}, {name}", seen[name].cpu, "µs") for name in rates],
        figure(f"published during the postings, {engine}", seen["publishing"].published, "/s"),
        figure(f"lag of urgent events under load, {engine}", lags, "ms"),
        Figure(
            *(
                f"99th percentile of the lag of urgent events, {engine}",
                percentile(lags, 99),
                "ms",
                min(lags),
                max(lags),
            ),
            required=250,
            less_is_better=True,
        ),
    ]


async def _urgent_lags(url: str, source: str) -> list[float]:
    """Return the lag in ms of each event for a disabled plugin."""
    lags = []
    async with connected(url) as nats:
        config = ConsumerConfig(ack_policy=AckPolicy.NONE)
        changes = await nats.jetstream().pull_subscribe(URGENT, stream="CREDITS", config=config)
        left = (await changes.consumer_info()).num_pending or 0
        while left > 0:
            for message in await changes.fetch(min(left, 500), timeout=10):
                left = message.metadata.num_pending
                event = json.loads(message.data)
                if event["source"] == source and event["data"]["current_status"] == "disabled":
                    posted_at = datetime.fromisoformat(event["time"])
                    lags.append((message.metadata.timestamp - posted_at).total_seconds() * 1e3)
    return lags


async def _posted(server: Server, merchants: Sequence[str], number: int, seen: Seen) -> float:
    """Return postings per second, and add the other measurements to `seen`."""
    exhausted = iter(open_accounts(server, number // 100 + 1))
    requests = [
        spend(server, merchants[index % len(merchants)])
        if index % 100
        else spend(server, next(exhausted), POLICY.trial_credits)
        for index in range(number)
    ]
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
    """Return the sum of all series of a metric."""
    with urlopen(f"http://{HOST}:{server.port}/metrics") as answer:
        text = answer.read().decode()
    return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, flags=re.MULTILINE))
