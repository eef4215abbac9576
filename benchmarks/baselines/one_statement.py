"""One autocommit statement for each posting. It updates the account's row and inserts the transaction.

This is the least that a ledger in SQL can do: one message to the server and one commit. It uses the tables of our
ledger. It leaves out the work that makes ours a ledger of grants: draws on grants, the hash (it writes zeros), and the
announcement. A repeat gets an error and not the first result.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Any

import asyncpg

from credit_service.ledger.commands import Post

_NOW = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
SPEND = f"""
WITH moved AS (
    UPDATE accounts SET
        balance = balance - $2, sequence = sequence + 1, announced = announced + 1,
        total_decreases = total_decreases + $2, last_transaction_at = {_NOW}, settled_at = {_NOW}
    WHERE merchant_id = $1 AND balance - held - pending >= $2
    RETURNING number, sequence, balance, debt, settled_at
)
INSERT INTO transactions (
    account, sequence, operation, type, amount, shortfall, balance_before, balance_after, debt_after, key, content,
    reference_type, reference_id, draws, actor, correlation_id, occurred_at, created_at, hash
)
SELECT number, sequence, 'DECREASE', $3, $2, 0, balance + $2, balance, debt, $4, $5, $6, $7, '[]', $8, $9,
    settled_at, settled_at, decode(repeat('00', 32), 'hex')
FROM moved
RETURNING balance_after
"""


def values(command: Post) -> Sequence[Any]:
    """Return the parameters of the statement."""
    reference_type, reference_id = command.reference or (None, None)
    return (
        command.merchant_id, command.amount, command.type, command.key, command.content, reference_type,
        reference_id, command.actor, command.correlation_id,
    )  # fmt: skip


async def rate(
    pool: "asyncpg.Pool[Any]", commands: Iterable[Post], callers: int, waits: list[float] | None = None
) -> float:
    """Return spends per second by `callers` that share the pool. Each caller waits for each of its spends."""
    waiting = iter(commands)
    took: list[float] = [] if waits is None else waits

    async def caller() -> int:
        posted = 0
        for command in waiting:
            started = time.perf_counter()
            assert await pool.fetchval(SPEND, *values(command)) is not None, "the account has no credits"
            took.append(time.perf_counter() - started)
            posted += 1
        return posted

    started = time.perf_counter()
    posted = await asyncio.gather(*[caller() for _ in range(callers)])
    return sum(posted) / (time.perf_counter() - started)
