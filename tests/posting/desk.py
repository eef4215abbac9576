"""A posting on a store in memory that tests can stop and break, in a loop where waiting takes no time.

`tests/storage` uses real stores.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import wraps
from itertools import count
from typing import Any, NamedTuple, ParamSpec, cast
from uuid import UUID

from credit_service.ledger.account import Transaction
from credit_service.ledger.commands import Command
from credit_service.ledger.decide import Needs, Outcome
from credit_service.ledger.draft import Posted
from credit_service.ledger.policy import Policy
from credit_service.posting import Posting
from credit_service.storage.engine import (
    BadRow,
    Committed,
    Engine,
    Loaded,
    Record,
    Work,
    Writes,
)
from tests.ledger.telling import (
    MERCHANT,
    T0,
    add,
    payment,
    use,
)
from tests.storage.values import of

P = ParamSpec("P")
OTHER = str(UUID(int=1))


# ---- a loop in which waiting takes no time


class TimelessLoop(asyncio.SelectorEventLoop):
    """Its clock jumps to the next timer when nothing is ready; without a timer it fails."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        select = self._selector.select  # type: ignore[attr-defined]  # asyncio's own

        def jump(timeout: float | None) -> Any:
            events = select(0)
            if not events:
                assert timeout is not None, "all tasks wait for ever"
                self.seconds += timeout
            return events

        self._selector.select = jump  # type: ignore[attr-defined]

    def time(self) -> float:
        return self.seconds


def timeless(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=TimelessLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run


def now() -> float:
    return asyncio.get_running_loop().time()


# ---- a store in memory


class Before(NamedTuple):
    """The store fails before it asks for a decision."""

    error: Exception


class After(NamedTuple):
    """The store fails after the decision, which is committed or not."""

    error: Exception
    committed: bool = False


class MemoryStore:
    """The records of merchants, and a script for the next postings; without a step a posting succeeds."""

    def __init__(self, streams: int = 1, *, ahead: int = 0) -> None:
        self.streams = streams
        self.ahead = ahead
        self.records: dict[str, Record] = {}
        self.transactions: list[Transaction] = []
        self.writes: list[Writes] = []
        self.script: deque[Before | After] = deque()
        self.batches: list[list[str]] = []  # the keys of each attempt
        self.attempts: list[float] = []  # when
        self.followed: list[bool] = []  # for each batch behind another: whether that was posted at the first attempt
        self.poison: set[str] = set()  # keys of transactions that break a law of the database
        self.free = asyncio.Event()
        self.free.set()
        self.numbers = count(1)

    def stream_of(self, merchant_id: str) -> int:
        return UUID(merchant_id).int % self.streams

    async def post(self, needs: Sequence[Needs], work: Work, after: asyncio.Future[bool] | None = None) -> Committed:
        self.batches.append([need.key for need in needs])
        self.attempts.append(now())
        if after is not None:
            self.followed.append(await after)
        step = self.script.popleft() if self.script else None
        await self.free.wait()
        if isinstance(step, Before):
            raise step.error
        records: dict[str, Record] = {}
        for need in needs:
            known = self.records.get(need.merchant_id) or Record(None, next(self.numbers))
            records.setdefault(need.merchant_id, known.copy())
        writes = work(Loaded(T0 + round(now() * 1e6), records))
        if bad := self.poison & {transaction.key for transaction in writes.transactions}:
            raise BadRow(f"{bad} cannot be kept")
        if step is None or step.committed:
            self.records |= records
            self.transactions += writes.transactions
            self.writes.append(writes)
        if step is not None:
            raise step.error
        return Committed(writes)

    @property
    def keys(self) -> list[str]:
        """The keys of the posted transactions, in order."""
        return [transaction.key for transaction in self.transactions]


class Desk:
    """A running posting on a memory store; commands can be submitted without waiting for their answers."""

    def __init__(self, store: MemoryStore, **settings: Any) -> None:
        self.store = store
        self.told: list[Committed] = []
        told: Callable[[Committed], None] = self.told.append
        self.posting = Posting(cast("Engine", store), Policy(), **({"on_committed": told} | settings))

    async def __aenter__(self) -> "Desk":
        self.posting.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.store.free.set()
        await self.posting.drain()

    async def hand_in(self, *commands: Command) -> list[asyncio.Task[Outcome]]:
        """One caller for each of these commands, in this order."""
        return [await self.started(self.posting.submit(command)) for command in commands]

    async def started(self, asked: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(asked)
        await asyncio.sleep(0)
        return task

    async def halt(self, command: Command | None = None) -> asyncio.Task[Outcome]:
        """Block the store with one posting in it."""
        command = command or add(1, "first")
        self.store.free.clear()
        (first,) = await self.hand_in(command)
        await begun()
        assert self.store.batches[-1] == [command.key]
        return first


async def opened(*script: Before | After, **settings: Any) -> Desk:
    """A desk whose merchants have 100 credits each; its store follows the script from then on."""
    made = Desk(MemoryStore(), **settings)
    async with Desk(made.store) as first:
        await first.posting.submit_many([payment("P", 100), of(OTHER, payment("P", 100))])
    made.store.script.extend(script)
    made.store.transactions.clear()
    made.store.batches.clear()
    made.store.attempts.clear()
    made.store.writes.clear()
    return made


async def answers(tasks: Sequence[Awaitable[Any]]) -> list[Any]:
    """The outcome of each, or its exception."""
    return await asyncio.gather(*tasks, return_exceptions=True)


def was_posted(outcome: Any, key: str) -> bool:
    return isinstance(outcome, Posted) and outcome.transaction is not None and outcome.transaction.key == key


def spends(number: int, first: int = 0) -> list[Command]:
    """Spends of one credit by as many callers."""
    return [use(1, f"{first + one}") for one in range(number)]


async def begun() -> None:
    """Let submitted commands reach the store."""
    for _ in range(6):
        await asyncio.sleep(0)


async def at_once(desk: Desk, commands: Sequence[Command]) -> list[Any]:
    """The answers of many callers that all submit before the first batch begins."""
    return await answers([desk.posting.submit(command) for command in commands])


async def ahead(streams: int = 1, **settings: Any) -> Desk:
    """A desk whose store decides ahead, and whose merchants have 1,000 credits each."""
    made = Desk(MemoryStore(streams, ahead=2), **settings)
    async with Desk(made.store) as first:
        await first.posting.submit_many([of(one, payment("P", 1_000)) for one in (MERCHANT, *OF_STREAMS)])
    made.store.transactions.clear()
    made.store.batches.clear()
    return made


OF_STREAMS = [str(UUID(int=number)) for number in (2, 3)]  # one merchant of each of two streams
