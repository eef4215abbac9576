"""Transactions, as questions over any engine: one, pages of an account or of all accounts, sums."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from heapq import merge
from operator import itemgetter
from typing import Any, Final, NamedTuple

from sqlalchemy import BigInteger, Select, case, func, literal_column, select, union_all

from credit_service.ledger.account import Transaction
from credit_service.ledger.addresses import TRANSACTION, Address
from credit_service.ledger.announcements import OF_A_TRANSACTION
from credit_service.ledger.types import BY_TIME
from credit_service.storage import rows, tables
from credit_service.storage.engine import Engine
from credit_service.storage.outbox import Position, by_lane
from credit_service.storage.questions import ONE, ZERO, Ask, Read, Row, asked, asking, literals, number, value

_NEWEST: Final = 2**63 - 1
_PLACE: Final = ("lane", "id", "at")
"""The columns before a transaction in a listing of all accounts."""
_accounts, _transactions, _events = tables.accounts, tables.transactions, tables.events

# Each transaction is read with its merchant: a second question for that costs as much as the first.
_owned: Final = _transactions.join(_accounts, _accounts.c.number == _transactions.c.account)
_with_merchant: Final = (_transactions, _accounts.c.merchant_id)
ONE_TRANSACTION: Final = (
    select(*_with_merchant)
    .select_from(_owned)
    .where(_transactions.c.account == value("account"), _transactions.c.sequence == value("sequence"))
)
NUMBER: Final = select(_accounts.c.number).where(_accounts.c.merchant_id == value("merchant_id"))
LAST_SEQUENCE: Final = select(func.coalesce(func.max(_transactions.c.sequence), ZERO)).where(
    _transactions.c.account == value("account")
)


def _last_by() -> Select[Any]:
    """An account's last transaction up to an instant, with the balance after it.

    Found by halving, since time never goes back along an account (L2): an index by time would cost every posting.
    """
    t, account = _transactions.c, _transactions.c.account == value("account")
    none: Any = literal_column("CAST(0 AS BIGINT)", BigInteger)
    begun = select(none.label("found"), LAST_SEQUENCE.scalar_subquery().label("last"))
    halving = begun.cte("halving", recursive=True)
    found, last = halving.c.found, halving.c.last
    middle = (found + last + ONE).op(">>", return_type=BigInteger())(ONE)
    told_at = select(t.created_at).where(account, t.sequence == middle).correlate(halving).scalar_subquery()
    is_by = told_at <= value("at")
    halved = select(case((is_by, middle), else_=found), case((is_by, last), else_=middle - ONE)).where(found < last)
    halving = halving.union_all(halved)
    the_last = select(func.max(halving.c.found)).scalar_subquery()
    return select(t.sequence, t.balance_after).where(account, t.sequence == the_last)


LAST_BY: Final = _last_by()
STRAYS: Final = (
    select(_transactions.c.account, _transactions.c.sequence)
    .where(~select(_accounts.c.number).where(_accounts.c.number == _transactions.c.account).exists())
    .limit(literal_column("100"))
)


def _matching(present: frozenset[str]) -> list[Any]:
    t = _transactions.c
    conditions = {
        "operation": t.operation == value("operation"),
        "type": t.type == value("type"),
        "start_at": t.created_at >= value("start_at"),
        "end_at": t.created_at < value("end_at"),
        "reference_type": t.reference_type == value("reference_type"),
        "reference_id": t.reference_id == value("reference_id"),
    }
    return [condition for name, condition in conditions.items() if name in present]


@lru_cache(maxsize=128)
def _history(present: frozenset[str], *, counted: bool = False) -> Select[Any]:
    """The statement that lists (or counts) an account's transactions by these conditions, the newest first.

    With `merchant_id` the account is found by its merchant, else by its number.
    Those between two sequences, `after` and `before`; without a condition on their content an offset is arithmetic,
    since sequences have no gaps.
    """
    t, a = _transactions.c, _accounts.c
    wanted = _matching(present)
    end, offset = number("before"), number("offset")
    is_owner = a.merchant_id == value("merchant_id") if "merchant_id" in present else a.number == value("account")
    # Subqueries, because with a join PostgreSQL sorts the whole history: it does not know that only one account joins.
    inside = [t.account == select(a.number).where(is_owner).scalar_subquery(), t.sequence > number("after"), *wanted]
    if counted:
        return select(func.count()).select_from(_transactions).where(*inside, t.sequence < end)
    due, owner = [select(column).where(is_owner).scalar_subquery() for column in (a.next_due_at, a.merchant_id)]
    page = select(_transactions, due, owner).order_by(t.sequence.desc()).limit(number("limit"))
    if wanted:
        return page.where(*inside, t.sequence < end).offset(offset)
    return page.where(*inside, t.sequence < end - offset)


@lru_cache(maxsize=256)
def _listing(present: frozenset[str], lanes: int, *, counted: bool = False) -> Any:
    """The statement that lists (or counts) the transactions of all accounts, the newest of each lane first.

    It goes by the outbox's key: each transaction has one announcement of its own, and those of a lane stand in the
    order of their commits. Each row begins with the lane, the position in it, and the instant.
    """
    t, e = _transactions.c, _events.c
    own = e.type.in_(literals(OF_A_TRANSACTION))
    joined = _events.join(_transactions, (t.account == e.account) & (t.sequence == e.sequence))
    wanted = [own, *_matching(present)]
    if counted:
        return select(func.count()).select_from(joined).where(*wanted)
    pages = []
    for lane in range(lanes):
        page = select(*[e[name] for name in _PLACE], *_with_merchant)
        page = page.select_from(joined.join(_accounts, _accounts.c.number == t.account))
        page = page.where(e.lane == literal_column(str(lane)), e.id < number(f"before_{lane}"), *wanted)
        pages.append(page.order_by(e.id.desc()).limit(number("limit")))
    if lanes == 1:
        return pages[0]
    return union_all(*[select(page.subquery()) for page in pages])


_t: Final = _transactions.c
_by_time: Final = _t.type.in_(literals(BY_TIME))
_added: Final = case((_t.operation == literal_column("'INCREASE'"), _t.amount), else_=ZERO)
_dated: Final = case((_by_time, _t.occurred_at), else_=_t.created_at)
_sums: Final = select(_t.type, func.count(), func.sum(_added), func.sum(_t.amount - _added), func.max(_dated))
TOTALS: Final = _sums.where(
    _t.account == value("account"), _t.sequence > number("after"), _t.sequence < number("before")
).group_by(_t.type)
"""The sums of an account's transactions between two sequences, by their type."""
_later: Final = _transactions.alias("later")
_next: Final = (
    select(_later.c.sequence)
    .where(
        _later.c.account == value("account"),
        _later.c.sequence > value("sequence"),
        _later.c.type.not_in(literals(BY_TIME)),
    )
    .order_by(_later.c.sequence)
    .limit(ONE)
    .scalar_subquery()
)
# The first posting after an instant begins with what time did up to then: none of that is behind anything else.
LATE: Final = _sums.where(
    _t.account == value("account"),
    _t.sequence > value("sequence"),
    _t.sequence < func.coalesce(_next, literal_column(str(_NEWEST))),
    _t.occurred_at <= value("at"),
).group_by(_t.type)
"""What time did to an account by an instant, in sums: the account's next posting wrote those transactions."""


class TransactionQuery(NamedTuple):
    """Which transactions to list; newest first. `start_at` is inclusive, `end_at` exclusive.

    An account is given by its number, or for a page by its merchant; without either the query is of all accounts.
    """

    account: int | None = None
    merchant_id: str | None = None
    operation: str | None = None
    type: str | None = None
    start_at: int | None = None
    end_at: int | None = None
    reference_type: str | None = None
    reference_id: str | None = None


class PeriodTotal(NamedTuple):
    """The sums of one transaction type in a period; `last_at` is the date of the last one (L7)."""

    transactions: int
    added: int
    taken: int
    last_at: int


class Period(NamedTuple):
    """The balance before a period, and the sums of its transactions by type."""

    opening: int
    totals: Mapping[str, PeriodTotal]


class PositionedTransaction(NamedTuple):
    """A transaction, and the position from which a listing goes on after it.

    `due_at`: in the listing of one account, the next instant at which time changes that account.
    """

    position: Position
    transaction: Transaction
    due_at: int | None = None


class Transactions:
    """The transactions of a ledger; a listing of all accounts has a position in each of its `lanes`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.lanes = engine.lanes

    async def get(self, address: Address) -> Transaction | None:
        values = {"account": address.account, "sequence": address.number}

        if address.kind != TRANSACTION:
            return None
        found = await self._engine.read(asking(Ask(ONE_TRANSACTION, values)))
        return _transaction(found[0]) if found else None

    async def page(
        self, query: TransactionQuery, before: Position | None, limit: int, offset: int = 0
    ) -> list[PositionedTransaction]:
        """Transactions that match, newest first, from the position after `before`, without the first `offset`.

        Of all accounts: those of one lane come in the order of their commits, and lanes are merged by time.
        """
        values = asked(query) | {"limit": limit, "offset": offset}
        merchant = {} if query.merchant_id is None else {"merchant_id": query.merchant_id}

        def of_account() -> Read[list[PositionedTransaction]]:
            by, account = merchant, query.account
            if account is None and (query.start_at is not None or query.end_at is not None or offset):
                by = {}
                ((account,),) = (yield Ask(NUMBER, merchant)) or [(0,)]
            between = yield from _between(query, account, None if before is None else before[0], counting=offset > 0)
            found = yield Ask(_history(_filters(query).union(by)), values | between | {"account": account} | by)
            return [PositionedTransaction((row[1],), rows.transaction(row[-1], row[:-2]), row[-2]) for row in found]

        def of_all() -> Read[list[PositionedTransaction]]:
            start = before or (_NEWEST,) * self._engine.lanes
            places = {f"before_{lane}": position for lane, position in enumerate(start)}
            question = _listing(frozenset(asked(query)), self._engine.lanes)
            found = yield Ask(question, values | places | {"limit": limit + offset})
            page = list(_newest_first(found, start))[offset : offset + limit]
            return [PositionedTransaction(position, _transaction(row)) for position, row in page]

        return await self._engine.read(of_account if merchant or query.account is not None else of_all)

    async def count(self, query: TransactionQuery) -> int:
        values = asked(query)

        def of_account() -> Read[int]:
            between = yield from _between(query, query.account, None, counting=True)
            if not _filters(query):
                return between["before"] - between["after"] - 1
            ((found,),) = yield Ask(_history(_filters(query), counted=True), values | between)
            return int(found)

        def of_all() -> Read[int]:
            ((found,),) = yield Ask(_listing(frozenset(values), self._engine.lanes, counted=True), values)
            return int(found)

        return await self._engine.read(of_all if query.account is None else of_account)

    async def totals(self, account: int, start_at: int | None = None, end_at: int | None = None) -> Period:
        """The sums of a period. What time did counts at the instant when it was due (L7), not when it was written."""

        def read() -> Read[Period]:
            after, opening, end = 0, 0, _NEWEST
            sums: Mapping[str, PeriodTotal] = {}
            if end_at is not None:
                last, _, sums = yield from cut(account, max(end_at, start_at or end_at) - 1)
                end = last + 1
            if start_at is not None:
                after, opening, early = yield from cut(account, start_at - 1)
                sums = _plus(sums, early, -1)
            found = _period_totals((yield Ask(TOTALS, {"account": account, "after": after, "before": end})))
            sums = _plus(sums, found, 1)
            return Period(opening, {type_: total for type_, total in sums.items() if total.transactions})

        return await self._engine.read(read)

    async def strays(self) -> list[tuple[int, int]]:
        """Transactions of accounts that do not exist, as (account's number, sequence); no posting leaves any behind."""
        return [(account, sequence) for account, sequence in await self._engine.read(asking(Ask(STRAYS)))]


def _filters(query: TransactionQuery) -> frozenset[str]:
    """The conditions of a query on the content of a transaction; sequences answer the others (account and time)."""
    return frozenset(asked(query)) - {"account", "merchant_id", "start_at", "end_at"}


def _between(
    query: TransactionQuery, account: int | None, before: int | None, *, counting: bool = False
) -> Read[dict[str, int]]:
    """The sequences between which an account's transactions of a query lie, both exclusive.

    `counting`: the upper one must be the sequence of a transaction, or the next one after the last.
    """
    after, end = 0, _NEWEST if before is None else before
    if query.start_at is not None:
        after, _ = yield from last_by(account, query.start_at - 1)
    if query.end_at is not None:
        last, _ = yield from last_by(account, query.end_at - 1)
        end = min(end, last + 1)
    elif counting:
        ((last,),) = yield Ask(LAST_SEQUENCE, {"account": account})
        end = min(end, last + 1)
    return {"after": after, "before": max(end, after + 1)}


def cut(account: int, at: int) -> Read[tuple[int, int, dict[str, PeriodTotal]]]:
    """An account after everything that is dated up to an instant (L7).

    Returns the sequence of the last transaction written by then, the balance at `at`, and the sums of what time did
    between the two.
    """
    sequence, balance = yield from last_by(account, at)
    late = _period_totals((yield Ask(LATE, {"account": account, "sequence": sequence, "at": at})))
    return sequence, balance + sum([total.added - total.taken for total in late.values()]), late


def _period_totals(found: Iterable[Row]) -> dict[str, PeriodTotal]:
    return {type_: PeriodTotal(*map(int, sums)) for type_, *sums in found}


def _plus(some: Mapping[str, PeriodTotal], more: Mapping[str, PeriodTotal], sign: int) -> dict[str, PeriodTotal]:
    sums = dict(some)
    for type_, (count, added, taken, last_at) in more.items():
        old = sums.get(type_, _NOTHING)
        newest = max(old.last_at, last_at) if sign > 0 else old.last_at
        sums[type_] = PeriodTotal(
            old.transactions + sign * count, old.added + sign * added, old.taken + sign * taken, newest
        )
    return sums


_NOTHING: Final = PeriodTotal(0, 0, 0, 0)


def last_by(account: int | None, at: int) -> Read[tuple[int, int]]:
    """The sequence of an account's last transaction up to an instant, and the balance after it; (0, 0) if none."""
    found = yield Ask(LAST_BY, {"account": account, "at": at})
    return (found[0][0], found[0][1]) if found else (0, 0)


def _transaction(row: Row) -> Transaction:
    """A transaction from its row, which ends with its merchant."""
    return rows.transaction(row[-1], row[:-1])


def _newest_first(found: Sequence[Row], start: Position) -> Iterator[tuple[Position, Row]]:
    """The lanes' rows as one list, each with the position after it.

    A lane's rows keep their order, whatever their instants; among lanes the newest comes first.
    """
    position = list(start)
    for row in merge(*by_lane(found).values(), key=itemgetter(2), reverse=True):
        position[row[0]] = row[1]
        yield tuple(position), row[len(_PLACE) :]
