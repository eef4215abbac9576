"""How shops are kept, each with its merchant, and what Shopify delivered that still has to be applied."""

from collections.abc import Collection
from hashlib import blake2b
from typing import Any, Final
from uuid import UUID

from sqlalchemy import BigInteger, bindparam, delete, literal_column, or_, select, update
from sqlalchemy.dialects import postgresql

from credit_service.storage import tables
from credit_service.storage.base import Kept, Shop
from credit_service.storage.questions import Asking, Read
from credit_service.storage.rows import Row
from credit_service.storage.statements import Ask

_shops, _deliveries = tables.shops, tables.shopify_deliveries


def _value(name: str) -> Any:
    return bindparam(name)


SHOP: Final = select(_shops).where(_shops.c.domain == _value("domain"))
# Both engines understand what is written here for one of them.
_linking = postgresql.insert(_shops).values(
    domain=_value("domain"), merchant_id=_value("merchant_id"), linked_at=_value("linked_at")
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
_linked = (_shops.c.domain == _value("key")) & _shops.c.unlinked_at.is_(None)
UNLINK: Final = update(_shops).where(_linked).values(unlinked_at=_value("at"))
UNINSTALL: Final = update(_shops).where(_linked, _shops.c.linked_at <= _value("at")).values(uninstalled_at=_value("at"))

KEEP: Final = (
    postgresql.insert(_deliveries)
    .values({name: _value(name) for name in ("digest", "shop", "topic", "body", "awaits", "received_at")})
    .on_conflict_do_nothing(index_elements=["digest"])
)
DROP: Final = delete(_deliveries).where(_deliveries.c.digest == _value("digest"))
KEPT: Final = select(_deliveries).where(_deliveries.c.shop == _value("shop")).order_by(_deliveries.c.received_at)
# Whom a shop belonged to before it was unlinked is known still, to those who have to erase something.
_known = _shops.c.unlinked_at.is_(None) | (_deliveries.c.awaits == literal_column("'merchant'"))
DUE: Final = (
    select(_deliveries, _shops.c.merchant_id)
    .select_from(_deliveries.outerjoin(_shops, (_shops.c.domain == _deliveries.c.shop) & _known))
    .where(
        _deliveries.c.awaits.is_not(None),
        or_(_shops.c.domain.is_not(None), _deliveries.c.received_at <= _value("before")),
    )
    .order_by(_deliveries.c.received_at, _deliveries.c.digest)
    .limit(bindparam("limit", type_=BigInteger))
)


def _shop(row: Row) -> Shop:
    domain, merchant_id, *more = row
    return Shop(domain, UUID(bytes=merchant_id), *more)


def _kept(row: Row) -> Kept:
    digest, shop, topic, body, awaits, received_at = row[:6]
    return Kept(shop, topic, body, awaits, received_at, digest)


def _digest(one: Kept) -> bytes:
    """The 16 bytes by which a delivery that comes again is known."""
    return blake2b(f"{one.topic}\n{one.shop}\n{one.body}".encode(), digest_size=16).digest()


class Shops(Asking):
    """The part of `base.Store` that is about shops."""

    async def shop(self, domain: str) -> Shop | None:
        """See `base.Store.shop`."""

        def read() -> Read[Shop | None]:
            return next(map(_shop, (yield Ask(SHOP, {"domain": domain}))), None)

        return await self._read(read)

    async def link_shop(self, domain: str, merchant_id: UUID, at: int) -> None:
        """See `base.Store.link_shop`."""
        values = {"domain": domain, "merchant_id": merchant_id.bytes, "linked_at": at}
        await self._write([Ask(LINK, values)])

    async def unlink_shop(self, domain: str, at: int) -> bool:
        """See `base.Store.unlink_shop`."""
        return await self._write([Ask(UNLINK, {"key": domain, "at": at})]) == 1

    async def uninstall_shop(self, domain: str, at: int) -> bool:
        """See `base.Store.uninstall_shop`."""
        return await self._write([Ask(UNINSTALL, {"key": domain, "at": at})]) == 1

    async def keep_delivery(self, one: Kept) -> bool:
        """See `base.Store.keep_delivery`."""
        return await self._write([Ask(KEEP, {**one._asdict(), "digest": _digest(one)})]) == 1

    async def kept_deliveries(self, shop: str) -> list[Kept]:
        """See `base.Store.kept_deliveries`."""

        def read() -> Read[list[Kept]]:
            return list(map(_kept, (yield Ask(KEPT, {"shop": shop}))))

        return await self._read(read)

    async def due_kept(self, before: int, limit: int) -> list[tuple[Kept, UUID | None]]:
        """See `base.Store.due_kept`."""

        def read() -> Read[list[tuple[Kept, UUID | None]]]:
            found = yield Ask(DUE, {"before": before, "limit": limit})
            return [(_kept(row), None if row[6] is None else UUID(bytes=row[6])) for row in found]

        return await self._read(read)

    async def drop_kept(self, some: Collection[Kept]) -> None:
        """See `base.Store.drop_kept`."""
        if some:
            await self._write([Ask(DROP, {"digest": one.digest}) for one in some])
