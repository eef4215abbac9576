"""What is asked of every database, built from the one schema; each engine compiles it to its own text, once.

What a statement means is said where it is used. How rows are written, and looked up by the thousand, is each engine's
own: there every microsecond counts.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    BigInteger,
    ClauseElement,
    Dialect,
    LargeBinary,
    Select,
    Table,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    union_all,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.sql.compiler import SQLCompiler

from credit_service.ledger.announcements import OF_A_TRANSACTION
from credit_service.storage import tables

_ZERO: Final[Any] = literal_column("0")
_ONE: Final[Any] = literal_column("1")
_accounts, _transactions, _grants = tables.accounts, tables.transactions, tables.grants
_parked, _events, _keys = tables.parked, tables.events, tables.api_keys


class Ask(NamedTuple):
    """A question: a statement of this module, with the values of its parameters."""

    statement: ClauseElement
    values: Mapping[str, Any] = {}


class Find(NamedTuple):
    """A question: the rows of a table at these places (values of `columns`), each named once; an index leads there."""

    table: Table
    columns: tuple[str, ...]
    places: Collection[Sequence[Any]]
    condition: str = "true"


class Statement(NamedTuple):
    """A compiled statement, with the names of its parameters in their order and the values of its constants."""

    sql: str
    names: tuple[str, ...]
    constants: Mapping[str, Any]

    def bound(self, values: Mapping[str, Any]) -> list[Any]:
        """The parameters in their order; values that the statement does not ask for are left out."""
        return [values[name] if name in values else self.constants[name] for name in self.names]


def compiled(statement: ClauseElement, dialect: Dialect) -> Statement:
    """A statement as an engine's driver takes it."""
    made = statement.compile(dialect=dialect)
    assert isinstance(made, SQLCompiler)
    return Statement(str(made), tuple(made.positiontup or ()), dict(made.params))


def _value(name: str) -> Any:
    return bindparam(name)


def _number(name: str) -> Any:
    """A parameter that no column tells the type of."""
    return bindparam(name, type_=BigInteger)


# ---- accounts and grants

ALL_GRANTS: Final = select(_grants).where(_grants.c.account == _value("account")).order_by(_grants.c.number)
_available = _accounts.c.balance - _accounts.c.held - _accounts.c.pending
_threshold = func.coalesce(_accounts.c.low_threshold, _number("default_threshold"))
ALL_IN_SUM: Final = select(
    func.count(),
    func.coalesce(func.sum(case((_available > _ZERO, _ONE), else_=_ZERO)), _ZERO),
    func.coalesce(
        func.sum(case((_available <= _ZERO, _ZERO), (_available <= _threshold, _ONE), else_=_ZERO)),
        _ZERO,
    ),
    func.avg(_accounts.c.balance),
).where(or_(_accounts.c.next_due_at.is_(None), _accounts.c.next_due_at > _value("at")))
DUE_ACCOUNTS: Final = select(_accounts).where(_accounts.c.next_due_at <= _value("at"))
ALL_ACCOUNTS: Final = select(_accounts).order_by(_accounts.c.merchant_id)
DUE: Final = (
    select(_accounts.c.next_due_at, _accounts.c.merchant_id)
    .where(_accounts.c.next_due_at.is_not(None), _accounts.c.next_due_at <= _value("at"))
    .order_by(_accounts.c.next_due_at)
    .limit(_number("limit"))
)
OVERDUE: Final = (
    select(_parked.c.until, _accounts.c.merchant_id)
    .join(_accounts, _parked.c.account == _accounts.c.number)
    .where(_parked.c.until <= _value("at"))
    .order_by(_parked.c.until)
    .limit(_number("limit"))
)
PARKED_COUNT: Final = select(func.count()).select_from(_parked)


def _drift() -> Select[Any]:
    """The next accounts by merchant, and whether each disagrees with its last transaction or its open grants."""
    a, t, g = _accounts.alias("a"), _transactions.alias("t"), _grants.alias("g")
    last = select(func.max(_transactions.c.sequence)).where(_transactions.c.account == a.c.number).scalar_subquery()
    granted = (
        select(func.coalesce(func.sum(g.c.remaining), _ZERO))
        .where(g.c.account == a.c.number, g.c.open == _ONE)
        .scalar_subquery()
    )
    disagrees = or_(
        a.c.sequence != func.coalesce(t.c.sequence, _ZERO),
        a.c.balance != func.coalesce(t.c.balance_after, _ZERO),
        a.c.last_hash != func.coalesce(t.c.hash, bindparam("genesis", type_=LargeBinary)),
        a.c.balance != granted - a.c.debt,
    )
    return (
        select(a.c.merchant_id, disagrees)
        .select_from(a.outerjoin(t, (t.c.account == a.c.number) & (t.c.sequence == last)))
        .where(a.c.merchant_id > _value("after"))
        .order_by(a.c.merchant_id)
        .limit(_number("limit"))
    )


DRIFT: Final = _drift()


@lru_cache(maxsize=32)
def account_listing(present: frozenset[str]) -> Select[Any]:
    """The statement that lists accounts by these conditions, and those of which only `settle` can tell by `at`."""
    a = _accounts.c
    status = case((_available <= 0, "EXHAUSTED"), (_available <= _threshold, "LOW"), else_="ACTIVE")
    conditions = {
        "status": status == _value("status"),
        "min_balance": a.balance >= _value("min_balance"),
        "max_balance": a.balance <= _value("max_balance"),
    }
    statement = select(_accounts)
    for name, condition in conditions.items():
        if name in present:
            statement = statement.where(or_(condition, a.next_due_at <= _value("at")))
    if "after" in present:
        statement = statement.where(a.merchant_id > _value("after"))
    return statement.order_by(a.merchant_id).limit(_number("limit"))


# ---- transactions

TRANSACTION: Final = select(_transactions).where(
    _transactions.c.account == _value("account"), _transactions.c.sequence == _value("sequence")
)
HISTORY: Final = (
    select(_transactions).where(_transactions.c.account == _value("account")).order_by(_transactions.c.sequence)
)
LAST_SEQUENCE: Final = select(func.coalesce(func.max(_transactions.c.sequence), _ZERO)).where(
    _transactions.c.account == _value("account")
)


def _last_by() -> Select[Any]:
    """An account's last transaction up to an instant, with the balance after it.

    Found by halving, since time never goes back along an account (L2): an index by time would cost every posting.
    """
    t, account = _transactions.c, _transactions.c.account == _value("account")
    none: Any = literal_column("CAST(0 AS BIGINT)", BigInteger)
    begun = select(none.label("found"), LAST_SEQUENCE.scalar_subquery().label("last"))
    halving = begun.cte("halving", recursive=True)
    found, last = halving.c.found, halving.c.last
    middle = (found + last + _ONE).op(">>", return_type=BigInteger())(_ONE)
    told_at = select(t.created_at).where(account, t.sequence == middle).correlate(halving).scalar_subquery()
    is_by = told_at <= _value("at")
    halved = select(case((is_by, middle), else_=found), case((is_by, last), else_=middle - _ONE)).where(found < last)
    halving = halving.union_all(halved)
    the_last = select(func.max(halving.c.found)).scalar_subquery()
    return select(t.sequence, t.balance_after).where(account, t.sequence == the_last)


LAST_BY: Final = _last_by()
_later = _transactions.alias("later")
_next = (
    select(_later.c.sequence)
    .where(
        _later.c.account == _value("account"),
        _later.c.sequence > _value("sequence"),
        _later.c.type != literal_column("'EXPIRY'"),
    )
    .order_by(_later.c.sequence)
    .limit(_ONE)
    .scalar_subquery()
)
# The first posting after an instant begins with all expiries up to then: none of those is behind anything else.
LAPSED_SINCE: Final = select(func.coalesce(func.sum(_transactions.c.amount), _ZERO)).where(
    _transactions.c.account == _value("account"),
    _transactions.c.sequence > _value("sequence"),
    _transactions.c.sequence < func.coalesce(_next, literal_column(str(2**63 - 1))),
    _transactions.c.occurred_at <= _value("at"),
)
PENDING_THEN: Final = select(_grants.c.number, _grants.c.amount).where(
    _grants.c.account == _value("account"),
    _grants.c.sequence <= _value("sequence"),
    _grants.c.effective_at > _value("at"),
)
PAYMENTS_REFUNDED: Final = select(_transactions.c.draws).where(
    _transactions.c.account == _value("account"),
    _transactions.c.sequence <= _value("sequence"),
    _transactions.c.type == literal_column("'PAYMENT_REFUNDED'"),
)
STRAYS: Final = (
    select(_transactions.c.account, _transactions.c.sequence)
    .where(~select(_accounts.c.number).where(_accounts.c.number == _transactions.c.account).exists())
    .limit(literal_column("100"))
)


def _matching(present: frozenset[str]) -> list[Any]:
    t = _transactions.c
    conditions = {
        "operation": t.operation == _value("operation"),
        "type": t.type == _value("type"),
        "start_at": t.created_at >= _value("start_at"),
        "end_at": t.created_at < _value("end_at"),
        "reference_type": t.reference_type == _value("reference_type"),
        "reference_id": t.reference_id == _value("reference_id"),
    }
    return [condition for name, condition in conditions.items() if name in present]


@lru_cache(maxsize=128)
def history(present: frozenset[str], *, counted: bool = False) -> Select[Any]:
    """The statement that lists (or counts) an account's transactions by these conditions, the newest first.

    Those between two sequences, `after` and `before`; without a condition on their content an offset is arithmetic,
    since sequences have no gaps.
    """
    t = _transactions.c
    wanted = _matching(present)
    end, offset = _number("before"), _number("offset")
    inside = [t.account == _value("account"), t.sequence > _number("after"), *wanted]
    if counted:
        return select(func.count()).select_from(_transactions).where(*inside, t.sequence < end)
    page = select(_transactions).order_by(t.sequence.desc()).limit(_number("limit"))
    if wanted:
        return page.where(*inside, t.sequence < end).offset(offset)
    return page.where(*inside, t.sequence < end - offset)


@lru_cache(maxsize=256)
def listing(present: frozenset[str], lanes: int, *, counted: bool = False) -> Any:
    """The statement that lists (or counts) the transactions of all accounts, the newest of each lane first.

    It goes by the outbox's key: each transaction has one announcement of its own, and those of a lane stand in the
    order of their commits. Each row begins with the lane, the position in it, and the instant.
    """
    t, e = _transactions.c, _events.c
    own = e.type.in_([literal_column(f"'{type_}'") for type_ in sorted(OF_A_TRANSACTION)])
    joined = _events.join(_transactions, (t.account == e.account) & (t.sequence == e.sequence))
    wanted = [own, *_matching(present)]
    if counted:
        return select(func.count()).select_from(joined).where(*wanted)
    pages = []
    for lane in range(lanes):
        page = select(e.lane, e.id, e.at, _transactions).select_from(joined)
        page = page.where(e.lane == literal_column(str(lane)), e.id < _number(f"before_{lane}"), *wanted)
        pages.append(page.order_by(e.id.desc()).limit(_number("limit")))
    if lanes == 1:
        return pages[0]
    return union_all(*[select(page.subquery()) for page in pages])


def _totals() -> Select[Any]:
    """What an account's transactions between two sequences come to, by their type."""
    t = _transactions.c
    added = case((t.operation == literal_column("'INCREASE'"), t.amount), else_=_ZERO)
    sums = (func.count(), func.sum(added), func.sum(t.amount - added), func.max(t.created_at))
    between = (t.account == _value("account"), t.sequence > _number("after"), t.sequence < _number("before"))
    return select(t.type, *sums).where(*between).group_by(t.type)


TOTALS: Final = _totals()

# ---- the outbox

_cursors = tables.event_cursors
_mine = _cursors.c.reader == _value("of")
_still = (_mine, _cursors.c.epoch == _value("held"), _cursors.c.owner == _value("by"))


@lru_cache(maxsize=8)
def outbox(lanes: int) -> Any:
    """The statement that reads on from a position of the outbox, a number for each of its lanes."""
    e = _events.c
    pages = []
    for lane in range(lanes):
        page = select(_events).where(e.lane == literal_column(str(lane)), e.id > _number(f"after_{lane}"))
        pages.append(page.order_by(e.id).limit(_number("limit")))
    if lanes == 1:
        return pages[0]
    return union_all(*[select(page.subquery()) for page in pages])


EVENTS_OF: Final = (
    select(_events)
    .where(_events.c.account == _value("account"), _events.c.number > _value("after"))
    .order_by(_events.c.number)
    .limit(_number("limit"))
)


@lru_cache(maxsize=8)
def last_events(lanes: int) -> Select[Any]:
    """The statement that tells the last event of each lane, lane by lane."""
    e = _events.c
    of = [select(func.max(e.id)).where(e.lane == literal_column(str(lane))) for lane in range(lanes)]
    return select(*[func.coalesce(last.scalar_subquery(), _ZERO) for last in of])


EVENT_AT: Final = select(_events.c.at).where(_events.c.lane == _value("lane"), _events.c.id == _value("id"))
CURSORS: Final = select(_cursors).order_by(_cursors.c.reader)
CURSOR: Final = select(_cursors).where(_mine)
INSERT_CURSOR: Final = insert(_cursors)
CLAIM: Final = (
    update(_cursors)
    .where(_mine, or_(_cursors.c.leased_until <= _value("at"), _cursors.c.owner == _value("by")))
    .values(owner=_value("by"), epoch=_cursors.c.epoch + _ONE, leased_until=_value("until"))
)
ADVANCE: Final = update(_cursors).where(*_still).values(position=_value("reached"), leased_until=_value("until"))
RELEASE: Final = update(_cursors).where(*_still).values(leased_until=_ZERO)
DROP_CURSOR: Final = delete(_cursors).where(_mine)

# ---- what waits, and what was put aside

_letters = tables.dead_letters


@lru_cache(maxsize=2)
def parked_listing(*, further: bool) -> Select[Any]:
    """The statement that lists what is parked with its merchant, by the end of its wait; `further` than a place."""
    p = _parked.c
    joined = _parked.join(_accounts, p.account == _accounts.c.number)
    statement = select(_accounts.c.merchant_id, _parked).select_from(joined).order_by(p.until, p.account, p.key)
    if further:
        later = or_(p.account > _value("after"), (p.account == _value("after")) & (p.key > _value("key")))
        statement = statement.where(or_(p.until > _value("end"), (p.until == _value("end")) & later))
    return statement.limit(_number("limit"))


# Both engines understand what is written here for one of them.
PUT_ASIDE: Final = (
    postgresql.insert(_letters)
    .values({name: _value(name) for name in ("subject", "original", "message_hash", "code", "reason", "at")})
    .on_conflict_do_nothing(index_elements=["message_hash"])
)
LETTER: Final = select(_letters).where(_letters.c.id == _value("id"))
UNPUBLISHED: Final = (
    select(_letters).where(_letters.c.published_at.is_(None)).order_by(_letters.c.id).limit(_number("limit"))
)
PUBLISHED: Final = update(_letters).where(_letters.c.id == _value("key")).values(published_at=_value("published"))
REPLAYED: Final = update(_letters).where(_letters.c.id == _value("key")).values(replayed_at=_value("replayed"))


@lru_cache(maxsize=64)
def letters(present: frozenset[str], *, counted: bool = False) -> Select[Any]:
    """The statement that lists (or counts) dead letters by these conditions, newest first."""
    c = _letters.c
    # What the ledger put aside has no subject, but a kind.
    of_subject = c.subject == _value("subject")
    conditions = {
        "code": c.code == _value("code"),
        "subject": or_(of_subject, c.kind == _value("kind")) if "kind" in present else of_subject,
        "unreplayed": c.replayed_at.is_(None),
        "before": c.id < _value("before"),
    }
    wanted = [condition for name, condition in conditions.items() if name in present]
    if counted:
        return select(func.count()).select_from(_letters).where(*wanted)
    return select(_letters).where(*wanted).order_by(c.id.desc()).limit(_number("limit"))


# ---- API keys

INSERT_KEY: Final = insert(_keys)
KEY: Final = select(_keys).where(_keys.c.id == _value("id"))
KEYS: Final = select(_keys).order_by(_keys.c.created_at.desc(), _keys.c.id)
REVOKE_KEY: Final = (
    update(_keys)
    .where(_keys.c.id == _value("key"))
    .values(revoked_at=func.coalesce(_keys.c.revoked_at, _value("revoked")))
)
USE_KEY: Final = update(_keys).where(_keys.c.id == _value("key")).values(last_used_at=_value("used"))

# ---- the gate

_policies = tables.gate_policies
GATE_POLICIES: Final = select(_policies)
INSERT_GATE_POLICY: Final = insert(_policies)
DROP_GATE_POLICY: Final = delete(_policies).where(_policies.c.merchant_id == _value("of"))
