"""`credit-service replay`."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from credit_service.cli.common import (
    DatabaseUrl,
    Json,
    ReplayUrl,
    ServiceKey,
    checked_key,
    opened,
    progress,
    say,
    settings_of,
    show,
    show_json,
    wrong,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from credit_service.cli.sources import Entry, Result, Source
    from credit_service.cli.targets import Target
    from credit_service.ledger.policy import Policy
    from credit_service.settings import Settings

_BATCH = 1_000
_BATCH_BYTES = 900_000  # the service takes 1 MiB at once
_INSTEAD = "Replay into that one: --url http://… --key cs_…"


class Tally:
    """Counts the outcomes of lines, or of dead letters."""

    def __init__(self, noun: str = "line") -> None:
        self._noun = noun
        self.read = 0
        self.outcomes: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()

    def count(self, entry: "Entry", results: "list[Result]") -> None:
        """Count a line. An event of several orders has a result for each."""
        self.read += 1
        for outcome, code, reason in results:
            self.outcomes[outcome] += 1
            if code is not None:
                self.codes[code] += 1
                say(f"{self._noun} {entry.number}: {code}: {reason}")

    def shape(self) -> dict[str, Any]:
        names = ("posted", "replayed", "parked", "refused", "skipped")
        return {"read": self.read} | {name: self.outcomes[name] for name in names} | {"by_code": dict(self.codes)}

    def sentence(self) -> str:
        """As a line for a person."""
        counts = {name: count for name, count in self.shape().items() if isinstance(count, int)}
        codes = "".join(f"; {code}: {count:,}" for code, count in sorted(self.codes.items()))
        return ", ".join(f"{count:,} {name}" for name, count in counts.items()) + codes


def replay(
    file: Annotated[
        Path,
        typer.Argument(
            help="An order stream as CSV (columns invoice, customer_id, timestamp, total, kind, and perhaps currency), "
            "or CloudEvents as JSON lines. Either may be gzipped.",
            metavar="FILE",
        ),
    ],
    links: Annotated[
        Path | None,
        typer.Option(
            help="For an order stream: a CSV that names the orders of refunds (columns refund_invoice, order_invoice, "
            "order_total). A refund that it does not name gives back the price of an order of its total, by the "
            "settings of the service or database that it goes to.",
            show_default="refund_links.csv beside FILE",
        ),
    ] = None,
    currency: Annotated[
        str | None,
        typer.Option(help="For an order stream: the currency of rows that name none, like GBP.", show_default="none"),
    ] = None,
    url: ReplayUrl = None,
    key: ServiceKey = None,
    patience: Annotated[
        float, typer.Option(help="Seconds to go on trying while that service does not answer.", min=0)
    ] = 60,
    json_: Json = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Post the orders, refunds and other events of a file.

    Each counts once, however often it is replayed: after Ctrl-C the same command goes on where it stopped. Lines that
    cannot be used are named on standard error, and the others are posted all the same. Exit code 1 if there were any.
    """
    from credit_service.cli.sources import Reading, Source, Unreadable
    from credit_service.messages.content import Limits

    if url is not None and database_url is not None:
        raise wrong("--url and --database-url: say one of them.")
    service_key = "" if url is None else checked_key(key)
    reading, settings = Reading(), None
    if url is None:
        settings = settings_of(database_url=database_url)
        reading = Reading(Limits(settings.key_max_length, settings.metadata_max_bytes), settings.json_max_depth)
    try:
        source = Source(file, links, currency, reading)
    except Unreadable as error:
        raise wrong(str(error)) from None
    if source.links is not None:
        say(f"{source.links} says which orders were refunded.")
    tally = Tally()
    try:
        if settings is not None:
            asyncio.run(_into_store(source, settings, tally))
        else:
            asyncio.run(_over_http(source, url or "", service_key, patience, tally))
    except KeyboardInterrupt:
        say(f"stopped ({tally.sentence()}); the same command goes on from here.")
        raise
    finally:
        source.close()
    show_json(tally.shape()) if json_ else show(tally.sentence())
    if tally.outcomes["refused"]:
        raise typer.Exit(1)


async def _into_store(source: "Source", settings: "Settings", tally: Tally) -> None:
    from credit_service.cli.targets import StoreTarget, posting_into

    async with (
        opened(settings, "alone", _INSTEAD, create=True) as engine,
        posting_into(engine, settings) as posting,
    ):
        await _run(source, settings.policy, StoreTarget(posting), tally)


async def _over_http(source: "Source", url: str, key: str, patience: float, tally: Tally) -> None:
    from credit_service.cli.targets import HttpTarget, Stopped, client
    from credit_service.ledger.policy import Policy

    async with client() as connection:
        target = HttpTarget(connection, url, key, patience)
        try:
            prices = await target.prices() if source.is_order_stream else Policy()
        except Stopped as error:
            raise _stopped(error, tally) from None
        await _run(source, prices, target, tally)


def _stopped(error: Exception, tally: Tally) -> typer.Exit:
    say(f"{error} Stopped ({tally.sentence()}); the same command goes on from here.")
    return typer.Exit(1)


async def _run(source: "Source", prices: "Policy", target: "Target", tally: Tally) -> None:
    """Send all lines in batches; while one is posted, the next is read."""
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from credit_service.cli.sources import Unreadable
    from credit_service.cli.targets import Stopped

    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    loop = asyncio.get_running_loop()
    batches = _batches(source, prices)
    try:
        with progress(*columns) as bar:
            task = bar.add_task("replaying", total=source.size or None)
            batch = await loop.run_in_executor(None, next, batches, None)
            while batch is not None:
                upcoming = loop.run_in_executor(None, next, batches, None)
                unknown = [entry for entry in batch if entry.result is None]
                answers = iter(await target.send(unknown) if unknown else ())
                for entry in batch:
                    tally.count(entry, next(answers) if entry.result is None else [entry.result])
                bar.update(task, completed=source.position, description=f"{tally.read:,} replayed")
                batch = await upcoming
    except (Unreadable, Stopped) as error:
        raise _stopped(error, tally) from None


def _batches(source: "Source", prices: "Policy") -> "Iterator[list[Entry]]":
    from credit_service.cli.sources import Unreadable

    batch: list[Entry] = []
    size = 0
    try:
        for entry in source.entries(prices):
            if len(batch) == _BATCH or (batch and size + len(entry.event) > _BATCH_BYTES):
                yield batch
                batch, size = [], 0
            batch.append(entry)
            size += len(entry.event) + 1
    except Unreadable:  # the lines before it count
        yield batch
        raise
    if batch:
        yield batch
