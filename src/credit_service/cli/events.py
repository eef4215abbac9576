"""`credit-service events`: follow them, and publish again those that the stream lost."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from credit_service.cli.common import (
    DatabaseUrl,
    Json,
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
    import httpx2

    from credit_service.outlets.reconcile import Reconciliation
    from credit_service.settings import Settings

events = typer.Typer(name="events", help="The events that the service tells.", no_args_is_help=True)

_PATH = "/api/v1/credits/events"
_SILENCE_SECONDS = 60.0  # the service says something every 15
_PAUSE_SECONDS = 1.0
_CONNECT_SECONDS = 5.0


@events.command()
def tail(
    url: Annotated[str, typer.Option(help="The running service.")] = "http://127.0.0.1:8015",
    key: ServiceKey = None,
    merchant: Annotated[
        str | None, typer.Option(help="Follow the events of this merchant alone.", show_default="all")
    ] = None,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="Begin with the first, not with the next one.")
    ] = False,
    patience: Annotated[
        float, typer.Option(help="Seconds to go on trying while the service does not answer.", min=0)
    ] = 60,
    json_: Json = False,
) -> None:
    """Follow what a running service announces, until Ctrl-C.

    When the service is away for a moment it goes on where it was: nothing is missing, nothing comes twice.
    """
    import httpx2

    query = {} if merchant is None else {"merchant_id": merchant}
    headers = {"Authorization": f"Bearer {checked_key(key)}"}
    base = url.rstrip("/").removesuffix("/api/v1")
    try:
        with httpx2.Client(base_url=base, headers=headers, timeout=_SILENCE_SECONDS) as client:
            for event in _Following(client, base, query, patience).events(from_start=from_start):
                typer.echo(event) if json_ else show(_line(json.loads(event)))
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        raise wrong(f"--url {base}: {error}") from None
    except BrokenPipeError:  # whoever read this has seen enough, and nothing more can be written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _line(event: dict[str, Any]) -> str:
    """An event as a line for a person."""
    data = event["data"]
    amount = "" if data["amount"] is None else f", amount {data['amount']:,} ({data['transaction_type']})"
    named = f"{event['time']} {event['subject']} {event['sequence']} {event['type']}"
    return f"{named}: available {data['available']:,}{amount}"


class _Following:
    """A service that is listened to, and where in its events."""

    def __init__(self, client: "httpx2.Client", base: str, query: dict[str, str], patience: float) -> None:
        self._client = client
        self._base = base
        self._query = query
        self._patience = patience
        self._last: str | None = None  # the cursor of the last event

    def events(self, *, from_start: bool) -> Iterator[str]:
        """The events, as JSON, for ever."""
        import httpx2

        until, told = time.monotonic() + self._patience, False
        while True:
            try:
                if not from_start and self._last is None:
                    self._last = self._end()
                for event in self._stream():
                    until, told = time.monotonic() + self._patience, False
                    yield event
                why = "the stream ended"
            except _Away as error:
                why = str(error)
            except (httpx2.InvalidURL, httpx2.UnsupportedProtocol):
                raise
            except httpx2.TransportError as error:
                why = f"it does not answer ({str(error) or type(error).__name__})"
            if time.monotonic() + _PAUSE_SECONDS > until:
                say(f"{self._base}: {why}.")
                raise typer.Exit(1)
            if not told:
                say(f"{self._base}: {why}; trying again for {self._patience:g} seconds.")
                told = True
            time.sleep(_PAUSE_SECONDS)

    def _end(self) -> str:
        """The cursor of where the events end now."""
        response = self._client.get(_PATH, params={**self._query, "start": "now", "limit": "1"})
        self._check(response)
        return str(response.json()["pagination"]["next_cursor"])

    def _stream(self) -> Iterator[str]:
        """The events after the last one, until the stream ends."""
        headers = {"Accept": "text/event-stream"} | ({} if self._last is None else {"Last-Event-ID": self._last})
        with self._client.stream("GET", _PATH, params=self._query, headers=headers) as response:
            if response.status_code != 200:
                response.read()
            self._check(response)
            cursor = self._last
            for line in response.iter_lines():
                name, _, value = line.partition(": ")
                if name == "id":
                    cursor = value
                elif name == "data":
                    self._last = cursor  # not before all of the event is here
                    yield value

    def _check(self, response: "httpx2.Response") -> None:
        """Raise _Away where it is worth asking again, and end where it is not."""
        from credit_service.cli.targets import TRANSIENT, problem_of

        if response.status_code == 200:
            return
        problem = problem_of(response)
        if response.status_code in TRANSIENT:
            raise _Away(f"it answered {response.status_code} ({problem.code})")
        raise wrong(f"{self._base} answered {response.status_code}: {problem.detail or 'not like a credit-service'}")


class _Away(Exception):
    pass


class Reconciled(NamedTuple):
    """What was compared, and what became of it. `remembered` is what NATS takes for repeats for a while."""

    accounts: int
    lost: int
    published: int
    remembered: int


@events.command()
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
        except StreamConflict as error:
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
