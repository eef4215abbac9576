"""The outbox: announcements in the order of their commits, and the position of each reader."""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from heapq import merge
from itertools import islice
from operator import itemgetter
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from sqlalchemy import Select, func, insert, literal_column, or_, select, union_all, update

from credit_service.ledger.account import Announcement, Transaction
from credit_service.storage import rows, tables
from credit_service.storage.engine import BadRow, Engine
from credit_service.storage.questions import ONE, ZERO, Ask, Find, Read, Row, asking, number, value

T = TypeVar("T")

Position = tuple[int, ...]
"""A place in a listing: the sequence in an account, or a place in each of the outbox's lanes."""
position_of: Final = msgspec.json.Decoder(tuple[int, ...]).decode
_event_at: Final = itemgetter(tables.events.columns.keys().index("at"))
_events = tables.events
_cursors = tables.event_cursors
_mine = _cursors.c.reader == value("of")
_still = (_mine, _cursors.c.epoch == value("held"), _cursors.c.owner == value("by"))


@lru_cache(maxsize=8)
def _outbox(lanes: int) -> Any:
    """The statement that reads on from a position of the outbox, a number for each of its lanes."""
    e = _events.c
    pages = []
    for lane in range(lanes):
        page = select(_events).where(e.lane == literal_column(str(lane)), e.id > number(f"after_{lane}"))
        pages.append(page.order_by(e.id).limit(number("limit")))
    if lanes == 1:
        return pages[0]
    return union_all(*[select(page.subquery()) for page in pages])


EVENTS_OF: Final = (
    select(_events)
    .where(_events.c.account == value("account"), _events.c.number > value("after"))
    .order_by(_events.c.number)
    .limit(number("limit"))
)


@lru_cache(maxsize=8)
def _last_events(lanes: int) -> Select[Any]:
    """The statement that tells the last event of each lane, lane by lane."""
    e = _events.c
    of = [select(func.max(e.id)).where(e.lane == literal_column(str(lane))) for lane in range(lanes)]
    return select(*[func.coalesce(last.scalar_subquery(), ZERO) for last in of])


EVENT_AT: Final = select(_events.c.at).where(_events.c.lane == value("lane"), _events.c.id == value("id"))
CURSORS: Final = select(_cursors).order_by(_cursors.c.reader)
CURSOR: Final = select(_cursors).where(_mine)
INSERT_CURSOR: Final = insert(_cursors)
CLAIM: Final = (
    update(_cursors)
    .where(_mine, or_(_cursors.c.leased_until <= value("at"), _cursors.c.owner == value("by")))
    .values(owner=value("by"), epoch=_cursors.c.epoch + ONE, leased_until=value("until"))
)
ADVANCE: Final = update(_cursors).where(*_still).values(position=value("reached"), leased_until=value("until"))
RELEASE: Final = update(_cursors).where(*_still).values(leased_until=ZERO)


class StoredEvent(NamedTuple):
    """An announcement as stored in the outbox, with the transaction that it announces, if any."""

    lane: int
    id: int
    account: int
    merchant_id: str
    announcement: Announcement
    transaction: Transaction | None


class Claim(NamedTuple):
    """The right to read the outbox as one reader, until its owner releases it or another takes it after `leased_until`.

    Each claim raises `epoch`, so a process that was paused and comes back late can change nothing.
    """

    reader: str
    owner: str
    epoch: int
    position: Position
    leased_until: int


class Outbox:
    """The outbox of a ledger, divided into `lanes`. `now` is the database's clock, by which leases end."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.lanes = engine.lanes
        self.now = engine.now

    async def events(self, after: Position, limit: int) -> list[StoredEvent]:
        """The next events after a position (a number for each lane), each lane in the order of its commits.

        No later commit adds an event before a position that was read. Lanes are merged by time.
        """
        places = {f"after_{lane}": last for lane, last in enumerate(after)}
        # A batch has a few lanes at one instant: with a full page of each lane, most rows would be read in vain.
        share = min(limit, 5 * limit // self.lanes + 1)

        def read() -> Read[list[StoredEvent]]:
            lanes = by_lane((yield Ask(_outbox(self.lanes), places | {"limit": share})))
            found = merged(lanes.values(), _event_at, limit)
            cut = {lane: of_it[-1] for lane, of_it in lanes.items() if len(of_it) == share < limit}
            if any(
                row is cut.get(row[0]) for row in found
            ):  # this lane may have more rows that are older than those of other lanes
                lanes = by_lane((yield Ask(_outbox(self.lanes), places | {"limit": limit})))
                found = merged(lanes.values(), _event_at, limit)
            return (yield from events_from(found))

        return await self._engine.read(read, snapshot=False)

    async def events_of(self, account: int, after: int, limit: int) -> list[StoredEvent]:
        """An account's announcements after a number, in their order."""
        values = {"account": account, "after": after, "limit": limit}

        def read() -> Read[list[StoredEvent]]:
            return (yield from events_from((yield Ask(EVENTS_OF, values))))

        return await self._engine.read(read, snapshot=False)

    async def end(self) -> Position:
        """The position after the last event."""
        (last,) = await self._engine.read(asking(Ask(_last_events(self.lanes))))
        return tuple(last)

    async def position_at(self, at: int) -> Position:
        """The position before the first event of an instant or later, lane by lane.

        Found by halving: a lane has no gap, and its time never goes back.
        """

        def read() -> Read[Position]:
            ((*last,),) = yield Ask(_last_events(self.lanes))
            position = []
            for lane, end in enumerate(last):
                before = 0
                while before < end:
                    middle = (before + end + 1) // 2
                    ((announced_at,),) = yield Ask(EVENT_AT, {"lane": lane, "id": middle})
                    before, end = (middle, end) if announced_at < at else (before, middle - 1)
                position.append(before)
            return tuple(position)

        return await self._engine.read(read)

    async def claim(self, reader: str, owner: str, now: int, lease_seconds: float) -> Claim | None:
        """Claim the cursor of `reader`: from its position, or from the start the first time.

        None while another owner's lease lasts. `owner` is the unique name of this process.
        """
        until = now + int(lease_seconds * 1_000_000)
        if await self._engine.write([Ask(CLAIM, {"of": reader, "by": owner, "at": now, "until": until})]) == 0:
            first = Claim(reader, owner, 1, (0,) * self.lanes, until)
            if await self._cursor(reader) is not None or not await self._first_claim(first):
                return None
        claim = await self._cursor(reader)
        return claim if claim is not None and claim.owner == owner else None

    async def _first_claim(self, claim: Claim) -> bool:
        """Claim for a new reader; False if another process was faster."""
        try:
            await self._engine.write(
                [Ask(INSERT_CURSOR, claim._asdict() | {"position": position_text(claim.position)})]
            )
        except BadRow:
            return False
        return True

    async def _cursor(self, reader: str) -> Claim | None:
        found = await self._engine.read(asking(Ask(CURSOR, {"of": reader})))
        return _claim(found[0]) if found else None

    async def advance(self, claim: Claim, position: Position, now: int, lease_seconds: float) -> Claim | None:
        """Note that all up to a position was delivered, and extend the claim; None if another process has it now."""
        until = now + int(lease_seconds * 1_000_000)
        values = {**_unchanged(claim), "reached": position_text(position), "until": until}
        advanced = await self._engine.write([Ask(ADVANCE, values)]) == 1
        return claim._replace(position=position, leased_until=until) if advanced else None

    async def release(self, claim: Claim) -> None:
        """Give up the claim, so that another process can have it at once."""
        await self._engine.write([Ask(RELEASE, _unchanged(claim))])

    async def cursors(self) -> list[Claim]:
        """The claims of all readers, by name."""
        return list(map(_claim, await self._engine.read(asking(Ask(CURSORS)))))


def merged(lanes: Iterable[Iterable[T]], at: Callable[[T], int], limit: int) -> list[T]:
    """The first `limit` items of all lanes, by time; each lane keeps its order, whatever its instants.

    At one instant, which is that of a whole batch, lanes take turns.
    """
    placed = [((at(one), place, one) for place, one in enumerate(lane)) for lane in lanes]
    return [one for _, _, one in islice(merge(*placed, key=itemgetter(0, 1)), limit)]


def _unchanged(claim: Claim) -> dict[str, Any]:
    return {"of": claim.reader, "held": claim.epoch, "by": claim.owner}


def by_lane(found: Sequence[Row]) -> dict[int, list[Row]]:
    """Rows that begin with their lane, by lane: each keeps its order, whatever its instants."""
    lanes: dict[int, list[Row]] = {}
    for row in found:
        lanes.setdefault(row[0], []).append(row)
    return lanes


def events_from(found: Sequence[Row]) -> Read[list[StoredEvent]]:
    """The events of these rows, each with the transaction that it announces."""
    if not found:
        return []
    accounts = yield Find(tables.accounts, ("number",), [(account,) for account in {row[2] for row in found}])
    merchants = {row[0]: row[1] for row in accounts}
    causes = {(row[2], row[5]) for row in found if row[5] is not None}
    stored = (yield Find(tables.transactions, ("account", "sequence"), list(causes))) if causes else []
    transactions = {(row[0], row[1]): rows.transaction(merchants[row[0]], row) for row in stored}
    return [_stored_event(row, merchants[row[2]], transactions.get((row[2], row[5]))) for row in found]


def _stored_event(row: Row, merchant_id: str, cause: Transaction | None) -> StoredEvent:
    lane, id_, account, *announced, detail = row
    details = None if detail is None else msgspec.json.decode(detail)
    return StoredEvent(lane, id_, account, merchant_id, Announcement._make((*announced, details)), cause)


def position_text(position: Position) -> str:
    """A position as a cursor keeps it."""
    return msgspec.json.encode(position).decode()


def _claim(row: Row) -> Claim:
    reader, where, epoch, owner, leased_until = row
    return Claim(reader, owner, epoch, position_of(where), leased_until)
