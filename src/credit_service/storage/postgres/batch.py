"""A decided batch: the values that it writes, as rows of tables, and what became of it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import Table

from credit_service.storage import rows, tables
from credit_service.storage.engine import Committed, Work, Writes
from credit_service.storage.loading import Loading
from credit_service.storage.postgres.lanes import lane_of
from credit_service.storage.questions import Row
from credit_service.storage.recent import STORED, CommitState


class TableRows(NamedTuple):
    """Rows of a table, and how they are written (see `statements.Part`)."""

    table: Table
    how: str
    rows: Sequence[Row]


class LastEvent(NamedTuple):
    """The id of the last event of a lane, as far as this process knows, and the commit that wrote it."""

    id: int
    commit: CommitState


def stored_events(lanes: Iterable[int], ids: Iterable[int]) -> dict[int, LastEvent]:
    """The last events of lanes, as the database told them."""
    return {lane: LastEvent(id_, STORED) for lane, id_ in zip(lanes, ids, strict=True)}


class DecidedBatch:
    """A batch that was decided. Used as a context: at its end it is lost unless it was committed.

    `before`: the last event of each of its lanes, ascending, before it.
    """

    __slots__ = ("before", "commit", "last_ids", "loading", "now", "parts", "places", "writes")

    def __init__(self, loading: Loading, now: int, before: Mapping[int, LastEvent], work: Work) -> None:
        self.loading = loading
        self.now = now
        self.before = before
        self.writes = work(loading.loaded(now))
        self.last_ids = {lane: event.id for lane, event in before.items()}  # of the lanes, after it
        self.places = _places(self.writes, self.last_ids)
        self.parts = _parts(self.writes, loading.granted, self.places)
        self.commit = CommitState()

    @property
    def committed(self) -> Committed:
        """What the caller receives after the commit."""
        return Committed(self.writes, self.places)

    @property
    def ids_before(self) -> list[int]:
        """The last event of each of its lanes, ascending, before it."""
        return [event.id for event in self.before.values()]

    def lose(self) -> None:
        """It will not be committed: nothing may rest on it."""
        self.commit.lost = True

    def __enter__(self) -> "DecidedBatch":
        return self

    def __exit__(self, *error: object) -> None:
        if self.commit.version is None:
            self.lose()


def _places(writes: Writes, last_ids: dict[int, int]) -> list[tuple[int, int]]:
    """The lane and the id of each announcement; `last_ids` of the lanes move on."""
    lanes = {number: lane_of(account.merchant_id) for number, account in writes.accounts.items()}
    places: list[tuple[int, int]] = []
    for account, _ in writes.announcements:
        lane = lanes.get(account, 0)  # only tests write events of an account that they do not write
        last_ids[lane] = last_ids.get(lane, 0) + 1
        places.append((lane, last_ids[lane]))
    return places


def _parts(writes: Writes, granted: Mapping[int, int], places: Sequence[tuple[int, int]]) -> list[TableRows]:
    """The rows of each table, the accounts first.

    `granted`: the accounts that existed before, with the number of their last grant.
    """
    accounts = [rows.account_row(account) for account in writes.accounts.values()]
    old_grants: list[Row] = []
    new_grants: list[Row] = []
    for (account, number), grant in writes.grants.items():
        (new_grants if number > granted.get(account, 0) else old_grants).append(rows.grant_row(account, grant))
    parts = [
        TableRows(tables.accounts, "insert", [row for row in accounts if row[0] not in granted]),
        TableRows(tables.accounts, "update", [row for row in accounts if row[0] in granted]),
        TableRows(tables.transactions, "insert", [rows.transaction_row(one) for one in writes.transactions]),
        TableRows(tables.grants, "insert", new_grants),
        TableRows(tables.grants, "update", old_grants),
        TableRows(tables.events, "insert", rows.event_rows(writes.announcements, places)),
        TableRows(
            tables.given_back,
            "upsert",
            [rows.given_back_row(account, given) for (account, _), given in writes.given_back.items()],
        ),
        TableRows(
            tables.parked,
            "insert",
            [rows.parked_row(account, parked) for (account, _), parked in writes.parked.items()],
        ),
        TableRows(
            tables.dead_letters,
            "insert",
            [rows.dead_letter_row(account, letter) for account, letter in writes.dead_letters],
        ),
    ]
    return [part for part in parts if part.rows]
