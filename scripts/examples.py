"""An example of each event. Incoming examples are written by hand. The service's own code makes the outgoing ones."""

import json
from typing import Any, Final

from credit_service.ledger import addresses
from credit_service.ledger.account import DAY, Announcement, Reference, Transaction
from credit_service.ledger.announcements import ACCOUNT_CREATED
from credit_service.ledger.types import TransactionType
from credit_service.messages.catalogue import EventType
from credit_service.messages.outbound import PREFIX, encode
from credit_service.storage.outbox import StoredEvent

_MERCHANT: Final = "6f1c2a54-8d0e-4c0b-9c55-0c7a8c1f2b11"
_NOON: Final = 1_795_348_800_000_000  # 2026-11-22T12:00:00Z
_ADJUSTMENT: Final = {
    "adjustment_id": "a-7",
    "operation_type": "INCREASE",
    "credits": 50,
    "reason": "goodwill",
    "admin_id": "bo",
}

_IN: Final[dict[str, dict[str, Any]]] = {
    "evt.merchant.created": {},
    "evt.billing.trial_started": {"trial_id": "t-1", "credits": 100},
    "evt.shopify.webhook.order_paid": {"order_id": 1002, "total": "149.90", "currency": "GBP"},
    "evt.shopify.webhook.order_refunded": {
        "refund_id": 9001,
        "order_id": 1002,
        "refund_amount": "149.90",
        "currency": "GBP",
    },
    "evt.billing.payment_succeeded": {"payment_id": "p-42", "credits": 500},
    "evt.billing.payment_refunded": {"payment_id": "p-42", "refund_id": "r-1", "credits": 500},
    "evt.billing.payment_disputed": {"payment_id": "p-42", "dispute_id": "d-3", "credits": 500},
    "evt.billing.payment_dispute_closed": {"payment_id": "p-42", "dispute_id": "d-3", "outcome": "won"},
    "evt.billing.subscription_renewed": {"subscription_id": "s-9", "period": "2026-11", "credits": 1000},
    "cmd.credits.manual_adjustment": _ADJUSTMENT,
    "evt.credits.manual_adjustment": _ADJUSTMENT,
}
"""The `data` of each incoming event, without the merchant."""

_ACCOUNT: Final = 0x29E0_0379_62F5_AA69
_GRANT: Final = addresses.text(_ACCOUNT, addresses.GRANT, 1)
_ORDER: Final = Reference("order", "1002")

# Transaction type, signed credits, balance after, reference.
_Posted = tuple[TransactionType, int, int, Reference | None]
_LAST: Final[_Posted] = ("ORDER_PAID", -25, 0, _ORDER)
_BOUGHT: Final[_Posted] = ("PAYMENT", 500, 600, Reference("payment", "p-42"))

_OUT: Final[dict[str, tuple[_Posted | None, dict[str, Any] | None]]] = {
    "account.created": (None, None),
    "account.frozen": (None, {"reason": "card reported stolen, ticket 4712", "actor": "key:vzphnrglpgkp"}),
    "account.thawed": (None, {"reason": "the card was found", "actor": "key:vzphnrglpgkp"}),
    "account.closed": (None, {"reason": "contract ended", "actor": "key:vzphnrglpgkp"}),
    "recharged": (_BOUGHT, None),
    "consumed": (("ORDER_PAID", -25, 75, _ORDER), None),
    "refunded": (("ORDER_REFUNDED", 25, 100, _ORDER), None),
    "adjusted": (("MANUAL", 50, 150, Reference("adjustment", "a-7")), None),
    "payment_refunded": (("PAYMENT_REFUNDED", -500, 100, Reference("payment", "p-42")), None),
    "payment_disputed": (("PAYMENT_DISPUTED", -500, 100, Reference("payment", "p-42")), None),
    "expired": (("EXPIRY", -100, 0, Reference("grant", _GRANT)), None),
    "expiring_soon": (None, {"grant_id": _GRANT, "remaining": 100, "expires_at": _NOON + 7 * DAY}),
    "low_balance_reached": (("USAGE", -80, 20, None), {"low_threshold": 20}),
    "balance_exhausted": (_LAST, None),
    "balance_restored": (_BOUGHT, {"low_threshold": 20}),
    "plugin_status_changed": (
        _LAST,
        {"previous_status": "enabled", "current_status": "disabled", "reason": "exhausted"},
    ),
    "reversed": (("REVERSAL", 25, 100, _ORDER), None),
    "grant.voided": (("VOID", -40, 60, Reference("grant", _GRANT)), None),
    "order_rejected": (("ORDER_PAID", 0, 10, _ORDER), None),
}
"""For each outgoing event: the transaction behind it, and the details that only this announcement has."""


def example(kind: EventType) -> dict[str, Any]:
    """Return an example of an event in its wire format."""
    if kind.direction == "out":
        encoded: dict[str, Any] = json.loads(encode(_stored(kind.name.removeprefix(PREFIX)), "credit-service"))
        return encoded
    return {
        "specversion": "1.0",
        "id": "e-1",
        "source": "shop",
        "type": kind.name,
        "correlationid": "checkout-77",
        "data": {"merchant_id": _MERCHANT, **_IN[kind.name]},
    }


def _stored(word: str) -> StoredEvent:
    """Return an announcement as the outbox stores it."""
    posted, detail = _OUT[word]
    cause = None if posted is None else _transaction(*posted)
    available = cause.balance_after if cause is not None else 0 if detail is None else detail.get("remaining", 100)
    number = 1 if word == ACCOUNT_CREATED else 7
    announcement = Announcement(number, word, None if cause is None else cause.sequence, available, _NOON, detail)
    return StoredEvent(0, number, _ACCOUNT, _MERCHANT, announcement, cause)


def _transaction(type_: TransactionType, change: int, after: int, reference: Reference | None) -> Transaction:
    return Transaction(
        account=_ACCOUNT,
        merchant_id=_MERCHANT,
        sequence=4,
        operation="INCREASE" if change > 0 else "DECREASE",
        type=type_,
        amount=abs(change),
        shortfall=0 if change else 25,  # only the rejected order has a shortfall
        balance_before=after - change,
        balance_after=after,
        debt_after=0,
        key="",
        content=b"",
        reference=reference,
        metadata=None,
        salt=None,
        personal_hash=None,
        total_micros=None,
        currency=None,
        draws=(),
        reverses=None,
        actor="",
        correlation_id="checkout-77",
        occurred_at=_NOON,
        created_at=_NOON,
        hash=b"",
    )
