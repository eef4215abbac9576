"""Migrations on PostgreSQL give the declared schema or change nothing, and they do not block for long."""

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from alembic import command as alembic
from sqlalchemy.ext.asyncio import create_async_engine

from credit_service.settings import Settings, database_of
from credit_service.storage import migrations, tables
from credit_service.storage.engine import Conflict, SchemaError, StorageUnavailable
from credit_service.storage.migrations import head, is_migrated_postgres, migrate_postgres
from credit_service.storage.postgres.connections import connector, name_of
from credit_service.storage.postgres.statements import LOCKS
from tests.commands import Ran, command
from tests.migrations.releases import next_release
from tests.servers.postgres import Databases
from tests.storage.engines import on_server, rows, template

CATALOGUE = {
    "tables": "SELECT relname, relkind::text, relpersistence::text, reloptions FROM pg_class "
    "WHERE relnamespace = {ours}",
    "columns": """
        SELECT attrelid::regclass::text, row_number() OVER (PARTITION BY attrelid ORDER BY attnum), attname,
            format_type(atttypid, atttypmod), attnotnull,
            attidentity::text, attgenerated::text, attcollation, attstorage::text, attcompression::text, attoptions,
            pg_get_expr(adbin, adrelid)
        FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
            LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE relnamespace = {ours} AND attnum > 0 AND NOT attisdropped""",
    "indexes": "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index "
    "WHERE indrelid IN (SELECT oid FROM pg_class WHERE relnamespace = {ours})",
    "constraints": "SELECT conrelid::regclass::text, conname, contype::text, convalidated, pg_get_constraintdef(oid) "
    "FROM pg_constraint WHERE connamespace = {ours}",
    "sequences": "SELECT sequencename, data_type::text, start_value, increment_by, max_value, cycle FROM pg_sequences",
    "triggers": "SELECT tgrelid::regclass::text, tgname FROM pg_trigger",
}
"""Queries for everything that a database stores about its tables. `alembic check` ignores CHECKs; these do not."""


def catalogue(url: str) -> dict[str, list[Any]]:
    found = {what: rows(url, query.format(ours="'public'::regnamespace")) for what, query in CATALOGUE.items()}
    return {
        what: sorted((row for row in some if "alembic_version" not in str(row)), key=repr)
        for what, some in found.items()
    }


def create_all(url: str) -> None:
    async def create() -> None:
        engine = create_async_engine("postgresql+asyncpg://", async_creator=connector(url, timeout_seconds=60))
        async with engine.begin() as connection:
            await connection.run_sync(tables.metadata.create_all)
        await engine.dispose()

    asyncio.run(create())


@pytest.fixture
def migrated(postgres: Databases) -> Iterator[str]:
    """Yield the URL of an empty ledger."""
    with postgres.database(template(postgres)) as url:
        yield url


def run(url: str, *arguments: str, cwd: Path) -> Ran:
    return command(*arguments, cwd=cwd, DATABASE_URL=url, DATABASE_ALLOW_UNSAFE="true")


# ---- the schema


def test_migrations_of_empty_database_give_declared_schema(postgres: Databases, postgres_url: str):
    migrate_postgres(postgres_url)
    with postgres.database() as declared:
        create_all(declared)
        found = catalogue(declared)
        assert catalogue(postgres_url) == found
    checks = [row for row in found["constraints"] if row[2] == "c"]
    assert len(checks) > 15
    assert any("WHERE" in row[1] for row in found["indexes"])


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE accounts DROP CONSTRAINT ck_accounts_policy",
        "ALTER TABLE accounts DROP CONSTRAINT ck_accounts_policy, "
        "ADD CONSTRAINT ck_accounts_policy CHECK (when_insufficient IN ('overdraft', 'partial'))",
        "ALTER TABLE accounts ALTER COLUMN balance DROP NOT NULL",
        "ALTER TABLE accounts ALTER COLUMN balance SET DEFAULT 0",
        "ALTER TABLE accounts ALTER COLUMN balance TYPE numeric",
        "ALTER TABLE accounts SET (fillfactor = 50)",
        "ALTER TABLE transactions ALTER COLUMN account RESET (n_distinct)",
        "DROP INDEX ix_accounts_next_due_at; CREATE INDEX ix_accounts_next_due_at ON accounts (next_due_at)",
    ],
)
def test_catalogue_shows_each_difference(change: str, migrated: str):
    before = catalogue(migrated)
    with on_server(migrated, change):
        assert catalogue(migrated) != before


def test_second_migration_does_nothing_and_returns_false(postgres_url: str):
    assert migrate_postgres(postgres_url) is True
    before = catalogue(postgres_url)
    assert migrate_postgres(postgres_url) is False
    assert is_migrated_postgres(postgres_url)
    assert catalogue(postgres_url) == before


def test_failed_migration_changes_nothing_and_can_run_again(postgres_url: str, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(alembic, "upgrade", _dying(alembic.upgrade))
        with pytest.raises(ZeroDivisionError):
            migrate_postgres(postgres_url)
    assert rows(postgres_url, "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace") == []
    assert migrate_postgres(postgres_url) is True


def _dying(upgrade: Any) -> Any:
    def dying(*arguments: Any) -> None:
        upgrade(*arguments)
        raise ZeroDivisionError

    return dying


def test_database_with_foreign_tables_is_refused_and_unchanged(postgres_url: str, tmp_path: Path):
    with on_server(postgres_url, "CREATE TABLE accounts (name TEXT)", "CREATE TABLE birds (name TEXT)"):
        before = catalogue(postgres_url)
        with pytest.raises(SchemaError, match=r"holds tables of something else: accounts\.$"):
            migrate_postgres(postgres_url)
        assert "holds tables of something else" in run(postgres_url, "serve", "--port", "0", cwd=tmp_path).err
        assert catalogue(postgres_url) == before


# ---- on the command line


def test_migrate_command_creates_schema_and_reports_it(postgres_url: str, tmp_path: Path):
    name = name_of(postgres_url)
    assert run(postgres_url, "migrate", cwd=tmp_path) == Ran(0, f"{name} was created with schema {head()}.\n", "")
    assert run(postgres_url, "migrate", cwd=tmp_path) == Ran(0, f"{name} is up to date (schema {head()}).\n", "")
    printed = json.loads(run(postgres_url, "migrate", "--json", cwd=tmp_path).out)
    assert printed == {"database": name, "schema": head(), "created": False, "migrated": False}


def test_doctor_distinguishes_empty_and_migrated_database(postgres_url: str, tmp_path: Path):
    def found() -> Any:
        ran = command(
            "doctor", "--json", cwd=tmp_path, DATABASE_URL=postgres_url, DATABASE_ALLOW_UNSAFE="true", SERVICE_PORT="0"
        )
        (database,) = [finding for finding in ran.json["findings"] if finding["what"] == "database"]
        return ran.code, database["seen"]

    name = name_of(postgres_url)
    assert found() == (0, f"{name} holds no ledger yet; serve or migrate creates it")
    migrate_postgres(postgres_url)
    assert found() == (0, f"{name}, schema {head()}")


async def test_service_creates_schema_in_empty_database(postgres_url: str):
    settings = Settings(_env_file=None, database_url=postgres_url, database_allow_unsafe=True)  # type: ignore[call-arg, arg-type]
    store = await database_of(settings).opened()
    try:
        await store.check()
        assert [books async for books in store.books()] == []
    finally:
        await store.close()
    assert await asyncio.to_thread(is_migrated_postgres, postgres_url)


# ---- concurrency


def test_one_of_several_migrations_runs_and_others_wait(postgres_url: str):
    at_once = Barrier(4)

    def migrate() -> bool:
        at_once.wait()
        return migrate_postgres(postgres_url)

    with ThreadPoolExecutor(4) as threads:
        done = [threads.submit(migrate) for _ in range(4)]
        assert sorted(one.result() for one in done) == [False, False, False, True]


def test_migration_waits_for_a_slow_migration_to_end(postgres_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(migrations, "_LOCK_SECONDS", 0.01)
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with ThreadPoolExecutor(1) as thread:
        with on_server(postgres_url, f"SELECT pg_advisory_lock({LOCKS}, -1)"):
            migration = thread.submit(migrate_postgres, postgres_url)
            until = time.monotonic() + 30
            while rows(postgres_url, waiting) != [(1,)]:
                assert time.monotonic() < until
            assert not migration.done()
        assert migration.result()


def test_locked_table_stops_migration_without_a_change(migrated: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = catalogue(migrated)
    next_release(monkeypatch, tmp_path)
    monkeypatch.setattr(migrations, "_LOCK_SECONDS", 0.1)
    with on_server(migrated, "BEGIN", "SELECT * FROM api_keys"):
        with pytest.raises(Conflict, match=r"had a conflict: canceling statement due to lock timeout\.$"):
            migrate_postgres(migrated)
        ran = run(migrated, "migrate", cwd=tmp_path)
        assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert catalogue(migrated) == before
    assert migrate_postgres(migrated) is True


def test_migration_may_outlast_the_statement_timeout(postgres_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(migrations, "_CONNECT_SECONDS", 1.5)

    def slowly(upgrade: Any) -> Any:
        def slow(config: Any, revision: str) -> None:
            config.attributes["connection"].exec_driver_sql("SELECT pg_sleep(1.8)")
            upgrade(config, revision)

        return slow

    monkeypatch.setattr(alembic, "upgrade", slowly(alembic.upgrade))
    assert migrate_postgres(postgres_url) is True


def test_role_without_rights_gets_error_in_one_line(migrated: str, postgres: Databases):
    role = f"reader_{name_of(migrated)[-12:]}"
    with (
        postgres.database() as empty,
        # PostgreSQL 15 and newer revoke this by default.
        on_server(empty, f"CREATE ROLE {role} LOGIN PASSWORD 'x'", "REVOKE CREATE ON SCHEMA public FROM PUBLIC"),
    ):
        try:
            place = empty.partition("@")[2]
            with pytest.raises(StorageUnavailable, match="permission denied for schema public"):
                migrate_postgres(f"postgresql://{role}:x@{place}")
        finally:
            with on_server(empty, f"DROP ROLE {role}"):
                pass


def test_migration_works_through_a_pooler(postgres_url: str, pooled: Any):
    behind = pooled(postgres_url).url
    assert migrate_postgres(behind, pooled=True) is True
    assert is_migrated_postgres(behind, pooled=True)
    assert migrate_postgres(behind, pooled=True) is False
