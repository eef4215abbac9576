"""Databases of older and newer releases, on both engines."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import URL, Connection, NullPool, create_engine

from credit_service.ledger.proof import verify
from credit_service.settings import Settings, database_of
from credit_service.storage import migrations, tables
from credit_service.storage.databases import Database
from credit_service.storage.engine import SchemaError
from credit_service.storage.keys import Keys
from credit_service.storage.outbox import Outbox
from credit_service.storage.policies import FailPolicies
from credit_service.storage.shops import Shops
from credit_service.storage.webhooks import WebhookDelivery, WebhookEndpoint, WebhookEndpoints
from tests.commands import command
from tests.ledger.telling import MERCHANT, T0, days, opening, order, payment, refund, use
from tests.migrations.releases import NEXT, next_release
from tests.storage import values
from tests.storage.contract import tell
from tests.storage.engines import change, opened, rows
from tests.storage.values import OTHER, of

COMMANDS = (
    ("serve", "--port", "0"),
    ("migrate",),
    ("verify",),
    ("keys", "list"),
    ("keys", "create", "--name", "n", "--scope", "read"),
)


@pytest.fixture
def url(new_ledger: Callable[[], str]) -> str:
    return new_ledger()


@pytest.fixture
def empty_url(engine_name: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of a database without a schema."""
    if engine_name == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    return str(request.getfixturevalue("postgres_url"))


def database(url: str) -> Database:
    settings = Settings(_env_file=None, database_url=url, database_allow_unsafe=True)  # type: ignore[call-arg, arg-type]
    return database_of(settings)


def run(url: str, *arguments: str, cwd: Path) -> str:
    """Run a command that must fail. Returns its error output."""
    ran = command(*arguments, cwd=cwd, DATABASE_URL=url, DATABASE_ALLOW_UNSAFE="true")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1), ran
    return ran.err


def test_alembic_finds_no_difference_after_migration(url: str):
    seen: list[Any] = []

    def compare(connection: Connection) -> bool:
        options = {"compare_type": True, "compare_server_default": True}
        seen.append(compare_metadata(MigrationContext.configure(connection, opts=options), tables.metadata))
        return True

    if url.startswith("sqlite"):
        path = url.removeprefix("sqlite:///")
        with create_engine(URL.create("sqlite", database=path), poolclass=NullPool).connect() as connection:
            compare(connection)
    else:
        migrations._in_postgres(url, False, compare)
    assert seen == [[]]


def test_every_command_refuses_newer_schema_and_changes_nothing(url: str, tmp_path: Path):
    change(url, "UPDATE alembic_version SET version_num = '9999'")
    for arguments in COMMANDS:
        said = run(url, *arguments, cwd=tmp_path)
        assert said.endswith(f" was written by a newer release (schema 9999); this one knows {migrations.head()}.\n")
    assert rows(url, "SELECT version_num FROM alembic_version") == [("9999",)]
    assert rows(url, "SELECT id FROM api_keys") == []


async def test_migration_keeps_rows_of_earlier_release(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = opened(url, clock=lambda: T0)
    history = (opening(), payment("P", 500, expires_at=days(30)), order("1", 200), refund("R", "1", credits=7))
    await tell(store, *history, use(3), refund("early", "unknown", credits=1), of(OTHER, payment("P", 9)))
    await Keys(store).add(values.FULL_KEY)
    await Outbox(store).claim("reader", "owner", T0, 1)
    await Shops(store).link("a.myshopify.com", MERCHANT, T0)
    await Shops(store).keep(values.KEPT_ORDER)
    await Shops(store).claim("gid://shopify/AppPurchaseOneTime/1", "billing:payment:1", MERCHANT, "a.myshopify.com")
    endpoint = WebhookEndpoint("one", "https://one.example/", ("consumed",), T0, await Outbox(store).end())
    await WebhookEndpoints(store).add(endpoint, "whsec_AAAA")
    await WebhookEndpoints(store).add_deliveries(
        endpoint, [WebhookDelivery("one", 1, "webhook_test", None, None, T0, T0)]
    )
    await FailPolicies(store).set(OTHER, "open")
    await store.close()
    before = {name: sorted(rows(url, f"SELECT * FROM {name}"), key=repr) for name in tables.metadata.tables}
    assert all(before[name] for name in set(before) - {"dead_letters", "service_state"})
    next_release(monkeypatch, tmp_path)
    if database(url).shared:
        with pytest.raises(SchemaError, match=f"has schema {tables.REVISION}, .*{NEXT}: run credit-service migrate"):
            await database(url).opened()
        assert await asyncio.to_thread(database(url).migrate)
    store = await database(url).opened()
    try:
        after = {name: sorted(rows(url, f"SELECT * FROM {name}"), key=repr) for name in tables.metadata.tables}
        assert after == before | {"api_keys": [(*row, None) for row in before["api_keys"]]}
        books = [(one.account, one.grants, list(one.transactions), one.faults) async for one in store.books()]
        assert {account.merchant_id for account, *_ in books} == {MERCHANT, OTHER}
        for account, grants, transactions, faults in books:
            assert [*faults, *verify(account, grants, transactions)] == []
    finally:
        await store.close()


def test_earlier_release_refuses_migrated_database(url: str, tmp_path: Path):
    with pytest.MonkeyPatch.context() as patch:
        next_release(patch, tmp_path)
        assert database(url).migrate()
        assert database(url).is_migrated()
    assert f"was written by a newer release (schema {NEXT})" in run(url, "serve", "--port", "0", cwd=tmp_path)
