"""Everything that is read of a ledger, said once for every engine.

A read is a generator that yields its questions and is sent their rows; an engine answers them from one snapshot. So the
engines differ in how they ask, and in nothing else.
"""

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from heapq import merge
from operator import itemgetter
from typing import Any, TypeVar
from uuid import UUID

from credit_service.ledger.account import GENESIS, Account, Grant, Transaction
from credit_service.ledger.addresses import TRANSACTION, Address
from credit_service.storage import rows, tables
from credit_service.storage import statements as sql
from credit_service.storage.base import (
    AccountQuery,
    AllAccounts,
    ApiKey,
    BadRow,
    Books,
    Claim,
    Held,
    Letter,
    LetterQuery,
    Past,
    PeriodTotal,
    Position,
    Positioned,
    PositionedParked,
    StoredEvent,
    TransactionQuery,
    Undeliverable,
    merged,
)
from credit_service.storage.erasing import Erasing
from credit_service.storage.loading import open_grants
from credit_service.storage.questions import Read
from credit_service.storage.rows import Row
from credit_service.storage.shops import Shops
from credit_service.storage.statements import Ask, Find

T = TypeVar("T")
Q = TypeVar("Q")
R = TypeVar("R")

_NEWEST = 2**63 - 1
_event_at = itemgetter(tables.events.columns.keys().index("at"))


class Reads(Shops, Erasing):
    """The reading half of `base.Store`, for an engine that can answer questions."""

    lanes: int
    streams: int

    @abstractmethod
    def _books(self, merchant_ids: Sequence[UUID] | None) -> Generator[Books]:
        """The books one after the other, all from one snapshot; runs in a thread of its own."""

    async def books(self, merchant_ids: Sequence[UUID] | None = None) -> AsyncIterator[Books]:
        """See `base.Store.books`."""
        # One thread, so that the connection is not closed before the last step has ended.
        thread = ThreadPoolExecutor(1, "books")
        in_thread = partial(asyncio.get_running_loop().run_in_executor, thread)
        steps = self._books(merchant_ids)
        try:
            while (books := await in_thread(next, steps, None)) is not None:
                yield books
        finally:
            await in_thread(steps.close)
            thread.shutdown()

    async def held(self, merchant_ids: Sequence[UUID], at: int) -> dict[UUID, Held]:
        """See `base.Store.held`."""

        def read() -> Read[dict[UUID, Held]]:
            asked = {merchant_id.bytes: merchant_id for merchant_id in merchant_ids}
            found = yield Find(tables.accounts, ("merchant_id",), [(place,) for place in asked])
            accounts = [rows.account(row, asked[row[1]]) for row in found]
            held = yield from _with_due_grants(accounts, at)
            return {one.account.merchant_id: one for one in held}

        return await self._read(read) if merchant_ids else {}

    async def accounts(self, query: AccountQuery, after: UUID | None, limit: int) -> list[Held]:
        """See `base.Store.accounts`."""
        values = _asked(query) | {"limit": limit} | ({} if after is None else {"after": after.bytes})

        def read() -> Read[list[Held]]:
            found = yield Ask(sql.account_listing(frozenset(values)), values)
            return (yield from _with_due_grants(map(rows.account, found), query.at))

        return await self._read(read)

    async def grants(self, account: int) -> list[Grant]:
        """See `base.Store.grants`."""

        def read() -> Read[list[Grant]]:
            found = yield Find(tables.grants, ("account",), [(account,)], tables.OPEN)
            return list(open_grants(found).get(account, ()))

        return await self._read(read)

    async def transaction(self, address: Address) -> Transaction | None:
        """See `base.Store.transaction`."""
        values = {"account": address.account, "sequence": address.number}

        def read() -> Read[Transaction | None]:
            found = yield Ask(sql.TRANSACTION, values)
            return next((yield from _with_merchants(found)), None)

        return await self._read(read) if address.kind == TRANSACTION else None

    async def transactions(
        self, query: TransactionQuery, before: Position | None, limit: int, offset: int = 0
    ) -> list[Positioned]:
        """See `base.Store.transactions`."""
        values = _asked(query) | {"limit": limit, "offset": offset}

        def history() -> Read[list[Positioned]]:
            between = yield from _between(query, None if before is None else before[0], counting=offset > 0)
            found = yield Ask(sql.history(_filters(query)), values | between)
            transactions = yield from _with_merchants(found)
            return [Positioned((one.sequence,), one) for one in transactions]

        def listing() -> Read[list[Positioned]]:
            start = before or (_NEWEST,) * self.lanes
            places = {f"before_{lane}": position for lane, position in enumerate(start)}
            asked = values | places | {"limit": limit + offset}
            found = yield Ask(sql.listing(frozenset(_asked(query)), self.lanes), asked)
            page = list(_newest_first(found, start))[offset : offset + limit]
            transactions = {
                (one.account, one.sequence): one for one in (yield from _with_merchants([row for _, row in page]))
            }
            return [
                Positioned(position, transactions[row[0], row[1]])
                for position, row in page
                if (row[0], row[1]) in transactions
            ]

        return await self._read(listing if query.account is None else history)

    async def count(self, query: TransactionQuery) -> int:
        """See `base.Store.count`."""
        values = _asked(query)

        def history() -> Read[int]:
            between = yield from _between(query, None, counting=True)
            if not _filters(query):
                return between["before"] - between["after"] - 1
            ((found,),) = yield Ask(sql.history(_filters(query), counted=True), values | between)
            return int(found)

        def listing() -> Read[int]:
            ((found,),) = yield Ask(sql.listing(frozenset(values), self.lanes, counted=True), values)
            return int(found)

        return await self._read(listing if query.account is None else history)

    async def totals(self, query: TransactionQuery) -> dict[str, PeriodTotal]:
        """See `base.Store.totals`."""

        def read() -> Read[dict[str, PeriodTotal]]:
            between = yield from _between(query, None)
            found = yield Ask(sql.TOTALS, between | {"account": query.account})
            return {type_: PeriodTotal(*map(int, sums)) for type_, *sums in found}

        return await self._read(read)

    async def past(self, account: int, at: int) -> Past:
        """See `base.Store.past`."""

        def read() -> Read[Past]:
            sequence, balance = yield from _last_by(account, at)
            values = {"account": account, "at": at, "sequence": sequence}
            ((lapsed,),) = yield Ask(sql.LAPSED_SINCE, values)
            pending: dict[int, int] = dict((yield Ask(sql.PENDING_THEN, values)))
            if pending:  # before it begins, a grant is only drawn on by a refund of its payment
                for (draws,) in (yield Ask(sql.PAYMENTS_REFUNDED, values)):
                    for number, change in rows.draws(draws):
                        if number in pending:
                            pending[number] += change
            return Past(balance - int(lapsed), sum(pending.values()))

        return await self._read(read)

    async def all_accounts(self, at: int, default_threshold: int) -> AllAccounts:
        """See `base.Store.all_accounts`."""

        def read() -> Read[AllAccounts]:
            ((count, enabled, low, average),) = yield Ask(
                sql.ALL_IN_SUM, {"at": at, "default_threshold": default_threshold}
            )
            return AllAccounts(count, enabled, count - enabled, low, float(average or 0))

        return await self._read_long(read)

    async def due_accounts(self, at: int) -> list[Held]:
        """See `base.Store.due_accounts`."""

        def read() -> Read[list[Held]]:
            found = yield Ask(sql.DUE_ACCOUNTS, {"at": at})
            return (yield from _with_due_grants(map(rows.account, found), at))

        return await self._read(read)

    async def due(self, at: int, limit: int) -> list[UUID]:
        """See `base.Store.due`."""
        values = {"at": at, "limit": limit}

        def read() -> Read[list[UUID]]:
            found = sorted([*(yield Ask(sql.DUE, values)), *(yield Ask(sql.OVERDUE, values))])
            merchants = dict.fromkeys([merchant for _, merchant in found])
            return [UUID(bytes=merchant) for merchant in merchants][:limit]

        return await self._read(read)

    async def drifting(self, after: UUID | None, limit: int) -> tuple[list[UUID], UUID | None]:
        """See `base.Store.drifting`."""
        values = {"after": b"" if after is None else after.bytes, "limit": limit, "genesis": GENESIS}

        def read() -> Read[tuple[list[UUID], UUID | None]]:
            found = yield Ask(sql.DRIFT, values)
            drifting = [UUID(bytes=merchant) for merchant, disagrees in found if disagrees]
            return drifting, UUID(bytes=found[-1][0]) if len(found) == limit else None

        return await self._read(read)

    async def parked_count(self) -> int:
        """See `base.Store.parked_count`."""

        def read() -> Read[int]:
            ((count,),) = yield Ask(sql.PARKED_COUNT)
            return int(count)

        return await self._read(read)

    async def parked(self, after: tuple[int, int, str] | None, limit: int) -> list[PositionedParked]:
        """See `base.Store.parked`."""
        place = {} if after is None else dict(zip(("end", "after", "key"), after, strict=True))

        def read() -> Read[list[PositionedParked]]:
            found = yield Ask(sql.parked_listing(further=bool(place)), {**place, "limit": limit})
            return [
                PositionedParked((row[4], row[1], row[2]), UUID(bytes=row[0]), rows.parked(row[1:])) for row in found
            ]

        return await self._read(read)

    async def strays(self) -> list[tuple[int, int]]:
        """See `base.Store.strays`."""

        def read() -> Read[list[tuple[int, int]]]:
            return [(account, sequence) for account, sequence in (yield Ask(sql.STRAYS))]

        return await self._read(read)

    # ---- the outbox

    async def events(self, after: Position, limit: int) -> list[StoredEvent]:
        """See `base.Store.events`."""
        places = {f"after_{lane}": last for lane, last in enumerate(after)}
        # Else most of what is read of a backlog were in vain. A batch is of a few lanes, at one instant.
        share = min(limit, 5 * limit // self.lanes + 1)

        def read() -> Read[list[StoredEvent]]:
            by_lane = _by_lane((yield Ask(sql.outbox(self.lanes), places | {"limit": share})))
            found = merged(by_lane.values(), _event_at, limit)
            cut = {lane: of_it[-1] for lane, of_it in by_lane.items() if len(of_it) == share < limit}
            if any(row is cut.get(row[0]) for row in found):  # there may be more of it from before what others have
                by_lane = _by_lane((yield Ask(sql.outbox(self.lanes), places | {"limit": limit})))
                found = merged(by_lane.values(), _event_at, limit)
            return (yield from told(found))

        return await self._read(read, snapshot=False)

    async def events_of(self, account: int, after: int, limit: int) -> list[StoredEvent]:
        """See `base.Store.events_of`."""
        values = {"account": account, "after": after, "limit": limit}

        def read() -> Read[list[StoredEvent]]:
            return (yield from told((yield Ask(sql.EVENTS_OF, values))))

        return await self._read(read, snapshot=False)

    async def last_events(self) -> Position:
        """See `base.Store.last_events`."""

        def read() -> Read[Position]:
            (last,) = yield Ask(sql.last_events(self.lanes))
            return tuple(last)

        return await self._read(read)

    async def position_at(self, at: int) -> Position:
        """See `base.Store.position_at`. Found by halving: within a lane there is no gap, and time goes on."""

        def read() -> Read[Position]:
            ((*last,),) = yield Ask(sql.last_events(self.lanes))
            position = []
            for lane, end in enumerate(last):
                before = 0
                while before < end:
                    middle = (before + end + 1) // 2
                    ((told_at,),) = yield Ask(sql.EVENT_AT, {"lane": lane, "id": middle})
                    before, end = (middle, end) if told_at < at else (before, middle - 1)
                position.append(before)
            return tuple(position)

        return await self._read(read)

    async def claim(self, reader: str, owner: str, now: int, lease_seconds: float) -> Claim | None:
        """See `base.Store.claim`."""
        until = now + int(lease_seconds * 1_000_000)
        if await self._write([Ask(sql.CLAIM, {"of": reader, "by": owner, "at": now, "until": until})]) == 0:
            first = Claim(reader, owner, 1, (0,) * self.lanes, until)
            if await self._cursor(reader) is not None or not await self._first_claim(first):
                return None
        claim = await self._cursor(reader)
        return claim if claim is not None and claim.owner == owner else None

    async def _first_claim(self, claim: Claim) -> bool:
        """Claim for a reader that is new; False where another was faster."""
        try:
            await self._write(
                [Ask(sql.INSERT_CURSOR, claim._asdict() | {"position": rows.position_text(claim.position)})]
            )
        except BadRow:
            return False
        return True

    async def _cursor(self, reader: str) -> Claim | None:
        def read() -> Read[Claim | None]:
            return next(map(rows.claim, (yield Ask(sql.CURSOR, {"of": reader}))), None)

        return await self._read(read)

    async def advance(self, claim: Claim, position: Position, now: int, lease_seconds: float) -> Claim | None:
        """See `base.Store.advance`."""
        until = now + int(lease_seconds * 1_000_000)
        values = {**_still(claim), "reached": rows.position_text(position), "until": until}
        advanced = await self._write([Ask(sql.ADVANCE, values)]) == 1
        return claim._replace(position=position, leased_until=until) if advanced else None

    async def release(self, claim: Claim) -> None:
        """See `base.Store.release`."""
        await self._write([Ask(sql.RELEASE, _still(claim))])

    async def cursors(self) -> list[Claim]:
        """See `base.Store.cursors`."""

        def read() -> Read[list[Claim]]:
            return list(map(rows.claim, (yield Ask(sql.CURSORS))))

        return await self._read(read)

    async def drop_cursor(self, reader: str) -> None:
        """See `base.Store.drop_cursor`."""
        await self._write([Ask(sql.DROP_CURSOR, {"of": reader})])

    # ---- dead letters

    async def put_aside(self, letters: Sequence[Undeliverable]) -> int:
        """See `base.Store.put_aside`."""
        asks = [Ask(sql.PUT_ASIDE, {**one._asdict(), "message_hash": rows.message_hash(one)}) for one in letters]
        return await self._write(asks) if asks else 0

    async def dead_letters(self, query: LetterQuery, before: int | None, limit: int) -> list[Letter]:
        """See `base.Store.dead_letters`."""
        values = _asked(query) | ({} if before is None else {"before": before})

        def read() -> Read[list[Letter]]:
            found = yield Ask(sql.letters(frozenset(values)), values | {"limit": limit})
            return list(map(rows.letter, found))

        return await self._read(read)

    async def dead_letter(self, id_: int) -> Letter | None:
        """See `base.Store.dead_letter`."""

        def read() -> Read[Letter | None]:
            return next(map(rows.letter, (yield Ask(sql.LETTER, {"id": id_}))), None)

        return await self._read(read)

    async def dead_letter_count(self, query: LetterQuery) -> int:
        """See `base.Store.dead_letter_count`."""
        values = _asked(query)

        def read() -> Read[int]:
            ((count,),) = yield Ask(sql.letters(frozenset(values), counted=True), values)
            return int(count)

        return await self._read(read)

    async def unpublished_dead_letters(self, limit: int) -> list[Letter]:
        """See `base.Store.unpublished_dead_letters`."""

        def read() -> Read[list[Letter]]:
            return list(map(rows.letter, (yield Ask(sql.UNPUBLISHED, {"limit": limit}))))

        return await self._read(read)

    async def published_dead_letters(self, ids: Sequence[int], at: int) -> None:
        """See `base.Store.published_dead_letters`."""
        if ids:
            await self._write([Ask(sql.PUBLISHED, {"key": id_, "published": at}) for id_ in ids])

    async def replayed_dead_letter(self, id_: int, at: int) -> bool:
        """See `base.Store.replayed_dead_letter`."""
        return await self._write([Ask(sql.REPLAYED, {"key": id_, "replayed": at})]) == 1

    # ---- API keys

    async def add_key(self, key: ApiKey) -> None:
        """See `base.Store.add_key`."""
        await self._write([Ask(sql.INSERT_KEY, key._asdict())])

    async def keys(self) -> list[ApiKey]:
        """See `base.Store.keys`."""

        def read() -> Read[list[ApiKey]]:
            return list(map(rows.api_key, (yield Ask(sql.KEYS))))

        return await self._read(read)

    async def key(self, key_id: str) -> ApiKey | None:
        """See `base.Store.key`."""

        def read() -> Read[ApiKey | None]:
            return next(map(rows.api_key, (yield Ask(sql.KEY, {"id": key_id}))), None)

        return await self._read(read)

    async def revoke_key(self, key_id: str, at: int) -> bool:
        """See `base.Store.revoke_key`."""
        return await self._write([Ask(sql.REVOKE_KEY, {"key": key_id, "revoked": at})]) == 1

    async def use_keys(self, used: Mapping[str, int]) -> None:
        """See `base.Store.use_keys`."""
        if used:
            await self._write([Ask(sql.USE_KEY, {"key": key_id, "used": at}) for key_id, at in used.items()])

    # ---- the gate

    async def gate_policies(self) -> dict[UUID, str]:
        """See `base.Store.gate_policies`."""

        def read() -> Read[dict[UUID, str]]:
            return {UUID(bytes=merchant): fail for merchant, fail in (yield Ask(sql.GATE_POLICIES))}

        return await self._read(read)

    async def set_gate_policy(self, merchant_id: UUID, fail: str | None) -> None:
        """See `base.Store.set_gate_policy`."""
        asks = [Ask(sql.DROP_GATE_POLICY, {"of": merchant_id.bytes})]
        if fail is not None:
            asks.append(Ask(sql.INSERT_GATE_POLICY, {"merchant_id": merchant_id.bytes, "fail": fail}))
        await self._write(asks)


def _still(claim: Claim) -> dict[str, Any]:
    return {"of": claim.reader, "held": claim.epoch, "by": claim.owner}


def _asked(query: AccountQuery | TransactionQuery | LetterQuery) -> dict[str, Any]:
    return {name: value for name, value in query._asdict().items() if value is not None and value is not False}


def _filters(query: TransactionQuery) -> frozenset[str]:
    """The conditions of a query on what is in a transaction: whose and when are answered by sequences."""
    return frozenset(_asked(query)) - {"account", "start_at", "end_at"}


def _between(query: TransactionQuery, before: int | None, *, counting: bool = False) -> Read[dict[str, int]]:
    """Between which sequences an account's transactions of a query lie, both exclusive.

    `counting`: the upper one must be that of a transaction, or the next one.
    """
    assert query.account is not None
    after, end = 0, _NEWEST if before is None else before
    if query.start_at is not None:
        after, _ = yield from _last_by(query.account, query.start_at - 1)
    if query.end_at is not None:
        last, _ = yield from _last_by(query.account, query.end_at - 1)
        end = min(end, last + 1)
    elif counting:
        ((last,),) = yield Ask(sql.LAST_SEQUENCE, {"account": query.account})
        end = min(end, last + 1)
    return {"after": after, "before": max(end, after + 1)}


def _last_by(account: int, at: int) -> Read[tuple[int, int]]:
    """An account's last transaction up to an instant, and the balance after it; (0, 0) where there is none."""
    found = yield Ask(sql.LAST_BY, {"account": account, "at": at})
    return (found[0][0], found[0][1]) if found else (0, 0)


def _with_due_grants(accounts: Iterable[Account], at: int) -> Read[list[Held]]:
    accounts = list(accounts)
    due = [(a.number,) for a in accounts if a.next_due_at is not None and a.next_due_at <= at]
    grants = open_grants((yield Find(tables.grants, ("account",), due, tables.OPEN))) if due else {}
    return [Held(account, grants.get(account.number, ())) for account in accounts]


def told(found: Sequence[Row]) -> Read[list[StoredEvent]]:
    """The events of these rows, with the transactions that they tell of."""
    if not found:
        return []
    accounts = yield Find(tables.accounts, ("number",), [(number,) for number in {row[2] for row in found}])
    merchants = {row[0]: UUID(bytes=row[1]) for row in accounts}
    causes = {(row[2], row[5]) for row in found if row[5] is not None}
    stored = (yield Find(tables.transactions, ("account", "sequence"), list(causes))) if causes else []
    told = {(row[0], row[1]): rows.transaction(merchants[row[0]], row) for row in stored}
    return [rows.stored_event(row, merchants[row[2]], told.get((row[2], row[5]))) for row in found]


def _by_lane(found: Sequence[Row]) -> dict[int, list[Row]]:
    """Rows that begin with their lane, by lane: each keeps its order, whatever its instants."""
    by_lane: dict[int, list[Row]] = {}
    for row in found:
        by_lane.setdefault(row[0], []).append(row)
    return by_lane


def _with_merchants(found: Sequence[Row]) -> Read[Iterator[Transaction]]:
    """The transactions of these rows; those of no account are left out, they are for `strays` to tell."""
    if not found:
        return iter(())
    accounts = yield Find(tables.accounts, ("number",), [(number,) for number in {row[0] for row in found}])
    merchants = {row[0]: UUID(bytes=row[1]) for row in accounts}
    return (rows.transaction(merchants[row[0]], row) for row in found if row[0] in merchants)


def _newest_first(found: Sequence[Row], start: Position) -> Iterator[tuple[Position, Row]]:
    """The lanes' rows as one list, each with where all lanes stand after it.

    A lane's rows keep their order, whatever their instants; among lanes the newest comes first.
    """
    position = list(start)
    for row in merge(*_by_lane(found).values(), key=itemgetter(2), reverse=True):
        position[row[0]] = row[1]
        yield tuple(position), row[3:]


def answered(read: Generator[Q, R, T], answer: Callable[[Q], R]) -> T:
    """Run a generator of questions, with a function that answers them."""
    try:
        question = next(read)
        while True:
            question = read.send(answer(question))
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # what the generator returned


def books_of(row: Row, grants: Iterable[Row], history: Iterable[Row]) -> Books:
    """The books of an account from its rows; what cannot be read is a fault, not the end of the verification."""
    faults: list[tuple[int | None, str]] = []
    try:
        account = rows.account(row)
    except ValueError as error:
        faults.append((None, f"the account's row cannot be read: {error}"))
        account = rows.account((*row[: rows.BY_TYPE], "{}", "[]", *row[rows.BY_TYPE + 2 :]))

    def transactions() -> Iterator[Transaction]:
        for found in history:
            try:
                transaction = rows.transaction(account.merchant_id, found)
            except (ValueError, TypeError) as error:
                faults.append((found[1], f"the row cannot be read: {error}"))
                continue
            yield transaction

    return Books(account, [rows.grant(grant) for grant in grants], transactions(), faults)
