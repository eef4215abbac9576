"""Read and change a ledger without the service's own code."""

from pathlib import Path
from typing import Any

from tests.storage import engines


def placed(folder: Path, url: str) -> Path:
    """Make this database the ledger of the commands in a folder."""
    # The server of the tests does not sync.
    (folder / ".env").write_text(f"DATABASE_URL={url}\nDATABASE_ALLOW_UNSAFE=true\n")
    return folder / "ledger.db"


def url_of(database: Path) -> str:
    """The URL of the ledger of a folder: this file, unless `.env` names a database."""
    settings = database.parent / ".env"
    if settings.exists():
        return settings.read_text().split("DATABASE_URL=")[1].split("\n")[0]
    return f"sqlite:///{database}"


def rows(database: Path, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """The rows of a statement."""
    return engines.rows(url_of(database), statement, *values)


def change(database: Path, statement: str, *values: Any) -> None:
    """Change one row by hand, without the database's own checks."""
    engines.change(url_of(database), statement, *values)


def balances(database: Path) -> dict[str, int]:
    """Every merchant's balance."""
    return dict(rows(database, "SELECT merchant_id, balance FROM accounts"))


def postings(database: Path) -> list[tuple[str, str, int]]:
    """Key, type and signed amount of all transactions, in the order of each account."""
    statement = """
        SELECT key, type, CASE operation WHEN 'INCREASE' THEN amount ELSE -amount END
        FROM transactions JOIN accounts ON accounts.number = transactions.account
        ORDER BY merchant_id, transactions.sequence
    """
    return rows(database, statement)
