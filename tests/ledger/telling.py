"""Short constructors of commands and facts: each with its key and the fingerprint of its content, as a door does."""

from dataclasses import fields, replace
from decimal import Decimal
from hashlib import sha256
from itertools import count
from typing import Any, TypeVar
from uuid import UUID

from credit_service.ledger import addresses
from credit_service.ledger.account import DAY, AccountState
from credit_service.ledger.commands import (
    DEFAULT_TERMS,
    ChangeState,
    ChangeTerms,
    Command,
    DisputeClosed,
    GrantTerms,
    OpenAccount,
    OrderPaid,
    OrderRefunded,
    PaymentDisputed,
    PaymentRefunded,
    PaymentSucceeded,
    Post,
    Reverse,
    Settle,
    SubscriptionRenewed,
    TrialStarted,
    Unchanged,
    VoidGrant,
    order_key,
    payment_key,
    trial_key,
)
from credit_service.ledger.types import DECREASE, INCREASE, Operation, TransactionType

MERCHANT = "7d9f7f0e-3c1b-4b8e-9a55-0f0e6d1c2b3a"
BOOK_ACCOUNT = 0x1234_5678_9ABC_DEF0
"""The number of the account of every `Book`."""
T0 = 1_767_225_600_000_000
"""The start of every test: 2026-01-01T00:00:00Z."""

# Fields that are not part of the content (L3).
_ENVELOPE = {"merchant_id", "key", "content", "actor", "correlation_id", "occurred_at", "metadata", "salt", "opens"}
_unique = count(1)

C = TypeVar("C", bound=Command)


def with_content(command: C) -> C:
    """The command with the fingerprint of its content."""
    asked = [(field.name, getattr(command, field.name)) for field in fields(command) if field.name not in _ENVELOPE]
    return replace(command, content=sha256(repr((type(command).__name__, asked)).encode()).digest()[:16])


def micros(money: str | int | None) -> int | None:
    """Money in millionths."""
    return None if money is None else int(Decimal(money) * 1_000_000)


def days(number: float) -> int:
    """The instant this many days after T0."""
    return T0 + round(number * DAY)


def fresh_key() -> str:
    """A new key."""
    return f"key-{next(_unique)}"


def post(operation: Operation, type_: TransactionType, amount: int, key: str | None = None, **more: Any) -> Post:
    """A command that posts these credits."""
    command = Post(merchant_id=MERCHANT, key=key or fresh_key(), operation=operation, type=type_, amount=amount, **more)
    return with_content(command)


def add(amount: int, key: str | None = None, type_: TransactionType = "MANUAL", **terms: Any) -> Post:
    """Add credits by a MANUAL command; `terms` are those of the grant."""
    return post(INCREASE, type_, amount, key, terms=GrantTerms(**terms) if terms else DEFAULT_TERMS)


def use(amount: int, key: str | None = None, **more: Any) -> Post:
    """Spend credits."""
    return post(DECREASE, "USAGE", amount, key, **more)


def void(number: int, amount: int | None = None, key: str | None = None, *, account: int | None = None) -> VoidGrant:
    """Void a grant of the account of `Book`, or of another account."""
    owner = BOOK_ACCOUNT if account is None else account
    grant_id = UUID(addresses.text(owner, addresses.GRANT, number))
    return with_content(VoidGrant(merchant_id=MERCHANT, key=key or fresh_key(), grant_id=grant_id, amount=amount))


def opening(**more: Any) -> OpenAccount:
    """The merchant was created."""
    return with_content(OpenAccount(merchant_id=MERCHANT, key=trial_key(MERCHANT), opens=True, **more))


def trial(credits: int, trial_id: str = "T") -> TrialStarted:
    """A merchant started a trial."""
    key = trial_key(MERCHANT)
    return with_content(TrialStarted(merchant_id=MERCHANT, key=key, opens=True, credits=credits, trial_id=trial_id))


def payment(payment_id: str, credits: int, expires_at: int | None = None, **more: Any) -> PaymentSucceeded:
    """A payment succeeded."""
    return with_content(
        PaymentSucceeded(
            merchant_id=MERCHANT,
            key=payment_key(payment_id),
            opens=True,
            credits=credits,
            payment_id=payment_id,
            terms=GrantTerms(expires_at=expires_at),
            **more,
        )
    )


def payment_refund(refund_id: str, payment_id: str, credits: int) -> PaymentRefunded:
    """A payment was refunded; A:2026-01 stands for a period of a subscription."""
    key, named = f"billing:payment_refund:{refund_id}", _named(payment_id)
    return with_content(
        PaymentRefunded(merchant_id=MERCHANT, key=key, opens=True, refund_id=refund_id, credits=credits, **named)
    )


def _named(payment_id: str) -> dict[str, Any]:
    subscription, _, period = payment_id.partition(":")
    return {"subscription_id": subscription, "period": period} if period else {"payment_id": payment_id}


def disputed(dispute_id: str, payment_id: str, credits: int | None = None) -> PaymentDisputed:
    """A dispute of a payment opened."""
    key, named = f"billing:dispute:{dispute_id}", _named(payment_id)
    return with_content(
        PaymentDisputed(merchant_id=MERCHANT, key=key, opens=True, dispute_id=dispute_id, credits=credits, **named)
    )


def closed(dispute_id: str, payment_id: str, outcome: Any, credits: int | None = None) -> DisputeClosed:
    """A dispute of a payment closed."""
    key, named = f"billing:dispute:{dispute_id}:closed", _named(payment_id)
    dispute = DisputeClosed(
        merchant_id=MERCHANT, key=key, opens=True, dispute_id=dispute_id, outcome=outcome, credits=credits, **named
    )
    return with_content(dispute)


def renewal(
    subscription: str, period: str, credits: int, expires_at: int | None = None, window: tuple[int, int] | None = None
) -> SubscriptionRenewed:
    """A period of a subscription began."""
    return with_content(
        SubscriptionRenewed(
            merchant_id=MERCHANT,
            key=f"billing:subscription:{subscription}:{period}",
            opens=True,
            credits=credits,
            subscription_id=subscription,
            expires_at=expires_at,
            window=window,
        )
    )


def order(
    order_id: str,
    credits: int | None = None,
    *,
    total: str | int | None = None,
    currency: str | None = None,
    **more: Any,
) -> OrderPaid:
    """An order was paid."""
    return with_content(
        OrderPaid(
            merchant_id=MERCHANT,
            key=order_key(order_id),
            opens=True,
            order_id=order_id,
            credits=credits,
            total_micros=micros(total),
            currency=currency,
            **more,
        )
    )


def refund(
    refund_id: str,
    order_id: str | None = None,
    *,
    credits: int | None = None,
    money: str | int | None = None,
    order_total: str | int | None = None,
    currency: str | None = None,
) -> OrderRefunded:
    """Money or credits of an order were refunded."""
    return with_content(
        OrderRefunded(
            merchant_id=MERCHANT,
            key=f"shopify:refund:{refund_id}",
            opens=True,
            refund_id=refund_id,
            order_id=order_id,
            credits=credits,
            refund_amount_micros=micros(money),
            order_total_micros=micros(order_total),
            currency=currency,
        )
    )


def state(state: AccountState, forfeit: bool = False, key: str | None = None) -> ChangeState:
    """Freeze, thaw or close the account; closing with `forfeit` has a key."""
    key = (key or fresh_key()) if forfeit else ""
    return with_content(ChangeState(merchant_id=MERCHANT, key=key, state=state, reason="why", forfeit=forfeit))


def reversal(sequence: int, amount: int | None = None, key: str | None = None) -> Reverse:
    """Undo a transaction; the book finds its key."""
    return with_content(
        Reverse(merchant_id=MERCHANT, key=key or fresh_key(), sequence=sequence, target="", amount=amount)
    )


def terms(
    low_threshold: int | Unchanged | None = None,
    when_insufficient: str | Unchanged | None = None,
    overdraft_limit: int | Unchanged | None = None,
) -> ChangeTerms:
    """Set the account's own terms; a missing term returns to its default."""
    return with_content(
        ChangeTerms(
            merchant_id=MERCHANT,
            key=fresh_key(),
            low_threshold=low_threshold,
            when_insufficient=when_insufficient,
            overdraft_limit=overdraft_limit,
        )
    )


def sweep() -> Settle:
    """The sweeper's command: settle the account."""
    return Settle(merchant_id=MERCHANT, key="sweep")
