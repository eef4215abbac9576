"""Without Redis, processes on one PostgreSQL exchange messages by NOTIFY."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import uuid4

import asyncpg
import pytest

from credit_service.gate.answers import StatusAnswer, line_of, of_unknown
from credit_service.gate.postgres import PostgresChannel
from credit_service.settings import Settings, channel_of
from tests.servers.proxy import Proxy


def some(number: int) -> list[StatusAnswer]:
    return [of_unknown(str(uuid4()), 1, 1) for _ in range(number)]


@asynccontextmanager
async def listening(url: str, heard: asyncio.Queue[str]) -> AsyncIterator[tuple[PostgresChannel, asyncio.Task[None]]]:
    channel = PostgresChannel(url, timeout_seconds=1)
    joined = asyncio.Event()
    task = asyncio.create_task(channel.listen(joined.set, heard.put_nowait))
    await joined.wait()
    try:
        yield channel, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_all_processes_receive_messages_in_order(postgres_url: str) -> None:
    answers = some(1000)
    first, second = asyncio.Queue[str](), asyncio.Queue[str]()
    async with listening(postgres_url, first) as (here, _), listening(postgres_url, second):
        await here.tell(answers)
        for heard in (first, second):
            assert [await heard.get() for _ in answers] == [line_of(answer) for answer in answers]


async def test_sending_without_a_connection_fails(postgres_url: str) -> None:
    channel = PostgresChannel(postgres_url, timeout_seconds=0.1)
    with pytest.raises(ConnectionError):
        await channel.tell(some(1))


async def test_closed_connection_is_noticed_at_once(postgres_url: str) -> None:
    async with listening(postgres_url, asyncio.Queue()) as (channel, task):
        other = await asyncpg.connect(postgres_url)
        others = "datname = current_database() AND pid <> pg_backend_pid()"
        await other.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
        await other.close()
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await task
        with pytest.raises(ConnectionError):
            await channel.tell(some(1))


async def test_silent_connection_is_noticed(
    postgres_url: str, proxied: Callable[[str], Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("credit_service.gate.postgres._SILENCE_SECONDS", 0.05)
    proxy = proxied(postgres_url)
    channel = PostgresChannel(proxy.url, timeout_seconds=1)
    joined = asyncio.Event()
    task = asyncio.create_task(channel.listen(joined.set, lambda line: None))
    await joined.wait()
    proxy.hold()
    with pytest.raises(TimeoutError):
        await task


@pytest.mark.parametrize(
    ("given", "is_one"),
    [
        ({"database_url": "postgresql://host/credits"}, True),
        ({"database_url": "postgresql://host/credits", "database_pooled": True}, False),  # forgets who listens
    ],
)
def test_channel_is_used_with_postgresql_without_a_pooler(given: dict[str, object], is_one: bool) -> None:
    settings, engine = Settings(_env_file=None, **given), None  # type: ignore[call-arg, arg-type]
    assert (channel_of(settings, engine) is not None) is is_one  # type: ignore[arg-type]
