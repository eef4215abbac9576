"""Erasing personal data, as the law asks of an app on Shopify: what is kept of it, and where.

Of Shopify's own bodies no personal data is kept, but other doors take metadata of any kind. It stands in transactions,
in refunds that wait, and in dead letters. Without it each chain still verifies, and a repeat still replays (L3, L15).
"""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import structlog

from credit_service.messages import strict_json
from credit_service.messages.faults import Invalid
from credit_service.messages.inbound import merchant_of
from credit_service.messages.shapes import encode
from credit_service.storage.erasing import Erasing, without
from credit_service.storage.letters import Letter, LetterQuery, Letters
from credit_service.storage.shops import Shops

AT_ONCE = 500
_DEEPEST: Final = 200
_log = structlog.get_logger()


async def redact(
    erasing: Erasing, letters: Letters, shops: Shops, shop: str, merchant_id: UUID, orders: Sequence[str] | None
) -> None:
    """Erase all that is personal about these orders of a shop; about all of its merchant's, where `orders` is None."""
    wanted = None if orders is None else frozenset(orders)
    erased = await erasing.erase_metadata(merchant_id, wanted)
    rewritten, before = 0, None
    while page := await letters.page(LetterQuery(), before, AT_ONCE):
        for letter in page:
            if (without_it := redacted(letter, shop, merchant_id, wanted)) is not None:
                await letters.rewrite(without_it)
                rewritten += 1
        before = page[-1].id
    if wanted is None:  # what its customers asked is answered, or nobody will any more
        await shops.drop([one for one in await shops.kept(shop) if one.awaits is None])
    _log.info("shopify_redacted", shop=shop, transactions=erased, dead_letters=rewritten)


def redacted(letter: Letter, shop: str, merchant_id: UUID, orders: frozenset[str] | None) -> Letter | None:
    """A dead letter without what has to be erased; None where there is nothing of it in there."""
    fact = letter.fact
    if fact is not None:
        is_of_it = fact.merchant_id == merchant_id and (orders is None or getattr(fact, "order_id", None) in orders)
        return letter._replace(fact=without(fact)) if is_of_it and fact.metadata is not None else None
    try:
        told = strict_json.parse(letter.original or b"", _DEEPEST)
    except strict_json.Suspect as suspect:
        told = suspect.value
    except Invalid:
        return None  # nobody can tell whose it is
    if not isinstance(told, dict):
        return None
    if "raw" in told and told.get("shop") == shop:  # a delivery that could not be read, so it may be of anybody there
        return letter._replace(original=encode({name: part for name, part in told.items() if name != "raw"}))
    return _without_metadata(letter, told, merchant_id, orders)


def _without_metadata(
    letter: Letter, told: dict[str, Any], merchant_id: UUID, orders: frozenset[str] | None
) -> Letter | None:
    data = told.get("data", told.get("payload"))
    if not isinstance(data, dict) or merchant_of(data) != merchant_id:
        return None
    listed = data.get("order_items")
    items = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    if orders is not None and not any(str(one.get("order_id")) in orders for one in (data, *items)):
        return None
    if letter.code == "validation_failed":
        # Anything may stand in there, under any name. It could not be applied as it was, and is not kept.
        return letter._replace(original=b"") if letter.original else None
    found = [one for one in (data, *items) if one.pop("metadata", None) is not None]
    return letter._replace(original=encode(told)) if found else None
