"""What the commands share: common options, the settings, the database that they open, and how they refuse."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from credit_service.terminal import printable

if TYPE_CHECKING:
    from rich.progress import Progress

    from credit_service.settings import Settings
    from credit_service.storage.engine import Engine
    from credit_service.storage.sqlite.engine import Access

_Answer = TypeVar("_Answer")
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for a program to read.")]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(help="The ledger's database, like sqlite:///credit-service.db.", show_default="DATABASE_URL"),
]
ReplayUrl = Annotated[
    str | None, typer.Option(help="A running service to replay into.", show_default="straight into the database")
]
ServiceKey = Annotated[
    str | None,
    typer.Option(
        help="An API key of that service: of scope read to follow events, write to replay, admin for adjustments.",
        envvar="CREDIT_SERVICE_KEY",
        show_envvar=True,
    ),
]


def show(line: str) -> None:
    """Print a line of the answer for a person. All other output goes through `show_json` or `say`."""
    typer.echo(printable(line))


def show_json(value: Any) -> None:
    typer.echo(json.dumps(value))


def say(sentence: str) -> None:
    """Tell the person something in one line on standard error, apart from the answer."""
    typer.echo(f"credit-service: {printable(sentence)}", err=True)


def wrong(sentence: str) -> typer.Exit:
    """Say in one line what is wrong with the command; raise the result to end with exit code 2."""
    say(sentence)
    return typer.Exit(2)


def checked_key(key: str | None) -> str:
    """The API key for a service, without stray white space."""
    key = (key or "").strip()
    if not key:
        raise wrong("An API key is needed: --key, or CREDIT_SERVICE_KEY in the environment.")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise wrong("--key: this is no API key.")
    return key


def settings_of(**given: Any) -> "Settings":
    """The settings in force; `given` are those of the command line, None where one was not given."""
    from credit_service.settings import SettingsError, load

    try:
        settings = load(**given)
        if settings.nats_subjects:
            from credit_service.doors.jetstream.subjects import Subjects

            Subjects(settings.remapped_subjects)  # it knows the types of events
    except SettingsError as error:
        raise wrong(str(error)) from None
    return settings


@contextlib.asynccontextmanager
async def opened(
    settings: "Settings", access: "Access" = "read", instead: str = "", *, create: bool = False
) -> "AsyncIterator[Engine]":
    """The engine of a ledger; a StorageError ends the command with its line. `create`: make a ledger if there is none.

    `instead`: what to do if a service has the file that must be `alone`.
    """
    from credit_service.observability import configure_logs
    from credit_service.settings import database_of
    from credit_service.storage.engine import InUse, StorageError

    configure_logs(settings)
    try:
        database = database_of(settings)
        if create and await database.is_absent():
            await asyncio.to_thread(database.migrate)
        engine = await database.opened(access)
        try:
            yield engine
        finally:
            await engine.close()
    except InUse as error:
        raise wrong(f"{error} {instead}") from None
    except StorageError as error:
        raise wrong(str(error)) from None


def in_ledger(
    database_url: str | None,
    do: Callable[["Engine"], Awaitable[_Answer]],
    access: "Access" = "read",
    *,
    create: bool = False,
) -> _Answer:
    """What `do` answers, given the engine of the ledger that the options and settings name; see `opened`."""

    async def done() -> _Answer:
        async with opened(settings, access, create=create) as engine:
            return await do(engine)

    settings = settings_of(database_url=database_url)
    return asyncio.run(done())


def merchant_named(merchant_id: str) -> str:
    """A merchant's id as the ledger keeps it. Ends the command if it can be nobody's."""
    from credit_service.messages.fields import merchant_text
    from credit_service.messages.patterns import MERCHANT, SENTENCES

    if not re.fullmatch(MERCHANT.removesuffix("$"), merchant_id):
        raise wrong(f"{merchant_id} is no merchant's id: {SENTENCES[MERCHANT]}")
    return merchant_text(merchant_id)


def progress(*columns: Any) -> "Progress":
    """A progress bar on standard error, shown only on a terminal and gone when done."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
