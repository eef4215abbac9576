"""What is no ledger: every command refuses it in one line, and none changes it."""

import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.test_asking import WITH_DATABASE
from tests.commands import command
from tests.served import reaped, start
from tests.storage.files import new_file

DATABASE = "credit-service.db"
ARGUMENTS = {
    "keys create": ("--name", "n", "--scope", "read"),
    "keys revoke": ("aaaaaaaaaaaa",),
    "replay": ("/dev/null",),
    "events reconcile": ("--nats-url", "nats://127.0.0.1:1"),
    "dead-letters show": ("1",),
    "dead-letters replay": ("--all",),
    "backup": ("b.db",),
    "erase": ("6f1c2a54-8d0e-4c0b-9c55-0c7a8c1f2b11",),
}
NEED_A_LEDGER = [name for name in WITH_DATABASE if name not in ("serve", "migrate", "config", "doctor")]

MAKE_A_LEDGER = ("replay", "keys create")
"""These commands make the ledger if there is no file, as a first step before `serve`."""


def nothing(path: Path) -> None:
    """No file."""


def empty(path: Path) -> None:
    """A file of 0 bytes, as a failed backup leaves it."""
    path.touch()


def without_schema(path: Path) -> None:
    """A database without a table."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")


def foreign(path: Path) -> None:
    """The database of another program, which keeps its accounts there, and its migrations with Alembic, too."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE accounts (name TEXT)")
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('0001')")


def half(path: Path) -> None:
    """A ledger that lost a table."""
    new_file(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("DROP TABLE grants")


NO_LEDGER = "holds no ledger; credit-service serve or migrate makes one."
REFUSED: dict[Callable[[Path], None], str] = {
    nothing: NO_LEDGER,
    empty: NO_LEDGER,
    without_schema: NO_LEDGER,
    foreign: "holds tables of something else: accounts, alembic_version.",
    half: "is no whole ledger: it lacks grants.",
}


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("made", REFUSED, ids=lambda made: made.__name__)
@pytest.mark.parametrize("asked", NEED_A_LEDGER)
def test_a_command_refuses_what_is_no_ledger_and_leaves_it_alone(
    asked: str, made: Callable[[Path], None], tmp_path: Path
) -> None:
    if made is nothing and asked in MAKE_A_LEDGER:
        return
    made(tmp_path / DATABASE)
    before = content(tmp_path)
    ran = command(*asked.split(), *ARGUMENTS.get(asked, ()), cwd=tmp_path)
    assert (ran.code, ran.out, ran.err) == (2, "", f"credit-service: {DATABASE} {REFUSED[made]}\n")
    assert content(tmp_path) == before


@pytest.mark.parametrize("asked", MAKE_A_LEDGER)
def test_a_first_command_makes_the_ledger(asked: str, tmp_path: Path) -> None:
    assert command(*asked.split(), *ARGUMENTS.get(asked, ()), cwd=tmp_path).code == 0
    assert command("verify", "--json", cwd=tmp_path).json == {"accounts": 0, "transactions": 0, "faults": []}


@pytest.mark.parametrize("asked", ["migrate", "serve"])
def test_no_ledger_is_made_in_a_foreign_database(asked: str, tmp_path: Path) -> None:
    foreign(tmp_path / DATABASE)
    before = content(tmp_path)
    port = ("--port", "0") if asked == "serve" else ()
    started = start(asked, *port, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with reaped(started):
        assert started.communicate(timeout=60) == ("", f"credit-service: {DATABASE} {REFUSED[foreign]}\n")
    assert (started.returncode, content(tmp_path)) == (2, before)


@pytest.mark.parametrize("made", [nothing, empty, without_schema], ids=lambda made: made.__name__)
def test_migrate_makes_a_ledger_where_there_is_nothing(made: Callable[[Path], None], tmp_path: Path) -> None:
    made(tmp_path / DATABASE)
    assert command("migrate", cwd=tmp_path).code == 0
    assert command("verify", "--json", cwd=tmp_path).json == {"accounts": 0, "transactions": 0, "faults": []}


def test_an_empty_copy_of_a_ledger_does_not_verify(tmp_path: Path) -> None:
    """Such a copy is what a backup leaves that runs in a folder where the ledger is not."""
    with closing(sqlite3.connect(tmp_path / DATABASE)) as source, closing(sqlite3.connect(tmp_path / "b.db")) as copy:
        source.backup(copy)
    ran = command("verify", "--database-url", "sqlite:///b.db", cwd=tmp_path)
    assert (ran.code, ran.out, ran.err) == (2, "", f"credit-service: b.db {NO_LEDGER}\n")


def test_a_ledger_in_a_folder_that_cannot_be_written_verifies(tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    new_file(folder / "b.db")
    with closing(sqlite3.connect(folder / "b.db")) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")  # as `credit-service backup` leaves it
    folder.chmod(0o500)
    try:
        ran = command("verify", "--database-url", "sqlite:///backups/b.db", cwd=tmp_path)
        assert (ran.code, sorted(content(folder))) == (0, ["b.db"])
    finally:
        folder.chmod(0o700)
        shutil.rmtree(folder)
