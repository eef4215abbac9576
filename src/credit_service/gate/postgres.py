"""Without Redis, the processes on one PostgreSQL exchange messages by LISTEN and NOTIFY.

A NOTIFY within a posting would make all commits of the database wait for each other, so it follows on a connection of
its own. A lost message is made good by the TTL.
"""

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, Final

from credit_service.gate.answers import StatusAnswer, line_of
from credit_service.storage.postgres.connections import connector

_CHANNEL: Final = "credits_plugin_status"
_SILENCE_SECONDS: Final = 5.0
"""How often a connection that only listens is checked."""
_TELL: Final = "SELECT pg_notify($1, told) FROM unnest($2::text[]) AS told"


class PostgresChannel:
    """A channel on one connection to the database of a URL. `timeout_seconds` bounds each wait for the server."""

    def __init__(self, url: str, *, timeout_seconds: float) -> None:
        self._connect = connector(url, timeout_seconds=timeout_seconds)
        self._timeout = timeout_seconds
        self._connection: Any = None
        self._joined = asyncio.Event()
        self._turn = asyncio.Lock()

    async def tell(self, answers: Collection[StatusAnswer]) -> None:
        await self._execute(_TELL, _CHANNEL, list(map(line_of, answers)))

    async def listen(self, joined: Callable[[], None], heard: Callable[[str], None]) -> None:
        connection = await self._connect()
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _: lost.set())
        try:
            await connection.add_listener(_CHANNEL, lambda _connection, _process, _channel, line: heard(str(line)))
            self._connection = connection
            self._joined.set()
            joined()
            while not lost.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(_SILENCE_SECONDS):
                        await lost.wait()
                await self._execute("SELECT 1")
        finally:
            self._connection = None
            self._joined.clear()
            connection.terminate()

    async def _execute(self, statement: str, *values: object) -> None:
        with suppress(TimeoutError):  # a process that has just started is connected in a moment
            async with asyncio.timeout(self._timeout):
                await self._joined.wait()
        async with self._turn:
            if self._connection is None:
                raise ConnectionError("There is no connection to PostgreSQL at the moment.")
            await self._connection.execute(statement, *values, timeout=self._timeout)
