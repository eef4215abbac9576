"""The statements about webhook endpoints and their deliveries; `webhooks` says what they mean."""

from functools import lru_cache
from typing import Any, Final

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
from credit_service.storage.questions import number, value

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
def change(names: tuple[str, ...]) -> Update:
    """The statement that changes these fields of an endpoint."""
    return update(_endpoints).where(*_one).values({name: value(f"new_{name}") for name in names})


# ---- deliveries


@lru_cache(maxsize=8)
def insert_deliveries(count: int) -> Insert:
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
FORGET: Final = delete(_deliveries).where(_of, _d.number <= value("last"))
FORGET_ENDED: Final = FORGET.where(_d.state != _PENDING)
FORGET_ENDPOINT: Final = delete(_endpoints).where(_e.id == value("of"), _e.deleted_at.is_not(None))
