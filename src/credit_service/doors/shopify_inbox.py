"""What becomes of Shopify's deliveries: applied at once, kept until they can be, or put aside as dead letters.

Applied means handed to the one way in, under the same natural keys as over events, so that it does not matter how often
a delivery comes or is taken up again. What is answered is durable: posted, kept or put aside.
"""

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, NoReturn
from uuid import UUID

import structlog

from credit_service.doors import shopify
from credit_service.doors.rounds import keep_doing
from credit_service.doors.shopify import DataRequest, Delivery, Fact, Ignored, Redaction, Uninstalled
from credit_service.doors.shopify_redaction import redact
from credit_service.ledger.account import MICROSECONDS
from credit_service.ledger.decide import Replayed, Waiting
from credit_service.ledger.refusals import Refused
from credit_service.messages.content import Limits
from credit_service.messages.dead_letters import undeliverable
from credit_service.messages.faults import Fault, Invalid
from credit_service.messages.inbound import Source, translate
from credit_service.observability import Metrics
from credit_service.posting import Posting
from credit_service.settings import Settings
from credit_service.storage.base import BadRow, Kept, Store

SUBJECT: Final = "shopify.webhook."
"""What stands before the topic, written with dots, as the subject of a dead letter."""
AT_ONCE = 500
_DAY = 86_400 * MICROSECONDS
_ACTOR = "shopify"
_log = structlog.get_logger()


class Taken(NamedTuple):
    """What became of a delivery: posted, replayed, parked, refused, noted or ignored; and why, where that helps."""

    outcome: str
    reason: str | None = None


class Inbox:
    """Takes deliveries of which it is known that Shopify signed them."""

    def __init__(self, store: Store, posting: Posting, settings: Settings, metrics: Metrics) -> None:
        self._store = store
        self._posting = posting
        self._metrics = metrics
        self._wait = settings.refunds_wait_days * _DAY
        self._credits = shopify.Credits(settings.shopify_plan_credits, settings.shopify_purchase_credits)
        self._limits = Limits(settings.key_max_length, settings.metadata_max_bytes)
        self._max_depth = settings.json_max_depth

    async def take(self, topic: str, shop: str | None, body: bytes, correlation_id: str | None) -> Taken:
        """Take a delivery of this topic; `shop` is the one that its headers name.

        Raises Invalid where neither they nor the body name a shop, and as `Posting.submit`: then it has to come again.
        """
        try:
            delivery = shopify.read(topic, body, self._credits, self._max_depth)
        except Invalid as error:
            told = {"shop": shop, "topic": topic, "raw": body.decode(errors="backslashreplace")}
            return await self._put_aside(told, _faults(error), await self._store.now())
        if isinstance(delivery.meaning, Ignored):
            return Taken("ignored", delivery.meaning.reason)
        shop = delivery.shop or shop
        if shop is None:
            raise Invalid([Fault("/header/X-Shopify-Shop-Domain", "malformed", "Must name the shop.")])
        return await self._take(topic, shop, delivery, correlation_id)

    async def _take(self, topic: str, shop: str, delivery: Delivery, correlation_id: str | None) -> Taken:
        now = await self._store.now()
        known = await self._store.shop(shop)
        if known is not None and known.unlinked_at is not None:
            known = None
        if known is not None and delivery.shop_id is not None:
            if delivery.shop is not None:
                if known.shop_id is None:
                    await self._store.know_shop(shop, delivery.shop_id)
            elif known.shop_id not in (None, delivery.shop_id):
                told = {"shop": shop, "topic": topic, "body": json.loads(delivery.kept)}
                return await self._put_aside(told, [("validation_failed", "It is signed by another shop.")], now)
        match delivery.meaning:
            case Fact() as fact if known is not None:
                return await self._apply(topic, shop, known.merchant_id, fact, delivery.kept, now, correlation_id)
            case Fact():
                await self._keep(topic, shop, delivery, "link", now)
                return Taken("parked", "The shop is not linked to a merchant.")
            case Uninstalled():
                await self._store.uninstall_shop(shop, now)
                _log.info("shopify_uninstalled", shop=shop)
            case Redaction():
                await self._keep(topic, shop, delivery, "merchant", now)
            case DataRequest(request_id, orders):
                if await self._keep(topic, shop, delivery, None, now):
                    merchant_id = None if known is None else str(known.merchant_id)
                    told = {"shop": shop, "merchant_id": merchant_id, "request": request_id, "orders": list(orders)}
                    _log.warning("shopify_data_request", **told)
        return Taken("noted")

    async def _keep(self, topic: str, shop: str, delivery: Delivery, awaits: str | None, now: int) -> bool:
        return await self._store.keep_delivery(Kept(shop, topic, delivery.kept, awaits, now))

    async def _apply(
        self, topic: str, shop: str, merchant_id: UUID, fact: Fact, kept: str, now: int, correlation_id: str | None
    ) -> Taken:
        source = Source(_ACTOR, correlation_id, fact.occurred_at, self._limits)
        data = {"merchant_id": str(merchant_id), "metadata": {"shop": shop}, **fact.data}
        told = {"shop": shop, "topic": topic, "body": json.loads(kept)}
        try:
            (translated,) = translate(
                fact.type, {name: value for name, value in data.items() if value is not None}, source
            )
            if isinstance(translated.command, Invalid):
                raise translated.command
            outcome = await self._posting.submit(translated.command)
        except Invalid as error:
            taken = await self._put_aside(told, _faults(error), now)
        except BadRow:
            taken = await self._put_aside(told, [("internal", "The database does not take it.")], now)
        else:
            match outcome:
                case Refused(refusal=refusal):
                    taken = await self._put_aside(told, [(refusal.code, refusal.sentence)], now)
                case Replayed():
                    taken = Taken("replayed")
                case Waiting():
                    taken = Taken("parked", "What it refunds has not arrived yet.")
                case _:
                    taken = Taken("posted")
        self._metrics.consumed(fact.type, taken.outcome)
        return taken

    async def _put_aside(self, told: dict[str, Any], faults: Sequence[tuple[str, str]], now: int) -> Taken:
        subject = SUBJECT + told["topic"].replace("/", ".")
        letter = undeliverable(subject, json.dumps(told, sort_keys=True).encode(), faults, now)
        if await self._store.put_aside([letter]):
            self._metrics.put_aside(1)
            _log.warning("shopify_put_aside", shop=told["shop"], topic=told["topic"], code=letter.code)
        return Taken("refused", letter.reason)

    # ---- what was kept

    async def data_requests(self, shop: str) -> list[tuple[str | None, Sequence[str], int]]:
        """What customers of a shop asked to be told of: each with its id, its orders, and when it came."""
        kept = [one for one in await self._store.kept_deliveries(shop) if one.awaits is None]
        read = [shopify.read(one.topic, one.body.encode(), self._credits, self._max_depth).meaning for one in kept]
        return [
            (meaning.request_id, meaning.orders, one.received_at)
            for meaning, one in zip(read, kept, strict=True)
            if isinstance(meaning, DataRequest)
        ]

    async def catch_up(self) -> bool:
        """Apply what need wait no longer, and put aside what has waited for too long; returns whether more is left.

        What fails is left for the next time, and the first failure is raised at the end.
        """
        now = await self._store.now()
        due = await self._store.due_deliveries(now - self._wait, AT_ONCE)
        # All at once, so that they share commits; each merchant's are posted in their order all the same.
        results = await asyncio.gather(
            *[self._settle(one, merchant_id, now) for one, merchant_id in due], return_exceptions=True
        )
        failures = [result for result in results if isinstance(result, BaseException)]
        settled = [one for (one, _), result in zip(due, results, strict=True) if not isinstance(result, BaseException)]
        await self._store.drop_deliveries(settled)
        if failures:
            raise failures[0]
        return len(due) == AT_ONCE

    async def _settle(self, one: Kept, merchant_id: UUID | None, now: int) -> None:
        told = {"shop": one.shop, "topic": one.topic, "body": json.loads(one.body)}
        if merchant_id is None:
            reason = "The shop was not linked to a merchant in time."
            await self._put_aside(told, [("shop_not_found", reason)], one.received_at)
            return
        try:
            delivery = shopify.read(one.topic, one.body.encode(), self._credits, self._max_depth)
        except Invalid as error:  # the settings know a plan no longer, say
            await self._put_aside(told, _faults(error), one.received_at)
            return
        match delivery.meaning:
            case Fact() as fact:
                await self._apply(one.topic, one.shop, merchant_id, fact, one.body, one.received_at, None)
            case Redaction(orders):
                await redact(self._store, one.shop, merchant_id, orders)

    async def keep_catching_up(self, seconds: float) -> NoReturn:
        """Catch up for ever, with this pause where nothing was left to do."""
        await keep_doing(self.catch_up, "shopify_failed", seconds)


def _faults(invalid: Invalid) -> list[tuple[str, str]]:
    return [("validation_failed", f"{fault.pointer or 'body'}: {fault.message}") for fault in invalid.faults]
