"""What a store is: the interface that every engine implements, and the values that cross it.

The laws of a store stand once, as tests, in `tests/storage/contract.py`; each engine passes them unchanged.
"""

from asyncio import Future
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from heapq import merge
from itertools import islice
from operator import itemgetter
from typing import Any, NamedTuple, Protocol, TypeVar
from uuid import UUID

from credit_service.ledger.account import Account, Announcement, DeadLetter, GivenBack, Grant, Parked, Transaction
from credit_service.ledger.addresses import Address
from credit_service.ledger.decide import Needs

T = TypeVar("T")


class StorageError(Exception):
    """A store could not do its work. Its message is one sentence for an operator, without secrets."""


class Conflict(StorageError):
    """Nothing was done, because something else had the database; the same again may work."""


class StorageUnavailable(StorageError):
    """Nothing was done, and trying again at once will not help: read-only, full, gone."""


class OutcomeUnknown(StorageError):
    """The commit's answer was lost. Run the batch again: the keys tell what had been done."""


class InUse(StorageUnavailable):
    """Another process has the database; this one cannot have it beside it."""


class BadRow(StorageError):
    """The database refused a row, so one command of the batch breaks a law that the database holds."""


class SchemaError(StorageError):
    """The database's schema is not the one this release works with."""


class Record:
    """What is known of one merchant within a batch: loaded first, then brought up to date by each decision."""

    __slots__ = ("account", "firsts", "given_back", "grants", "known_grants", "number", "parked", "trial")

    def __init__(self, account: Account | None, number: int) -> None:
        self.account = account
        self.number = number  # of the account, also where it is yet to be opened
        self.grants: tuple[Grant, ...] = ()  # open ones, in burn-down order
        self.known_grants: dict[int, Grant] = {}  # those that a source drew on, and those changed since
        self.firsts: dict[str, Transaction] = {}  # by idempotency key
        self.trial: Transaction | None = None
        self.given_back: dict[str, GivenBack] = {}  # by the key of the order or payment
        self.parked: dict[str, Parked] = {}  # all of the merchant's, by their own key

    def copy(self) -> "Record":
        """A record that can learn without this one noticing."""
        other = Record(self.account, self.number)
        other.grants = self.grants
        other.known_grants = dict(self.known_grants)
        other.firsts = dict(self.firsts)
        other.trial = self.trial
        other.given_back = dict(self.given_back)
        other.parked = dict(self.parked)
        return other


class Loaded(NamedTuple):
    """What a batch is decided on, and the time of it: one instant for all, by the database's clock."""

    now: int
    records: Mapping[UUID, Record]


class Writes:
    """Everything one database transaction is to write, as values; the last one of each row wins.

    `unparked` are rows that were there before: they go first, since a refund may be parked again under the same key.
    `places` are noted by the store that writes it: the lane and the id of each of the announcements in the outbox.
    """

    __slots__ = (
        "accounts",
        "announcements",
        "dead_letters",
        "given_back",
        "grants",
        "parked",
        "places",
        "transactions",
        "unparked",
    )

    def __init__(self) -> None:
        self.accounts: dict[int, Account] = {}
        self.transactions: list[Transaction] = []
        self.announcements: list[tuple[int, Announcement]] = []  # with the account's number
        self.places: list[tuple[int, int]] = []
        self.grants: dict[tuple[int, int], Grant] = {}
        self.given_back: dict[tuple[int, str], GivenBack] = {}
        self.parked: dict[tuple[int, str], Parked] = {}
        self.unparked: list[tuple[int, str]] = []
        self.dead_letters: list[tuple[int, DeadLetter]] = []


Work = Callable[[Loaded], Writes]
"""Decides on what was loaded. Pure, since it may run again."""


class Held(NamedTuple):
    """An account as stored, with its open grants where time has something to do to it by the asked instant."""

    account: Account
    grants: tuple[Grant, ...]


class Books(NamedTuple):
    """All there is of one account, for verification.

    `transactions` are read from the database as they are iterated, and only until the next account is asked for;
    `faults` are complete when they were.
    """

    account: Account
    grants: Sequence[Grant]
    transactions: Iterable[Transaction]
    faults: Sequence[tuple[int | None, str]]  # what the store itself found wrong: (sequence, sentence)


class TransactionQuery(NamedTuple):
    """Which transactions to list; newest first. `start_at` is inclusive, `end_at` exclusive."""

    account: int | None = None
    operation: str | None = None
    type: str | None = None
    start_at: int | None = None
    end_at: int | None = None
    reference_type: str | None = None
    reference_id: str | None = None


class AccountQuery(NamedTuple):
    """Which accounts to list. Rows whose time has come by `at` are listed too: only `settle` can tell about those."""

    at: int
    default_threshold: int
    status: str | None = None
    min_balance: int | None = None
    max_balance: int | None = None


class Past(NamedTuple):
    """How an account stood at a past instant."""

    balance: int
    pending: int


class AllAccounts(NamedTuple):
    """All accounts in sum, without those to which time has done something that no posting has settled yet."""

    accounts: int
    enabled: int
    exhausted: int
    low: int
    average_balance: float


class PeriodTotal(NamedTuple):
    """What was posted in a period, of one transaction type."""

    transactions: int
    added: int
    taken: int
    last_at: int


Position = tuple[int, ...]
"""A place in a listing: of an account the sequence, of all accounts the position in each of the outbox's lanes."""


class StoredEvent(NamedTuple):
    """An announcement as it stands in the outbox, with the transaction that it tells of, if there is one."""

    lane: int
    id: int
    account: int
    merchant_id: UUID
    announcement: Announcement
    transaction: Transaction | None


def merged(lanes: Iterable[Iterable[T]], at: Callable[[T], int], limit: int) -> list[T]:
    """The first of what all lanes hold, by time; each lane keeps its order, whatever its instants.

    Of one instant, which is that of a whole batch, lanes take turns.
    """
    placed = [((at(one), place, one) for place, one in enumerate(lane)) for lane in lanes]
    return [one for _, _, one in islice(merge(*placed, key=itemgetter(0, 1)), limit)]


class Claim(NamedTuple):
    """The right to read the outbox as one reader, until it is let go, or another takes it after `leased_until`.

    `epoch` is raised by each claim, so that who was paused and comes back late can change nothing.
    """

    reader: str
    owner: str
    epoch: int
    position: Position
    leased_until: int


class Positioned(NamedTuple):
    """A transaction and where a listing goes on after it."""

    position: Position
    transaction: Transaction


class ApiKey(NamedTuple):
    """A credential of a caller. Only the SHA-256 of its secret is kept."""

    id: str
    name: str
    scope: str
    secret_hash: bytes
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None
    last_used_at: int | None = None


class WebhookEndpoint(NamedTuple):
    """Who is told of events by webhook. What it is signed with is no part of it, so that nobody shows it by mistake."""

    id: str
    url: str
    event_types: tuple[str, ...] | None  # announcements that it wants, None for all
    created_at: int
    position: Position  # in the outbox, up to which its deliveries were made
    deliveries: int = 0  # how many were made so far
    failing_since: int | None = None  # since when nothing was delivered, but failed
    disabled_at: int | None = None
    disabled_reason: str | None = None


class WebhookDelivery(NamedTuple):
    """An event that was sent to an endpoint, or is to be; without account and event it is a test."""

    endpoint: str
    number: int  # 1, 2, 3 … of its endpoint
    type: str
    account: int | None
    event: int | None  # its number in the account
    created_at: int
    next_at: int | None  # when it is to be sent again, while it is pending
    redelivers: int | None = None  # the delivery whose event it sends again, because somebody wants that
    state: str = "pending"  # or delivered, or failed
    attempts: int = 0
    status: int | None = None  # what was answered last
    error: str | None = None  # what went wrong last
    ended_at: int | None = None

    @property
    def is_asked_for(self) -> bool:
        """Whether somebody asked for it, and no event alone: it is sent whatever is thought of its endpoint."""
        return self.account is None or self.redelivers is not None


class DueDeliveries(NamedTuple):
    """What is to be sent to an endpoint now, and how it is signed; an event for each that is no test."""

    url: str
    secrets: tuple[str, ...]  # the newest first
    due: Sequence[tuple[WebhookDelivery, StoredEvent | None]]

    def __repr__(self) -> str:
        return f"DueDeliveries({len(self.due)})"


class Backlog(NamedTuple):
    """How many deliveries of an endpoint are pending, and when the next can be sent, where one can."""

    pending: int
    next_at: int | None


class PositionedParked(NamedTuple):
    """A parked refund, whose it is, and where a listing goes on after it."""

    position: tuple[int, int, str]
    merchant_id: UUID
    parked: Parked


class Undeliverable(NamedTuple):
    """An event that came in and can never be applied: what was sent, to which subject, and why not.

    `at` is when it was received. The same bytes to the same subject are the same event, however often they come.
    """

    subject: str
    original: bytes
    code: str
    reason: str
    at: int


class Letter(NamedTuple):
    """A dead letter as it is kept.

    Of an event that came in there are subject and original, of one that the ledger put aside later there is its fact.
    """

    id: int
    code: str
    reason: str
    at: int
    fact: Any = None  # commands.OrderRefunded | commands.PaymentRefunded
    subject: str | None = None
    original: bytes | None = None
    published_at: int | None = None
    replayed_at: int | None = None


class LetterQuery(NamedTuple):
    """Which dead letters to list; `kind` is that of facts, so that those to which it applies are of a subject, too."""

    code: str | None = None
    subject: str | None = None
    kind: str | None = None
    unreplayed: bool = False


class Shop(NamedTuple):
    """A shop on Shopify, and the merchant whose it is, or was until it was unlinked."""

    domain: str  # example.myshopify.com
    merchant_id: UUID
    linked_at: int
    unlinked_at: int | None = None
    uninstalled_at: int | None = None  # the app was


class Kept(NamedTuple):
    """What of a delivery is kept until it can be applied, or, where it awaits nothing, for a person to see.

    `awaits`: `link`, its shop must be linked; `merchant`, to one that is or was.
    """

    shop: str
    topic: str
    body: str
    awaits: str | None
    received_at: int
    digest: bytes = b""  # made of shop, topic and body, when it is kept


class Store(Protocol):
    """A database that holds the ledger. Reads never wait for postings.

    `lanes`: into how many the outbox is divided. `streams`: how many postings it takes at once. `ahead`: of how many
    merchants a posting may be for the next to be decided while it is under way; 0: none is.
    """

    lanes: int
    streams: int
    ahead: int

    def stream_of(self, merchant_id: UUID) -> int:
        """In which stream a merchant's postings go, so that each keeps its order: 0 to `streams` - 1."""
        ...

    async def post(self, needs: Sequence[Needs], work: Work, after: Future[bool] | None = None) -> Writes:
        """Load, `work`, write and commit; what is written rests on what is the truth at the commit, whoever else posts.

        `after`: done when what was handed over before is over, and says whether it was posted at once. Until then
        nothing is written, but it may be decided on what that decided; where it was not, it is decided anew.

        Raises Conflict or StorageUnavailable (nothing was done), OutcomeUnknown, BadRow; what `work` raises passes
        through, with nothing done.
        """
        ...

    async def now(self) -> int:
        """The database's clock, in microseconds since 1970."""
        ...

    async def held(self, merchant_ids: Sequence[UUID], at: int) -> dict[UUID, Held]:
        """The accounts of these merchants, those without one left out; grants only where something is due by `at`."""
        ...

    async def accounts(self, query: AccountQuery, after: UUID | None, limit: int) -> list[Held]:
        """Accounts that may match, by merchant id, from the one after `after`."""
        ...

    async def grants(self, account: int) -> list[Grant]:
        """An account's open grants, in burn-down order."""
        ...

    async def transaction(self, address: Address) -> Transaction | None:
        """One transaction by its address."""
        ...

    async def transactions(
        self, query: TransactionQuery, before: Position | None, limit: int, offset: int = 0
    ) -> list[Positioned]:
        """Transactions that match, newest first, from the position after `before`, leaving out the first `offset`.

        Of all accounts, those of one lane come in the order of their commits, and among lanes by their time.
        """
        ...

    async def count(self, query: TransactionQuery) -> int:
        """How many transactions match."""
        ...

    async def totals(self, query: TransactionQuery) -> dict[str, PeriodTotal]:
        """What the matching transactions of an account come to, by transaction type."""
        ...

    async def past(self, account: int, at: int) -> Past:
        """How an account stood at an instant before its last posting: expiries count from theirs (L7)."""
        ...

    async def all_accounts(self, at: int, default_threshold: int) -> AllAccounts:
        """All accounts in sum, but for those that are due by `at`."""
        ...

    async def due_accounts(self, at: int) -> list[Held]:
        """The accounts that `all_accounts` leaves out."""
        ...

    async def due(self, at: int, limit: int) -> list[UUID]:
        """Merchants to whom time has done something by `at` that no posting has settled yet, longest due first."""
        ...

    def books(self, merchant_ids: Sequence[UUID] | None = None) -> AsyncIterator[Books]:
        """Accounts with all that belongs to them, one at a time, by merchant id."""
        ...

    async def drifting(self, after: UUID | None, limit: int) -> tuple[list[UUID], UUID | None]:
        """Look at the next `limit` accounts by merchant id, from the one after `after`.

        Returns the merchants whose account does not agree with its last transaction or with its open grants, and where
        to go on: None after the last account.
        """
        ...

    async def parked_count(self) -> int:
        """How many refunds wait for their order or payment."""
        ...

    async def events(self, after: Position, limit: int) -> list[StoredEvent]:
        """What the outbox holds after a position (a number for each lane), each lane in the order of its commits.

        Nothing that was committed is ever behind what has been read. Lanes are merged by time.
        """
        ...

    async def events_of(self, account: int, after: int, limit: int) -> list[StoredEvent]:
        """An account's announcements after a number, in their order."""
        ...

    async def last_events(self) -> Position:
        """The position after all that the outbox holds."""
        ...

    async def claim(self, reader: str, owner: str, now: int, lease_seconds: float) -> Claim | None:
        """Become the one who reads as `reader`: from its position, or from the start the first time.

        None while another owner's lease lasts. `owner` names this process, differently from every other one.
        """
        ...

    async def advance(self, claim: Claim, position: Position, now: int, lease_seconds: float) -> Claim | None:
        """Note that all up to a position was delivered, and go on holding the claim; None where it is another's now."""
        ...

    async def release(self, claim: Claim) -> None:
        """Let another have the claim at once."""
        ...

    async def cursors(self) -> list[Claim]:
        """Where each reader stands, by name."""
        ...

    async def drop_cursor(self, reader: str) -> None:
        """Forget a reader; should it claim again, it begins at the start."""
        ...

    async def parked(self, after: tuple[int, int, str] | None, limit: int) -> list[PositionedParked]:
        """Refunds that wait, by the end of their wait, from the one after `after`."""
        ...

    async def put_aside(self, letters: Sequence[Undeliverable]) -> int:
        """Keep events that can never be applied, and return how many had not been kept before."""
        ...

    async def dead_letters(self, query: LetterQuery, before: int | None, limit: int) -> list[Letter]:
        """Dead letters that match, newest first, from the id before `before`."""
        ...

    async def dead_letter(self, id_: int) -> Letter | None:
        """One dead letter."""
        ...

    async def dead_letter_count(self, query: LetterQuery) -> int:
        """How many dead letters match."""
        ...

    async def unpublished_dead_letters(self, limit: int) -> list[Letter]:
        """Those that the broker was not told of yet, oldest first."""
        ...

    async def published_dead_letters(self, ids: Sequence[int], at: int) -> None:
        """Note that the broker was told of these."""
        ...

    async def replayed_dead_letter(self, id_: int, at: int) -> bool:
        """Note that what the letter holds was applied after all. False where there is none of this id."""
        ...

    async def shop(self, domain: str) -> Shop | None:
        """One shop by its domain, in lower case; also one that was unlinked."""
        ...

    async def link_shop(self, domain: str, merchant_id: UUID, at: int) -> None:
        """Link a shop to this merchant from now on, whatever it was linked to before."""
        ...

    async def unlink_shop(self, domain: str, at: int) -> bool:
        """Unlink a shop. False where none is linked."""
        ...

    async def uninstall_shop(self, domain: str, at: int) -> bool:
        """Note that a linked shop has uninstalled the app. False where it is not linked, or only since then."""
        ...

    async def keep_delivery(self, one: Kept) -> bool:
        """Keep a delivery. False where it is kept already."""
        ...

    async def kept_deliveries(self, shop: str) -> list[Kept]:
        """All that is kept of a shop, in order of arrival."""
        ...

    async def due_kept(self, before: int, limit: int) -> list[tuple[Kept, UUID | None]]:
        """Deliveries that need wait no longer, in order of arrival, each with the merchant it waited for.

        Those that were received by `before` have waited for long enough, also without one.
        """
        ...

    async def drop_kept(self, some: Collection[Kept]) -> None:
        """Forget deliveries, since they were applied or put aside."""
        ...

    async def erase_metadata(self, merchant_id: UUID, orders: Collection[str] | None) -> int:
        """Erase metadata of a merchant's transactions, and of its parked refunds; returns of how many transactions.

        Of these orders and their refunds, or of all where `orders` is None. In steps: if it fails midway, do it again.
        """
        ...

    async def rewrite_dead_letter(self, letter: Letter) -> None:
        """Keep a dead letter with another fact or original than before."""
        ...

    async def strays(self) -> list[tuple[int, int]]:
        """Transactions that belong to no account, which no posting can leave behind: (account's number, sequence)."""
        ...

    async def add_key(self, key: ApiKey) -> None:
        """Keep a new API key."""
        ...

    async def keys(self) -> list[ApiKey]:
        """All API keys, newest first."""
        ...

    async def key(self, key_id: str) -> ApiKey | None:
        """One API key."""
        ...

    async def revoke_key(self, key_id: str, at: int) -> bool:
        """Revoke a key. False where there is none of this id; a second time changes nothing."""
        ...

    async def use_keys(self, used: Mapping[str, int]) -> None:
        """Note when keys were last used: instants by key id."""
        ...

    async def position_at(self, at: int) -> Position:
        """The position in the outbox before what was told at an instant or later, lane by lane."""
        ...

    async def add_webhook(self, endpoint: WebhookEndpoint, secret: str) -> None:
        """Keep a new webhook endpoint, and what its deliveries are signed with."""
        ...

    async def webhooks(self) -> list[WebhookEndpoint]:
        """All webhook endpoints, newest first."""
        ...

    async def webhook(self, endpoint_id: str) -> WebhookEndpoint | None:
        """One webhook endpoint."""
        ...

    async def change_webhook(self, endpoint_id: str, **changed: Any) -> bool:
        """Change fields of an endpoint. False where there is none of this id."""
        ...

    async def enable_webhook(self, endpoint_id: str, now: int) -> bool:
        """Go on with an endpoint where it stood, at once. False where there is none of this id."""
        ...

    async def rotate_webhook(self, endpoint_id: str, secret: str, now: int, until: int, most: int) -> bool:
        """Sign with a new secret from now on, and with the older ones, too, until their time; at most so many in all.

        `until` when the one so far is out of use. False where there is no endpoint of this id.
        """
        ...

    async def delete_webhook(self, endpoint_id: str, now: int) -> bool:
        """Send nothing more to an endpoint; `prune_webhooks` removes what was sent. False where there is none."""
        ...

    async def add_deliveries(
        self,
        endpoint: WebhookEndpoint,
        made: Sequence[WebhookDelivery],
        position: Position | None = None,
    ) -> bool:
        """Keep new deliveries, and that those up to a position are made, all at once.

        Their numbers are the next of the endpoint. What one of them redelivers and is still pending ends. False, and
        nothing is done, where other deliveries were made since the endpoint was read.
        """
        ...

    async def deliveries(self, endpoint_id: str, before: int | None, limit: int) -> list[WebhookDelivery]:
        """Deliveries of an endpoint, newest first, from the one before a number."""
        ...

    async def delivery(self, endpoint_id: str, number: int) -> WebhookDelivery | None:
        """One delivery."""
        ...

    async def due_deliveries(
        self, endpoint_id: str, now: int, limit: int, *, asked_for: bool = False
    ) -> DueDeliveries | None:
        """What is to be sent to an endpoint now, longest due first. None where there is no such endpoint.

        `asked_for`: only tests, and what is sent again because somebody wants it.
        """
        ...

    async def note_deliveries(self, noted: Sequence[WebhookDelivery]) -> None:
        """Note one more attempt of each; what was noted of it by another meanwhile stands."""
        ...

    async def webhook_backlogs(self) -> dict[str, Backlog]:
        """What is pending, by endpoint; those without are left out. Disabled ones can be sent what was asked for."""
        ...

    async def prune_webhooks(self, before: int, limit: int) -> bool:
        """Forget the oldest deliveries of each endpoint that were made before an instant and have ended, some of them.

        Also endpoints that were deleted, and all of theirs. Returns whether there may be more.
        """
        ...

    async def gate_policies(self) -> dict[UUID, str]:
        """The merchants whose fail policy of plugin status is their own, and which: closed or open."""
        ...

    async def set_gate_policy(self, merchant_id: UUID, fail: str | None) -> None:
        """Give a merchant a fail policy of its own, or none any more (None)."""
        ...

    async def check(self) -> None:
        """Raise StorageError unless the store can read and write now."""
        ...

    async def close(self) -> None:
        """Finish what is under way and let go of the database."""
        ...
