"""What releases do with each other's databases, on both engines."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import URL, Connection, NullPool, column, create_engine, table

from credit_service.ledger.proof import verify
from credit_service.settings import Settings
from credit_service.storage import migrations, tables
from credit_service.storage import rows as as_rows
from credit_service.storage.databases import Database, database_of
from credit_service.storage.engine import BadRow, SchemaError
from credit_service.storage.keys import ApiKey, Keys
from credit_service.storage.outbox import Outbox
from credit_service.storage.policies import FailPolicies
from credit_service.storage.shops import Shops
from credit_service.storage.webhooks import WebhookDelivery, WebhookEndpoint, WebhookEndpoints
from tests.commands import command
from tests.ledger.telling import MERCHANT, T0, days, opening, order, payment, refund, use
from tests.migrations.releases import NEXT, next_release, upgraded
from tests.storage import values
from tests.storage.contract import load, need, tell
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
    """The URL of a database without a schema."""
    if engine_name == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    return str(request.getfixturevalue("postgres_url"))


def database(url: str) -> Database:
    settings = Settings(_env_file=None, database_url=url, database_allow_unsafe=True)  # type: ignore[call-arg, arg-type]
    return database_of(settings)


def run(url: str, *arguments: str, cwd: Path) -> str:
    """What a command says that cannot do what it was asked."""
    ran = command(*arguments, cwd=cwd, DATABASE_URL=url, DATABASE_ALLOW_UNSAFE="true")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1), ran
    return ran.err


def test_alembic_sees_no_difference_between_a_migrated_database_and_the_declared_schema(url: str):
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


def test_a_newer_schema_is_refused_in_one_line_by_every_command_and_left_alone(url: str, tmp_path: Path):
    change(url, "UPDATE alembic_version SET version_num = '9999'")
    for arguments in COMMANDS:
        said = run(url, *arguments, cwd=tmp_path)
        assert said.endswith(f" was written by a newer release (schema 9999); this one knows {migrations.head()}.\n")
    assert rows(url, "SELECT version_num FROM alembic_version") == [("9999",)]
    assert rows(url, "SELECT id FROM api_keys") == []


async def test_rows_of_the_release_before_are_the_same_after_a_migration(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = opened(url, clock=lambda: T0)
    history = (opening(), payment("P", 500, expires_at=days(30)), order("1", 200), refund("R", "1", credits=7))
    await tell(store, *history, use(3), refund("early", "unknown", credits=1), of(OTHER, payment("P", 9)))
    await Keys(store).add(values.FULL_KEY)
    await Outbox(store).claim("reader", "owner", T0, 1)
    await Shops(store).link("a.myshopify.com", MERCHANT, T0)
    await Shops(store).keep(values.KEPT_ORDER)
    endpoint = WebhookEndpoint("one", "https://one.example/", ("consumed",), T0, await Outbox(store).end())
    await WebhookEndpoints(store).add(endpoint, "whsec_AAAA")
    await WebhookEndpoints(store).add_deliveries(
        endpoint, [WebhookDelivery("one", 1, "webhook_test", None, None, T0, T0)]
    )
    await FailPolicies(store).set(OTHER, "open")
    await store.close()
    before = {name: sorted(rows(url, f"SELECT * FROM {name}"), key=repr) for name in tables.metadata.tables}
    assert all(before[name] for name in set(before) - {"dead_letters"})
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


def test_a_dead_letter_of_the_first_release_is_kept(empty_url: str):
    def put_aside(connection: Connection) -> None:
        connection.exec_driver_sql(
            "INSERT INTO dead_letters (account, code, reason, at, kind, fact) "
            f"VALUES (7, 'order_unknown', 'It never came.', {T0}, 'order_refunded', '{{}}')"
        )

    upgraded(empty_url, "0001", put_aside)
    assert database(empty_url).migrate()
    kept = (7, "order_unknown", "It never came.", T0, "order_refunded", "{}", None, None, None, None, None)
    assert rows(empty_url, "SELECT * FROM dead_letters") == [(1, *kept)]
    change(empty_url, "INSERT INTO dead_letters (code, reason, at) VALUES ('c', 'r', 1)")  # numbered on
    assert rows(empty_url, "SELECT id FROM dead_letters ORDER BY id") == [(1,), (2,)]


async def test_keys_of_before_there_was_a_gate_stay_and_one_for_a_page_can_be_made(empty_url: str) -> None:
    old, page = (ApiKey(id_, "n", scope, bytes(32), 1) for id_, scope in (("old", "admin"), ("page", "status")))

    async def add(key: ApiKey) -> None:
        store = opened(empty_url)
        try:
            await Keys(store).add(key)
        finally:
            await store.close()

    await asyncio.to_thread(upgraded, empty_url, "0002")
    await add(old)
    with pytest.raises(BadRow):
        await add(page)
    await asyncio.to_thread(upgraded, empty_url, "head")
    assert rows(empty_url, "SELECT id, scope, created_at FROM api_keys") == [("old", "admin", 1)]
    await add(page)
    assert rows(empty_url, "SELECT id FROM api_keys ORDER BY id") == [("old",), ("page",)]


async def test_what_was_found_by_the_hash_of_its_key_is_found_by_its_key(empty_url: str) -> None:
    account, refund_, given = values.account(trial=None), values.FULL_PARKED, values.FULL_GIVEN_BACK
    posted = [
        values.transaction(1, key=given.key),
        values.FULL_TRANSACTION._replace(account=account.number, sequence=2),
    ]
    written = {
        "accounts": [as_rows.account_row(account)],
        "transactions": [as_rows.transaction_row(one) for one in posted],
        "given_back": [as_rows.given_back_row(account.number, given)],
        "parked": [as_rows.parked_row(account.number, refund_)],
    }

    def insert(connection: Connection) -> None:
        for name, some in written.items():
            for number, row in enumerate(some):
                hashed = {} if name == "accounts" else {"key_hash": bytes([number] * 16)}
                named = dict(zip(tables.metadata.tables[name].columns.keys(), row, strict=True)) | hashed
                connection.execute(table(name, *map(column, named)).insert().values(named))

    await asyncio.to_thread(upgraded, empty_url, "0007", insert)
    assert await asyncio.to_thread(database(empty_url).migrate)
    assert {name: rows(empty_url, f"SELECT * FROM {name}") for name in written} == written
    store = opened(empty_url)
    try:
        needs = [need("new", account.merchant_id, source=given.key), need(posted[1].key, account.merchant_id)]
        record = (await load(store, *needs)).records[account.merchant_id]
    finally:
        await store.close()
    assert record.firsts == {one.key: one._replace(merchant_id=account.merchant_id) for one in posted}
    assert record.given_back == {given.key: given}
    assert record.parked == {refund_.key: refund_}


def test_the_release_before_refuses_what_the_next_has_migrated(url: str, tmp_path: Path):
    with pytest.MonkeyPatch.context() as patch:
        next_release(patch, tmp_path)
        assert database(url).migrate()
        assert database(url).is_migrated()
    assert f"was written by a newer release (schema {NEXT})" in run(url, "serve", "--port", "0", cwd=tmp_path)
