"""`credit-service verify`."""

import asyncio
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from credit_service.cli.common import (
    DatabaseUrl,
    Json,
    merchant_named,
    opened,
    progress,
    say,
    settings_of,
    show,
    show_json,
    wrong,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from credit_service.ledger.account import Transaction
    from credit_service.settings import Settings


class Found(NamedTuple):
    """Something wrong, and where: the merchant is not known of a transaction that belongs to no account."""

    merchant_id: str | None
    sequence: int | None
    fault: str


class Verified(NamedTuple):
    """What was verified, and what was wrong with it."""

    accounts: int
    transactions: int
    faults: list[Found]


def verify(
    merchant: Annotated[
        list[str] | None, typer.Option(help="Only this merchant's account; may be said several times.")
    ] = None,
    json_: Json = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Recompute the ledger from its transactions: hash chain, sums, grants, debt. Exit code 1 if anything is wrong."""
    settings = settings_of(database_url=database_url)
    merchants = None if merchant is None else list(map(merchant_named, merchant))
    accounts, transactions, faults = asyncio.run(_verify(settings, merchants))
    if json_:
        found = [fault._asdict() for fault in faults]
        show_json({"accounts": accounts, "transactions": transactions, "faults": found})
    else:
        for merchant_id, sequence, fault in faults:
            place = "account" if sequence is None else f"transaction {sequence}"
            show(f"merchant {merchant_id or 'unknown'}, {place}: {fault}")
        sentence = f"{accounts:,} accounts, {transactions:,} transactions: "
        show(sentence + (f"{len(faults):,} faults" if faults else "no fault"))
    if faults:
        raise typer.Exit(1)


async def _verify(settings: "Settings", merchants: list[str] | None) -> Verified:
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

    from credit_service.ledger import proof
    from credit_service.storage.engine import StorageError
    from credit_service.storage.transactions import Transactions

    accounts = transactions = 0
    faults: list[Found] = []
    missing = set(merchants or ())

    def counted(history: "Iterable[Transaction]") -> "Iterator[Transaction]":
        nonlocal transactions
        for transaction in history:
            transactions += 1
            yield transaction

    columns = TextColumn("verifying"), BarColumn(), TextColumn("{task.completed:,} accounts"), TimeElapsedColumn()
    async with opened(settings) as engine:
        try:
            with progress(*columns) as bar:
                task = bar.add_task("", total=len(missing) or None)
                async for books in engine.books(merchants or None):
                    account = books.account
                    missing.discard(account.merchant_id)
                    wrong_here = list(proof.verify(account, books.grants, counted(books.transactions)))
                    # The faults that the storage found are complete only now that the transactions were read.
                    named = {*wrong_here, *books.faults}
                    faults += [Found(str(account.merchant_id), *fault) for fault in sorted(named, key=_place)]
                    accounts += 1
                    bar.advance(task)
            if not merchants:
                faults += [
                    Found(None, sequence, f"it belongs to no account (number {number})")
                    for number, sequence in await Transactions(engine).strays()
                ]
        except StorageError as error:
            say(f"{error} Verified until then: {accounts:,} accounts.")
            raise typer.Exit(1) from None
    if missing:
        raise wrong(f"--merchant {min(missing)}: this merchant has no account.")
    return Verified(accounts, transactions, faults)


def _place(fault: tuple[int | None, str]) -> tuple[bool, int, str]:
    sequence, sentence = fault
    return sequence is None, sequence or 0, sentence
