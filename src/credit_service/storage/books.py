"""The books of an account: all its rows, as `verify` and `export` read them, one account after the other."""

import asyncio
from collections.abc import AsyncIterator, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from sqlalchemy import select

from credit_service.ledger.account import Transaction
from credit_service.storage import rows, tables
from credit_service.storage.engine import Books
from credit_service.storage.questions import Row, value

_grants, _transactions = tables.grants, tables.transactions
ALL_ACCOUNTS: Final = select(tables.accounts).order_by(tables.accounts.c.merchant_id)
ALL_GRANTS: Final = select(_grants).where(_grants.c.account == value("account")).order_by(_grants.c.number)
HISTORY: Final = (
    select(_transactions).where(_transactions.c.account == value("account")).order_by(_transactions.c.sequence)
)


def books_of(row: Row, grants: Iterable[Row], history: Iterable[Row]) -> Books:
    """The books of an account from its rows; a row that cannot be read is a fault, and the verification goes on."""
    faults: list[tuple[int | None, str]] = []
    try:
        account = rows.account(row)
    except ValueError as error:
        faults.append((None, f"the account's row cannot be read: {error}"))
        account = rows.account(rows.readable((*row, "{}", "[]")))

    def transactions() -> Iterable[Transaction]:
        for found in history:
            try:
                transaction = rows.transaction(account.merchant_id, found)
            except (ValueError, TypeError) as error:
                faults.append((found[1], f"the row cannot be read: {error}"))
                continue
            yield transaction

    return Books(account, [rows.grant(grant) for grant in grants], transactions(), faults)


async def in_a_thread(steps: Generator[Books]) -> AsyncIterator[Books]:
    """Run a blocking generator of books in a thread of its own, one step for each account."""
    # One thread for all steps, so that the last step ends before the connection is closed.
    thread = ThreadPoolExecutor(1, "books")
    run = partial(asyncio.get_running_loop().run_in_executor, thread)
    try:
        while (books := await run(next, steps, None)) is not None:
            yield books
    finally:
        await run(steps.close)
        thread.shutdown()
