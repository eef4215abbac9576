"""Webhook endpoints, their deliveries, and the secrets that sign them.

The deliveries of an endpoint are created in the transaction that moves its position in the outbox, which does nothing
if another process was faster. So each event becomes one delivery, also after crashes and long pauses of a process.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import takewhile
from operator import itemgetter
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import (
    Insert,
    Select,
    Update,
    case,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)

from credit_service.storage import tables
from credit_service.storage.engine import Engine
from credit_service.storage.outbox import Position, StoredEvent, events_from, position_of, position_text
from credit_service.storage.questions import Ask, Find, Read, Row, asking, number, value

_endpoints, _deliveries = tables.webhook_endpoints, tables.webhook_deliveries
_e, _d = _endpoints.c, _deliveries.c
_PENDING: Final[Any] = literal_column("'pending'")


# ---- endpoints. A deleted endpoint exists only for `prune`, which removes what is left of it.

_alive = _e.deleted_at.is_(None)
_one = (_e.id == value("of"), _alive)
_told = [column for column in _endpoints.columns if column.name not in ("secrets", "deleted_at")]

INSERT_ENDPOINT: Final = insert(_endpoints)
ENDPOINTS: Final = select(*_told).where(_alive).order_by(_e.created_at.desc(), _e.id)
ENDPOINT: Final = select(*_told).where(*_one)
SECRETS: Final = select(_e.url, _e.secrets).where(*_one)
ROTATE: Final = update(_endpoints).where(*_one, _e.secrets == value("signed_so_far")).values(secrets=value("signed"))
DELETE: Final = update(_endpoints).where(*_one).values(deleted_at=value("at"), secrets=value("signed"))
HURRY: Final = (
    update(_deliveries)
    .where(_d.endpoint == value("of"), _d.state == _PENDING, _d.next_at > value("at"))
    .values(next_at=value("at"))
)
MAKE: Final = (
    update(_endpoints)
    .where(*_one, _e.position == value("stood"), _e.deliveries == value("had"))
    .values(position=value("reached"), deliveries=value("have"))
)


@lru_cache(maxsize=64)
def _change(names: tuple[str, ...]) -> Update:
    """The statement that changes these fields of an endpoint."""
    return update(_endpoints).where(*_one).values({name: value(f"new_{name}") for name in names})


# ---- deliveries


@lru_cache(maxsize=8)
def _insert_deliveries(count: int) -> Insert:
    """The statement that inserts so many deliveries; the parameters of each end with its place: number_0, number_1."""
    names = [column.name for column in _deliveries.columns]
    return insert(_deliveries).values([{name: value(f"{name}_{place}") for name in names} for place in range(count)])


_of = _d.endpoint == value("of")
_pending = _d.state == _PENDING
# An operator requested it: a test, or a redelivery.
_requested = or_(_d.account.is_(None), _d.redelivers.is_not(None))
_sendable = or_(_e.disabled_at.is_(None), _requested)
_both = _deliveries.join(_endpoints, _d.endpoint == _e.id)

DELIVERY: Final = select(_deliveries).where(_of, _d.number == value("number"))
DELIVERIES: Final = (
    select(_deliveries).where(_of, _d.number < value("before")).order_by(_d.number.desc()).limit(number("limit"))
)
DUE: Final = (
    select(_deliveries)
    .where(_of, _pending, _d.next_at <= value("at"))
    .order_by(_d.next_at, _d.number)
    .limit(number("limit"))
)
DUE_REQUESTED: Final = DUE.where(_requested)
BACKLOGS: Final = (
    select(_d.endpoint, func.count(), func.min(case((_sendable, _d.next_at))))
    .select_from(_both)
    .where(_pending, _alive)
    .group_by(_d.endpoint)
)
NOTED: Final = ("state", "attempts", "next_at", "status", "error", "ended_at")
NOTE: Final = (
    update(_deliveries)
    .where(_of, _d.number == value("which"), _pending, _d.attempts == value("attempts_so_far"))
    .values({name: value(f"new_{name}") for name in NOTED})
)
REPLACE: Final = (
    update(_deliveries)
    .where(_of, _d.number == value("which"), _pending)
    .values(state=literal_column("'failed'"), next_at=None, error=value("why"), ended_at=value("at"))
)

# ---- pruning

EVERY_ENDPOINT: Final = select(_e.id, _e.deleted_at)


def _oldest(*where: Any) -> Select[Any]:
    columns = (_d.number, _d.created_at)
    return select(*columns).where(_of, *where).order_by(_d.number).limit(number("limit"))


OLDEST: Final = _oldest()
OLDEST_ENDED: Final = _oldest(_d.state != _PENDING)
DELETE_OLD: Final = delete(_deliveries).where(_of, _d.number <= value("last"))
DELETE_OLD_ENDED: Final = DELETE_OLD.where(_d.state != _PENDING)
DELETE_OLD_ENDPOINT: Final = delete(_endpoints).where(_e.id == value("of"), _e.deleted_at.is_not(None))


_AT_ONCE: Final = (64, 8, 1)
"""How many deliveries one statement inserts: few sizes, so that few different statements are prepared."""
_Signed = list[tuple[str, int | None]]  # secrets, the newest first, each with the end of its use
_signed: Final = msgspec.json.Decoder(_Signed).decode
_types: Final = msgspec.json.Decoder(tuple[str, ...]).decode


class WebhookEndpoint(NamedTuple):
    """A receiver of events by webhook. Its secrets are no part of it, so that they are never shown by mistake."""

    id: str
    url: str
    event_types: tuple[str, ...] | None  # the announcements that it wants; None: all
    created_at: int
    position: Position  # in the outbox: deliveries of all events before it exist
    deliveries: int = 0  # how many exist or existed
    failing_since: int | None = None  # since when all attempts have failed
    disabled_at: int | None = None
    disabled_reason: str | None = None


class WebhookDelivery(NamedTuple):
    """The delivery of an event to an endpoint; without account and event it is a test."""

    endpoint: str
    number: int  # 1, 2, 3 … in its endpoint
    type: str
    account: int | None
    event: int | None  # its number in the account
    created_at: int
    next_at: int | None  # when to send it next, while it is pending
    redelivers: int | None = None  # the delivery that it repeats, at the request of an operator
    state: str = "pending"  # or delivered, or failed
    attempts: int = 0
    status: int | None = None  # of the last answer
    error: str | None = None  # of the last attempt
    ended_at: int | None = None

    @property
    def is_requested(self) -> bool:
        """Whether an operator requested it (a test, a redelivery): then it is sent also to a disabled endpoint."""
        return self.account is None or self.redelivers is not None


class DueDeliveries(NamedTuple):
    """The due deliveries of an endpoint, with their events (None for a test), and the secrets that sign them."""

    url: str
    secrets: tuple[str, ...]  # newest first
    due: Sequence[tuple[WebhookDelivery, StoredEvent | None]]

    def __repr__(self) -> str:
        return f"DueDeliveries({len(self.due)})"


class Backlog(NamedTuple):
    """How many deliveries of an endpoint are pending, and when the next can be sent (None: none can)."""

    pending: int
    next_at: int | None


class WebhookEndpoints:
    """The webhook endpoints of a ledger, and their deliveries. `now` is the database's clock."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.now = engine.now

    async def add(self, endpoint: WebhookEndpoint, secret: str) -> None:
        """Keep a new webhook endpoint, and the secret that signs its deliveries."""
        values = {"secrets": _text([(secret, None)]), "deleted_at": None}
        await self._engine.write([Ask(INSERT_ENDPOINT, _columns(endpoint._asdict()) | values)])

    async def all(self) -> list[WebhookEndpoint]:
        """All webhook endpoints, newest first."""
        return list(map(_endpoint, await self._engine.read(asking(Ask(ENDPOINTS)))))

    async def get(self, endpoint_id: str) -> WebhookEndpoint | None:
        return next(map(_endpoint, await self._engine.read(asking(Ask(ENDPOINT, {"of": endpoint_id})))), None)

    async def change(self, endpoint_id: str, **changed: Any) -> bool:
        """Change fields of an endpoint. False if there is none with this id."""
        values = {f"new_{name}": value for name, value in _columns(changed).items()}
        return await self._engine.write([Ask(_change(tuple(sorted(changed))), {"of": endpoint_id, **values})]) == 1

    async def enable(self, endpoint_id: str, now: int) -> bool:
        """Enable a disabled endpoint; its pending deliveries are due at once. False if there is none with this id."""
        nothing = dict.fromkeys(("new_disabled_at", "new_disabled_reason", "new_failing_since"))
        enable = _change(("disabled_at", "disabled_reason", "failing_since"))
        asks = [Ask(enable, {"of": endpoint_id, **nothing}), Ask(HURRY, {"of": endpoint_id, "at": now})]
        return await self._engine.write(asks, guarded=True) > 0

    async def rotate(self, endpoint_id: str, secret: str, now: int, until: int, most: int) -> bool:
        """Sign with a new secret from now on, and also with older ones until their end of use; `most` secrets in all.

        `until`: the end of use of the current secret. False if there is no endpoint with this id.
        """
        while found := await self._engine.read(asking(Ask(SECRETS, {"of": endpoint_id}))):
            ((_, so_far),) = found
            (newest, _), *older = _signed(so_far)
            kept = [(newest, until), *[one for one in older if _is_in_use(one[1], now)]]
            text = _text([(secret, None), *kept][:most])
            values = {"of": endpoint_id, "signed_so_far": so_far, "signed": text}
            if await self._engine.write([Ask(ROTATE, values)]):
                return True
        return False

    async def delete(self, endpoint_id: str, now: int) -> bool:
        """Send nothing more to an endpoint, and delete its secrets; `prune` removes the rest. False if it is gone."""
        return await self._engine.write([Ask(DELETE, {"of": endpoint_id, "at": now, "signed": "[]"})]) == 1

    async def add_deliveries(
        self, endpoint: WebhookEndpoint, made: Sequence[WebhookDelivery], position: Position | None = None
    ) -> bool:
        """Keep new deliveries and move the endpoint's position, in one transaction.

        Their numbers are the next ones of the endpoint. A pending delivery that one of them repeats ends. False, with
        nothing done, if other deliveries were added since the endpoint was read.
        """
        reached = endpoint.position if position is None else position
        so_far = {"of": endpoint.id, "stood": position_text(endpoint.position), "had": endpoint.deliveries}
        counted = {"reached": position_text(reached), "have": endpoint.deliveries + len(made)}
        asks = [Ask(MAKE, so_far | counted), *_inserts(made)]
        for one in made:
            if one.redelivers is not None:
                values = {"which": one.redelivers, "why": f"It is sent again as {one.number}.", "at": one.created_at}
                asks.append(Ask(REPLACE, {"of": endpoint.id, **values}))
        return await self._engine.write(asks, guarded=True) > 0

    async def deliveries(self, endpoint_id: str, before: int | None, limit: int) -> list[WebhookDelivery]:
        """Deliveries of an endpoint, newest first, from the one before a number."""
        values = {"of": endpoint_id, "before": 2**63 - 1 if before is None else before, "limit": limit}
        return list(map(_delivery, await self._engine.read(asking(Ask(DELIVERIES, values)))))

    async def delivery(self, endpoint_id: str, number: int) -> WebhookDelivery | None:
        return next(
            map(_delivery, await self._engine.read(asking(Ask(DELIVERY, {"of": endpoint_id, "number": number})))),
            None,
        )

    async def due_deliveries(
        self, endpoint_id: str, now: int, limit: int, *, requested: bool = False
    ) -> DueDeliveries | None:
        """The due deliveries of an endpoint, longest due first. None if there is no endpoint with this id.

        `requested`: only those that an operator requested (tests and redeliveries).
        """
        statement = DUE_REQUESTED if requested else DUE

        def read() -> Read[DueDeliveries | None]:
            signing = yield Ask(SECRETS, {"of": endpoint_id})
            if not signing:
                return None
            ((url, secrets),) = signing
            in_use = tuple([secret for secret, until in _signed(secrets) if _is_in_use(until, now)])
            due = list(map(_delivery, (yield Ask(statement, {"of": endpoint_id, "at": now, "limit": limit}))))
            places = {(one.account, one.event) for one in due if one.account is not None}
            found = (yield Find(tables.events, ("account", "number"), places)) if places else []
            events = {(event.account, event.announcement.number): event for event in (yield from events_from(found))}
            return DueDeliveries(url, in_use, [(one, events.get((one.account or 0, one.event or 0))) for one in due])

        return await self._engine.read(read)

    async def note_attempts(self, noted: Sequence[WebhookDelivery]) -> None:
        """Note one more attempt of each, unless another process noted that attempt already."""
        await self._engine.write([Ask(NOTE, _noted(one)) for one in noted])

    async def backlogs(self) -> dict[str, Backlog]:
        """The backlogs of endpoints with pending deliveries; of a disabled one, only requested ones can be sent."""
        found = await self._engine.read(asking(Ask(BACKLOGS)))
        return {endpoint: Backlog(*counted) for endpoint, *counted in found}

    async def prune(self, before: int, limit: int) -> bool:
        """Delete up to `limit` ended deliveries of each endpoint that were created before an instant.

        Also deleted endpoints with all their deliveries. Returns whether there may be more.
        """
        found = [
            (of, deleted_at is not None) for of, deleted_at in await self._engine.read(asking(Ask(EVERY_ENDPOINT)))
        ]
        return any([await self._prune(of, None if deleted else before, limit) for of, deleted in found])

    async def _prune(self, endpoint_id: str, before: int | None, limit: int) -> bool:
        """Delete some old deliveries of an endpoint; without `before` all of them, and then the endpoint itself."""
        oldest, delete_old = (OLDEST, DELETE_OLD) if before is None else (OLDEST_ENDED, DELETE_OLD_ENDED)
        found = await self._engine.read(asking(Ask(oldest, {"of": endpoint_id, "limit": limit})))
        numbers = [number for number, _ in takewhile(lambda row: before is None or row[1] < before, found)]
        asks = [Ask(delete_old, {"of": endpoint_id, "last": numbers[-1]})] if numbers else []
        if before is None and len(numbers) < limit:
            asks.append(Ask(DELETE_OLD_ENDPOINT, {"of": endpoint_id}))
        if asks:
            await self._engine.write(asks)
        return len(numbers) == limit


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _is_in_use(until: int | None, now: int) -> bool:
    return until is None or until > now


def _columns(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of an endpoint as values of its columns."""
    columns = dict(fields)
    if (types := columns.get("event_types")) is not None:
        columns["event_types"] = _text(types)
    if "position" in columns:
        columns["position"] = position_text(columns["position"])
    return columns


def _endpoint(row: Row) -> WebhookEndpoint:
    id_, url, types, created_at, position, *more = row
    return WebhookEndpoint(id_, url, None if types is None else _types(types), created_at, position_of(position), *more)


_FIELDS: Final = [column.name for column in tables.webhook_deliveries.columns]
_places: Final = itemgetter(*[_FIELDS.index(name) for name in WebhookDelivery._fields])


def _delivery(row: Row) -> WebhookDelivery:
    return WebhookDelivery._make(_places(row))


def _inserts(made: Sequence[WebhookDelivery]) -> Iterator[Ask]:
    """The statements that insert deliveries, many with each."""
    start = 0
    while start < len(made):
        count = next(size for size in _AT_ONCE if size <= len(made) - start)
        some = made[start : start + count]
        values = {f"{name}_{place}": value for place, one in enumerate(some) for name, value in one._asdict().items()}
        yield Ask(_insert_deliveries(count), values)
        start += count


def _noted(one: WebhookDelivery) -> dict[str, Any]:
    changed = {f"new_{name}": getattr(one, name) for name in NOTED}
    return {"of": one.endpoint, "which": one.number, "attempts_so_far": one.attempts - 1, **changed}
