"""Connections to a PostgreSQL server: how they are made, a pool for reads, those for postings, and their answers.

Both pools are our own: asyncpg's costs a read twice the time, and a connection that it takes back loses its prepared
statements (docs/decisions/0009).
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar

import asyncpg

from credit_service.storage import dsn
from credit_service.storage.engine import Conflict, OutcomeUnknown, StorageError, StorageUnavailable
from credit_service.storage.postgres import statements as sql
from credit_service.storage.postgres.errors import AWAY, kind_of, translated
from credit_service.storage.questions import Find, Question, Row

T = TypeVar("T")
Q = TypeVar("Q", bound=Question)

Connection = Any
"""An asyncpg connection."""

RECONNECT_SECONDS = 0.1
"""How long every connection is refused after an attempt that failed."""
_PREPARED: Final = 50
"""How many statements a posting connection keeps prepared, beside those that the driver keeps."""
_DEFAULTS: Final = {"jit": "off"}
_KEEPALIVES: Final = {"tcp_keepalives_idle": "60", "tcp_keepalives_interval": "10", "tcp_keepalives_count": "6"}
"""A firewall may forget an idle connection, and some connections are used only at the busiest hours."""


def name_of(url: str) -> str:
    """What messages call a database: its place, without user and password."""
    return dsn.parse(url).name


def connector(
    url: str,
    *,
    timeout_seconds: float,
    pooled: bool = False,
    patient: bool = False,
    settings: Mapping[str, str] = _DEFAULTS,
) -> Callable[[], Any]:
    """A function that opens a connection. `patient`: answers may take any time. `settings`: those of the server.

    Of several hosts the one that worked last is tried first. `timeout_seconds` bounds each attempt, unless the URL says
    connect_timeout.
    """
    place = dsn.parse(url)
    attempts = list(place.attempts)
    ours = {"application_name": "credit-service", **_KEEPALIVES, **settings}
    # Behind a pooler the next statement may meet another connection, which has no prepared statements and no settings.
    options: Mapping[str, Any] = (
        {"statement_cache_size": 0}
        if pooled
        else {"server_settings": {name: value for name, value in ours.items() if name not in place.options}}
    )

    async def attempt(host: Mapping[str, Any]) -> Connection:
        with suppress(ValueError, asyncpg.DataError, asyncpg.UndefinedObjectError, asyncpg.PostgresSyntaxError):
            return await asyncpg.connect(
                place.url,
                timeout=place.connect_seconds or timeout_seconds,
                command_timeout=None if patient else timeout_seconds,
                **host,
                **options,
            )
        # The driver's own words may quote a secret that stands in the wrong place.
        raise StorageUnavailable(f"{place.name} cannot be used: DATABASE_URL has an option or a part that cannot be.")

    async def connect() -> Connection:
        for left, host in enumerate(list(attempts), 1 - len(attempts)):
            try:
                connection = await attempt(host)
            except asyncpg.TargetServerAttributeNotMatched:
                if not left:
                    raise StorageUnavailable(f"{place.name} cannot be used: no host takes postings.") from None
            except (OSError, asyncpg.CannotConnectNowError):
                if not left:
                    raise
            else:
                attempts.remove(host)
                attempts.insert(0, host)
                if (encoding := connection.get_settings().server_encoding) != "UTF8":
                    connection.terminate()
                    raise StorageUnavailable(
                        f"{place.name} has the encoding {encoding}, which cannot store every text: create the database "
                        "with ENCODING 'UTF8'."
                    )
                return connection

    return connect


class ConnectThrottle:
    """Opens connections. While the server is down, only one caller at a time tries to connect; the others fail at once.

    Without it, thousands of waiting callers would all try to connect to a server that is just starting.
    """

    def __init__(self, name: str, timeout_seconds: float) -> None:
        self._name = name
        self._timeout_seconds = timeout_seconds
        self._refusal: str | None = None
        self._is_trying = False
        self._next_at = 0.0

    async def connect(self, connect: Callable[[], Any]) -> Connection:
        """Open a connection. Raises StorageUnavailable."""
        if self._refusal is not None and (self._is_trying or time.monotonic() < self._next_at):
            raise StorageUnavailable(self._refusal)
        self._is_trying, began = True, time.monotonic()
        try:
            with translated(self._name):
                try:
                    connection = await connect()
                except (
                    asyncpg.PostgresConnectionError,
                    ConnectionError,
                ):  # what cut the old ones may cut the first new
                    connection = await connect()
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and time.monotonic() - began < self._timeout_seconds / 2:
                raise  # its caller went away, which says nothing about the server
            refusal = str(error) if isinstance(error, StorageError) else f"{self._name} refused us: {kind_of(error)}."
            self._refusal, self._next_at = refusal, time.monotonic() + RECONNECT_SECONDS
            if isinstance(error, Conflict):
                raise StorageUnavailable(refusal) from error
            raise
        finally:
            self._is_trying = False
        self._refusal = None
        return connection


class ReadPool:
    """Connections for reads and small writes, opened as they are needed."""

    def __init__(self, name: str, connect: Callable[[], Any], size: int) -> None:
        self._name = name
        self._connect = connect
        self._free: list[Connection] = []
        self._room = asyncio.Semaphore(size)

    @asynccontextmanager
    async def acquired(self) -> AsyncIterator[Connection]:
        """A connection for one caller; after an error it is not used again.

        Raises Conflict if it was lost: the same again may work.
        """
        async with self._room:
            connection = None
            while connection is None or connection.is_closed():
                connection = self._free.pop() if self._free else await self._connect()
            try:
                yield connection
            except BaseException as error:
                lost = _is_lost(connection, error)
                # The idle connections have probably met the same fate.
                for one in (connection, *self._free):
                    one.terminate()
                self._free.clear()
                if lost and isinstance(error, AWAY):
                    raise Conflict(f"{self._name} lost a connection: {kind_of(error)}.") from error
                raise
            self._free.append(connection)

    async def close(self) -> None:
        free, self._free = self._free, []
        await asyncio.gather(*map(_close, free))


class PostingConnection:
    """A connection for postings, opened again after it was lost. Used as a context for one transaction at a time."""

    def __init__(self, connect: Callable[[], Any], timeout_seconds: float) -> None:
        self._connect = connect
        self._timeout = timeout_seconds
        self.raw: Connection = None  # the driver's connection, inside of the context
        self._prepared: dict[str, Any] = {}  # statements by their text, the least recently used first
        self._turn = asyncio.Lock()

    @property
    def is_free(self) -> bool:
        """Whether no posting uses it."""
        return not self._turn.locked()

    async def __aenter__(self) -> "PostingConnection":
        await self._turn.acquire()
        try:
            if self.raw is None or self.raw.is_closed():
                self._prepared.clear()
                self.raw = await self._connect()
        except BaseException:
            self._turn.release()
            raise
        return self

    async def fetch_one(self, statement: str, values: Sequence[Any]) -> Row:
        """The one row of a frequent statement, which is kept prepared: to look it up in the driver takes far longer."""
        prepared = self._prepared.pop(statement, None)
        if prepared is None:
            if len(self._prepared) >= _PREPARED:
                del self._prepared[next(iter(self._prepared))]
            async with asyncio.timeout(self._timeout):  # the driver may first close statements that it has dropped
                prepared = await self.raw.prepare(statement)
        self._prepared[statement] = prepared
        row: Row = await prepared.fetchrow(*values)
        return row

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """After an error, whatever was begun is rolled back."""
        try:
            if error is not None:
                await self._recover(error)
        finally:
            self._turn.release()

    async def _recover(self, error: BaseException) -> None:
        connection = self.raw
        self._prepared.clear()  # one of them may be the cause
        lost = _is_lost(connection, error)
        if isinstance(error, StorageUnavailable | OutcomeUnknown) or not isinstance(error, Exception):
            # The server is silent, or it is read-only while another server at this address may not be.
            connection.terminate()
        else:
            await self._roll_back(connection)
        if lost and isinstance(error, StorageUnavailable):
            # It was lost during a transaction, which is rolled back then; a new connection may work at once.
            raise Conflict(str(error)) from error

    async def _roll_back(self, connection: Connection) -> None:
        try:
            if connection.is_in_transaction():
                await connection.execute("ROLLBACK", timeout=1)
        except BaseException:
            connection.terminate()

    async def close(self) -> None:
        """Finish the posting that uses it, and disconnect."""
        async with self._turn:
            if self.raw is not None:
                await _close(self.raw)


def _is_lost(connection: Connection, error: BaseException) -> bool:
    """Whether an error ended the connection. The driver may have read the server's farewell before it knew the end."""
    return connection.is_closed() or isinstance(error.__cause__ or error, asyncpg.InternalClientError)


async def _close(connection: Connection) -> None:
    try:
        await connection.close(timeout=2)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        connection.terminate()


async def answer(connection: Connection, question: Question) -> list[Row]:
    if isinstance(question, Find):
        table, columns, places, condition = question
        if not places:
            return []
        arrays = sql.by_column(list(places))
        return list(map(tuple, await connection.fetch(sql.rows_at(table, columns, condition), *arrays)))
    made = sql.compiled(question.statement)
    # PostgreSQL refuses a NUL, also in a text to look for. \1 finds nothing either: no text here contains it.
    values = [one.replace("\0", "\1") if isinstance(one, str) else one for one in made.bound(question.values)]
    return list(map(tuple, await connection.fetch(made.sql, *values)))


async def answered(connection: Connection, steps: Generator[Q, list[Row], T]) -> T:
    """Run a generator of questions to its end."""
    try:
        question = next(steps)
        while True:
            question = steps.send(await answer(connection, question))
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # what the generator returned
