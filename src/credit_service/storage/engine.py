"""The port to a database: what an engine must do, and the errors and values of the posting path.

An engine posts, answers questions and carries out statements. What is kept of a subject (accounts, the outbox, API
keys …), and which questions there are about it, is said once over any engine, in the module of that subject. The laws
of an engine stand once, as tests, in `tests/storage/contract.py`; each engine passes them unchanged.
"""

from asyncio import Future
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from credit_service.ledger.account import (
    Account,
    Announcement,
    DeadLetter,
    GivenBack,
    Grant,
    Parked,
    Transaction,
)
from credit_service.ledger.decide import Needs
from credit_service.storage.questions import Ask, Read

if TYPE_CHECKING:
    from credit_service.storage.clock import Clock

T = TypeVar("T")


class StorageError(Exception):
    """The database could not do its work. The message is one sentence for an operator, without secrets."""


class Conflict(StorageError):
    """Nothing was done because of a conflict with another user of the database; the same again may work."""


class StorageUnavailable(StorageError):
    """Nothing was done, and an immediate retry will not help: read-only, full, gone."""


class OutcomeUnknown(StorageError):
    """The answer of the commit was lost. Run the batch again: the keys show what was done."""


class InUse(StorageUnavailable):
    """Another process has opened the database, and it admits only one."""


class BadRow(StorageError):
    """The database refused a row: a command of the batch breaks a constraint."""


class SchemaError(StorageError):
    """The database's schema is not the one this release works with."""


class Record:
    """What is known of one merchant within a batch: loaded first, then updated by each decision."""

    __slots__ = ("account", "firsts", "given_back", "grants", "known_grants", "number", "parked", "trial")

    def __init__(self, account: Account | None, number: int) -> None:
        self.account = account
        self.number = number  # of the account, also if it is still to be opened
        self.grants: tuple[Grant, ...] = ()  # the open ones, in burn-down order
        self.known_grants: dict[int, Grant] = {}  # those that a refunded order drew on, and those changed since
        self.firsts: dict[str, Transaction] = {}  # by idempotency key
        self.trial: Transaction | None = None
        self.given_back: dict[str, GivenBack] = {}  # by the key of the order or payment
        self.parked: dict[str, Parked] = {}  # all parked refunds of the merchant, by their own key

    def copy(self) -> "Record":
        """A copy to decide on, which leaves this record as it is."""
        other = Record(self.account, self.number)
        other.grants = self.grants
        other.known_grants = dict(self.known_grants)
        other.firsts = dict(self.firsts)
        other.trial = self.trial
        other.given_back = dict(self.given_back)
        other.parked = dict(self.parked)
        return other


class Loaded(NamedTuple):
    """What a batch is decided on: the records of its merchants, and one instant for all, by the database's clock."""

    now: int
    records: Mapping[str, Record]


class Writes:
    """Everything that one database transaction writes, as values; the last value of a row wins.

    `unparked` rows are deleted before others are inserted: a refund may be parked again under the same key.
    """

    __slots__ = (
        "accounts",
        "announcements",
        "dead_letters",
        "given_back",
        "grants",
        "parked",
        "transactions",
        "unparked",
    )

    def __init__(self) -> None:
        self.accounts: dict[int, Account] = {}
        self.transactions: list[Transaction] = []
        self.announcements: list[tuple[int, Announcement]] = []  # with the account's number
        self.grants: dict[tuple[int, int], Grant] = {}
        self.given_back: dict[tuple[int, str], GivenBack] = {}
        self.parked: dict[tuple[int, str], Parked] = {}
        self.unparked: list[tuple[int, str]] = []
        self.dead_letters: list[tuple[int, DeadLetter]] = []


Work = Callable[[Loaded], Writes]
"""Decides on what was loaded. It must be pure, since it may run again."""


class Committed(NamedTuple):
    """What a posting committed. `places`: the lane and the id of each announcement in the outbox, as far as known."""

    writes: Writes
    places: Sequence[tuple[int, int]] = ()


class Books(NamedTuple):
    """Everything of one account, for verification.

    `transactions` come from the database while they are iterated, which must end before the next account is read.
    `faults` is complete after that.
    """

    account: Account
    grants: Sequence[Grant]
    transactions: Iterable[Transaction]
    faults: Sequence[tuple[int | None, str]]  # rows that cannot be read: (sequence, sentence)


class Engine(Protocol):
    """A database that holds the ledger. Reads never wait for postings.

    `name`: what messages call it, without a password. `lanes`: how many lanes divide the outbox. `streams`: how many
    postings it takes at once. `ahead`: how many merchants a posting may have for the next one to be decided while it
    is under way; 0 if none is. `clock`: the clock of its postings; if it jumps, `post` and `check` raise ClockMoved.
    """

    name: str
    lanes: int
    streams: int
    ahead: int

    @property
    def clock(self) -> "Clock":
        """The clock of postings, which tells their time without waiting, and whether it jumped."""
        ...

    def stream_of(self, merchant_id: str) -> int:
        """The stream of a merchant's postings, which keeps their order: 0 to `streams` - 1."""
        ...

    async def post(self, needs: Sequence[Needs], work: Work, after: Future[bool] | None = None) -> Committed:
        """Load, `work`, write and commit; what is written rests on the truth at the commit, whatever others post.

        `after`: done when the posting before this one is over; its result says whether that was written at once. Until
        then this one writes nothing, but may be decided on what the one before it decided, and again if that failed.

        Raises Conflict or StorageUnavailable (nothing was done), OutcomeUnknown, BadRow; what `work` raises passes
        through, with nothing done.
        """
        ...

    async def read(self, read: Callable[[], Read[T]], *, snapshot: bool = True, long: bool = False) -> T:
        """Answer the questions of a read, from one snapshot unless its rows never change.

        `long`: the read takes longer the larger the ledger is, so it has more time and disturbs no other read.
        """
        ...

    async def write(self, asks: Sequence[Ask], merchant_id: str | None = None, *, guarded: bool = False) -> int:
        """Carry out statements in one transaction of their own; returns how many rows they changed.

        With a `merchant_id`, nothing is posted to that merchant meanwhile. `guarded`: if the first changes no row,
        nothing is done.
        """
        ...

    def books(self, merchant_ids: Sequence[str] | None = None) -> AsyncIterator[Books]:
        """Accounts with all that belongs to them, one at a time, by merchant id."""
        ...

    async def now(self) -> int:
        """The database's time in microseconds since 1970, by its steady estimate while its clock has jumped."""
        ...

    async def scrub(self) -> None:
        """Overwrite erased text in the database's own files, as far as the engine can (L15).

        Raises Conflict while a reader keeps a copy of the text.
        """
        ...

    async def check(self) -> None:
        """Raise StorageError unless the database can be read and written now."""
        ...

    async def close(self) -> None:
        """Finish what is under way and let go of the database."""
        ...
