"""A decided batch: the values that it writes, as rows of tables, and what became of it."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from credit_service.storage import rows
from credit_service.storage.engine import Committed, Work, Writes
from credit_service.storage.loading import Loading
from credit_service.storage.postgres.lanes import lane_of
from credit_service.storage.recent import STORED, CommitState


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
        self.parts = rows.all_rows(self.writes, loading.granted, self.places)
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
