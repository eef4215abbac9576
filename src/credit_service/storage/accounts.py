"""Accounts, as questions over any engine: balances, open grants, parked refunds, due accounts.

An account's history is in `transactions`.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from sqlalchemy import LargeBinary, Select, bindparam, case, func, literal_column, or_, select

from credit_service.ledger.account import GENESIS, Account, Grant, Parked
from credit_service.ledger.types import EARLY
from credit_service.storage import rows, tables
from credit_service.storage.engine import Engine
from credit_service.storage.loading import open_grants
from credit_service.storage.questions import ONE, ZERO, Ask, Find, Read, asked, asking, literals, number, value
from credit_service.storage.transactions import cut

_accounts, _transactions, _grants, _parked = tables.accounts, tables.transactions, tables.grants, tables.parked

_available = _accounts.c.balance - _accounts.c.held - _accounts.c.pending
_threshold = func.coalesce(_accounts.c.low_threshold, number("default_threshold"))
_is_open = _accounts.c.state == literal_column("'open'")
SUMMARY: Final = select(
    func.count(),
    func.coalesce(func.sum(case(((_available > ZERO) & _is_open, ONE), else_=ZERO)), ZERO),
    func.coalesce(func.sum(case((_available > ZERO, ZERO), else_=ONE)), ZERO),
    func.coalesce(
        func.sum(case((_available <= ZERO, ZERO), (_available <= _threshold, ONE), else_=ZERO)),
        ZERO,
    ),
    func.avg(_accounts.c.balance),
).where(or_(_accounts.c.next_due_at.is_(None), _accounts.c.next_due_at > value("at")))
DUE_ACCOUNTS: Final = select(_accounts).where(_accounts.c.next_due_at <= value("at"))
DUE: Final = (
    select(_accounts.c.next_due_at, _accounts.c.merchant_id)
    .where(_accounts.c.next_due_at.is_not(None), _accounts.c.next_due_at <= value("at"))
    .order_by(_accounts.c.next_due_at)
    .limit(number("limit"))
)
OVERDUE: Final = (
    select(_parked.c.until, _accounts.c.merchant_id)
    .join(_accounts, _parked.c.account == _accounts.c.number)
    .where(_parked.c.until <= value("at"))
    .order_by(_parked.c.until)
    .limit(number("limit"))
)
# One statement, so that account and grants are of one snapshot.
WITH_GRANTS: Final = (
    select(_accounts, _grants)
    .select_from(_accounts.outerjoin(_grants, (_grants.c.account == _accounts.c.number) & (_grants.c.open == ONE)))
    .where(_accounts.c.merchant_id == value("merchant_id"))
)
PARKED_COUNT: Final = select(func.count()).select_from(_parked)


def _drift() -> Select[Any]:
    """The next accounts by merchant, and whether each disagrees with its last transaction or its open grants."""
    a, t, g = _accounts.alias("a"), _transactions.alias("t"), _grants.alias("g")
    last = select(func.max(_transactions.c.sequence)).where(_transactions.c.account == a.c.number).scalar_subquery()
    granted = (
        select(func.coalesce(func.sum(g.c.remaining), ZERO))
        .where(g.c.account == a.c.number, g.c.open == ONE)
        .scalar_subquery()
    )
    disagrees = or_(
        a.c.sequence != func.coalesce(t.c.sequence, ZERO),
        a.c.balance != func.coalesce(t.c.balance_after, ZERO),
        a.c.last_hash != func.coalesce(t.c.hash, bindparam("genesis", type_=LargeBinary)),
        a.c.balance != granted - a.c.debt,
    )
    return (
        select(a.c.merchant_id, disagrees)
        .select_from(a.outerjoin(t, (t.c.account == a.c.number) & (t.c.sequence == last)))
        .where(a.c.merchant_id > value("after"))
        .order_by(a.c.merchant_id)
        .limit(number("limit"))
    )


DRIFT: Final = _drift()


@lru_cache(maxsize=32)
def _listing(present: frozenset[str]) -> Select[Any]:
    """The statement that lists accounts by these conditions, and accounts that are due by `at` in any case."""
    a = _accounts.c
    status = case((_available <= 0, "EXHAUSTED"), (_available <= _threshold, "LOW"), else_="ACTIVE")
    conditions = {
        "status": status == value("status"),
        "min_balance": a.balance >= value("min_balance"),
        "max_balance": a.balance <= value("max_balance"),
    }
    statement = select(_accounts)
    if "state" in present:  # time does not change it
        statement = statement.where(a.state == value("state"))
    for name, condition in conditions.items():
        if name in present:
            statement = statement.where(or_(condition, a.next_due_at <= value("at")))
    if "after" in present:
        statement = statement.where(a.merchant_id > value("after"))
    return statement.order_by(a.merchant_id).limit(number("limit"))


@lru_cache(maxsize=2)
def _parked_listing(*, further: bool) -> Select[Any]:
    """The statement that lists parked refunds with their merchants, by the end of their wait; `further`: after one."""
    p = _parked.c
    joined = _parked.join(_accounts, p.account == _accounts.c.number)
    statement = select(_accounts.c.merchant_id, _parked).select_from(joined).order_by(p.until, p.account, p.key)
    if further:
        later = or_(p.account > value("after"), (p.account == value("after")) & (p.key > value("key")))
        statement = statement.where(or_(p.until > value("end"), (p.until == value("end")) & later))
    return statement.limit(number("limit"))


PENDING_THEN: Final = select(_grants.c.number, _grants.c.amount).where(
    _grants.c.account == value("account"),
    _grants.c.sequence <= value("sequence"),
    _grants.c.effective_at > value("at"),
)
CLAWED_BACK: Final = select(_transactions.c.draws).where(
    _transactions.c.account == value("account"),
    _transactions.c.sequence <= value("sequence"),
    _transactions.c.type.in_(literals(EARLY)),
)


class LoadedAccount(NamedTuple):
    """An account as stored; with its open grants if something was due at the asked instant (see `settle`)."""

    account: Account
    grants: tuple[Grant, ...]


class AccountQuery(NamedTuple):
    """Which accounts to list. Accounts that are due by `at` are listed, too: only `settle` can judge them."""

    at: int
    default_threshold: int
    status: str | None = None
    min_balance: int | None = None
    max_balance: int | None = None
    state: str | None = None


class Past(NamedTuple):
    """The balance of an account at a past instant, and its credits that were pending then."""

    balance: int
    pending: int


class AccountsSummary(NamedTuple):
    """All accounts in sum, without those that are due: no posting has settled yet what time did to them."""

    accounts: int
    enabled: int
    exhausted: int  # with nothing available
    low: int
    average_balance: float


class PositionedParked(NamedTuple):
    """A parked refund, its merchant, and the position from which a listing goes on after it."""

    position: tuple[int, int, str]
    merchant_id: str
    parked: Parked


class Accounts:
    """The accounts of a ledger. `now` is the database's clock."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.now = engine.now

    async def load(self, merchant_ids: Sequence[str], at: int) -> dict[str, LoadedAccount]:
        """The accounts of these merchants, as far as they have one; with grants only if something is due by `at`."""

        def read() -> Read[dict[str, LoadedAccount]]:
            found = yield Find(_accounts, ("merchant_id",), [(merchant_id,) for merchant_id in set(merchant_ids)])
            loaded = yield from _with_due_grants(map(rows.account, found), at)
            return {one.account.merchant_id: one for one in loaded}

        return await self._engine.read(read) if merchant_ids else {}

    async def page(self, query: AccountQuery, after: str | None, limit: int) -> list[LoadedAccount]:
        """Accounts that may match, by merchant id, from the one after `after`."""
        values = asked(query) | {"limit": limit} | ({} if after is None else {"after": after})

        def read() -> Read[list[LoadedAccount]]:
            found = yield Ask(_listing(frozenset(values)), values)
            return (yield from _with_due_grants(map(rows.account, found), query.at))

        return await self._engine.read(read)

    async def with_grants(self, merchant_id: str) -> LoadedAccount | None:
        """A merchant's account with its open grants, None if there is none."""

        found = await self._engine.read(asking(Ask(WITH_GRANTS, {"merchant_id": merchant_id})))
        if not found:
            return None
        width = len(_accounts.columns)
        account = rows.account(found[0][:width])
        grants = open_grants([row[width:] for row in found if row[width] is not None])
        return LoadedAccount(account, grants.get(account.number, ()))

    async def past(self, account: int, at: int) -> Past:
        """An account at an instant before its last posting: each expiry counts from its own instant (L7)."""

        def read() -> Read[Past]:
            sequence, balance, _ = yield from cut(account, at)
            values = {"account": account, "at": at, "sequence": sequence}
            pending: dict[int, int] = dict((yield Ask(PENDING_THEN, values)))
            if pending:  # before it begins, only a refund of its payment draws on a grant
                for (draws,) in (yield Ask(CLAWED_BACK, values)):
                    for grant, change in rows.draws(draws):
                        if grant in pending:
                            pending[grant] += change
            return Past(balance, sum(pending.values()))

        return await self._engine.read(read)

    async def summary(self, at: int, default_threshold: int) -> AccountsSummary:
        """All accounts in sum, without those that are due by `at`."""
        values = {"at": at, "default_threshold": default_threshold}
        ((count, enabled, exhausted, low, average),) = await self._engine.read(asking(Ask(SUMMARY, values)), long=True)
        return AccountsSummary(count, enabled, exhausted, low, float(average or 0))

    async def due_accounts(self, at: int) -> list[LoadedAccount]:
        """The accounts that `summary` leaves out."""

        def read() -> Read[list[LoadedAccount]]:
            found = yield Ask(DUE_ACCOUNTS, {"at": at})
            return (yield from _with_due_grants(map(rows.account, found), at))

        return await self._engine.read(read)

    async def due(self, at: int, limit: int) -> list[str]:
        """Merchants whose account or parked refunds are due by `at` and not settled yet, longest due first."""
        values = {"at": at, "limit": limit}

        def read() -> Read[list[str]]:
            found = sorted([*(yield Ask(DUE, values)), *(yield Ask(OVERDUE, values))])
            merchants = dict.fromkeys([merchant for _, merchant in found])
            return list(merchants)[:limit]

        return await self._engine.read(read)

    async def drifting(self, after: str | None, limit: int) -> tuple[list[str], str | None]:
        """Check the next `limit` accounts by merchant id, from the one after `after`.

        Returns the merchants whose account disagrees with its last transaction or with its open grants, and the
        merchant after which to go on: None after the last account.
        """
        values = {"after": after or "", "limit": limit, "genesis": GENESIS}
        found = await self._engine.read(asking(Ask(DRIFT, values)))
        drifting = [merchant for merchant, disagrees in found if disagrees]
        return drifting, found[-1][0] if len(found) == limit else None

    async def parked_count(self) -> int:
        """How many refunds wait for their order or payment."""
        ((count,),) = await self._engine.read(asking(Ask(PARKED_COUNT)))
        return int(count)

    async def parked(self, after: tuple[int, int, str] | None, limit: int) -> list[PositionedParked]:
        """Refunds that wait, by the end of their wait, from the one after `after`."""
        place = {} if after is None else dict(zip(("end", "after", "key"), after, strict=True))
        question = Ask(_parked_listing(further=bool(place)), {**place, "limit": limit})
        found = await self._engine.read(asking(question))
        parked = [(merchant, row[0], rows.parked(tuple(row))) for merchant, *row in found]
        return [PositionedParked((one.until, account, one.key), merchant, one) for merchant, account, one in parked]


def _with_due_grants(accounts: Iterable[Account], at: int) -> Read[list[LoadedAccount]]:
    accounts = list(accounts)
    due = [(a.number,) for a in accounts if a.next_due_at is not None and a.next_due_at <= at]
    grants = open_grants((yield Find(_grants, ("account",), due, tables.OPEN))) if due else {}
    return [LoadedAccount(account, grants.get(account.number, ())) for account in accounts]
