"""`credit-service events reconcile`."""

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from credit_service.cli.common import DatabaseUrl, Json, opened, progress, settings_of, show, show_json, wrong

if TYPE_CHECKING:
    from credit_service.outlets.reconcile import Reconciliation
    from credit_service.settings import Settings

_CONNECT_SECONDS = 5.0


class Reconciled(NamedTuple):
    """What was compared, and what became of it. `remembered` is what NATS takes for repeats for a while."""

    accounts: int
    lost: int
    published: int
    remembered: int


def reconcile(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what is lost.")] = False,
    json_: Json = False,
    database_url: DatabaseUrl = None,
    nats_url: Annotated[str | None, typer.Option(help="The NATS server.", show_default="NATS_URL")] = None,
) -> None:
    """Publish again what was published, and is not in the stream CREDITS any more.

    What the stream's own limits removed is not lost. Exit code 1 if something is lost, and not published again.
    """
    settings = settings_of(database_url=database_url, nats_url=nats_url)
    if not settings.nats_url.get_secret_value():
        raise wrong("NATS_URL: which NATS server? There is none in the settings.")
    done = asyncio.run(_reconcile(settings, dry_run))
    if json_:
        show_json(done._asdict())
    else:
        again = "" if dry_run else f", {done.published:,} published again"
        show(f"{done.accounts:,} accounts compared: {done.lost:,} events lost{again}")
        if done.remembered:
            show(f"{done.remembered:,} NATS remembers as repeats: try again when its duplicate window has passed")
    if done.lost > done.published:
        raise typer.Exit(1)


async def _reconcile(settings: "Settings", dry_run: bool) -> Reconciled:
    from nats.js.errors import NotFoundError

    from credit_service.broker import FAILURES, Broker, StreamConflict, reason
    from credit_service.outlets.jetstream import STREAM, ensure_stream
    from credit_service.outlets.reconcile import Reconciliation
    from credit_service.storage.accounts import Accounts
    from credit_service.storage.engine import StorageError
    from credit_service.storage.outbox import Outbox

    async with opened(settings) as engine:
        url, replicas = settings.nats_url.get_secret_value(), settings.nats_stream_replicas
        broker = Broker(url, name=settings.nats_consumer, replicas=replicas)
        broker.start()
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                streams = await broker.jetstream()
            if not dry_run:
                await ensure_stream(broker)
            reconciliation = Reconciliation(Accounts(engine), Outbox(engine), streams)
            return await _compared(reconciliation, None if dry_run else settings.service_source)
        except (StreamConflict, StorageError) as error:
            raise wrong(str(error)) from None
        except NotFoundError:
            raise wrong(f"There is no stream {STREAM}. Without --dry-run it is created, and filled again.") from None
        except FAILURES as error:
            raise wrong(f"{broker.name} cannot be used: {reason(error)}.") from None
        finally:
            await broker.close()


async def _compared(reconciliation: "Reconciliation", source: str | None) -> Reconciled:
    """Compare, and publish again what is lost where `source` is given."""
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    lost = published = remembered = 0
    columns = SpinnerColumn(), TextColumn("comparing: {task.completed:,} events lost so far"), TimeElapsedColumn()
    with progress(*columns) as bar:
        task = bar.add_task("", total=None)
        async with aclosing(reconciliation.lost()) as events:
            async for event in events:
                lost += 1
                bar.advance(task)
                if source is not None:
                    again = await reconciliation.publish(event, source)
                    published += again
                    remembered += not again
    return Reconciled(reconciliation.compared, lost, published, remembered)
