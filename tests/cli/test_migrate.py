"""`credit-service migrate`."""

import stat
from pathlib import Path

import pytest

from credit_service.storage.migrations import head
from tests.cli.ledgers import change
from tests.commands import command


def test_it_creates_the_database_and_says_so(tmp_path: Path) -> None:
    ran = command("migrate", "--database-url", "sqlite:///ledger.db", cwd=tmp_path)
    assert (ran.code, ran.out, ran.err) == (0, f"ledger.db was created with schema {head()}.\n", "")
    assert (tmp_path / "ledger.db").exists()


def test_the_files_of_a_new_ledger_are_its_owners_alone(tmp_path: Path) -> None:
    command("migrate", cwd=tmp_path)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"credit-service.db": 0o600, "credit-service.db.lock": 0o600}


@pytest.mark.parametrize("name", ["credit-service.db", "credit-service.db.lock"])
def test_no_file_is_made_through_a_symbolic_link(name: str, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / name).symlink_to(elsewhere)
    ran = command("migrate", cwd=tmp_path)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert not elsewhere.exists()


def test_a_second_time_there_is_nothing_to_do(tmp_path: Path) -> None:
    command("migrate", cwd=tmp_path)
    ran = command("migrate", cwd=tmp_path)
    assert (ran.code, ran.out) == (0, f"credit-service.db is up to date (schema {head()}).\n")


def test_an_empty_file_becomes_a_ledger(tmp_path: Path) -> None:
    (tmp_path / "credit-service.db").touch()
    ran = command("migrate", cwd=tmp_path)
    assert (ran.code, ran.out) == (0, f"credit-service.db was created with schema {head()}.\n")


def test_a_program_reads_what_was_done(tmp_path: Path) -> None:
    first, second = command("migrate", "--json", cwd=tmp_path), command("migrate", "--json", cwd=tmp_path)
    told = {"database": "credit-service.db", "schema": head()}
    assert first.json == told | {"created": True, "migrated": True}
    assert second.json == told | {"created": False, "migrated": False}


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    command("migrate", cwd=tmp_path)
    change(tmp_path / "credit-service.db", "UPDATE alembic_version SET version_num = '9999'")
    ran = command("migrate", cwd=tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        f"credit-service: credit-service.db was written by a newer release (schema 9999); this one knows {head()}.\n"
    )
