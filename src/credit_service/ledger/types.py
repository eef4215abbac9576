"""The transaction types: one row for each. Every other table of types derives from this one.

A new type is a name, a row here, its command or fact (`commands.py`), its rule (`decide.py` registers it), and its
event (`messages/inbound.py`), if one tells it. What a row says is data; what a type does is left to its rule.
"""

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

Operation = Literal["INCREASE", "DECREASE"]
INCREASE: Final = "INCREASE"
DECREASE: Final = "DECREASE"

Category = Literal["paid", "promotional"]
PAID: Final = "paid"
PROMOTIONAL: Final = "promotional"

TransactionType = Literal[
    "TRIAL",
    "SUBSCRIPTION",
    "PAYMENT",
    "PAYMENT_REFUNDED",
    "ORDER_PAID",
    "ORDER_REFUNDED",
    "USAGE",
    "MANUAL",
    "EXPIRY",
]
TRIAL: Final = "TRIAL"
SUBSCRIPTION: Final = "SUBSCRIPTION"
PAYMENT: Final = "PAYMENT"
PAYMENT_REFUNDED: Final = "PAYMENT_REFUNDED"
ORDER_PAID: Final = "ORDER_PAID"
ORDER_REFUNDED: Final = "ORDER_REFUNDED"
USAGE: Final = "USAGE"
MANUAL: Final = "MANUAL"
EXPIRY: Final = "EXPIRY"

# Announcements that every transaction of some type has. `ANNOUNCED` says what each means.
RECHARGED: Final = "recharged"
CONSUMED: Final = "consumed"
REFUNDED: Final = "refunded"
ADJUSTED: Final = "adjusted"
PAYMENT_TAKEN_BACK: Final = "payment_refunded"
EXPIRED: Final = "expired"
ORDER_REJECTED: Final = "order_rejected"

ANNOUNCED: Final[Mapping[str, str]] = {
    RECHARGED: "A trial, a period of a subscription or a payment added credits.",
    CONSUMED: "An order or a spend took credits.",
    REFUNDED: "A refund returned credits of an order.",
    ADJUSTED: "An administrator added or took credits.",
    PAYMENT_TAKEN_BACK: "A payment was refunded, and the ledger took its credits back.",
    EXPIRED: "A grant expired with credits left in it.",
    ORDER_REJECTED: "The available credits did not cover an order, so it was rejected and took nothing.",
}
"""What each of these announcements means, as the documents of the events say it."""


class TypeRow(NamedTuple):
    """What the service knows of a transaction type.

    `operations`: what it may do to a balance. `announcement`: the one that each of its transactions has; `instead`:
    another one that it may have in its place. `category`: of the grant that an increase leaves, unless its terms say
    another. `key`: the natural key of the fact or event that tells it, with the event's fields in braces; without one
    the caller names the key. `refunds`: the type that it gives back. `postable`: whether `POST /credits/transactions`
    takes it. `by_time`: time alone posts it, so every view of the past dates it by its instant (L7).
    """

    operations: tuple[Operation, ...]
    announcement: str
    category: Category = PAID
    key: str | None = None
    refunds: TransactionType | None = None
    instead: str | None = None
    postable: bool = False
    by_time: bool = False


TYPES: Final[Mapping[TransactionType, TypeRow]] = {
    TRIAL: TypeRow((INCREASE,), RECHARGED, PROMOTIONAL, key="trial:{merchant_id}", postable=True),
    SUBSCRIPTION: TypeRow((INCREASE,), RECHARGED, key="billing:subscription:{subscription_id}:{period}", postable=True),
    PAYMENT: TypeRow((INCREASE,), RECHARGED, key="billing:payment:{payment_id}", postable=True),
    PAYMENT_REFUNDED: TypeRow(
        (DECREASE,), PAYMENT_TAKEN_BACK, key="billing:payment_refund:{refund_id}", refunds=PAYMENT
    ),
    ORDER_PAID: TypeRow((DECREASE,), CONSUMED, key="shopify:order:{order_id}", instead=ORDER_REJECTED, postable=True),
    ORDER_REFUNDED: TypeRow((INCREASE,), REFUNDED, key="shopify:refund:{refund_id}", refunds=ORDER_PAID, postable=True),
    USAGE: TypeRow((DECREASE,), CONSUMED, postable=True),
    MANUAL: TypeRow((INCREASE, DECREASE), ADJUSTED, PROMOTIONAL, key="manual:{adjustment_id}", postable=True),
    EXPIRY: TypeRow((DECREASE,), EXPIRED, by_time=True),
}

REFUNDABLE: Final = frozenset({row.refunds for row in TYPES.values() if row.refunds})
"""Types whose refunds may arrive first, and then wait (L8)."""

CLAW_BACKS: Final = frozenset({name for name, row in TYPES.items() if row.refunds and DECREASE in row.operations})
"""Types that take credits back from the grant that brought them, also before it is effective."""

BY_TIME: Final = frozenset({name for name, row in TYPES.items() if row.by_time})
"""Types that time alone posts (L7)."""


def natural_key(type_: TransactionType, **ids: object) -> str:
    """The natural key of a fact, by which a repeat finds it and a refund finds what it gives back (L3, L8)."""
    key = TYPES[type_].key
    assert key is not None, f"{type_} has no natural key"
    return key.format(**ids)


def announced_by(announcement: str) -> tuple[TransactionType, ...]:
    """The types whose transactions may have this announcement as their own."""
    return tuple([name for name, row in TYPES.items() if announcement in (row.announcement, row.instead)])


def postable(operation: Operation) -> tuple[TransactionType, ...]:
    """The types that `POST /credits/transactions` takes with this operation."""
    return tuple([name for name, row in TYPES.items() if row.postable and operation in row.operations])
