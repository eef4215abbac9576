"""What can be asked of the ledger (commands), and what it can be told (facts): one small class each.

A command can be refused for want of credits. A fact already happened, so it cannot: the ledger only decides what it is
worth (L5). A fact's key is natural, made from the fact itself; a command's key is its caller's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Final
from uuid import UUID

from credit_service.ledger.account import Reference
from credit_service.ledger.types import (
    ORDER_PAID,
    ORDER_REFUNDED,
    PAYMENT,
    PAYMENT_REFUNDED,
    SUBSCRIPTION,
    TRIAL,
    TYPES,
    Category,
    Operation,
    TransactionType,
    natural_key,
)

RESERVED_KEY_PREFIX = "expiry:"
"""Keys of the ledger's own transactions; no caller may use one, or an expiry could find its key taken (L7)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What every command and fact carries.

    `content` is the fingerprint (16 bytes) of what the caller asks, without the metadata: a repeated key with the same
    content and metadata is a repeat, with other content a mistake (L3). `occurred_at` defaults to the time of the
    posting. `metadata` is canonical JSON, and `salt` 16 random bytes for the hash that covers it (L15).
    """

    merchant_id: UUID
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
    """How an INCREASE may be spent; what is None takes the default of its transaction type."""

    category: Category | None = None
    priority: int = 100
    effective_at: int | None = None
    expires_at: int | None = None


DEFAULT_TERMS = GrantTerms()


@dataclass(frozen=True, slots=True, kw_only=True)
class Post(Command):
    """Command: post exactly `amount` credits (at least 1), or be refused."""

    operation: Operation
    type: TransactionType
    amount: int
    reference: Reference | None = None
    terms: GrantTerms = DEFAULT_TERMS


class Unchanged(Enum):
    """What a change of terms says of a term it leaves as it is; None is a value of its own there."""

    UNCHANGED = "unchanged"


UNCHANGED: Final = Unchanged.UNCHANGED


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeTerms(Command):
    """Command: the account's own threshold, policy and limit; None means the default. Its key is never stored."""

    low_threshold: int | Unchanged | None = UNCHANGED
    when_insufficient: str | Unchanged | None = UNCHANGED
    overdraft_limit: int | Unchanged | None = UNCHANGED


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle(Command):
    """The sweep: a posting of nothing, which settles what time did to the account (L7). Its key is never stored."""


class Fact(Command):
    """Something that already happened. `type` is its whole effect: the same key and type is the same fact (L3)."""

    __slots__ = ()
    type: ClassVar[TransactionType]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAccount(Fact):
    """The merchant exists. Opens the account and grants the trial of the settings, once (L12)."""

    type = TRIAL


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialStarted(Fact):
    """A trial was agreed with the merchant; it counts unless one was granted before (L12)."""

    type = TRIAL
    credits: int
    trial_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentSucceeded(Fact):
    """The merchant bought credits."""

    type = PAYMENT
    credits: int
    payment_id: str
    expires_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionRenewed(Fact):
    """A period of a subscription began; the key names the period, so each counts once and every one counts (L11)."""

    type = SUBSCRIPTION
    credits: int
    subscription_id: str
    expires_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderPaid(Fact):
    """An order that the plugin served. Priced from its total, unless it says its credits."""

    type = ORDER_PAID
    order_id: str
    credits: int | None = None
    total_micros: int | None = None
    currency: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderRefunded(Fact):
    """Money of an order, or credits, went back to the customer (L8). Without an order it must say its credits."""

    type = ORDER_REFUNDED
    source_type = TYPES[type].refunds
    refund_id: str
    order_id: str | None = None
    credits: int | None = None
    refund_amount_micros: int | None = None
    order_total_micros: int | None = None
    currency: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentRefunded(Fact):
    """A payment for credits was given back, so the credits it gave are taken back."""

    type = PAYMENT_REFUNDED
    source_type = TYPES[type].refunds
    refund_id: str
    payment_id: str
    credits: int


REFUNDS: Final[Mapping[str, type[Fact]]] = {fact.type.lower(): fact for fact in (OrderRefunded, PaymentRefunded)}
"""The facts that may wait for what they refund (L8), by the name that storage gives them and that ends their event."""


def trial_key(merchant_id: UUID) -> str:
    """The natural key of a merchant's one trial."""
    return natural_key(TRIAL, merchant_id=merchant_id)


def order_key(order_id: str) -> str:
    """The natural key of an order, by which refunds find it."""
    return natural_key(ORDER_PAID, order_id=order_id)


def payment_key(payment_id: str) -> str:
    """The natural key of a payment, by which its refund finds it."""
    return natural_key(PAYMENT, payment_id=payment_id)


def source_key(command: Command) -> str | None:
    """The natural key of the order or payment that a refund goes back to, if it names one."""
    if isinstance(command, OrderRefunded):
        return None if command.order_id is None else order_key(command.order_id)
    if isinstance(command, PaymentRefunded):
        return payment_key(command.payment_id)
    return None
