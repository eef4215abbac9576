"""Erasing personal data of a merchant, as the law asks: where it is kept, and how each place forgets it (L15).

Personal data is the metadata that callers send. It is in transactions, in refunds that wait, in dead letters, in
Shopify's requests about customers, and in the reasons of freezing and closing. Erasure leaves every balance and hash as
it was: each chain still verifies, and a repeated request still replays (L3). Events that were published, and backups,
are outside of this service's reach.
"""

from collections.abc import Collection
from typing import Any, Final, NamedTuple

import structlog

from credit_service.messages import strict_json
from credit_service.messages.faults import Invalid
from credit_service.messages.fields import id_text
from credit_service.messages.inbound import merchant_of
from credit_service.messages.shapes import encode
from credit_service.storage.engine import Engine
from credit_service.storage.erasing import Erasing, without
from credit_service.storage.letters import Letter, LetterQuery, Letters
from credit_service.storage.shops import Shops

AT_ONCE: Final = 500
_DEEPEST: Final = 200
_GONE: Final = "erased"
_log = structlog.get_logger()


class Erased(NamedTuple):
    """What an erasure found and erased: so many of each. A second erasure finds nothing."""

    transactions: int
    parked: int
    dead_letters: int
    deliveries: int
    reasons: int


class Erasure:
    """Erases personal data in every place of a ledger."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._erasing = Erasing(engine)
        self._letters = Letters(engine)
        self._shops = Shops(engine)

    async def erase(
        self, merchant_id: str, *, shop: str | None = None, orders: Collection[str] | None = None
    ) -> Erased:
        """Erase all personal data of a merchant, or only that of these `orders` and their refunds.

        `shop`: the Shopify shop that asks for it; without orders, all shops of the merchant are included. Erasing goes
        in steps: after a failure midway, erase again.
        """
        wanted = None if orders is None else frozenset(orders)
        shops = {shop} if shop else set()
        if wanted is None:
            shops |= await self._shops.of(merchant_id)
        # Parked refunds go first: one that is applied from now on brings no metadata along.
        parked = await self._erasing.erase_parked(merchant_id, wanted)
        transactions = await self._erasing.erase_transactions(merchant_id, wanted)
        letters = await self._erase_letters(shops, merchant_id, wanted)
        deliveries = reasons = 0
        if wanted is None:
            reasons = await self._erasing.erase_reasons(merchant_id)
            # Requests about customers are done with: their data is gone.
            for one in shops:
                kept = [delivery for delivery in await self._shops.kept(one) if delivery.awaits is None]
                await self._shops.drop(kept)
                deliveries += len(kept)
        erased = Erased(transactions, parked, letters, deliveries, reasons)
        await self._engine.scrub()  # also if nothing was found: an erasure before may have failed here
        _log.info("erased", merchant_id=merchant_id, shop=shop, **erased._asdict())
        return erased

    async def _erase_letters(self, shops: Collection[str], merchant_id: str, orders: frozenset[str] | None) -> int:
        rewritten, before = 0, None
        while page := await self._letters.page(LetterQuery(), before, AT_ONCE):
            for letter in page:
                if (erased := erased_letter(letter, shops, merchant_id, orders)) is not None:
                    await self._letters.rewrite(erased)
                    rewritten += 1
            before = page[-1].id
        return rewritten


def erased_letter(
    letter: Letter, shops: Collection[str], merchant_id: str, orders: frozenset[str] | None
) -> Letter | None:
    """A dead letter without the personal data of these orders, or of all; None if it holds none of it."""
    fact = letter.fact
    if fact is not None:
        concerned = fact.merchant_id == merchant_id and (orders is None or getattr(fact, "order_id", None) in orders)
        return letter._replace(fact=without(fact)) if concerned and fact.metadata is not None else None
    try:
        told = strict_json.parse(letter.original or b"", _DEEPEST)
    except strict_json.Suspect as suspect:
        told = suspect.value
    except Invalid:
        return None  # it names no merchant
    if not isinstance(told, dict):
        return None
    if "raw" in told and told.get("shop") in shops:  # the door could not read it, so it may be about any customer
        return letter._replace(original=encode({name: part for name, part in told.items() if name != "raw"}))
    return _without_metadata(letter, told, merchant_id, orders)


def _without_metadata(
    letter: Letter, told: dict[str, Any], merchant_id: str, orders: frozenset[str] | None
) -> Letter | None:
    data = told.get("data", told.get("payload"))
    if not isinstance(data, dict) or merchant_of(data) != merchant_id:
        return None
    listed = data.get("order_items")
    items = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    if orders is not None and not any(id_text(one.get("order_id", "")) in orders for one in (data, *items)):
        return None
    if letter.code == "validation_failed":
        # A malformed event may hold personal data under any name, so none of it is kept.
        return letter._replace(original=b"") if letter.original else None
    found = [one for one in (data, *items) if one.pop("metadata", None) is not None]
    for name in ("reason", "admin_id"):  # an adjustment must say both, or it could not be replayed
        if data.get(name, _GONE) != _GONE:
            data[name] = _GONE
            found.append(data)
    return letter._replace(original=encode(told)) if found else None
