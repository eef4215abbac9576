"""SQLite files for tests. The module migrates once and then copies, because a migration is slower than most tests."""

import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from credit_service.storage.migrations import migrate


@cache
def _migrated() -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "template.db"
        migrate(path)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")  # as an engine does at its first start
        return path.read_bytes()


def new_file(path: Path) -> Path:
    """Make an empty ledger at `path`."""
    path.touch(0o600)
    path.write_bytes(_migrated())
    return path
