"""`credit-service replay`."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from credit_service.cli.common import (
    DatabaseUrl,
    Json,
    ReplayUrl,
    ServiceKey,
    checked_key,
    say,
    settings_of,
    show,
    show_json,
    wrong,
)


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
    from credit_service.cli.replaying import Tally, into_ledger, over_http
    from credit_service.cli.sources import Reading, Source, Unreadable
    from credit_service.cli.targets import Stopped
    from credit_service.messages.content import Limits

    if url is None:
        settings = settings_of(database_url=database_url)
        reading = Reading(Limits(settings.key_max_length, settings.metadata_max_bytes), settings.json_max_depth)
        post = partial(into_ledger, settings=settings)
    elif database_url is None:
        reading, post = Reading(), partial(over_http, url=url, key=checked_key(key), patience=patience)
    else:
        raise wrong("--url and --database-url: say one of them.")
    try:
        source = Source(file, links, currency, reading)
    except Unreadable as error:
        raise wrong(str(error)) from None
    if source.links is not None:
        say(f"{source.links} says which orders were refunded.")
    tally = Tally()
    try:
        asyncio.run(post(source, tally))
    except (Unreadable, Stopped) as error:
        raise tally.stopped(error) from None
    except KeyboardInterrupt:
        say(f"stopped ({tally.sentence()}); the same command goes on from here.")
        raise
    finally:
        source.close()
    show_json(tally.shape()) if json_ else show(tally.sentence())
    if tally.outcomes["refused"]:
        raise typer.Exit(1)
