"""The transaction types: one row each. All other tables of types derive from this one.

A new type needs a name and a row here, a command or fact (`commands.py`), a rule (`decide.py` registers it), and an
event (`messages/inbound.py`) if an event reports it. A row holds data; the rule holds the behaviour.
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
    "PAYMENT_DISPUTED",
    "ORDER_PAID",
    "ORDER_REFUNDED",
    "USAGE",
    "MANUAL",
    "EXPIRY",
    "VOID",
    "REVERSAL",
]
PostableType = Literal["TRIAL", "SUBSCRIPTION", "PAYMENT", "MANUAL", "ORDER_REFUNDED", "USAGE", "ORDER_PAID"]
"""The types with a `postable` row, for type checkers and schemas."""
TRIAL: Final = "TRIAL"
SUBSCRIPTION: Final = "SUBSCRIPTION"
PAYMENT: Final = "PAYMENT"
PAYMENT_REFUNDED: Final = "PAYMENT_REFUNDED"
PAYMENT_DISPUTED: Final = "PAYMENT_DISPUTED"
ORDER_PAID: Final = "ORDER_PAID"
ORDER_REFUNDED: Final = "ORDER_REFUNDED"
USAGE: Final = "USAGE"
MANUAL: Final = "MANUAL"
EXPIRY: Final = "EXPIRY"
VOID: Final = "VOID"
REVERSAL: Final = "REVERSAL"

# Announcements of transactions. `ANNOUNCED` explains each.
RECHARGED: Final = "recharged"
CONSUMED: Final = "consumed"
REFUNDED: Final = "refunded"
ADJUSTED: Final = "adjusted"
PAYMENT_TAKEN_BACK: Final = "payment_refunded"
PAYMENT_IN_DISPUTE: Final = "payment_disputed"
EXPIRED: Final = "expired"
ORDER_REJECTED: Final = "order_rejected"
GRANT_VOIDED: Final = "grant.voided"
REVERSED: Final = "reversed"

ANNOUNCED: Final[Mapping[str, str]] = {
    RECHARGED: "A trial, a period of a subscription or a payment added credits.",
    CONSUMED: "An order or a spend took credits.",
    REFUNDED: "A refund returned credits of an order.",
    ADJUSTED: "An administrator added or took credits.",
    PAYMENT_TAKEN_BACK: "A payment was refunded, and the ledger took its credits back.",
    PAYMENT_IN_DISPUTE: "A dispute of a payment opened or closed: the ledger took its credits back, or returned them.",
    EXPIRED: "A grant expired with credits left in it.",
    ORDER_REJECTED: "The available credits did not cover an order, so it was rejected and took nothing.",
    REVERSED: "An administrator undid a transaction, or a part of it.",
    GRANT_VOIDED: "An administrator took unspent credits of a grant.",
}
"""The meaning of each announcement, for the documents of the events."""


class TypeRow(NamedTuple):
    """One transaction type.

    `operations`: whether it may add or take credits. `announcement`: each of its transactions has this one, or the one
    of `instead`. `category`: default category of the grant of an increase. `key`: natural key of its fact or event,
    with the event's fields in braces; None if the caller chooses the key. `refunds`: the types that it refunds.
    `postable`: whether `POST /credits/transactions` accepts it. `by_time`: the ledger posts it when its time comes, so
    a view of the past dates it by its own instant (L7). `early`: it may change a grant before that is effective.
    `reversible`: an administrator may undo it (L18); refunds and disputes are undone by facts.
    """

    operations: tuple[Operation, ...]
    announcement: str
    category: Category = PAID
    key: str | None = None
    refunds: tuple[TransactionType, ...] = ()
    instead: str | None = None
    postable: bool = False
    by_time: bool = False
    early: bool = False
    reversible: bool = False


TYPES: Final[Mapping[TransactionType, TypeRow]] = {
    TRIAL: TypeRow((INCREASE,), RECHARGED, PROMOTIONAL, key="trial:{merchant_id}", postable=True, reversible=True),
    SUBSCRIPTION: TypeRow(
        (INCREASE,),
        RECHARGED,
        key="billing:subscription:{subscription_id}:{period}",
        postable=True,
        reversible=True,
    ),
    PAYMENT: TypeRow((INCREASE,), RECHARGED, key="billing:payment:{payment_id}", postable=True, reversible=True),
    PAYMENT_REFUNDED: TypeRow(
        (DECREASE,),
        PAYMENT_TAKEN_BACK,
        key="billing:payment_refund:{refund_id}",
        refunds=(PAYMENT, SUBSCRIPTION),
        early=True,
    ),
    PAYMENT_DISPUTED: TypeRow(
        (DECREASE, INCREASE),
        PAYMENT_IN_DISPUTE,
        key="billing:dispute:{dispute_id}",
        refunds=(PAYMENT, SUBSCRIPTION),
        early=True,
    ),
    ORDER_PAID: TypeRow(
        (DECREASE,),
        CONSUMED,
        key="shopify:order:{order_id}",
        instead=ORDER_REJECTED,
        postable=True,
        reversible=True,
    ),
    ORDER_REFUNDED: TypeRow(
        (INCREASE,), REFUNDED, key="shopify:refund:{refund_id}", refunds=(ORDER_PAID,), postable=True
    ),
    USAGE: TypeRow((DECREASE,), CONSUMED, postable=True, reversible=True),
    MANUAL: TypeRow(
        (INCREASE, DECREASE), ADJUSTED, PROMOTIONAL, key="manual:{adjustment_id}", postable=True, reversible=True
    ),
    EXPIRY: TypeRow((DECREASE,), EXPIRED, by_time=True),
    VOID: TypeRow((DECREASE,), GRANT_VOIDED, early=True, reversible=True),
    REVERSAL: TypeRow((INCREASE, DECREASE), REVERSED, early=True),
}

REFUNDABLE: Final = frozenset({refunded for row in TYPES.values() for refunded in row.refunds})
"""Types that refunds and disputes may wait for (L8, L19)."""

EARLY: Final = frozenset({name for name, row in TYPES.items() if row.early})
"""Types that may change a grant before it is effective."""

BY_TIME: Final = frozenset({name for name, row in TYPES.items() if row.by_time})
"""Types that the ledger posts when their time comes (L7)."""


def natural_key(type_: TransactionType, **ids: object) -> str:
    """The natural key of a fact. Repeats and refunds find the fact by this key (L3, L8)."""
    key = TYPES[type_].key
    assert key is not None, f"{type_} has no natural key"
    return key.format(**ids)


def announced_by(announcement: str) -> tuple[TransactionType, ...]:
    """The types whose transactions may have this announcement."""
    return tuple([name for name, row in TYPES.items() if announcement in (row.announcement, row.instead)])


def postable(operation: Operation) -> tuple[TransactionType, ...]:
    """The types that `POST /credits/transactions` accepts with this operation."""
    return tuple([name for name, row in TYPES.items() if row.postable and operation in row.operations])
