"""Inbound events: the data of each, and the command or fact that it means to the ledger.

`CATALOGUE` lists them by type. An event is one command or fact, except an order event with several orders: it is one
fact for each order, and an invalid order does not stop the others.

This file is longer than 400 lines because the data and the meaning of every event stand together.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import Field, ValidationError

from credit_service.ledger.account import Reference
from credit_service.ledger.commands import (
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
    SubscriptionRenewed,
    TrialStarted,
    order_key,
    payment_key,
    trial_key,
)
from credit_service.ledger.types import (
    MANUAL,
    ORDER_PAID,
    ORDER_REFUNDED,
    PAYMENT,
    PAYMENT_DISPUTED,
    PAYMENT_REFUNDED,
    SUBSCRIPTION,
    TRIAL,
    TYPES,
    TransactionType,
    natural_key,
)
from credit_service.messages.content import DEFAULT_LIMITS, Limits, command_content, fingerprint, metadata_text
from credit_service.messages.fast import decoder
from credit_service.messages.faults import Fault, Invalid, of_validation
from credit_service.messages.fields import (
    Body,
    Credits,
    Currency,
    Id,
    MerchantId,
    Metadata,
    Money,
    PositiveCredits,
    Reason,
    Time,
    id_text,
    merchant_text,
    money_micros,
    parse_time,
)
from credit_service.messages.patterns import PRINTABLE

_CLOSED: Final = ":closed"
"""The end of the natural key of a dispute's closing."""


class _EventData(Body):
    merchant_id: MerchantId | Annotated[int, Field(ge=0, description="A number means its digits.")]
    metadata: Metadata | None = None


class _WithCredits(_EventData):
    """`credits`, `credits_used` and `credits_to_use` mean the same."""

    credits: Credits | None = None
    credits_used: Credits | None = None
    credits_to_use: Credits | None = None


class MerchantCreated(_EventData):
    """A merchant was created: opens the account and grants the trial."""


class TrialStartedEvent(_WithCredits):
    """A merchant started a trial: grants its credits, unless the account already had a trial."""

    trial_id: Id


class OrderItem(Body):
    """One of several orders in an event."""

    order_id: Id
    total: Money | None = None
    currency: Currency | None = None
    credits: Credits | None = None
    credits_used: Credits | None = None
    credits_to_use: Credits | None = None
    metadata: Metadata | None = None


# Each item is validated alone, so that an invalid one does not stop the others.
_ITEMS = Field(min_length=1, max_length=1000, json_schema_extra={"items": OrderItem.model_json_schema()})


class OrderPaidEvent(_WithCredits):
    """Orders were paid: takes the price of each in credits."""

    order_id: Id | None = None
    total: Money | None = None
    currency: Currency | None = None
    order_items: Annotated[list[Any], _ITEMS] | None = None


class OrderRefundedEvent(_WithCredits):
    """Money or credits of an order were refunded: returns credits. Waits until the order is known."""

    refund_id: Id
    order_id: Id | None = None
    refund_amount: Money | None = None
    order_total: Money | None = None
    currency: Currency | None = None


class PaymentSucceededEvent(_WithCredits):
    """The merchant bought credits: adds them."""

    payment_id: Id
    expires_at: Time | None = None


class _PaymentNamed(_WithCredits):
    """A payment is named by its id, a renewal by its subscription and its period."""

    payment_id: Id | None = None
    subscription_id: Id | None = None
    period: Id | None = None


class PaymentRefundedEvent(_PaymentNamed):
    """A payment or renewal was refunded: takes its credits back, at most all. Waits until the payment is known."""

    refund_id: Id


class PaymentDisputedEvent(_PaymentNamed):
    """A dispute of a payment or renewal opened: takes its credits back. Waits until the payment is known."""

    dispute_id: Id


class PaymentDisputeClosedEvent(_PaymentNamed):
    """A dispute closed. If it was won, the credits return; if it was lost, they stay taken back."""

    dispute_id: Id
    outcome: Literal["won", "lost"]


class SubscriptionRenewedEvent(_WithCredits):
    """A period of a subscription began: adds the credits of the period, once."""

    subscription_id: Id
    period: Id | None = None
    renewal_id: Id | None = None
    expires_at: Time | None = None


class ManualAdjustmentEvent(_WithCredits):
    """An administrator adjusts the credits. Unlike a fact, this can be refused."""

    adjustment_id: Id
    operation_type: Literal["INCREASE", "DECREASE"]
    credits: PositiveCredits | None = None
    credits_used: PositiveCredits | None = None
    credits_to_use: PositiveCredits | None = None
    reason: Reason
    admin_id: Annotated[str, Field(min_length=1, max_length=200, pattern=PRINTABLE)]


class EventContext(NamedTuple):
    """What a door knows about an event, for all of its commands.

    `occurred_at`: in microseconds since 1970. `authenticated`: an API key proves the actor, so the event cannot name
    another one.
    """

    actor: str
    correlation_id: str | None
    occurred_at: int | None
    limits: Limits = DEFAULT_LIMITS
    authenticated: bool = False


class Translated(NamedTuple):
    """One command of an event, or its faults; `order_id` is set if the event has several orders."""

    command: Command | Invalid
    order_id: str | None = None


def translate(type_: str, data: Any, context: EventContext) -> list[Translated]:
    """The commands of an event of a known type. Raises Invalid if its data as a whole is invalid."""
    kind = CATALOGUE[type_]
    try:
        event = kind.model.model_validate(data)
    except ValidationError as error:
        raise Invalid(of_validation(error, ["data"])) from None
    return kind.commands(event, context)


def translate_fast(type_: str, data: bytes, context: EventContext) -> list[Translated] | None:
    """As `translate`, from the bytes of well-formed data; None if only `translate` can judge them."""
    event = CATALOGUE[type_].fast(data)
    if event is None:
        return None
    try:
        return CATALOGUE[type_].commands(event, context)
    except (Invalid, ValueError):
        return None


def _common(event: Any, context: EventContext, key: str, *content: str | int | None) -> dict[str, Any]:
    """The fields that every command of an event has."""
    most = context.limits.key
    if len(key) > most:
        raise Invalid([Fault("/data", "too_long", f"The ids make a key longer than {most} characters.")])
    metadata, salt = metadata_text(event.metadata, context.limits, "/data/metadata")
    return {
        "merchant_id": _merchant(event),
        "key": key,
        "content": fingerprint(*content, context.occurred_at),
        "actor": context.actor,
        "correlation_id": context.correlation_id,
        "occurred_at": context.occurred_at,
        "metadata": metadata,
        "salt": salt,
        "opens": True,
    }


def _merchant(event: Any) -> str:
    merchant_id = merchant_text(event.merchant_id)
    if len(merchant_id) > 64:
        raise Invalid([Fault("/data/merchant_id", "too_long", "A merchant's id has at most 64 characters.")])
    return merchant_id


def _credits(event: Any) -> int | None:
    given = {name: getattr(event, name) for name in ("credits", "credits_used", "credits_to_use")}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
        message = "credits, credits_used and credits_to_use mean the same: send one of them."
        raise Invalid([Fault(f"/data/{name}", "not_allowed", message) for name in given])
    return next(iter(given.values()), None)


def _required_credits(event: Any) -> int:
    credits = _credits(event)
    if credits is None:
        raise Invalid([Fault("/data/credits", "required", "This field is required.")])
    return credits


def _micros(money: Any) -> int | None:
    return None if money is None else money_micros(money)


def _merchant_created(event: MerchantCreated, context: EventContext) -> list[Translated]:
    return [Translated(OpenAccount(**_common(event, context, trial_key(_merchant(event)))))]


def _trial_started(event: TrialStartedEvent, context: EventContext) -> list[Translated]:
    credits, trial_id = _required_credits(event), id_text(event.trial_id)
    common = _common(event, context, trial_key(_merchant(event)), credits, trial_id)
    return [Translated(TrialStarted(**common, credits=credits, trial_id=trial_id))]


def _order_paid(event: OrderPaidEvent, context: EventContext) -> list[Translated]:
    if event.order_items is None:
        if event.order_id is None:
            raise Invalid([Fault("/data/order_id", "required", "An order event needs order_id or order_items.")])
        return [Translated(_order(event, event.merchant_id, event, context))]
    single = ("order_id", "total", "credits", "credits_used", "credits_to_use", "metadata")
    faults = [
        Fault(f"/data/{name}", "not_allowed", "With order_items, each item has this field.")
        for name in single
        if getattr(event, name) is not None
    ]
    if faults:
        raise Invalid(faults)
    return [_order_item(event, index, item, context) for index, item in enumerate(event.order_items)]


def _order_item(event: OrderPaidEvent, index: int, item: Any, context: EventContext) -> Translated:
    path: list[str | int] = ["data", "order_items", index]
    named = item.get("order_id") if isinstance(item, dict) else None
    order_id = id_text(named) if isinstance(named, str | int) and not isinstance(named, bool) else None
    try:
        return Translated(_order(OrderItem.model_validate(item), event.merchant_id, event, context), order_id)
    except ValidationError as error:
        return Translated(Invalid(of_validation(error, path)), order_id)
    except Invalid as error:
        faults = [
            fault._replace(pointer=fault.pointer.replace("/data", f"/data/order_items/{index}", 1))
            for fault in error.faults
        ]
        return Translated(Invalid(faults), order_id)


def _order(order: Any, merchant_id: str | int, event: OrderPaidEvent, context: EventContext) -> OrderPaid:
    credits, total, order_id = _credits(order), _micros(order.total), id_text(order.order_id)
    if credits is None and total is None:
        raise Invalid([Fault("/data/total", "required", "An order needs its total or its credits.")])
    currency = order.currency or event.currency
    common = _common(_Ordered(merchant_id, order.metadata), context, order_key(order_id), credits, total, currency)
    return OrderPaid(**common, order_id=order_id, credits=credits, total_micros=total, currency=currency)


class _Ordered(NamedTuple):
    merchant_id: str | int
    metadata: Mapping[str, Any] | None


def _order_refunded(event: OrderRefundedEvent, context: EventContext) -> list[Translated]:
    credits, amount = _credits(event), _micros(event.refund_amount)
    refund_id = id_text(event.refund_id)
    order_id = None if event.order_id is None else id_text(event.order_id)
    if credits is None and order_id is None:
        raise Invalid([Fault("/data/credits", "required", "A refund without order_id needs its credits.")])
    if credits is None and amount is None:
        raise Invalid([Fault("/data/refund_amount", "required", "A refund needs its refund_amount or its credits.")])
    total = _micros(event.order_total)
    key = natural_key(ORDER_REFUNDED, refund_id=refund_id)
    common = _common(event, context, key, order_id, credits, amount, total, event.currency)
    fact = OrderRefunded(
        **common,
        refund_id=refund_id,
        order_id=order_id,
        credits=credits,
        refund_amount_micros=amount,
        order_total_micros=total,
        currency=event.currency,
    )
    return [Translated(fact)]


def _payment_succeeded(event: PaymentSucceededEvent, context: EventContext) -> list[Translated]:
    credits, payment_id = _required_credits(event), id_text(event.payment_id)
    expires_at = None if event.expires_at is None else parse_time(event.expires_at)
    common = _common(event, context, payment_key(payment_id), credits, expires_at)
    terms = GrantTerms(expires_at=expires_at)
    return [Translated(PaymentSucceeded(**common, credits=credits, payment_id=payment_id, terms=terms))]


def _payment_refunded(event: PaymentRefundedEvent, context: EventContext) -> list[Translated]:
    credits, refund_id, payment = _required_credits(event), id_text(event.refund_id), _payment_named(event)
    key = natural_key(PAYMENT_REFUNDED, refund_id=refund_id)
    common = _common(event, context, key, credits, *payment.values())
    return [Translated(PaymentRefunded(**common, **payment, credits=credits, refund_id=refund_id))]


def _payment_disputed(event: PaymentDisputedEvent, context: EventContext) -> list[Translated]:
    credits, dispute_id, payment = _credits(event), id_text(event.dispute_id), _payment_named(event)
    key = natural_key(PAYMENT_DISPUTED, dispute_id=dispute_id)
    common = _common(event, context, key, credits, *payment.values())
    return [Translated(PaymentDisputed(**common, **payment, credits=credits, dispute_id=dispute_id))]


def _dispute_closed(event: PaymentDisputeClosedEvent, context: EventContext) -> list[Translated]:
    credits, dispute_id, payment = _credits(event), id_text(event.dispute_id), _payment_named(event)
    key = natural_key(PAYMENT_DISPUTED, dispute_id=dispute_id) + _CLOSED
    common = _common(event, context, key, credits, event.outcome, *payment.values())
    fact = DisputeClosed(**common, **payment, credits=credits, dispute_id=dispute_id, outcome=event.outcome)
    return [Translated(fact)]


def _payment_named(event: _PaymentNamed) -> dict[str, Any]:
    """The payment or renewal that a refund or dispute names."""
    said = {name: getattr(event, name) for name in ("payment_id", "subscription_id", "period")}
    named = {name: id_text(value) for name, value in said.items() if value is not None}
    if tuple(named) not in (("payment_id",), ("subscription_id", "period")):
        message = "Name the payment by payment_id, or the renewal by subscription_id and period."
        raise Invalid([Fault("/data/payment_id", "required", message)])
    return named


def _subscription_renewed(event: SubscriptionRenewedEvent, context: EventContext) -> list[Translated]:
    named = [name for name in (event.period, event.renewal_id) if name is not None]
    if len(named) != 1:
        message = "A renewal needs either period or renewal_id, so that each period counts once."
        raise Invalid([Fault("/data/period", "required", message)])
    credits, subscription_id = _required_credits(event), id_text(event.subscription_id)
    period = id_text(named[0])
    expires_at = None if event.expires_at is None else parse_time(event.expires_at)
    key = natural_key(SUBSCRIPTION, subscription_id=subscription_id, period=period)
    common = _common(event, context, key, credits, expires_at)
    fact = SubscriptionRenewed(**common, credits=credits, subscription_id=subscription_id, expires_at=expires_at)
    return [Translated(fact)]


def _manual_adjustment(event: ManualAdjustmentEvent, context: EventContext) -> list[Translated]:
    adjustment_id, amount = id_text(event.adjustment_id), _required_credits(event)
    reference = Reference("adjustment", adjustment_id)
    # The metadata keeps admin_id, so it is part of the content at every door (L3).
    asked = {**(event.metadata or {}), "reason": event.reason, "admin_id": event.admin_id}
    if not context.authenticated:
        context = context._replace(actor=f"admin:{event.admin_id}")
    key = natural_key(MANUAL, adjustment_id=adjustment_id)
    common = _common(_Ordered(event.merchant_id, asked), context, key)
    # The content of a command is the request itself, without the envelope (L3).
    operation = event.operation_type
    common["content"] = command_content(operation, MANUAL, amount, reference, None)
    command = Post(**common, operation=operation, type=MANUAL, amount=amount, reference=reference)
    return [Translated(command)]


_Translator = Callable[[Any, EventContext], list[Translated]]


class Kind(NamedTuple):
    """An inbound event type.

    `key`: the natural key of its transaction, with the names of its fields in braces. `scope`: an API key needs it to
    send the event over HTTP.
    """

    model: type[Body]
    commands: _Translator
    key: str
    fast: Callable[[bytes], Any]
    scope: str


def _kind(
    model: type[Body], commands: _Translator, type_: TransactionType, scope: str = "write", key_end: str = ""
) -> Kind:
    return Kind(model, commands, f"{TYPES[type_].key}{key_end}", decoder(model), scope)


_ADJUSTMENT = _kind(ManualAdjustmentEvent, _manual_adjustment, MANUAL, "admin")

CATALOGUE: Mapping[str, Kind] = {
    "evt.merchant.created": _kind(MerchantCreated, _merchant_created, TRIAL),
    "evt.billing.trial_started": _kind(TrialStartedEvent, _trial_started, TRIAL),
    "evt.shopify.webhook.order_paid": _kind(OrderPaidEvent, _order_paid, ORDER_PAID),
    "evt.shopify.webhook.order_refunded": _kind(OrderRefundedEvent, _order_refunded, ORDER_REFUNDED),
    "evt.billing.payment_succeeded": _kind(PaymentSucceededEvent, _payment_succeeded, PAYMENT),
    "evt.billing.payment_refunded": _kind(PaymentRefundedEvent, _payment_refunded, PAYMENT_REFUNDED),
    "evt.billing.payment_disputed": _kind(PaymentDisputedEvent, _payment_disputed, PAYMENT_DISPUTED),
    "evt.billing.payment_dispute_closed": _kind(
        PaymentDisputeClosedEvent, _dispute_closed, PAYMENT_DISPUTED, key_end=_CLOSED
    ),
    "evt.billing.subscription_renewed": _kind(SubscriptionRenewedEvent, _subscription_renewed, SUBSCRIPTION),
    "cmd.credits.manual_adjustment": _ADJUSTMENT,
    "evt.credits.manual_adjustment": _ADJUSTMENT,
}
"""Every inbound event type, by its subject."""


def merchant_of(data: Any) -> str | None:
    """The merchant of an event, if its data names one."""
    merchant_id = data.get("merchant_id") if isinstance(data, dict) else None
    if isinstance(merchant_id, bool) or not isinstance(merchant_id, str | int):
        return None
    return merchant_text(merchant_id)
