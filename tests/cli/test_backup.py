"""`credit-service backup`: a checked copy of an SQLite ledger."""

import os
import sqlite3
import stat
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from credit_service.storage.sqlite import backup as copying
from tests.cli.events import MERCHANT, lines, paid, payment
from tests.cli.ledgers import balances, change
from tests.commands import Ran, command
from tests.served import served
from tests.storage.files import new_file

DATABASE = "credit-service.db"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a small ledger."""
    new_file(tmp_path / DATABASE)
    (tmp_path / "facts").write_bytes(lines(payment("p1", 5), *map(paid, range(1, 8))))
    assert command("replay", "facts", cwd=tmp_path).code == 0
    (tmp_path / "facts").unlink()
    return tmp_path


def names(folder: Path) -> set[str]:
    """The files of a folder, but for those that SQLite keeps beside an open database."""
    return {path.name for path in folder.iterdir()} - {f"{DATABASE}-wal", f"{DATABASE}-shm", f"{DATABASE}.lock"}


def test_a_backup_is_one_private_file_that_verifies(folder: Path) -> None:
    ran = command("backup", "b.db", cwd=folder)
    size = (folder / "b.db").stat().st_size
    said = f"b.db: 1 accounts, 8 transactions, {size:,} bytes; no fault was found in it.\n"
    assert ran == Ran(0, said, "")
    assert names(folder) == {DATABASE, "b.db"}
    assert stat.S_IMODE((folder / "b.db").stat().st_mode) == 0o600
    verified = command("verify", "--json", "--database-url", "sqlite:///b.db", cwd=folder)
    assert verified.json == {"accounts": 1, "transactions": 8, "faults": []}
    assert names(folder) == {DATABASE, "b.db"}, "a backup is read without a log"


def test_a_program_reads_what_was_copied(folder: Path) -> None:
    ran = command("backup", "b.db", "--json", cwd=folder)
    size = (folder / "b.db").stat().st_size
    assert ran.json == {"backup": "b.db", "accounts": 1, "transactions": 8, "bytes": size}


def test_a_restored_backup_serves_what_it_had(folder: Path) -> None:
    assert command("backup", "b.db", cwd=folder).code == 0
    change(folder / DATABASE, "UPDATE accounts SET settled_at = 0")
    (folder / "b.db").rename(folder / DATABASE)
    for suffix in ("-wal", "-shm"):
        (folder / f"{DATABASE}{suffix}").unlink(missing_ok=True)
    with served(folder / DATABASE) as service, service.client() as client:
        answer = client.get(f"/credits/accounts/{MERCHANT}/balance")
        assert answer.json()["data"]["balance"] == -2
    assert command("verify", cwd=folder).code == 0


def test_a_backup_beside_a_service_has_all_that_was_answered(tmp_path: Path) -> None:
    with served(tmp_path / DATABASE) as service, service.client() as client:
        spend = {
            "merchant_id": str(MERCHANT),
            "operation_type": "DECREASE",
            "transaction_type": "USAGE",
            "amount": 1,
        }
        client.post("/credits/accounts", json={"merchant_id": str(MERCHANT)})
        for number in range(5):
            posted = client.post("/credits/transactions", json=spend, headers={"Idempotency-Key": f"{number}"})
            assert posted.status_code == 201
            ran = command("backup", f"{number}.db", "--json", cwd=tmp_path)
            assert (ran.code, ran.json["transactions"]) == (0, number + 2)
    assert balances(tmp_path / "2.db") == {MERCHANT: 97}


def folder_in_the_place(folder: Path) -> None:
    (folder / "b.db").mkdir()


def file_in_the_place(folder: Path) -> None:
    (folder / "b.db").write_text("Dear diary")


def link_in_the_place(folder: Path) -> None:
    (folder / "b.db").symlink_to(folder / "elsewhere")


def hard_link_to_the_ledger(folder: Path) -> None:
    os.link(folder / DATABASE, folder / "b.db")


@pytest.mark.parametrize(
    ("made", "arguments", "said"),
    [
        (file_in_the_place, (), "b.db is there already; --overwrite replaces it."),
        (link_in_the_place, (), "b.db is there already; --overwrite replaces it."),
        (folder_in_the_place, ("--overwrite",), "b.db is no backup, and is not replaced."),
        (file_in_the_place, ("--overwrite",), "b.db cannot be used: file is not a database."),
        (link_in_the_place, ("--overwrite",), "b.db is a symbolic link: name the file that it leads to."),
        (hard_link_to_the_ledger, ("--overwrite",), "b.db belongs to the ledger itself."),
    ],
)
def test_a_place_where_no_backup_may_be_written_is_named(
    made: Any, arguments: tuple[str, ...], said: str, folder: Path
) -> None:
    made(folder)
    before = names(folder)
    assert command("backup", "b.db", *arguments, cwd=folder) == Ran(2, "", f"credit-service: {said}\n")
    assert names(folder) == before


def test_a_folder_that_is_not_there_is_named(folder: Path) -> None:
    ran = command("backup", "nowhere/b.db", cwd=folder)
    assert ran == Ran(2, "", "credit-service: nowhere is not a folder.\n")


def test_a_backup_replaces_another_one_where_it_is_told_to(folder: Path) -> None:
    new_file(folder / "b.db")
    assert command("backup", "b.db", "--overwrite", cwd=folder).code == 0
    assert balances(folder / "b.db") == {MERCHANT: -2}


def test_the_ledger_of_a_running_service_is_not_replaced(folder: Path) -> None:
    other = folder / "other.db"
    with served(other) as service:
        ran = command("backup", "other.db", "--overwrite", cwd=folder)
        in_use = f"other.db is in use by another credit-service process (pid {service.process.pid})."
        assert ran == Ran(2, "", f"credit-service: {in_use}\n")


def drift(folder: Path) -> str:
    """An account that its transactions do not explain."""
    change(folder / DATABASE, "UPDATE accounts SET last_hash = zeroblob(32)")
    return f"the account of merchant {MERCHANT} disagrees with its transactions"


def row_that_breaks_a_check(folder: Path) -> str:
    """A row that a CHECK of the schema forbids."""
    change(folder / DATABASE, "UPDATE grants SET open = 1 WHERE number = 1")
    return "CHECK constraint failed in grants"


@pytest.mark.parametrize("damage", [drift, row_that_breaks_a_check], ids=lambda damage: damage.__name__)
def test_no_backup_of_a_faulty_ledger_is_kept(damage: Any, folder: Path) -> None:
    assert command("backup", "b.db", cwd=folder).code == 0
    before = (folder / "b.db").read_bytes()
    fault = damage(folder)
    ran = command("backup", "b.db", "--overwrite", cwd=folder)
    assert ran == Ran(1, "", f"credit-service: {DATABASE} is faulty, so no backup was made: {fault}.\n")
    assert ((folder / "b.db").read_bytes(), names(folder)) == (before, {DATABASE, "b.db"})


def test_a_disk_that_is_full_leaves_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = copying._connected

    def connected(path: Path, mode: str) -> sqlite3.Connection:
        connection = original(path, mode)
        if mode == "rw":
            connection.execute("PRAGMA max_page_count = 2")
        return connection

    monkeypatch.setattr(copying, "_connected", connected)
    ran = command("backup", "b.db", cwd=folder)
    assert ran == Ran(2, "", "credit-service: The backup cannot be used: database or disk is full.\n")
    assert names(folder) == {DATABASE}


def test_postgresql_has_a_backup_of_its_own(tmp_path: Path) -> None:
    ran = command("backup", "b.db", cwd=tmp_path, DATABASE_URL="postgresql://u:p@127.0.0.1:1/db")
    said = "A PostgreSQL ledger is backed up with pg_dump: see docs/postgresql.md."
    assert ran == Ran(2, "", f"credit-service: {said}\n")


def test_a_copy_by_cp_of_a_backup_is_a_ledger(folder: Path) -> None:
    assert command("backup", "b.db", cwd=folder).code == 0
    subprocess.run(["cp", "b.db", "c.db"], cwd=folder, check=True)
    with closing(sqlite3.connect(folder / "c.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
