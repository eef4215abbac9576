"""Take Shopify's deliveries: apply them, keep them until they can be applied, or store them as dead letters.

A delivery is applied by posting it under the same natural key as an event, so a repeat has no effect. When it is
answered it is durable: posted, kept, or a dead letter.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import structlog

from credit_service.doors import shopify
from credit_service.doors.shopify import DataRequest, Delivery, Ignored, InboundEvent, Redaction, Uninstalled
from credit_service.erasure import Erasure
from credit_service.ledger.account import MICROSECONDS
from credit_service.ledger.commands import SubscriptionRenewed
from credit_service.ledger.decide import Replayed, Waiting
from credit_service.ledger.refusals import Refused
from credit_service.messages.content import Limits
from credit_service.messages.dead_letters import undeliverable
from credit_service.messages.faults import Fault, Invalid
from credit_service.messages.inbound import EventContext, translate
from credit_service.observability import Metrics
from credit_service.posting import Posting
from credit_service.settings import Settings
from credit_service.storage.engine import BadRow
from credit_service.storage.letters import Letters
from credit_service.storage.shops import KeptDelivery, Shop, Shops

SUBJECT: Final = "shopify.webhook."
"""The prefix of a dead letter's subject; the topic follows, with dots in place of slashes."""
AT_ONCE = 500
_DAY = 86_400 * MICROSECONDS
_ACTOR = "shopify"
_CLAIMED = "idempotency_key_reused", "Another merchant was credited for this purchase or subscription."
_log = structlog.get_logger()


class Taken(NamedTuple):
    """The outcome of a delivery: posted, replayed, parked, refused, noted or ignored."""

    outcome: str
    reason: str | None = None
    code: str | None = None  # of the dead letter, if it was refused


class Inbox:
    """Takes deliveries whose signature was checked before."""

    def __init__(
        self, shops: Shops, letters: Letters, erasure: Erasure, posting: Posting, settings: Settings, metrics: Metrics
    ) -> None:
        self._shops = shops
        self._letters = letters
        self._erasure = erasure
        self._posting = posting
        self._metrics = metrics
        self._wait = settings.refunds_wait_days * _DAY
        self._credits = shopify.Credits(settings.shopify_plan_credits, settings.shopify_purchase_credits)
        self._limits = Limits(settings.key_max_length, settings.metadata_max_bytes)
        self._max_depth = settings.json_max_depth

    async def take(self, topic: str, header: str | None, body: bytes, correlation_id: str | None) -> Taken:
        """Take a delivery of this topic; `header` is the shop that its headers name.

        Raises Invalid if neither they nor the body name a shop, and the errors of `Posting.submit`: then Shopify must
        send it again.
        """
        now = await self._shops.now()
        try:
            delivery = self._read(topic, body)
        except Invalid as error:
            raw = body.decode(errors="backslashreplace")
            return await self._put_aside(topic, {"shop": header, "topic": topic, "raw": raw}, _faults(error), now)
        if isinstance(delivery.meaning, Ignored):
            return Taken("ignored", delivery.meaning.reason)
        shop, linked = await self._shop_of(delivery, header)
        return await self._take(
            KeptDelivery(shop, topic, delivery.kept, None, now), delivery.meaning, linked, correlation_id
        )

    async def replay(self, original: bytes) -> Taken:
        """Take a dead letter again, from its original. Raises the errors of `take`."""
        kept = json.loads(original)
        if "raw" not in kept and "body" not in kept:
            return Taken("refused", "The delivery was erased.", "validation_failed")
        body = kept["raw"] if "raw" in kept else json.dumps(kept["body"])
        return await self.take(kept["topic"], kept["shop"], body.encode(), None)

    def _read(self, topic: str, body: bytes) -> Delivery:
        return shopify.read(topic, body, self._credits, self._max_depth)

    async def _shop_of(self, delivery: Delivery, header: str | None) -> tuple[str, Shop | None]:
        """The shop of a delivery, and its link.

        The shop that the signed body names comes first. An order names the site that shows it to its customer; if no
        merchant is linked to that site, the shop of the header is used.
        """
        named = delivery.shop
        if named is not None:
            linked = await self._linked(named)
            if linked is not None or header is None or not isinstance(delivery.meaning, InboundEvent):
                return named, linked
        if header is None:
            raise Invalid([Fault("/header/X-Shopify-Shop-Domain", "required", "Must name the shop.")])
        return header, await self._linked(header)

    async def _linked(self, domain: str) -> Shop | None:
        found = await self._shops.get(domain)
        return None if found is None or found.unlinked_at is not None else found

    async def _take(
        self, one: KeptDelivery, meaning: shopify.Meaning, linked: Shop | None, correlation_id: str | None
    ) -> Taken:
        match meaning:
            case InboundEvent() if linked is not None:
                return await self._apply(one, meaning, linked.merchant_id, correlation_id)
            case InboundEvent():
                if await self._shops.keep(one._replace(awaits="link")) and await self._shops.waiting(one.shop) == 1:
                    _log.warning("shopify_shop_unlinked", shop=one.shop, topic=one.topic)
                return Taken("parked", "The shop is not linked to a merchant.")
            case Uninstalled():
                await self._shops.uninstall(one.shop, one.received_at)
                _log.info("shopify_uninstalled", shop=one.shop)
            case Redaction():
                await self._shops.keep(one._replace(awaits="merchant"))
            case DataRequest(request_id, orders):
                if await self._shops.keep(one):
                    merchant_id = None if linked is None else str(linked.merchant_id)
                    about = {"request": request_id, "orders": list(orders), "merchant_id": merchant_id}
                    _log.warning("shopify_data_request", shop=one.shop, **about)
        return Taken("noted")

    async def _apply(
        self, one: KeptDelivery, fact: InboundEvent, merchant_id: str, correlation_id: str | None
    ) -> Taken:
        said = {name: value for name, value in fact.data.items() if value is not None}
        data = {"merchant_id": merchant_id, "metadata": {"shop": one.shop}, **said}
        source = EventContext(_ACTOR, correlation_id, fact.occurred_at, self._limits)
        try:
            (translated,) = translate(fact.type, data, source)
            if isinstance(translated.command, Invalid):
                raise translated.command
            command = translated.command
            if fact.window is not None and isinstance(command, SubscriptionRenewed):
                command = replace(command, window=fact.window)
            claimed = fact.purchase and not await self._shops.claim(fact.purchase, command.key, merchant_id, one.shop)
            outcome = None if claimed else await self._posting.submit(command)
        except Invalid as error:
            taken = await self._give_up(one, _faults(error))
        except BadRow:
            taken = await self._give_up(one, [("internal", "The database does not take it.")])
        else:
            match outcome:
                case None:
                    taken = await self._give_up(one, [_CLAIMED])
                case Refused(refusal=refusal):
                    taken = await self._give_up(one, [(refusal.code, refusal.sentence)])
                case Replayed():
                    taken = Taken("replayed")
                case Waiting():
                    taken = Taken("parked", "What it refunds has not arrived yet.")
                case _:
                    taken = Taken("posted")
        self._metrics.consumed(fact.type, taken.outcome)
        return taken

    async def _give_up(self, one: KeptDelivery, faults: Sequence[tuple[str, str]]) -> Taken:
        kept = {"shop": one.shop, "topic": one.topic, "body": json.loads(one.body)}
        return await self._put_aside(one.topic, kept, faults, one.received_at)

    async def _put_aside(
        self, topic: str, kept: dict[str, Any], faults: Sequence[tuple[str, str]], received_at: int
    ) -> Taken:
        subject, original = SUBJECT + topic.replace("/", "."), json.dumps(kept, sort_keys=True).encode()
        letter = undeliverable(subject, original, faults, received_at)
        if await self._letters.put_aside([letter]):
            self._metrics.put_aside(1)
            _log.warning("shopify_put_aside", shop=kept["shop"], topic=topic, code=letter.code)
        return Taken("refused", letter.reason, letter.code)

    # ---- kept deliveries

    async def data_requests(self, shop: str) -> list[tuple[str | None, Sequence[str], int]]:
        """The data requests of a shop's customers: each with its id, its orders and its time of arrival."""
        kept = [one for one in await self._shops.kept(shop) if one.awaits is None]
        meanings = [(self._read(one.topic, one.body.encode()).meaning, one.received_at) for one in kept]
        return [(asked.request_id, asked.orders, at) for asked, at in meanings if isinstance(asked, DataRequest)]

    async def catch_up(self) -> bool:
        """Apply deliveries that need not wait any more, and put aside those that have waited too long.

        Returns whether more are due. A delivery that fails stays for the next time, and the first error is raised at
        the end.
        """
        due = await self._shops.due(await self._shops.now() - self._wait, AT_ONCE)
        # All at once, so that they share commits; the postings of one merchant stay in order.
        settling = [self._settle(one, merchant_id) for one, merchant_id in due]
        results = await asyncio.gather(*settling, return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        settled = [one for (one, _), result in zip(due, results, strict=True) if not isinstance(result, BaseException)]
        await self._shops.drop(settled)
        if failures:
            raise failures[0]
        return len(due) == AT_ONCE

    async def _settle(self, one: KeptDelivery, merchant_id: str | None) -> None:
        if merchant_id is None:
            await self._give_up(one, [("shop_not_found", "The shop was not linked to a merchant in time.")])
            return
        try:
            meaning = self._read(one.topic, one.body.encode()).meaning
        except Invalid as error:  # for instance, a plan is no longer in the settings
            await self._give_up(one, _faults(error))
            return
        match meaning:
            case InboundEvent():
                await self._apply(one, meaning, merchant_id, None)
            case Redaction(orders):
                await self._erasure.erase(merchant_id, shop=one.shop, orders=orders)


def _faults(invalid: Invalid) -> list[tuple[str, str]]:
    return [("validation_failed", f"{fault.pointer or 'body'}: {fault.message}") for fault in invalid.faults]
