"""PgBouncer assigns a server connection for one transaction only. Clients that need a session fail with it."""

import asyncio
from collections.abc import Callable

import asyncpg

from tests.servers.pgbouncer import PgBouncer


async def test_many_clients_share_few_connections(postgres_url: str, pooled: Callable[..., PgBouncer]) -> None:
    url = pooled(postgres_url, pool_size=2).url
    clients = [await asyncpg.connect(url, statement_cache_size=0) for _ in range(6)]
    backends = await asyncio.gather(*(client.fetchval("SELECT pg_backend_pid()") for client in clients))
    assert len(set(backends)) <= 2
    for client in clients:
        await client.close()
