"""The commands and facts that the ledger understands: one small class each.

The ledger may refuse a command because credits are missing. A fact has already happened, so the ledger only decides its
worth (L5). The caller chooses the key of a command. The key of a fact is natural: it is made from the fact itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Final, Literal
from uuid import UUID

from credit_service.ledger.account import AccountState, Reference
from credit_service.ledger.types import (
    ORDER_PAID,
    ORDER_REFUNDED,
    PAYMENT,
    PAYMENT_DISPUTED,
    PAYMENT_REFUNDED,
    REVERSAL,
    SUBSCRIPTION,
    TRIAL,
    TYPES,
    Category,
    Operation,
    TransactionType,
    natural_key,
)

RESERVED_KEY_PREFIX = "expiry:"
"""Prefix of the keys of EXPIRY transactions (L7). Callers may not use it, or an expiry could find its key taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """The fields of every command and fact.

    `content`: fingerprint (16 bytes) of the request without its metadata. The same key with the same content and
    metadata is a repeat; with other content it is a mistake (L3). `occurred_at`: default is the time of the posting.
    `metadata`: canonical JSON. `salt`: 16 random bytes for the hash of the metadata (L15).
    """

    merchant_id: str
    key: str
    content: bytes = b""
    actor: str = "system"
    correlation_id: str | None = None
    occurred_at: int | None = None
    metadata: str | None = None
    salt: bytes | None = None
    opens: bool = False  # may open the account of a merchant that has none


@dataclass(frozen=True, slots=True)
class GrantTerms:
    """The terms of the grant of an INCREASE; None means the default of the transaction type."""

    category: Category | None = None
    priority: int = 100
    effective_at: int | None = None
    expires_at: int | None = None


DEFAULT_TERMS = GrantTerms()


@dataclass(frozen=True, slots=True, kw_only=True)
class Post(Command):
    """Command: post exactly `amount` credits (at least 1). The ledger refuses it if it cannot post all of them."""

    operation: Operation
    type: TransactionType
    amount: int
    reference: Reference | None = None
    terms: GrantTerms = DEFAULT_TERMS


class Unchanged(Enum):
    """Marks a term that `ChangeTerms` does not change; there, None means the default."""

    UNCHANGED = "unchanged"


UNCHANGED: Final = Unchanged.UNCHANGED


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeTerms(Command):
    """Command: set the account's own threshold, policy and limit; None means the default. Its key is not stored."""

    low_threshold: int | Unchanged | None = UNCHANGED
    when_insufficient: str | Unchanged | None = UNCHANGED
    overdraft_limit: int | Unchanged | None = UNCHANGED


@dataclass(frozen=True, slots=True, kw_only=True)
class VoidGrant(Command):
    """Command: take `amount` of the unspent credits of a grant, or all if it is None (L22)."""

    grant_id: UUID
    amount: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reverse(Command):
    """Command: undo a transaction, or `amount` of it (L18). `target` is its key, by which storage finds it."""

    type: ClassVar[TransactionType] = REVERSAL
    sequence: int
    target: str
    amount: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeState(Command):
    """Command: freeze, thaw (to `open`) or close the account (L22). Its key is stored only if it forfeits credits.

    `forfeit`: whether closing takes the credits that are left.
    """

    state: AccountState
    reason: str
    forfeit: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle(Command):
    """Command of the sweeper: settle the account, post nothing else (L7). Its key is not stored."""


class Fact(Command):
    """Something that already happened. Two facts with the same key and `type` are the same fact (L3)."""

    __slots__ = ()
    type: ClassVar[TransactionType]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAccount(Fact):
    """A merchant was created: opens the account and grants the trial of the settings, once (L12)."""

    type = TRIAL


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialStarted(Fact):
    """The merchant started a trial. It counts only if the account has no trial yet (L12)."""

    type = TRIAL
    credits: int
    trial_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentSucceeded(Fact):
    """The merchant bought credits."""

    type = PAYMENT
    credits: int
    payment_id: str
    terms: GrantTerms = DEFAULT_TERMS


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionRenewed(Fact):
    """A period of a subscription began. The key names the period, so each period counts exactly once (L11).

    `window`: its billing window (begin, end), if a merchant may change plans within one. Then renewals whose windows
    overlap give together the credits of the best plan among them.
    """

    type = SUBSCRIPTION
    credits: int
    subscription_id: str
    expires_at: int | None = None
    window: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderPaid(Fact):
    """The plugin served an order. Its total sets the price, unless the fact states `credits`."""

    type = ORDER_PAID
    order_id: str
    credits: int | None = None
    total_micros: int | None = None
    currency: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderRefunded(Fact):
    """A customer got money or credits of an order back (L8). Without `order_id`, `credits` is required."""

    type = ORDER_REFUNDED
    kind = "order_refunded"
    source_types = TYPES[type].refunds
    refund_id: str
    order_id: str | None = None
    credits: int | None = None
    refund_amount_micros: int | None = None
    order_total_micros: int | None = None
    currency: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClawBack(Fact):
    """A fact about a payment that its merchant, or a bank, wants back (L19). It names the payment or the renewal."""

    source_types = TYPES[PAYMENT_REFUNDED].refunds
    payment_id: str | None = None
    subscription_id: str | None = None
    period: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentRefunded(ClawBack):
    """A payment for credits was refunded: demands these credits back."""

    type = PAYMENT_REFUNDED
    kind = "payment_refunded"
    refund_id: str
    credits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentDisputed(ClawBack):
    """A dispute of a payment opened: demands its credits back until it is won. No `credits` means all."""

    type = PAYMENT_DISPUTED
    kind = "payment_disputed"
    dispute_id: str
    credits: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DisputeClosed(ClawBack):
    """A dispute closed: won by the platform, so its credits return; or lost. `credits`: what was lost in the end."""

    type = PAYMENT_DISPUTED
    kind = "payment_dispute_closed"
    dispute_id: str
    outcome: Literal["won", "lost"]
    credits: int | None = None


REFUNDS: Final[Mapping[str, type[OrderRefunded | ClawBack]]] = {
    fact.kind: fact for fact in (OrderRefunded, PaymentRefunded, PaymentDisputed, DisputeClosed)
}
"""The facts that may wait for their order or payment (L8), by name. Storage keeps the name; the event ends with it."""


def trial_key(merchant_id: str) -> str:
    """The natural key of the merchant's one trial."""
    return natural_key(TRIAL, merchant_id=merchant_id)


def order_key(order_id: str) -> str:
    """The natural key of an order; its refunds find it by this key."""
    return natural_key(ORDER_PAID, order_id=order_id)


def payment_key(payment_id: str) -> str:
    """The natural key of a payment; its refunds find it by this key."""
    return natural_key(PAYMENT, payment_id=payment_id)


def source_key(command: Command) -> str | None:
    """The key of the transaction that a command refunds, disputes or reverses; None if it names none."""
    if isinstance(command, OrderRefunded):
        return None if command.order_id is None else order_key(command.order_id)
    if isinstance(command, Reverse):
        return command.target
    if not isinstance(command, ClawBack):
        return None
    if command.payment_id is not None:
        return payment_key(command.payment_id)
    return natural_key(SUBSCRIPTION, subscription_id=command.subscription_id, period=command.period)
