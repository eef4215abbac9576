"""`credit-service backup`: a checked copy of an SQLite ledger, beside a running service."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from credit_service.cli.common import DatabaseUrl, Json, progress, say, settings_of, show, show_json, wrong

if TYPE_CHECKING:
    from credit_service.settings import Settings
    from credit_service.storage.sqlite.backup import Copied

_AT_ONCE = 1000


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the copy is written, whole or not at all.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a backup that is there.")] = False,
    json_: Json = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Copy the ledger while the service runs, and check the copy. Exit code 1 if it is faulty; then none is kept.

    The copy is one file. To restore it, stop the service and put it in the place of the ledger.
    """
    from credit_service.storage.engine import StorageError

    settings = settings_of(database_url=database_url)
    if settings.is_postgres:
        raise wrong("A PostgreSQL ledger is backed up with pg_dump: see docs/postgresql.md.")
    try:
        copied = asyncio.run(_backup(settings, file, overwrite))
    except StorageError as error:
        raise wrong(str(error)) from None
    size = file.stat().st_size
    if json_:
        show_json(
            {"backup": str(file), "accounts": copied.accounts, "transactions": copied.transactions, "bytes": size}
        )
        return
    counted = f"{copied.accounts:,} accounts, {copied.transactions:,} transactions, {size:,} bytes"
    show(f"{file}: {counted}; no fault was found in it.")


async def _backup(settings: "Settings", file: Path, overwrite: bool) -> "Copied":
    from rich.progress import BarColumn, TextColumn

    from credit_service.settings import database_of
    from credit_service.storage.sqlite.backup import copy, placed, refuse_target

    source = settings.database_path
    engine = await database_of(settings).opened("read")  # refuses what is no ledger
    await engine.close()
    refuse_target(file, source, overwrite=overwrite)
    with placed(file) as temporary:
        with progress(TextColumn("copying"), BarColumn()) as bar:
            task = bar.add_task("", total=None)
            copied = copy(source, temporary, lambda left, pages: bar.update(task, completed=pages - left, total=pages))
        fault = copied.fault or await _drift(temporary)
        if fault is not None:
            say(f"{source} is faulty, so no backup was made: {fault}.")
            raise typer.Exit(1)
    return copied


async def _drift(path: Path) -> str | None:
    """What is wrong with an account of the copy: with the end of its chain, its balance, or its grants."""
    from credit_service.storage.accounts import Accounts
    from credit_service.storage.sqlite.engine import SQLiteEngine

    engine = SQLiteEngine(path, "read")
    try:
        accounts, after = Accounts(engine), None
        while True:
            drifting, after = await accounts.drifting(after, _AT_ONCE)
            if drifting:
                return f"the account of merchant {drifting[0]} disagrees with its transactions"
            if after is None:
                return None
    finally:
        await engine.close()
