"""Connection pools for the baselines."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg


@asynccontextmanager
async def pool(url: str, size: int) -> "AsyncIterator[asyncpg.Pool[Any]]":
    """Open a pool of `size` connections at once, with the settings of our own connections."""
    settings = {"jit": "off"}
    async with asyncpg.create_pool(
        url, min_size=size, max_size=size, server_settings=settings, command_timeout=60
    ) as made:
        yield made
