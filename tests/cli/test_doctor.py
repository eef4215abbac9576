"""`credit-service doctor`: what is wrong here, and what to do about it."""

import socket
import sqlite3
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest

from credit_service.storage.tables import REVISION
from tests.cli.ledgers import change
from tests.commands import command


def _found(tmp_path: Path, **environment: str) -> tuple[int, dict[str, Any]]:
    ran = command("doctor", "--json", cwd=tmp_path, **({"SERVICE_PORT": "0"} | environment))
    assert ran.json["well"] is (ran.code == 0)
    return ran.code, {finding["what"]: finding for finding in ran.json["findings"]}


def test_a_new_place_is_well_and_nothing_is_made_there(tmp_path: Path) -> None:
    code, found = _found(tmp_path)
    assert (code, sorted(found)) == (0, ["Python", "SQLite", "address", "database", "disk"])
    assert found["database"]["seen"] == "credit-service.db holds no ledger yet; serve or migrate creates it"
    assert list(tmp_path.iterdir()) == []


def test_a_migrated_database_is_well(tmp_path: Path) -> None:
    command("migrate", cwd=tmp_path)
    code, found = _found(tmp_path)
    assert (code, found["database"]["seen"]) == (0, f"credit-service.db, schema {REVISION}")


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "credit-service.db").touch(0o600)
    code, found = _found(tmp_path)
    assert (code, found["database"]["seen"]) == (
        0,
        "credit-service.db holds no ledger yet; serve or migrate creates it",
    )


def test_a_database_of_another_program_is_named(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "credit-service.db")) as connection:
        connection.execute("CREATE TABLE birds (name TEXT)")
    code, found = _found(tmp_path)
    assert (code, found["database"]["seen"]) == (1, "credit-service.db holds tables of something else: birds.")


def test_a_ledger_that_every_user_can_read_is_named(tmp_path: Path) -> None:
    command("migrate", cwd=tmp_path)
    (tmp_path / "credit-service.db").chmod(0o644)
    code, found = _found(tmp_path)
    assert (code, found["files"]["remedy"]) == (1, "Run: chmod 600 credit-service.db*")


def test_a_newer_database_is_named(tmp_path: Path) -> None:
    command("migrate", cwd=tmp_path)
    change(tmp_path / "credit-service.db", "UPDATE alembic_version SET version_num = '9999'")
    code, found = _found(tmp_path)
    assert code == 1
    assert "written by a newer release (schema 9999)" in found["database"]["seen"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    code, found = _found(tmp_path, DATABASE_URL="sqlite:///nowhere/ledger.db")
    assert (code, found["database"]["remedy"]) == (1, f"Make it: mkdir -p {tmp_path}/nowhere")


def test_an_address_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, found = _found(tmp_path, SERVICE_PORT=str(port))
    assert code == 1
    assert found["address"]["seen"].startswith(f"127.0.0.1:{port} cannot be listened on: ")


class _Usage(NamedTuple):
    free: int


def test_a_disk_that_is_nearly_full_is_named(tmp_path: Path) -> None:
    with mock.patch("shutil.disk_usage", return_value=_Usage(1024 * 1024)):
        code, found = _found(tmp_path)
    assert (code, found["disk"]["seen"]) == (1, "1 MiB free")


def test_an_sqlite_that_is_too_old_is_named(tmp_path: Path) -> None:
    with mock.patch("sqlite3.sqlite_version_info", (3, 34, 1)):
        code, found = _found(tmp_path)
    assert (code, found["SQLite"]["remedy"]) == (1, "Use a Python built with SQLite 3.37.0 or newer.")


@pytest.mark.parametrize(
    ("fixed", "percentage", "code"), [("0", "0", 1), ("0", "5", 0), ("1", "5", 0)], ids=["free", "percent", "both"]
)
def test_a_price_that_is_probably_not_meant_is_named(tmp_path: Path, fixed: str, percentage: str, code: int) -> None:
    prices = {"ORDER_CREDIT_FIXED_AMOUNT": fixed, "ORDER_CREDIT_PERCENTAGE": percentage}
    assert _found(tmp_path, **prices)[0] == code


def test_for_a_person_each_finding_is_a_line_and_a_remedy_under_it(tmp_path: Path) -> None:
    (tmp_path / "credit-service.db").write_text("Dear diary, " * 100)
    ran = command("doctor", cwd=tmp_path, SERVICE_PORT="0")
    assert ran.code == 1
    assert "ok   SQLite: " in ran.out
    assert "BAD  database: credit-service.db cannot be used: file is not a database.\n     Mend it, or " in ran.out


def test_NATS_is_looked_at_where_it_is_set(tmp_path: Path, nats_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = command("doctor", cwd=tmp_path, NATS_URL=nats_url)
    assert (ran.code, f"ok   NATS: NATS {nats_url.rpartition('@')[2]}\n" in ran.out) == (0, True)
    monkeypatch.setattr(import_module("credit_service.cli.doctor"), "_NATS_SECONDS", 0.5)  # nobody is there anyway
    ran = command("doctor", cwd=tmp_path, NATS_URL="nats://user:secret@127.0.0.1:1")
    assert ran.code == 1
    assert "BAD  NATS: NATS 127.0.0.1:1 cannot be used: " in ran.out
    assert "secret" not in ran.out + ran.err


def test_a_redis_that_answers_is_well(tmp_path: Path, redis_url: str) -> None:
    code, found = _found(tmp_path, REDIS_URL=redis_url)
    assert (code, found["Redis"]["well"]) == (0, True)


def test_a_redis_that_is_away_is_named_without_its_password(tmp_path: Path) -> None:
    code, found = _found(tmp_path, REDIS_URL="redis://user:hunter2@127.0.0.1:1/0")
    assert (code, found["Redis"]["seen"]) == (1, "Redis cannot be used: ConnectionError.")
    assert found["Redis"]["remedy"].startswith("Mend it, or unset REDIS_URL")
