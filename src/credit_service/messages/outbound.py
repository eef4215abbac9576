"""Outbound events: the data of each, and how an announcement of the outbox becomes an event.

An event is built when the outbox is read, always with the same bytes, so that a repeated delivery is identical. The
data are msgspec structs, because a publisher builds tens of thousands a second. `PAYLOADS` lists them.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Generic, Literal, TypeVar, cast

from msgspec import UNSET, Meta, Struct, UnsetType, defstruct

from credit_service.ledger import addresses, announcements
from credit_service.ledger.types import ANNOUNCED, TransactionType, announced_by
from credit_service.messages.fields import format_time
from credit_service.messages.patterns import MERCHANT
from credit_service.messages.shapes import encode as as_json
from credit_service.storage.outbox import StoredEvent

PREFIX: Final = "evt.credits."
"""The prefix of every event type."""

_UUID: Final = {"format": "uuid"}
Uuid = Annotated[str, Meta(extra_json_schema=_UUID)]
Time = Annotated[str, Meta(description="An instant in UTC (RFC 3339).", extra_json_schema={"format": "date-time"})]
Credits = Annotated[int, Meta(description="Whole credits.")]
Amount = Annotated[int, Meta(description="Whole credits.", ge=0)]
PluginStatus = Literal["enabled", "disabled"]


class EventReference(Struct, frozen=True):
    """The object of a transaction, as its sender names it."""

    type: str
    id: str


class Payload(Struct, frozen=True):
    """The data of every event. The fields of its transaction are null if no transaction caused it."""

    merchant_id: Annotated[str, Meta(description="The owner of the account.", pattern=MERCHANT)]
    account_id: Uuid
    transaction_id: Annotated[Uuid | None, Meta(description="The transaction that caused it.")]
    transaction_sequence: Annotated[int, Meta(description="The transaction's number in its account.", ge=1)] | None
    transaction_type: TransactionType | None
    amount: Annotated[Amount | None, Meta(description="Credits that were posted.")]
    shortfall: Annotated[Amount | None, Meta(description="Credits that could not be posted.")]
    balance_before: Credits | None
    balance_after: Credits | None
    available: Annotated[int, Meta(description="Credits that can be spent after it; a negative number is owed.")]
    reference: EventReference | None
    correlation_id: str | None


class OfTransaction(Payload, frozen=True):
    """The data of an event that announces its own transaction."""

    transaction_id: Annotated[Uuid, Meta(description="The announced transaction.")]
    transaction_sequence: Annotated[int, Meta(description="The transaction's number in its account.", ge=1)]
    transaction_type: TransactionType
    amount: Annotated[Amount, Meta(description="Credits that were posted.")]
    shortfall: Annotated[Amount, Meta(description="Credits that could not be posted.")]
    balance_before: Credits
    balance_after: Credits


class AccountCreated(Payload, frozen=True):
    """An account was opened. This is always its first event."""


def _own_payload(announcement: str) -> type[Payload]:
    """The data of an event that announces a transaction, built from the table of types."""
    name = "".join(map(str.capitalize, re.split("[._]", announcement)))
    types: Any = Literal[announced_by(announcement)]
    payload: Any = defstruct(
        name,
        [("transaction_type", types)],
        bases=(OfTransaction,),
        namespace={"__doc__": ANNOUNCED[announcement]},
        module=__name__,
        frozen=True,
    )
    return cast(type[Payload], payload)


class ExpiringSoon(Payload, frozen=True):
    """A grant expires within 7 days. Announced once for each grant that lives at least that long."""

    grant_id: Uuid
    remaining: Annotated[int, Meta(description="Credits that remain in it.", ge=1)]
    expires_at: Time


class LowBalanceReached(Payload, frozen=True):
    """Available credits fell to the low threshold or below. Announced once, until the balance is restored."""

    low_threshold: Amount


class BalanceExhausted(Payload, frozen=True):
    """No credits are available any more. Announced once, until the balance is restored."""


class BalanceRestored(Payload, frozen=True):
    """Available credits are above the low threshold again."""

    low_threshold: Amount


class PluginStatusChanged(Payload, frozen=True):
    """The plugin status changed: the plugin may run now, or must stop."""

    previous_status: PluginStatus
    current_status: PluginStatus
    reason: Literal["available", "exhausted", "frozen"]


class AccountStateChanged(Payload, frozen=True):
    """An account changed its state. `reason` is null once it was erased."""

    reason: str | None
    actor: str


class AccountFrozen(AccountStateChanged, frozen=True):
    """An account was frozen: nothing can be spent, and its plugin is disabled."""


class AccountThawed(AccountStateChanged, frozen=True):
    """A frozen account was opened again."""


class AccountClosed(AccountStateChanged, frozen=True):
    """An account was closed."""


PAYLOADS: Final[Mapping[str, type[Payload]]] = {
    announcements.ACCOUNT_CREATED: AccountCreated,
    announcements.ACCOUNT_FROZEN: AccountFrozen,
    announcements.ACCOUNT_THAWED: AccountThawed,
    announcements.ACCOUNT_CLOSED: AccountClosed,
    announcements.EXPIRING_SOON: ExpiringSoon,
    announcements.LOW_BALANCE_REACHED: LowBalanceReached,
    announcements.BALANCE_EXHAUSTED: BalanceExhausted,
    announcements.BALANCE_RESTORED: BalanceRestored,
    announcements.PLUGIN_STATUS_CHANGED: PluginStatusChanged,
    **{announcement: _own_payload(announcement) for announcement in ANNOUNCED},
}
"""The data of each event, by its announcement."""

Data = TypeVar("Data", bound=Payload)


class OutboundEvent(Struct, Generic[Data], frozen=True, kw_only=True):
    """A CloudEvent (version 1.0, JSON format, structured mode) about an account.

    `sequence` numbers the events of one account 1, 2, 3 … without a gap, as the CloudEvents extension requires.
    """

    specversion: Literal["1.0"] = "1.0"
    id: Annotated[Uuid, Meta(description="The id of the event; a repeated delivery has the same id.")]
    source: Annotated[str, Meta(description="The service that sends it (SERVICE_SOURCE).", min_length=1)]
    type: Annotated[str, Meta(description="The event type; over NATS it is also the subject.")]
    subject: Annotated[str, Meta(description="The merchant of the account.", pattern=MERCHANT)]
    time: Annotated[Time, Meta(description="When it was posted, in UTC (RFC 3339).")]
    sequence: Annotated[str, Meta(description="Its number among the account's events.", pattern="^[1-9][0-9]*$")]
    correlationid: Annotated[str, Meta(description="The correlation id of its transaction.")] | UnsetType = UNSET
    datacontenttype: Literal["application/json"] = "application/json"
    data: Data


def event_id(account: int, number: int) -> str:
    """The id of an account's event: an address (addresses.py). `number` counts the account's events."""
    return addresses.text(account, addresses.EVENT, number)


def event_type(stored: StoredEvent) -> str:
    """The type of an announcement's event; it is also the NATS subject."""
    return PREFIX + stored.announcement.type


def cloud_event(stored: StoredEvent, source: str) -> OutboundEvent[Payload]:
    """The event of an announcement; `source` is the service's own name (SERVICE_SOURCE)."""
    announcement, account = stored.announcement, stored.account
    merchant_id = str(stored.merchant_id)
    cause, reference, correlation_id = stored.transaction, None, None
    posted: tuple[Any, ...] = _NOTHING
    if cause is not None:
        transaction_id = addresses.text(account, addresses.TRANSACTION, cause.sequence)
        change = (cause.amount, cause.shortfall, cause.balance_before, cause.balance_after)
        posted = (transaction_id, cause.sequence, cause.type, *change)
        reference = None if cause.reference is None else EventReference(*cause.reference)
        correlation_id = cause.correlation_id
    account_id = addresses.text(account, addresses.ACCOUNT, 0)
    common = (merchant_id, account_id, *posted, announcement.available, reference, correlation_id)
    return OutboundEvent(
        id=event_id(account, announcement.number),
        source=source,
        type=event_type(stored),
        subject=merchant_id,
        time=format_time(announcement.at),
        sequence=str(announcement.number),
        correlationid=UNSET if correlation_id is None else correlation_id,
        data=PAYLOADS[announcement.type](*common, **_detail(announcement.detail)),
    )


_NOTHING: Final = (None,) * 7


def _detail(detail: dict[str, Any] | None) -> dict[str, Any]:
    """The announcement's own fields, with instants as text."""
    if detail is None:
        return {}
    return {**detail, "expires_at": format_time(detail["expires_at"])} if "expires_at" in detail else detail


def encode(stored: StoredEvent, source: str) -> bytes:
    return as_json(cloud_event(stored, source))
