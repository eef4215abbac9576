"""PostgreSQL: plugin status from the cache, compared with a bare ASGI application on the same server."""

from benchmarks import plugin_status
from benchmarks.measure import Figure
from benchmarks.postgres import server


async def run(quick: bool) -> list[Figure]:
    """Measure as `plugin_status` does, with the ledger in PostgreSQL."""
    with server() as databases, databases.database() as url, databases.database() as other:
        return await plugin_status.run(quick, url, other)
