"""Connections for the opponents."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg


@asynccontextmanager
async def pool(url: str, size: int) -> "AsyncIterator[asyncpg.Pool[Any]]":
    """So many connections, all of them open from the beginning, with what ours are set to."""
    settings = {"jit": "off"}
    async with asyncpg.create_pool(
        url, min_size=size, max_size=size, server_settings=settings, command_timeout=60
    ) as made:
        yield made
