"""Shopify's shops with their merchants, and the deliveries of Shopify that still have to be applied."""

from collections.abc import Collection
from hashlib import blake2b
from typing import Final, NamedTuple

from sqlalchemy import delete, func, literal_column, or_, select, update
from sqlalchemy.dialects import postgresql

from credit_service.storage import tables
from credit_service.storage.engine import Engine
from credit_service.storage.questions import Ask, Row, asking, number, value

_shops, _deliveries, _claims = tables.shops, tables.shopify_deliveries, tables.shopify_claims

SHOP: Final = select(_shops).where(_shops.c.domain == value("domain"))
# SQLite understands PostgreSQL's ON CONFLICT.
_linking = postgresql.insert(_shops).values(
    domain=value("domain"), merchant_id=value("merchant_id"), linked_at=value("linked_at")
)
LINK: Final = _linking.on_conflict_do_update(
    index_elements=["domain"],
    set_={
        "merchant_id": _linking.excluded.merchant_id,
        "linked_at": _linking.excluded.linked_at,
        "unlinked_at": None,
        "uninstalled_at": None,
    },
)
_linked = (_shops.c.domain == value("key")) & _shops.c.unlinked_at.is_(None)
OF_MERCHANT: Final = select(_shops.c.domain).where(_shops.c.merchant_id == value("merchant_id"))
UNLINK: Final = update(_shops).where(_linked).values(unlinked_at=value("at"))
UNINSTALL: Final = update(_shops).where(_linked, _shops.c.linked_at <= value("at")).values(uninstalled_at=value("at"))

KEEP: Final = (
    postgresql.insert(_deliveries)
    .values({name: value(name) for name in ("digest", "shop", "topic", "body", "awaits", "received_at")})
    .on_conflict_do_nothing(index_elements=["digest"])
)
DROP: Final = delete(_deliveries).where(_deliveries.c.digest == value("digest"))
KEPT: Final = select(_deliveries).where(_deliveries.c.shop == value("shop")).order_by(_deliveries.c.received_at)
_of_no_link = _deliveries.c.awaits == literal_column("'link'")
_first, _count = func.min(_deliveries.c.received_at), func.count()
UNLINKED: Final = (
    select(_deliveries.c.shop, _count, _first)
    .where(_of_no_link)
    .group_by(_deliveries.c.shop)
    .order_by(_first, _deliveries.c.shop)
    .limit(number("limit"))
)
WAITING: Final = select(_count).select_from(_deliveries).where(_of_no_link)
WAITING_OF: Final = WAITING.where(_deliveries.c.shop == value("shop"))
# A delivery that erases data goes to the merchant of its shop also after the shop was unlinked.
_known = _shops.c.unlinked_at.is_(None) | (_deliveries.c.awaits == literal_column("'merchant'"))
DUE: Final = (
    select(_deliveries, _shops.c.merchant_id)
    .select_from(_deliveries.outerjoin(_shops, (_shops.c.domain == _deliveries.c.shop) & _known))
    .where(
        _deliveries.c.awaits.is_not(None),
        or_(_shops.c.domain.is_not(None), _deliveries.c.received_at <= value("before")),
    )
    .order_by(_deliveries.c.received_at, _deliveries.c.digest)
    .limit(number("limit"))
)
CLAIM: Final = (
    postgresql.insert(_claims)
    .values({name: value(name) for name in ("name", "merchant_id", "shop")})
    .on_conflict_do_nothing(index_elements=["name"])
)
CLAIMED: Final = select(_claims).where(_claims.c.name == value("name"))


class Shop(NamedTuple):
    """A shop on Shopify, and the merchant to which it is linked, or was until it was unlinked."""

    domain: str  # example.myshopify.com
    merchant_id: str
    linked_at: int
    unlinked_at: int | None = None
    uninstalled_at: int | None = None  # when the app was uninstalled


class KeptDelivery(NamedTuple):
    """The part of a delivery that is kept until it can be applied, or for a person to see if it awaits nothing.

    `awaits`: `link`, until its shop is linked; `merchant`, until its shop is linked or was linked before.
    """

    shop: str
    topic: str
    body: str
    awaits: str | None
    received_at: int
    digest: bytes = b""  # of shop, topic and body, made when it is kept


class UnlinkedShop(NamedTuple):
    """A shop without a merchant whose deliveries wait for its link: how many, and since when."""

    domain: str
    deliveries: int
    since: int


class Shops:
    """The shops of a ledger, and the kept deliveries. `now` is the database's clock."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.now = engine.now

    async def get(self, domain: str) -> Shop | None:
        """One shop by its domain, in lower case; also one that was unlinked."""
        return next(map(_shop, await self._engine.read(asking(Ask(SHOP, {"domain": domain})))), None)

    async def of(self, merchant_id: str) -> set[str]:
        """The domains of a merchant's shops, also of unlinked ones."""
        found = await self._engine.read(asking(Ask(OF_MERCHANT, {"merchant_id": merchant_id})))
        return {row[0] for row in found}

    async def link(self, domain: str, merchant_id: str, at: int) -> None:
        """Link a shop to this merchant from now on, whatever it was linked to before."""
        values = {"domain": domain, "merchant_id": merchant_id, "linked_at": at}
        await self._engine.write([Ask(LINK, values)])

    async def unlink(self, domain: str, at: int) -> bool:
        """Unlink a shop. False if it is not linked."""
        return await self._engine.write([Ask(UNLINK, {"key": domain, "at": at})]) == 1

    async def uninstall(self, domain: str, at: int) -> bool:
        """Note that a linked shop uninstalled the app. False if it is not linked, or was linked after `at`."""
        return await self._engine.write([Ask(UNINSTALL, {"key": domain, "at": at})]) == 1

    async def claim(self, purchase: str, key: str, merchant_id: str, shop: str) -> bool:
        """Note the merchant to whom a purchase or subscription of Shopify's is credited; the first one keeps it.

        `purchase`: its global id. `key`: the natural key of the posting, which also names the period. False if another
        merchant has this key, or if another merchant has the purchase and through another shop: a shop that is linked
        anew brings its subscription along, from the next period on.
        """
        for name in (purchase, key):
            row = {"name": name, "merchant_id": merchant_id, "shop": shop}
            await self._engine.write([Ask(CLAIM, row)])
            ((_, holder, through),) = await self._engine.read(asking(Ask(CLAIMED, {"name": name})))
            if holder != merchant_id and (name == key or through != shop):
                return False
        return True

    async def keep(self, one: KeptDelivery) -> bool:
        """Keep a delivery. False if it is kept already."""
        return await self._engine.write([Ask(KEEP, {**one._asdict(), "digest": _digest(one)})]) == 1

    async def unlinked(self, limit: int) -> list[UnlinkedShop]:
        """The shops whose deliveries wait for a link, those first that have waited longest."""
        return [UnlinkedShop(*row) for row in await self._engine.read(asking(Ask(UNLINKED, {"limit": limit})))]

    async def waiting(self, shop: str | None = None) -> int:
        """How many deliveries wait for the link of their shop, or of this one."""
        question = Ask(WAITING) if shop is None else Ask(WAITING_OF, {"shop": shop})
        ((count,),) = await self._engine.read(asking(question))
        return int(count)

    async def kept(self, shop: str) -> list[KeptDelivery]:
        """The kept deliveries of a shop, in order of arrival."""
        return list(map(_kept, await self._engine.read(asking(Ask(KEPT, {"shop": shop})))))

    async def due(self, before: int, limit: int) -> list[tuple[KeptDelivery, str | None]]:
        """Deliveries that can be applied or have waited long enough, in order of arrival, each with its merchant.

        Those that were received by `before` have waited long enough; their merchant is None if there is none.
        """
        found = await self._engine.read(asking(Ask(DUE, {"before": before, "limit": limit})))
        return [(_kept(row), None if row[6] is None else row[6]) for row in found]

    async def drop(self, some: Collection[KeptDelivery]) -> None:
        """Delete deliveries that were applied or put aside."""
        if some:
            await self._engine.write([Ask(DROP, {"digest": one.digest}) for one in some])


def _shop(row: Row) -> Shop:
    domain, merchant_id, *more = row
    return Shop(domain, merchant_id, *more)


def _kept(row: Row) -> KeptDelivery:
    digest, shop, topic, body, awaits, received_at = row[:6]
    return KeptDelivery(shop, topic, body, awaits, received_at, digest)


def _digest(one: KeptDelivery) -> bytes:
    """16 bytes that identify a delivery, so that a repeat is recognised."""
    return blake2b(f"{one.topic}\n{one.shop}\n{one.body}".encode(), digest_size=16).digest()
