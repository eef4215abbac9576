"""The service opens a PostgreSQL database, or refuses it in one line, in time and without a secret."""

import asyncio
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from structlog.testing import capture_logs

from credit_service.settings import SettingsError, database_of, load
from credit_service.storage import migrations
from credit_service.storage.accounts import Accounts
from credit_service.storage.databases import Database
from credit_service.storage.engine import StorageError, StorageUnavailable
from credit_service.storage.keys import Keys
from credit_service.storage.postgres import statements as sql
from credit_service.storage.postgres.connections import connector, name_of
from credit_service.storage.postgres.engine import PostgresEngine
from tests.commands import command
from tests.servers.postgres import Databases, Postgres
from tests.servers.proxy import Proxy
from tests.storage.engines import on_server, template

CANARY = "Canary-in-the-mine"


@pytest.fixture
def url(postgres: Databases) -> Iterator[str]:
    """Yield the URL of an empty ledger."""
    with postgres.database(template(postgres)) as url:
        yield url


def database(url: str, **given: Any) -> Database:
    return database_of(load(database_url=url, **given))


async def refused(url: str, **given: Any) -> str:
    """Return the one line that explains why the service cannot open this database."""
    with pytest.raises(StorageError) as error:
        await database(url, **given).opened()
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{name_of(url)} ")


# ---- servers that can lose commits, or have a wrong clock


@pytest.mark.parametrize("switch", ["fsync", "full_page_writes", "synchronous_commit"])
async def test_server_that_can_lose_commits_is_refused_unless_allowed(
    switch: str, url: str, monkeypatch: pytest.MonkeyPatch
):
    switches = (
        f"'{'off' if name == switch else 'on'}'" for name in ("fsync", "full_page_writes", "synchronous_commit")
    )
    monkeypatch.setattr(sql, "SAFETY", f"SELECT {sql.CLOCK}, {', '.join(switches)}")
    lost = "a crash of the server could lose what was posted"
    assert await refused(url) == f"has {switch} off, so {lost}; DATABASE_ALLOW_UNSAFE=true starts anyway."
    await (await database(url, database_allow_unsafe=True).opened()).close()


@pytest.mark.parametrize(("ahead", "well"), [(-61, False), (-50, True), (50, True), (61, False)])
async def test_server_with_a_wrong_clock_is_refused_unless_allowed(
    ahead: int, well: bool, url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sql, "SAFETY", f"SELECT {sql.CLOCK} + {ahead * 1_000_000}, 'on', 'on', 'on'")
    if not well:
        assert (await refused(url)).startswith(f"has a clock that is {abs(ahead)} seconds off ours; DATABASE_ALLOW_")
    await (await database(url, database_allow_unsafe=not well).opened()).close()


async def test_default_server_is_accepted_and_unsafe_server_refused(
    new_postgres: Callable[..., Postgres],
):
    server = await asyncio.to_thread(new_postgres, fsync=True)
    url = server.url("postgres")
    await (await database(url).opened()).close()
    connection = await asyncpg.connect(url)
    await connection.execute("ALTER DATABASE postgres SET synchronous_commit = off")
    await connection.close()
    assert (await refused(url)).startswith("has synchronous_commit off")


# ---- a database that cannot store every text


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_database_of_another_encoding_is_refused_by_every_command(
    encoding: str, postgres: Databases, tmp_path: Path
) -> None:
    url = postgres.create_database()
    name = urlsplit(url).path[1:]
    with on_server(
        postgres.url("postgres"),
        f'DROP DATABASE "{name}"',
        f"CREATE DATABASE \"{name}\" TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'",
    ):
        said = f"has the encoding {encoding}, which cannot store every text: create the database with ENCODING 'UTF8'."
        for arguments in (("serve", "--port", "0"), ("migrate",), ("keys", "list")):
            ran = command(*arguments, cwd=tmp_path, DATABASE_URL=url, DATABASE_ALLOW_UNSAFE="true")
            assert (ran.code, ran.out, ran.err) == (2, "", f"credit-service: {name_of(url)} {said}\n")
        ran = command("doctor", cwd=tmp_path, DATABASE_URL=url)
        assert (ran.code, f"BAD  database: {name_of(url)} {said}" in ran.out) == (1, True)
    postgres.drop_database(url)


# ---- several hosts, and the options of a URL


def _several(url: str, *first: str, query: str = "") -> str:
    parts = urlsplit(url)
    credentials, _, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{credentials}@{','.join([*first, host])}", query=query).geturl()


async def test_service_tries_next_host_after_failure_or_silence(url: str, proxied: Callable[[str], Proxy]):
    silent = proxied(url)
    silent.hold()
    first = ("127.0.0.1:1", urlsplit(silent.url).netloc.rpartition("@")[2])
    engine = await database(
        _several(url, *first, query="connect_timeout=1"), database_allow_unsafe=True, database_timeout_seconds=10
    ).opened()
    try:
        assert await Keys(engine).all() == []
    finally:
        await engine.close()


async def test_read_only_host_is_refused(url: str):
    connection = await asyncpg.connect(url)
    await connection.execute(f'ALTER DATABASE "{urlsplit(url).path[1:]}" SET default_transaction_read_only = on')
    await connection.close()
    assert (
        await refused(_with(url, query="target_session_attrs=read-write")) == "cannot be used: no host takes postings."
    )


@pytest.mark.parametrize(("query", "name"), [("", "credit-service"), ("application_name=ours%20too", "ours too")])
async def test_application_name_of_the_url_overrides_the_default(query: str, name: str, url: str):
    connection = await connector(_with(url, query=query), timeout_seconds=5)()
    assert await connection.fetchval("SELECT current_setting('application_name')") == name
    await connection.close()


# ---- a server that cannot be used


def _with(url: str, user: str | None = None, **changed: Any) -> str:
    parts = urlsplit(url)
    if user is not None:
        changed["netloc"] = f"{user}@{parts.hostname}:{parts.port}"
    return parts._replace(**changed).geturl()


WRONG: dict[str, tuple[Callable[[str], str], str]] = {
    "password": (lambda url: _with(url, f"tester:{CANARY}"), 'password authentication failed for user "tester"'),
    "no password": (lambda url: _with(url, "tester"), 'password authentication failed for user "tester"'),
    "user": (lambda url: _with(url, f"nobody:{CANARY}"), 'password authentication failed for user "nobody"'),
    "database": (lambda url: _with(url, path="/none"), 'database "none" does not exist'),
    "port": (lambda url: f"postgresql://u:{CANARY}@127.0.0.1:1/d", "Connect call failed ('127.0.0.1', 1)"),
    "host": (lambda url: f"postgresql://u:{CANARY}@no.such.host.invalid/d", "Name or service not known"),
    "host's name": (lambda url: f"postgresql://u:{CANARY}@{'x' * 70}/d", "has an option or a part that cannot be"),
    "socket": (lambda url: f"postgresql://u:{CANARY}@/d?host=/nowhere", "No such file or directory"),
    "TLS": (lambda url: _with(url, query="sslmode=require"), "it does not offer TLS"),
    "option's value": (
        lambda url: _with(url, query=f"options=-c%20work_mem={CANARY}"),
        "has an option or a part that cannot be",
    ),
    "every host": (lambda url: f"postgresql://u:{CANARY}@127.0.0.1:1,127.0.0.1:2/d", "Connect call failed"),
    "certificate": (lambda url: _with(url, query=f"sslmode=verify-full&sslrootcert=/{CANARY}"), "No such file"),
}


def text_of_error(error: BaseException) -> str:
    """Return the texts of an exception and of all its causes."""
    said, left = [], [error]
    while left:
        one = left.pop()
        said += [str(one), repr(one), repr(one.args), *traceback.format_exception(one)]
        left += [other for other in (one.__cause__, one.__context__) if other is not None]
    return "\n".join(said)


@pytest.mark.parametrize("what", WRONG)
async def test_wrong_url_gives_one_line_without_the_password(what: str, url: str):
    made, said = WRONG[what]
    wrong = made(url)
    for asked in (database(wrong).opened, database(wrong).exists):
        with pytest.raises(StorageUnavailable) as error, capture_logs() as logs:
            await asked()
        assert said in str(error.value)
        assert str(error.value).count("\n") == 0
        assert logs == []
        for secret in (CANARY, urlsplit(url).password or ""):
            assert secret not in text_of_error(error.value)


@pytest.mark.parametrize("what", ["password", "database", "option's value", "TLS"])
def test_every_command_prints_that_line_and_exits_with_2(what: str, url: str, tmp_path: Path):
    made, said = WRONG[what]
    for arguments in (("serve", "--port", "0"), ("migrate",), ("verify",), ("keys", "list")):
        ran = command(*arguments, cwd=tmp_path, DATABASE_URL=made(url), LOG_LEVEL="debug")
        assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
        assert said in ran.err
        assert CANARY not in ran.err


@pytest.mark.parametrize(
    "wrong",
    [
        f"postgresql://u:{CANARY}@h:99999/d",
        f"postgresql://u:{CANARY}@h:x/d",
        f"postgresql://u:{CANARY}@h",
        f"postgresql://u:{CANARY}:@h/d",
        f"postgresql://u:{CANARY}@h/d#x",
        f"postgresql://u:{CANARY}@[h/d",
        f"postgresql:/u:{CANARY}@h/d",
        f"postgresql+psycopg://u:{CANARY}@h/d",
        f"postgresql://u@h/d?sslmode={CANARY}",
        f"postgresql://u@h/d?pasword={CANARY}",
        f"postgresql://u@h/d?{CANARY}=1",
    ],
)
def test_refusal_does_not_show_wrong_url(wrong: str):
    with pytest.raises(SettingsError, match=r"^DATABASE_URL: (must be|has)") as error:
        load(database_url=wrong)
    assert CANARY not in text_of_error(error.value)


async def test_no_part_of_an_engine_shows_the_password(url: str):
    secret = urlsplit(url).password or ""
    found = database(url, database_allow_unsafe=True)
    engine = await found.opened()
    try:
        await engine.check()
        for thing in (found, engine, *vars(engine).values()):
            assert secret not in f"{thing!r} {thing}"
    finally:
        await engine.close()


# ---- a server that does not answer


class Ticking:
    """Checks that nothing blocked the event loop."""

    async def __aenter__(self) -> "Ticking":
        self.longest = 0.0
        self._task = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    async def _tick(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.01)
            self.longest = max(self.longest, time.monotonic() - last)
            last = time.monotonic()


async def in_time(asked: Coroutine[Any, Any, Any]) -> str:
    """Return the error message. It must come in time and without blocking the event loop."""
    began = time.monotonic()
    async with Ticking() as ticking:
        with pytest.raises(StorageUnavailable) as error:
            await asked
    assert time.monotonic() - began < 10
    assert ticking.longest < 5
    return str(error.value)


async def test_service_gives_up_a_silent_server_in_time(
    url: str, proxied: Callable[[str], Proxy], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(migrations, "_CONNECT_SECONDS", 0.3)
    proxy = proxied(url)
    proxy.hold()
    found = database(proxy.url, database_timeout_seconds=0.3)
    for asked in (
        found.opened(),
        found.exists(),
        asyncio.to_thread(found.migrate),
        asyncio.to_thread(found.is_migrated),
    ):
        assert (await in_time(asked)).endswith(" cannot be used: it did not answer in time.")


async def test_service_gives_up_a_server_that_stops_answering(new_postgres: Callable[..., Postgres]):
    server = await asyncio.to_thread(new_postgres)
    url = server.url("postgres")
    await asyncio.to_thread(migrations.migrate_postgres, url)
    engine = PostgresEngine(url, timeout_seconds=0.3)
    try:
        await Keys(engine).all()
        server.pause()
        for asked in (Keys(engine).all, engine.check, Accounts(engine).parked_count):
            assert "in time" in await in_time(asked())
        server.resume()
        async with asyncio.timeout(30):
            while True:  # the service does not retry at once
                with suppress(StorageUnavailable):
                    assert await Keys(engine).all() == []
                    break
                await asyncio.sleep(0.01)
    finally:
        server.resume()
        await engine.close()
