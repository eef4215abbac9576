"""PostgreSQL: plugin status from the cache, over a bare ASGI application that the same server serves."""

from benchmarks import plugin_status
from benchmarks.measure import Figure
from benchmarks.postgres import server


async def run(quick: bool) -> list[Figure]:
    """What `plugin_status` measures, with the ledger in PostgreSQL."""
    with server() as databases, databases.database() as url, databases.database() as other:
        return await plugin_status.run(quick, url, other)
