"""What is kept of webhooks, said once for every engine: endpoints, what they are sent, and how it is signed.

Deliveries of an endpoint are made together with the note up to where they are made, in one transaction that does
nothing where another was faster. So one delivery is made of each event, whoever crashes and whoever comes back late.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from operator import itemgetter
from typing import Any, Final

import msgspec

from credit_service.storage import rows, tables
from credit_service.storage import webhook_statements as sql
from credit_service.storage.base import Backlog, DueDeliveries, Position, WebhookDelivery, WebhookEndpoint
from credit_service.storage.questions import Read
from credit_service.storage.reads import Reads, told
from credit_service.storage.rows import Row
from credit_service.storage.statements import Ask, Find

_AT_ONCE: Final = (64, 8, 1)
"""How many deliveries one statement inserts, so that few different ones are prepared."""
_Signed = list[tuple[str, int | None]]  # secrets, the newest first, each with the time until which it is in use
_signed: Final = msgspec.json.Decoder(_Signed).decode
_types: Final = msgspec.json.Decoder(tuple[str, ...]).decode


class Webhooks(Reads):
    """The half of `base.Store` that is about webhooks, for an engine that can answer questions."""

    async def add_webhook(self, endpoint: WebhookEndpoint, secret: str) -> None:
        """See `base.Store.add_webhook`."""
        values = {"secrets": _text([(secret, None)]), "deleted_at": None}
        await self._write([Ask(sql.INSERT_ENDPOINT, _columns(endpoint._asdict()) | values)])

    async def webhooks(self) -> list[WebhookEndpoint]:
        """See `base.Store.webhooks`."""

        def read() -> Read[list[WebhookEndpoint]]:
            return list(map(_endpoint, (yield Ask(sql.ENDPOINTS))))

        return await self._read(read)

    async def webhook(self, endpoint_id: str) -> WebhookEndpoint | None:
        """See `base.Store.webhook`."""

        def read() -> Read[WebhookEndpoint | None]:
            return next(map(_endpoint, (yield Ask(sql.ENDPOINT, {"of": endpoint_id}))), None)

        return await self._read(read)

    async def change_webhook(self, endpoint_id: str, **changed: Any) -> bool:
        """See `base.Store.change_webhook`."""
        values = {f"new_{name}": value for name, value in _columns(changed).items()}
        return await self._write([Ask(sql.change(tuple(sorted(changed))), {"of": endpoint_id, **values})]) == 1

    async def enable_webhook(self, endpoint_id: str, now: int) -> bool:
        """See `base.Store.enable_webhook`."""
        nothing = dict.fromkeys(("new_disabled_at", "new_disabled_reason", "new_failing_since"))
        enable = sql.change(("disabled_at", "disabled_reason", "failing_since"))
        asks = [Ask(enable, {"of": endpoint_id, **nothing}), Ask(sql.HURRY, {"of": endpoint_id, "at": now})]
        return await self._write(asks, guarded=True) > 0

    async def rotate_webhook(self, endpoint_id: str, secret: str, now: int, until: int, most: int) -> bool:
        """See `base.Store.rotate_webhook`."""

        def read() -> Read[str | None]:
            return next((text for _, text in (yield Ask(sql.SECRETS, {"of": endpoint_id}))), None)

        while (so_far := await self._read(read)) is not None:
            (newest, _), *older = _signed(so_far)
            kept = [(newest, until), *[one for one in older if _is_in_use(one[1], now)]]
            text = _text([(secret, None), *kept][:most])
            values = {"of": endpoint_id, "signed_so_far": so_far, "signed": text}
            if await self._write([Ask(sql.ROTATE, values)]):
                return True
        return False

    async def delete_webhook(self, endpoint_id: str, now: int) -> bool:
        """See `base.Store.delete_webhook`. Its secrets go at once."""
        return await self._write([Ask(sql.DELETE, {"of": endpoint_id, "at": now, "signed": "[]"})]) == 1

    async def add_deliveries(
        self, endpoint: WebhookEndpoint, made: Sequence[WebhookDelivery], position: Position | None = None
    ) -> bool:
        """See `base.Store.add_deliveries`."""
        reached = endpoint.position if position is None else position
        so_far = {"of": endpoint.id, "stood": rows.position_text(endpoint.position), "had": endpoint.deliveries}
        counted = {"reached": rows.position_text(reached), "have": endpoint.deliveries + len(made)}
        asks = [Ask(sql.MAKE, so_far | counted), *_inserts(made)]
        for one in made:
            if one.redelivers is not None:
                values = {"which": one.redelivers, "why": f"It is sent again as {one.number}.", "at": one.created_at}
                asks.append(Ask(sql.REPLACE, {"of": endpoint.id, **values}))
        return await self._write(asks, guarded=True) > 0

    async def deliveries(self, endpoint_id: str, before: int | None, limit: int) -> list[WebhookDelivery]:
        """See `base.Store.deliveries`."""
        values = {"of": endpoint_id, "before": 2**63 - 1 if before is None else before, "limit": limit}

        def read() -> Read[list[WebhookDelivery]]:
            return list(map(_delivery, (yield Ask(sql.DELIVERIES, values))))

        return await self._read(read)

    async def delivery(self, endpoint_id: str, number: int) -> WebhookDelivery | None:
        """See `base.Store.delivery`."""

        def read() -> Read[WebhookDelivery | None]:
            return next(map(_delivery, (yield Ask(sql.DELIVERY, {"of": endpoint_id, "number": number}))), None)

        return await self._read(read)

    async def due_deliveries(
        self, endpoint_id: str, now: int, limit: int, *, asked_for: bool = False
    ) -> DueDeliveries | None:
        """See `base.Store.due_deliveries`."""
        statement = sql.DUE_ASKED_FOR if asked_for else sql.DUE

        def read() -> Read[DueDeliveries | None]:
            signing = yield Ask(sql.SECRETS, {"of": endpoint_id})
            if not signing:
                return None
            ((url, secrets),) = signing
            in_use = tuple([secret for secret, until in _signed(secrets) if _is_in_use(until, now)])
            due = list(map(_delivery, (yield Ask(statement, {"of": endpoint_id, "at": now, "limit": limit}))))
            places = {(one.account, one.event) for one in due if one.account is not None}
            found = (yield Find(tables.events, ("account", "number"), places)) if places else []
            events = {(event.account, event.announcement.number): event for event in (yield from told(found))}
            return DueDeliveries(url, in_use, [(one, events.get((one.account or 0, one.event or 0))) for one in due])

        return await self._read(read)

    async def note_deliveries(self, noted: Sequence[WebhookDelivery]) -> None:
        """See `base.Store.note_deliveries`."""
        await self._write([Ask(sql.NOTE, _noted(one)) for one in noted])

    async def webhook_backlogs(self) -> dict[str, Backlog]:
        """See `base.Store.webhook_backlogs`."""

        def read() -> Read[dict[str, Backlog]]:
            return {endpoint: Backlog(*found) for endpoint, *found in (yield Ask(sql.BACKLOGS))}

        return await self._read(read)

    async def prune_webhooks(self, before: int, limit: int) -> bool:
        """See `base.Store.prune_webhooks`."""

        def read() -> Read[list[tuple[str, bool]]]:
            return [(of, deleted_at is not None) for of, deleted_at in (yield Ask(sql.EVERY_ENDPOINT))]

        found = await self._read(read)
        return any([await self._forget(of, None if deleted else before, limit) for of, deleted in found])

    async def _forget(self, endpoint_id: str, before: int | None, limit: int) -> bool:
        """Forget some old deliveries of an endpoint; without `before` all of them, and then the endpoint itself."""
        oldest, forget = (sql.OLDEST, sql.FORGET) if before is None else (sql.OLDEST_ENDED, sql.FORGET_ENDED)

        def read() -> Read[list[int]]:
            found = yield Ask(oldest, {"of": endpoint_id, "limit": limit})
            return [number for number, _ in takewhile(lambda row: before is None or row[1] < before, found)]

        numbers = await self._read(read)
        asks = [Ask(forget, {"of": endpoint_id, "last": numbers[-1]})] if numbers else []
        if before is None and len(numbers) < limit:
            asks.append(Ask(sql.FORGET_ENDPOINT, {"of": endpoint_id}))
        if asks:
            await self._write(asks)
        return len(numbers) == limit


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _is_in_use(until: int | None, now: int) -> bool:
    return until is None or until > now


def _columns(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of an endpoint as they stand in columns."""
    columns = dict(fields)
    if (types := columns.get("event_types")) is not None:
        columns["event_types"] = _text(types)
    if "position" in columns:
        columns["position"] = rows.position_text(columns["position"])
    return columns


def _endpoint(row: Row) -> WebhookEndpoint:
    id_, url, types, created_at, position, *more = row
    return WebhookEndpoint(
        id_, url, None if types is None else _types(types), created_at, rows.position(position), *more
    )


_FIELDS: Final = [column.name for column in tables.webhook_deliveries.columns]
_places: Final = itemgetter(*[_FIELDS.index(name) for name in WebhookDelivery._fields])


def _delivery(row: Row) -> WebhookDelivery:
    return WebhookDelivery._make(_places(row))


def _inserts(made: Sequence[WebhookDelivery]) -> Iterator[Ask]:
    """What inserts them, many at a time."""
    start = 0
    while start < len(made):
        count = next(size for size in _AT_ONCE if size <= len(made) - start)
        some = made[start : start + count]
        values = {f"{name}_{place}": value for place, one in enumerate(some) for name, value in one._asdict().items()}
        yield Ask(sql.insert_deliveries(count), values)
        start += count


def _noted(one: WebhookDelivery) -> dict[str, Any]:
    changed = {f"new_{name}": getattr(one, name) for name in sql.NOTED}
    return {"of": one.endpoint, "which": one.number, "attempts_so_far": one.attempts - 1, **changed}
