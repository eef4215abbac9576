"""The values the ledger is made of: account, grant, transaction, announcement, and what waits or was given back.

They are what the storage keeps and what `decide` takes and returns. All are immutable. Credits are whole numbers of the
smallest unit; instants are whole microseconds since 1970 UTC (`_at`); money of orders is a whole number of millionths
(`_micros`), so that nothing ever becomes a float (L13).
"""

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID

from credit_service.ledger.types import BY_TIME, Category, Operation, TransactionType

MAX_CREDITS: Final = 2**53 - 1
"""The furthest a balance or an available may be from zero (L13); every JSON reader holds it exactly."""

MAX_TOTAL: Final = 2**62
"""The furthest that the sum of all that was ever added may go. What was taken exceeds it by a debt at most, so both
stay within 64 bits."""

MAX_MONEY_MICROS: Final = 10**18
"""The most that an amount of money may be: 10^12."""

MICROSECONDS: Final = 1_000_000
DAY: Final = 24 * 3600 * MICROSECONDS

Status = Literal["EXHAUSTED", "LOW", "ACTIVE"]

Draw = tuple[int, int]
"""A change of one grant: (the grant's number in its account, credits with their sign)."""

# How far an episode of low credits has been announced (L9).
NO_EPISODE: Final = 0
LOW_ANNOUNCED: Final = 1
EXHAUSTED_ANNOUNCED: Final = 2

GENESIS: Final = bytes(32)
"""What stands before the first transaction of an account in its hash chain (L15)."""


class Reference(NamedTuple):
    """What a transaction is about, in the caller's words: ("order", "1001")."""

    type: str
    id: str


TypeTotal = tuple[int, int, int]
"""Of one transaction type: (transactions, credits added, credits taken)."""


class Account(NamedTuple):
    """One merchant's credits, as they stood after the account's last posting (at `settled_at`).

    `balance` = sum of the open grants' remaining - `debt`. What time did since `settled_at` is not in here: ask
    `settle.at` before you show or spend (L7).
    """

    number: int  # 62 bits; names the account, and with it its transactions and grants (addresses.py)
    merchant_id: UUID
    opened_at: int
    settled_at: int
    balance: int = 0
    held: int = 0
    pending: int = 0
    debt: int = 0
    sequence: int = 0  # of the last transaction (L2)
    announced: int = 0  # number of the last announcement
    granted: int = 0  # number of the last grant
    trial: int | None = None  # sequence of the TRIAL transaction, of which there is at most one (L12)
    episode: int = NO_EPISODE
    threshold: int = 0  # the low threshold in force at the last posting: when it moved, that counts as a change (L9)
    low_threshold: int | None = None  # the account's own, else the default
    when_insufficient: str | None = None
    overdraft_limit: int | None = None
    total_increases: int = 0
    total_decreases: int = 0
    by_type: Mapping[str, TypeTotal] = {}  # what was posted so far, by transaction type
    carried: tuple[Draw, ...] = ()  # changes of grants since the last transaction, for the next one to list (L6)
    next_due_at: int | None = None  # the next instant at which time alone changes something
    last_transaction_at: int | None = None
    last_hash: bytes = GENESIS

    @property
    def available(self) -> int:
        """Credits that can be spent now; negative: that much is owed."""
        return self.balance - self.held - self.pending


class Grant(NamedTuple):
    """What an INCREASE leaves to be spent."""

    number: int  # 1, 2, 3 ... in its account
    sequence: int  # of the transaction that made it
    category: Category
    priority: int
    effective_at: int
    expires_at: int | None
    amount: int
    remaining: int
    lapses: int = 0  # EXPIRY transactions so far: credits may come back to an expired grant and lapse again


class Transaction(NamedTuple):
    """One immutable, numbered entry in an account's history."""

    account: int
    merchant_id: UUID
    sequence: int
    operation: Operation
    type: TransactionType
    amount: int
    shortfall: int
    balance_before: int
    balance_after: int
    debt_after: int
    key: str
    content: bytes  # fingerprint of what the caller asked, without its personal part (L3)
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
    """Something a posting tells the world; what it says of its transaction is read from the transaction."""

    number: int  # 1, 2, 3 ... in its account, without a gap
    type: str
    sequence: int | None  # of the transaction that caused it, if one did
    available: int
    at: int
    detail: dict[str, Any] | None = None  # what neither the transaction nor the account can tell later


class GivenBack(NamedTuple):
    """What refunds of one order, or of one payment, gave back so far (L8)."""

    key: str  # natural key of the order or payment
    money_micros: int = 0  # refunded by refunds of money
    by_money: int = 0  # credits those gave
    credits: int = 0  # credits all of them gave


class Parked(NamedTuple):
    """A refund that arrived before what it refunds, waiting in storage (L8)."""

    key: str  # its own natural key
    waits_for: str  # the natural key of the order or payment
    until: int
    arrived_at: int
    fact: Any  # commands.OrderRefunded | commands.PaymentRefunded


class DeadLetter(NamedTuple):
    """A fact that can never be applied; kept, so that a person can look and replay it."""

    code: str
    reason: str
    at: int
    fact: Any


def transaction_time(transaction: Transaction) -> int:
    """When a view of the past dates a transaction: what time did by its instant, all else by its posting (L7)."""
    return transaction.occurred_at if transaction.type in BY_TIME else transaction.created_at
