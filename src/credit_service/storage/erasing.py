"""Statements that erase personal metadata: the only change that is ever made to a transaction (L15).

The personal hash stays, so the chain still verifies; without the salt, no guess can be checked against it.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Final

import msgspec
from sqlalchemy import select, update

from credit_service.ledger.announcements import OF_A_STATE
from credit_service.ledger.commands import Fact, order_key
from credit_service.storage import rows, tables
from credit_service.storage.engine import Engine
from credit_service.storage.questions import Ask, Find, Read, Row, asking, literals, value
from credit_service.storage.transactions import LAST_SEQUENCE

AT_ONCE: Final = 2000
"""How many transactions one step reads and erases."""


_transactions, _parked, _events = tables.transactions, tables.parked, tables.events
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


REASONS: Final = select(_events.c.lane, _events.c.id, _events.c.detail).where(
    _events.c.account == value("account"), _events.c.type.in_(literals(OF_A_STATE.values()))
)
_of_event = (_events.c.lane == value("of_lane"), _events.c.id == value("of_id"))
REWRITE: Final = update(_events).where(*_of_event).values(detail=value("told"))


class Erasing:
    """Erases the metadata of a merchant's transactions and parked refunds."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def erase_parked(self, merchant_id: str, orders: Collection[str] | None) -> int:
        """Erase the metadata of parked refunds, of these orders or of all; returns of how many refunds.

        While it writes, no posting can apply one of them.
        """
        number = await self._number(merchant_id)

        def waiting() -> Read[list[Row]]:
            return (yield Find(tables.parked, ("account",), [(number,)]))

        if number is None:
            return 0
        sources = None if orders is None else set(map(order_key, orders))
        some = [rows.parked(row) for row in await self._engine.read(waiting)]
        some = [one for one in some if one.fact.metadata is not None and (sources is None or one.waits_for in sources)]
        asks = [Ask(ERASE_PARKED, {"a": number, "k": one.key, "f": rows.fact_text(without(one.fact))}) for one in some]
        return await self._engine.write(asks, merchant_id) if asks else 0

    async def erase_transactions(self, merchant_id: str, orders: Collection[str] | None) -> int:
        """Erase metadata and salt of transactions, of these orders and their refunds or of all; returns of how many."""
        number = await self._number(merchant_id)

        def last() -> Read[int]:
            ((sequence,),) = yield Ask(LAST_SEQUENCE, {"account": number})
            return int(sequence)

        if number is None:
            return 0
        erased, end = 0, await self._engine.read(last)
        for after in range(0, end, AT_ONCE):

            def some(after: int = after) -> Read[list[int]]:
                found = yield Ask(WITH_METADATA, {"account": number, "after": after, "upto": after + AT_ONCE})
                return [row[0] for row in found if orders is None or (row[1] == "order" and row[2] in orders)]

            if sequences := await self._engine.read(some):
                erased += await self._engine.write([Ask(ERASE, {"a": number, "s": sequence}) for sequence in sequences])
        return erased

    async def erase_reasons(self, merchant_id: str) -> int:
        """Erase why the account was frozen, thawed or closed; returns how many reasons."""
        number = await self._number(merchant_id)
        found = [] if number is None else await self._engine.read(asking(Ask(REASONS, {"account": number})))
        asks = []
        for lane, id_, text in found:
            detail = msgspec.json.decode(text)
            if detail["reason"] is not None:
                told = msgspec.json.encode({**detail, "reason": None}).decode()
                asks.append(Ask(REWRITE, {"of_lane": lane, "of_id": id_, "told": told}))
        return await self._engine.write(asks) if asks else 0

    async def _number(self, merchant_id: str) -> int | None:
        """The number of the merchant's account, if there is one."""
        found = await self._engine.read(asking(Find(tables.accounts, ("merchant_id",), [(merchant_id,)])))
        return next((int(row[0]) for row in found), None)


def without(fact: Fact) -> Fact:
    """A fact without its metadata."""
    return replace(fact, metadata=None, salt=None)
