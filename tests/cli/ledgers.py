"""Looks into a ledger's SQLite file beside the service's own code."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID


def rows(database: Path, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """What a statement finds."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return connection.execute(statement, values).fetchall()


def change(database: Path, statement: str, *values: Any) -> None:
    """Do by hand what the service never does; not even the database's own checks are asked."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("PRAGMA ignore_check_constraints = 1")
        assert connection.execute(statement, values).rowcount == 1


def balances(database: Path) -> dict[UUID, int]:
    """Every merchant's balance."""
    return {UUID(bytes=id_): balance for id_, balance in rows(database, "SELECT merchant_id, balance FROM accounts")}


def postings(database: Path) -> list[tuple[str, str, int]]:
    """Key, type and signed amount of all transactions, in the order of each account."""
    statement = """
        SELECT key, type, CASE operation WHEN 'INCREASE' THEN amount ELSE -amount END
        FROM transactions JOIN accounts ON accounts.number = transactions.account
        ORDER BY merchant_id, transactions.sequence
    """
    return rows(database, statement)
