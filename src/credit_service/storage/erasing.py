"""How personal metadata is erased: the only change that is ever made to a transaction (L15).

Its hash stays, of which the chain is made, and with the salt gone nobody can guess what it was of.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

from sqlalchemy import bindparam, select, update

from credit_service.ledger.commands import Fact, order_key
from credit_service.storage import rows, tables
from credit_service.storage import statements as sql
from credit_service.storage.base import Letter
from credit_service.storage.questions import Asking, Read
from credit_service.storage.statements import Ask, Find

AT_ONCE: Final = 2000
"""Transactions of an account that are looked at while nothing is posted to it."""


def _value(name: str) -> Any:
    return bindparam(name)


_transactions, _parked, _letters = tables.transactions, tables.parked, tables.dead_letters
WITH_METADATA: Final = select(
    _transactions.c.sequence, _transactions.c.reference_type, _transactions.c.reference_id
).where(
    _transactions.c.account == _value("account"),
    _transactions.c.sequence > _value("after"),
    _transactions.c.sequence <= _value("upto"),
    _transactions.c.metadata.is_not(None),
)
ERASE: Final = (
    update(_transactions)
    .where(_transactions.c.account == _value("a"), _transactions.c.sequence == _value("s"))
    .values(metadata=None, metadata_salt=None)
)
ERASE_PARKED: Final = (
    update(_parked).where(_parked.c.account == _value("a"), _parked.c.key == _value("k")).values(fact=_value("f"))
)
ERASE_LETTER: Final = (
    update(_letters).where(_letters.c.id == _value("key")).values(fact=_value("f"), original=_value("o"))
)


class Erasing(Asking):
    """The part of `base.Store` that erases."""

    async def erase_metadata(self, merchant_id: UUID, orders: Collection[str] | None) -> int:
        """See `base.Store.erase_metadata`."""

        def account() -> Read[int | None]:
            found = yield Find(tables.accounts, ("merchant_id",), [(merchant_id.bytes,)])
            return next((int(row[0]) for row in found), None)

        number = await self._read(account)
        if number is None:
            return 0
        # What waits goes first: applied from now on, it no longer brings any metadata along.
        await self._erase_parked(merchant_id, number, orders)
        return await self._erase_transactions(merchant_id, number, orders)

    async def _erase_parked(self, merchant_id: UUID, number: int, orders: Collection[str] | None) -> None:
        def waiting() -> Read[list[tuple[Any, ...]]]:
            return (yield Find(tables.parked, ("account",), [(number,)]))

        sources = None if orders is None else set(map(order_key, orders))
        some = [rows.parked(row) for row in await self._read(waiting)]
        some = [one for one in some if one.fact.metadata is not None and (sources is None or one.waits_for in sources)]
        asks = [Ask(ERASE_PARKED, {"a": number, "k": one.key, "f": rows.fact_text(without(one.fact))}) for one in some]
        if asks:
            await self._write(asks, merchant_id)

    async def _erase_transactions(self, merchant_id: UUID, number: int, orders: Collection[str] | None) -> int:
        def last() -> Read[int]:
            ((sequence,),) = yield Ask(sql.LAST_SEQUENCE, {"account": number})
            return int(sequence)

        erased, end = 0, await self._read(last)
        for after in range(0, end, AT_ONCE):

            def some(after: int = after) -> Read[list[int]]:
                found = yield Ask(WITH_METADATA, {"account": number, "after": after, "upto": after + AT_ONCE})
                return [row[0] for row in found if orders is None or (row[1] == "order" and row[2] in orders)]

            if sequences := await self._read(some):
                erased += await self._write([Ask(ERASE, {"a": number, "s": sequence}) for sequence in sequences])
        return erased

    async def rewrite_dead_letter(self, letter: Letter) -> None:
        """See `base.Store.rewrite_dead_letter`."""
        text = None if letter.fact is None else rows.fact_text(letter.fact)
        await self._write([Ask(ERASE_LETTER, {"key": letter.id, "f": text, "o": letter.original})])


def without(fact: Fact) -> Fact:
    """A fact without its metadata."""
    return replace(fact, metadata=None, salt=None)
