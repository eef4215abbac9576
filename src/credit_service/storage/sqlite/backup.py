"""Backups of an SQLite ledger: taken beside a running service, checked, and put in their place whole or not at all."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from secrets import token_hex
from typing import NamedTuple

from credit_service.storage.engine import SchemaError, StorageError, StorageUnavailable
from credit_service.storage.sqlite.files import locked, make, revision, translated

_PAGES = 10_000
"""How many pages are copied between two reports of progress."""


class Copied(NamedTuple):
    """What a copy holds. `fault`: what SQLite found wrong in it, if anything."""

    accounts: int
    transactions: int
    fault: str | None


def refuse_target(target: Path, source: Path, *, overwrite: bool) -> None:
    """Raise StorageError unless a backup of `source` may be written to `target`.

    `overwrite` allows to replace another backup, but never the ledger itself or what is no ledger.
    """
    if not target.parent.is_dir():
        raise StorageError(f"{target.parent} is not a folder.")
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise StorageError(f"{target} is there already; --overwrite replaces it.")
    if target.is_dir() or revision(target) is None:
        raise SchemaError(f"{target} is no backup, and is not replaced.")
    own = [Path(f"{source}{suffix}") for suffix in ("", "-wal", "-shm", "-journal", ".lock")]
    if any(path.exists() and path.samefile(target) for path in own):
        raise StorageError(f"{target} belongs to the ledger itself.")


@contextmanager
def placed(target: Path) -> Iterator[Path]:
    """A new file to write, beside `target`. It takes the place of `target` at the end, or is removed on a failure."""
    temporary = target.with_name(f".{target.name}.{token_hex(4)}")
    make(temporary)
    try:
        yield temporary
        _sync(temporary)
        if Path(f"{target}.lock").exists():
            with locked(target):  # a service must not lose its ledger
                os.replace(temporary, target)
        else:
            os.replace(temporary, target)
        _sync(target.parent)
    except OSError as error:
        raise StorageUnavailable(f"{target} cannot be written: {error.strerror}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy(source: Path, target: Path, told: Callable[[int, int], None]) -> Copied:
    """Copy a ledger as it is at one moment into an empty file. Calls `told` with the pages left and all pages.

    Postings go on meanwhile. The copy needs no write-ahead log, so it is complete in one file. Raises StorageError.
    """
    with (
        translated("The backup"),
        closing(_connected(source, "ro")) as ledger,
        closing(_connected(target, "rw")) as made,
    ):
        ledger.execute("BEGIN")
        ledger.execute("SELECT count(*) FROM sqlite_master").fetchone()  # from here on the snapshot stands
        ledger.backup(made, pages=_PAGES, progress=lambda _, left, pages: told(left, pages))
        made.execute("PRAGMA journal_mode = DELETE")
        (found,) = made.execute("PRAGMA integrity_check(1)").fetchone()
        (accounts,) = made.execute("SELECT count(*) FROM accounts").fetchone()
        (transactions,) = made.execute("SELECT count(*) FROM transactions").fetchone()
    return Copied(accounts, transactions, None if found == "ok" else str(found))


def _connected(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None)
