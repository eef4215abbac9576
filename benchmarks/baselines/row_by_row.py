"""The same ledger in the usual SQL style: one database transaction for each posting, row by row.

It does all the work of our ledger for a spend, in the same tables with the same indexes and checks. It locks the
account, looks up the key, draws on the open grants in order, computes the hash, and writes the transaction, the grants,
the account and the announcement. The benchmark verifies the books that it writes. The id of an event comes from a
sequence, as is usual. With a sequence, readers may miss an event of a late commit. Our ledger pays the cost of avoiding
this, and this baseline does not. asyncpg prepares each statement once and keeps it.
"""

import asyncio
import time
from collections.abc import Iterable
from typing import Any

import asyncpg
import msgspec

from credit_service.ledger.account import MAX_CREDITS
from credit_service.ledger.commands import Post
from credit_service.ledger.proof import chain
from credit_service.ledger.types import TYPES

SEQUENCE = "CREATE SEQUENCE IF NOT EXISTS event_ids"

_NOW = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
_ACCOUNT = f"""
SELECT number, balance, held, pending, debt, sequence, announced, total_decreases, by_type, last_hash, {_NOW} AS now
FROM accounts WHERE merchant_id = $1 FOR UPDATE
"""
_FIRST = "SELECT sequence FROM transactions WHERE account = $1 AND key = $2"
_GRANTS = """
SELECT number, remaining FROM grants
WHERE account = $1 AND open = 1 AND effective_at <= $2 AND (expires_at IS NULL OR expires_at > $2)
ORDER BY priority, expires_at NULLS LAST, category = 'paid', effective_at, number FOR UPDATE
"""
_DRAW = """
UPDATE grants SET remaining = remaining - $3, open = CASE WHEN remaining > $3 THEN 1 ELSE 0 END
WHERE account = $1 AND number = $2
"""
_TRANSACTION = """
INSERT INTO transactions (
    account, sequence, operation, type, amount, shortfall, balance_before, balance_after, debt_after, key, content,
    reference_type, reference_id, draws, actor, correlation_id, occurred_at, created_at, hash
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)
"""
_UPDATE = """
UPDATE accounts SET settled_at = $2, balance = $3, sequence = $4, announced = $5, total_decreases = $6, by_type = $7,
    last_transaction_at = $2, last_hash = $8
WHERE number = $1
"""
_EVENT = """
INSERT INTO events (lane, id, account, number, type, sequence, available, at)
VALUES (16, nextval('event_ids'), $1, $2, $3, $4, $5, $6)
"""


class AlreadyPosted(Exception):
    """The key already has a posting."""


class Insufficient(Exception):
    """The grants do not cover the amount."""


async def spend(connection: Any, command: Post) -> int:
    """Post a spend. Returns the balance after it."""
    async with connection.transaction():
        account = await connection.fetchrow(_ACCOUNT, command.merchant_id)
        number, now, before = account["number"], account["now"], account["balance"]
        if await connection.fetchval(_FIRST, number, command.key) is not None:
            raise AlreadyPosted
        draws = []
        left = command.amount
        for grant, remaining in await connection.fetch(_GRANTS, number, now):
            share = min(left, remaining)
            await connection.execute(_DRAW, number, grant, share)
            draws.append((grant, -share))
            left -= share
            if not left:
                break
        balance = before - command.amount
        if left or balance < -MAX_CREDITS:
            raise Insufficient
        sequence = account["sequence"] + 1
        by_type = msgspec.json.decode(account["by_type"])
        count, added, taken = by_type.get(command.type, (0, 0, 0))
        by_type[command.type] = (count + 1, added, taken + command.amount)
        fields = (  # the fields of a Transaction
            number, command.merchant_id, sequence, command.operation, command.type, command.amount, 0, before, balance,
            account["debt"], command.key, command.content, command.reference, None, None, None, None, None,
            tuple(draws), None, command.actor, command.correlation_id, now, now,
        )  # fmt: skip
        hash_ = chain(account["last_hash"], fields)
        reference_type, reference_id = command.reference or (None, None)
        await connection.execute(
            _TRANSACTION, number, sequence, command.operation, command.type, command.amount, 0, before, balance,
            account["debt"], command.key, command.content, reference_type, reference_id,
            msgspec.json.encode(draws).decode(), command.actor, command.correlation_id, now, now, hash_,
        )  # fmt: skip
        await connection.execute(
            _UPDATE, number, now, balance, sequence, account["announced"] + 1,
            account["total_decreases"] + command.amount, msgspec.json.encode(by_type).decode(), hash_,
        )  # fmt: skip
        available = balance - account["held"] - account["pending"]
        await connection.execute(
            _EVENT, number, account["announced"] + 1, TYPES[command.type].announcement, sequence, available, now
        )
        return int(balance)


async def rate(pool: "asyncpg.Pool[Any]", commands: Iterable[Post], clients: int) -> float:
    """Return spends per second by `clients`, each with its own connection."""
    waiting = iter(commands)

    async def client() -> int:
        posted = 0
        async with pool.acquire() as connection:
            for command in waiting:
                await spend(connection, command)
                posted += 1
        return posted

    started = time.perf_counter()
    posted = await asyncio.gather(*[client() for _ in range(clients)])
    return sum(posted) / (time.perf_counter() - started)
