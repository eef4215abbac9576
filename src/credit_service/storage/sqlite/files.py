"""The files of an SQLite ledger: how they are made, recognised, locked and watched.

A ledger is a database, its write-ahead log and shared memory (`-wal`, `-shm`, made by SQLite with the mode of the
database), and a lock file. Only their owner may read them, and none is opened through a symbolic link.
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Final

import structlog

from credit_service.storage.engine import BadRow, Conflict, InUse, SchemaError, StorageUnavailable
from credit_service.storage.tables import REVISION, metadata

_log = structlog.get_logger()
_BUSY: Final = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
_AWAY: Final = {
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
}


_NOT_WRITTEN: Final = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE}
"""Codes of a commit that could not write its log: the disk is full, over its quota, or broken.

The commit's own mark is the last thing that is written to the log, so without it nothing of the commit counts, also
after a crash. Of a commit whose log was written and not synced (SQLITE_IOERR_FSYNC) that cannot be known.
"""


def is_undone(error: BaseException | None) -> bool:
    """Whether a commit that failed with this error has certainly done nothing."""
    return isinstance(error, sqlite3.Error) and error.sqlite_errorcode in _NOT_WRITTEN


@contextmanager
def translated(name: str = "The database") -> Iterator[None]:
    """Turn the errors of SQLite into those of the store; an unknown error is raised as it is, never dropped.

    `name` is what a message calls the database.
    """
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise BadRow(str(error)) from error
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _BUSY:
            raise Conflict(f"{name} is locked by something else.") from error
        if code in _AWAY:
            raise StorageUnavailable(f"{name} cannot be used: {error}.") from error
        raise


def revision(path: Path) -> str | None:
    """The migration that the ledger in a file is at; None where there is no file, or an empty one. Changes nothing.

    Raises SchemaError where the file holds another database, StorageUnavailable where it cannot be read or is a link.
    """
    refuse_link(path)
    if not path.exists() or path.stat().st_size == 0:
        return None
    # A database that no process has open is read without its -wal and -shm, which SQLite would leave beside it.
    is_open = any(Path(f"{path}{suffix}").exists() for suffix in ("-wal", "-journal"))
    uri = f"{path.absolute().as_uri()}?{'mode=ro' if is_open else 'immutable=1'}"
    with translated(str(path)), closing(sqlite3.connect(uri, uri=True)) as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not names:
            return None
        if not names >= {"alembic_version", "accounts", "transactions"}:
            raise SchemaError(f"{path} holds tables of something else: {', '.join(sorted(names)[:5])}.")
        found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    if found == (REVISION,) and (missing := metadata.tables.keys() - names):
        raise SchemaError(f"{path} is no whole ledger: it lacks {', '.join(sorted(missing))}.")
    return None if found is None else str(found[0])


def refuse_link(path: Path) -> None:
    """Raise StorageUnavailable where a symbolic link stands in the place of a file."""
    if path.is_symlink():
        raise StorageUnavailable(f"{path} is a symbolic link: name the file that it leads to.")


def make(path: Path) -> None:
    """Make an empty file for a ledger that only its owner may read, unless there is one. Raises StorageUnavailable."""
    refuse_link(path)
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise StorageUnavailable(f"{path} cannot be created: {error.strerror}.") from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep every other service and replay from the file. Raises InUse where one has it."""
    with take_lock(path):
        yield


def take_lock(path: Path) -> IO[str]:
    """Lock the file `<path>.lock`, for as long as the result is open. Raises InUse where another process has it."""
    try:
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StorageUnavailable(f"{path}.lock cannot be opened: {error.strerror}.") from error
    lock = os.fdopen(descriptor, "r+", encoding="ascii")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise InUse(f"{path} is in use by another credit-service process (pid {holder}).") from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


class Watch:
    """The files of an open ledger, and whether they still stand in their places.

    What is written to a file that was moved away or replaced would not be in the ledger of the next start.
    `is_in_place`: what the last look found.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._paths = [f"{path}{suffix}" for suffix in ("", "-wal", "-shm")]
        self._opened = self._found()
        self.is_in_place = True

    def check(self) -> None:
        """Raise StorageUnavailable if one of the files is gone, or is another one."""
        if not self.look():
            raise StorageUnavailable(
                "The ledger file was moved away or replaced while it is in use. "
                "Nothing is read or posted until it is back in its place, or the service is started again."
            )

    def look(self) -> bool:
        """Look whether the files are in their places, and log a change. Takes microseconds."""
        if (is_in_place := self._found() == self._opened) != self.is_in_place:
            self.is_in_place = is_in_place
            log = _log.warning if is_in_place else _log.error
            log("ledger_file_is_back" if is_in_place else "ledger_file_replaced", path=str(self._path))
        return is_in_place

    def _found(self) -> list[tuple[int, int]] | None:
        try:
            found = [os.stat(path, follow_symlinks=False) for path in self._paths]
        except OSError:
            return None
        return [(one.st_dev, one.st_ino) for one in found]
