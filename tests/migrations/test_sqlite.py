"""Migrations on SQLite: they lead to the declared schema, completely or not at all."""

import logging
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic import op
from alembic.script import ScriptDirectory
from sqlalchemy import URL, NullPool, create_engine

from credit_service.storage import migrations, tables
from credit_service.storage.engine import Conflict, InUse, SchemaError, StorageUnavailable
from credit_service.storage.migrations import head, migrate
from credit_service.storage.sqlite.files import locked, revision

Catalogue = dict[tuple[str, str], Any]


def catalogue(path: Path) -> Catalogue:
    """Return all tables and indexes of a file as SQLite describes them, without differences of spelling.

    This includes CHECKs, STRICT and conditions of indexes, which `alembic check` does not compare.
    """
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall()
        described: Catalogue = {}
        for kind, name, table, text in found:
            if table == "alembic_version":
                continue
            described[kind, name] = _clauses(text) if text else None
            if kind == "table":
                described["columns", name] = connection.execute(f"PRAGMA table_xinfo({name})").fetchall()
        return described


def _clauses(text: str) -> set[str]:
    """Return the clauses of a CREATE statement as a set, because their order does not matter."""
    text = re.sub(r"\s+", " ", text).replace('"', "")
    opening, closing_ = text.find("("), text.rfind(")")
    clauses, depth, start = {text[:opening].strip(), text[closing_ + 1 :].strip()}, 0, opening + 1
    for index in range(opening + 1, closing_ + 1):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if index == closing_ or (text[index] == "," and depth == 0):
            clauses.add(re.sub(r" ?([(),]) ?", r"\1", text[start:index]).strip())
            start = index + 1
    return clauses


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def test_migrations_of_empty_file_give_declared_schema(path: Path, tmp_path: Path):
    migrate(path)
    declared = tmp_path / "declared.db"
    engine = create_engine(URL.create("sqlite", database=str(declared)), poolclass=NullPool)
    tables.metadata.create_all(engine)
    assert catalogue(path) == catalogue(declared)


def test_comparison_sees_different_check_condition_and_column(tmp_path: Path):
    plain = "CREATE TABLE t (a INTEGER NOT NULL, CONSTRAINT c CHECK (a IN (1, 2))) STRICT"
    different = [plain.replace("1, 2", "1, 3"), plain.replace(" NOT NULL", ""), plain.replace(" STRICT", "")]
    same = ['CREATE TABLE "t" (\n  a INTEGER NOT NULL,\n  CONSTRAINT c CHECK ( a IN (1,2) )\n)STRICT']
    seen = []
    for index, text in enumerate([plain, *different, *same]):
        file = tmp_path / f"{index}.db"
        with closing(sqlite3.connect(file)) as connection:
            connection.execute(text)
        seen.append(catalogue(file))
    assert [found == seen[0] for found in seen[1:]] == [False, False, False, True]


def test_every_table_is_strict(path: Path):
    migrate(path)
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT name, strict FROM pragma_table_list WHERE type = 'table'").fetchall()
    assert {name for name, strict in found if strict} == set(tables.metadata.tables)


def test_second_migration_does_nothing_and_returns_false(path: Path):
    assert migrate(path) is True
    before = catalogue(path), path.read_bytes()
    assert migrate(path) is False
    assert (catalogue(path), path.read_bytes()) == before


def _dying_script(monkeypatch: pytest.MonkeyPatch, die: Callable[[], None]) -> None:
    """Make the last migration fail after its last statement."""
    original = ScriptDirectory.from_config

    def from_config(config: Any) -> ScriptDirectory:
        scripts = original(config)
        revision = scripts.get_revision(scripts.get_current_head() or "")
        assert revision is not None
        module = vars(revision.module)
        upgrade = module["upgrade"]
        module["upgrade"] = lambda: [step() for step in (upgrade, die)]
        return scripts

    monkeypatch.setattr(ScriptDirectory, "from_config", from_config)


def test_failed_migration_changes_nothing_and_can_run_again(path: Path, monkeypatch: pytest.MonkeyPatch):
    class PowerFails(Exception):
        pass

    def die() -> None:
        # The migration has created the tables.
        assert op.get_bind().exec_driver_sql("SELECT count(*) FROM accounts").scalar() == 0
        raise PowerFails

    with monkeypatch.context() as patch:
        _dying_script(patch, die)
        with pytest.raises(PowerFails):
            migrate(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []
    assert migrate(path) is True


def test_migration_that_sqlite_refuses_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        _dying_script(patch, lambda: op.execute("CREATE TABLE accounts (again INTEGER)"))
        with pytest.raises(sqlite3.OperationalError, match="table accounts already exists"):
            migrate(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []


def test_newer_schema_is_refused_and_unchanged(path: Path):
    migrate(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    before = path.read_bytes()
    with pytest.raises(SchemaError) as refused:
        migrate(path)
    assert str(refused.value) == f"{path} was written by a newer release (schema 9999); this one knows {head()}."
    assert path.read_bytes() == before


def test_file_with_foreign_tables_is_refused_and_unchanged(path: Path):
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE accounts (name TEXT)")
        connection.execute("CREATE TABLE birds (name TEXT)")
    before = path.read_bytes()
    with pytest.raises(SchemaError, match=f"^{path} holds tables of something else: accounts, birds.$"):
        migrate(path)
    assert path.read_bytes() == before


def test_file_that_is_not_a_database_is_refused_and_unchanged(path: Path):
    path.write_bytes(b"Dear diary, " * 1_000)
    with pytest.raises(StorageUnavailable, match=f"^{path} cannot be used: file is not a database.$"):
        migrate(path)
    assert path.read_bytes() == b"Dear diary, " * 1_000


def test_missing_folder_gives_error_in_one_line(tmp_path: Path):
    with pytest.raises(StorageUnavailable, match=r"ledger\.db\.lock cannot be opened: No such file or directory\.$"):
        migrate(tmp_path / "none" / "ledger.db")


def test_locked_file_is_a_conflict(path: Path, monkeypatch: pytest.MonkeyPatch):
    impatient = {"connect_args": {"timeout": 0}}
    monkeypatch.setattr(migrations, "create_engine", lambda url, **more: create_engine(url, **more, **impatient))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Conflict, match=f"^{path} is locked by something else.$"):
            migrate(path)
    assert migrate(path) is True


def test_migration_prints_nothing(path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        migrate(path)
    assert (capfd.readouterr(), caplog.records) == (("", ""), [])


def test_migrations_form_one_line():
    scripts = ScriptDirectory.from_config(migrations._config())
    assert scripts.get_heads() == [head()]
    assert len(scripts.get_bases()) == 1


def test_declared_schema_names_last_migration() -> None:
    assert head() == tables.REVISION


def test_file_stores_its_migration(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    assert revision(path) is None
    path.touch()
    assert revision(path) is None
    migrate(path)
    assert revision(path) == head()
    path.write_bytes(b"something else entirely" * 100)
    with pytest.raises(StorageUnavailable):
        revision(path)


def test_file_in_use_by_a_service_is_not_migrated(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with locked(path), pytest.raises(InUse):
        migrate(path)
    assert migrate(path)
