"""The values of the ledger: account, grant, transaction, announcement, and the records of refunds.

The storage keeps them; `decide` takes and returns them. All are immutable. Credits are whole numbers. Instants (`_at`)
are whole microseconds since 1970 UTC. Money (`_micros`) is a whole number of millionths. So no value is a float (L13).
"""

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

from credit_service.ledger.types import BY_TIME, Category, Operation, TransactionType

MAX_CREDITS: Final = 2**53 - 1
"""The limit of balance and available, in both directions (L13). Every JSON reader holds this number exactly."""

MAX_TOTAL: Final = 2**62
"""The limit of all credits ever added to an account. The credits ever taken exceed it at most by a debt, so both sums
fit into 64 bits."""

MAX_MONEY_MICROS: Final = 10**18
"""The largest amount of money: 10^12."""

MICROSECONDS: Final = 1_000_000
DAY: Final = 24 * 3600 * MICROSECONDS

Status = Literal["EXHAUSTED", "LOW", "ACTIVE"]

AccountState = Literal["open", "frozen", "closed"]
OPEN: Final = "open"
FROZEN: Final = "frozen"
CLOSED: Final = "closed"

Draw = tuple[int, int]
"""A change of one grant: (number of the grant in its account, signed credits)."""

# The last announcement of an episode of low credits (L9).
NO_EPISODE: Final = 0
LOW_ANNOUNCED: Final = 1
EXHAUSTED_ANNOUNCED: Final = 2

GENESIS: Final = bytes(32)
"""The hash before the first transaction of an account (L15)."""


class Reference(NamedTuple):
    """The object of a transaction, as its caller names it: ("order", "1001")."""

    type: str
    id: str


TypeTotal = tuple[int, int, int]
"""Totals of one transaction type: (transactions, credits added, credits taken)."""


class Plan(NamedTuple):
    """A billing window, and the credits of its best plan (L11)."""

    begins: int
    ends: int
    credits: int


class Account(NamedTuple):
    """One merchant's credits after the account's last posting (at `settled_at`).

    `balance` = remaining credits of the open grants - `debt`. Grants may have expired or begun since `settled_at`:
    `settle.standing_at` gives the account at a later instant (L7).
    """

    number: int  # 62 bits; part of the ids of the account, its transactions and grants (addresses.py)
    merchant_id: str
    opened_at: int
    settled_at: int
    balance: int = 0
    held: int = 0
    pending: int = 0
    debt: int = 0
    sequence: int = 0  # of the last transaction (L2)
    announced: int = 0  # number of the last announcement
    granted: int = 0  # number of the last grant
    trial: int | None = None  # sequence of the one TRIAL transaction (L12)
    episode: int = NO_EPISODE
    threshold: int = 0  # low threshold in force at the last posting; a move since then counts as a change (L9)
    low_threshold: int | None = None  # the account's own; None: the default
    when_insufficient: str | None = None
    overdraft_limit: int | None = None
    state: AccountState = OPEN
    total_increases: int = 0
    total_decreases: int = 0
    by_type: Mapping[str, TypeTotal] = {}  # totals so far, by transaction type
    plan: Plan | None = None  # of the merchant's last renewal that named its billing window (L11)
    carried: tuple[Draw, ...] = ()  # changes of grants since the last transaction; the next one lists them (L6)
    next_due_at: int | None = None  # next instant at which a grant begins, expires or needs its warning
    last_transaction_at: int | None = None
    last_hash: bytes = GENESIS

    @property
    def available(self) -> int:
        """Credits that can be spent now; a negative number is owed."""
        return self.balance - self.held - self.pending


class Grant(NamedTuple):
    """The credits of one INCREASE, while any of them remain."""

    number: int  # 1, 2, 3 ... in its account
    sequence: int  # of the transaction that created it
    category: Category
    priority: int
    effective_at: int
    expires_at: int | None
    amount: int
    remaining: int
    lapses: int = 0  # EXPIRY transactions so far
    gone: int = 0  # credits that expired or were voided


class Transaction(NamedTuple):
    """One immutable, numbered entry in an account's history."""

    account: int
    merchant_id: str
    sequence: int
    operation: Operation
    type: TransactionType
    amount: int
    shortfall: int
    balance_before: int
    balance_after: int
    debt_after: int
    key: str
    content: bytes  # fingerprint of the request, without its personal part (L3)
    reference: Reference | None
    metadata: str | None  # canonical JSON
    salt: bytes | None  # of the personal hash; erasure deletes it with the metadata
    personal_hash: bytes | None
    total_micros: int | None
    currency: str | None
    draws: tuple[Draw, ...]
    reverses: int | None
    actor: str
    correlation_id: str | None
    occurred_at: int
    created_at: int
    hash: bytes


class Announcement(NamedTuple):
    """A message of a posting to the outside; the reader takes the details from the transaction."""

    number: int  # 1, 2, 3 ... in its account, without a gap
    type: str
    sequence: int | None  # of the transaction that caused it, if any
    available: int
    at: int
    detail: dict[str, Any] | None = None  # data that neither the transaction nor the account keeps


class Dispute(NamedTuple):
    """One dispute of a payment, as its events tell it. `credits`: None means all of the payment."""

    id: str
    credits: int | None
    outcome: str | None  # won or lost; None while it is open


class GivenBack(NamedTuple):
    """The refunds of one order so far (L8), or the refunds and disputes of one payment (L19)."""

    key: str  # natural key of the order or payment
    money_micros: int = 0  # of an order: refunded money
    by_money: int = 0  # of an order: credits of the refunds of money
    credits: int = 0  # that the refunds of an order returned, or that are taken back for a payment
    refunded: int = 0  # of a payment: credits that its refunds demand, at most all
    waived: int = 0  # of a payment: demanded credits that the policy `clamp` never takes
    taken: tuple[Draw, ...] = ()  # of a payment: where `credits` were taken; grant 0 is debt
    disputes: tuple[Dispute, ...] = ()  # of a payment


class Parked(NamedTuple):
    """A refund that arrived before its order or payment, and waits in storage (L8)."""

    key: str  # its own natural key
    waits_for: str  # the natural key of the order or payment
    until: int
    arrived_at: int
    fact: Any  # one of commands.REFUNDS


class DeadLetter(NamedTuple):
    """A fact that can never be applied. Storage keeps it, so that a person can inspect and replay it."""

    code: str
    reason: str
    at: int
    fact: Any


def transaction_time(transaction: Transaction) -> int:
    """The instant by which a view of the past dates a transaction (L7).

    An EXPIRY counts from its own instant, every other type from its posting.
    """
    return transaction.occurred_at if transaction.type in BY_TIME else transaction.created_at
