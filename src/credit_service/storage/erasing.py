"""How personal metadata is erased: the only change that is ever made to a transaction (L15).

Its hash stays, of which the chain is made, and with the salt gone nobody can guess what it was of.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

from sqlalchemy import select, update

from credit_service.ledger.commands import Fact, order_key
from credit_service.storage import rows, tables
from credit_service.storage.engine import Engine
from credit_service.storage.questions import Ask, Find, Read, value
from credit_service.storage.transactions import LAST_SEQUENCE

AT_ONCE: Final = 2000
"""Transactions of an account that are looked at while nothing is posted to it."""


_transactions, _parked = tables.transactions, tables.parked
WITH_METADATA: Final = select(
    _transactions.c.sequence, _transactions.c.reference_type, _transactions.c.reference_id
).where(
    _transactions.c.account == value("account"),
    _transactions.c.sequence > value("after"),
    _transactions.c.sequence <= value("upto"),
    _transactions.c.metadata.is_not(None),
)
ERASE: Final = (
    update(_transactions)
    .where(_transactions.c.account == value("a"), _transactions.c.sequence == value("s"))
    .values(metadata=None, salt=None)
)
ERASE_PARKED: Final = (
    update(_parked).where(_parked.c.account == value("a"), _parked.c.key == value("k")).values(fact=value("f"))
)


class Erasing:
    """Erases personal metadata of a ledger."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def erase_metadata(self, merchant_id: UUID, orders: Collection[str] | None) -> int:
        """Erase metadata of a merchant's transactions, and of its parked refunds; returns of how many transactions.

        Of these orders and their refunds, or of all where `orders` is None. In steps: if it fails midway, do it again.
        """

        def account() -> Read[int | None]:
            found = yield Find(tables.accounts, ("merchant_id",), [(merchant_id.bytes,)])
            return next((int(row[0]) for row in found), None)

        number = await self._engine.read(account)
        if number is None:
            return 0
        # What waits goes first: applied from now on, it no longer brings any metadata along.
        await self._erase_parked(merchant_id, number, orders)
        return await self._erase_transactions(merchant_id, number, orders)

    async def _erase_parked(self, merchant_id: UUID, number: int, orders: Collection[str] | None) -> None:
        def waiting() -> Read[list[tuple[Any, ...]]]:
            return (yield Find(tables.parked, ("account",), [(number,)]))

        sources = None if orders is None else set(map(order_key, orders))
        some = [rows.parked(row) for row in await self._engine.read(waiting)]
        some = [one for one in some if one.fact.metadata is not None and (sources is None or one.waits_for in sources)]
        asks = [Ask(ERASE_PARKED, {"a": number, "k": one.key, "f": rows.fact_text(without(one.fact))}) for one in some]
        if asks:
            await self._engine.write(asks, merchant_id)

    async def _erase_transactions(self, merchant_id: UUID, number: int, orders: Collection[str] | None) -> int:
        def last() -> Read[int]:
            ((sequence,),) = yield Ask(LAST_SEQUENCE, {"account": number})
            return int(sequence)

        erased, end = 0, await self._engine.read(last)
        for after in range(0, end, AT_ONCE):

            def some(after: int = after) -> Read[list[int]]:
                found = yield Ask(WITH_METADATA, {"account": number, "after": after, "upto": after + AT_ONCE})
                return [row[0] for row in found if orders is None or (row[1] == "order" and row[2] in orders)]

            if sequences := await self._engine.read(some):
                erased += await self._engine.write([Ask(ERASE, {"a": number, "s": sequence}) for sequence in sequences])
        return erased


def without(fact: Fact) -> Fact:
    """A fact without its metadata."""
    return replace(fact, metadata=None, salt=None)
