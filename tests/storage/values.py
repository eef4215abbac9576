"""Usual and extreme rows of a ledger, for tests that pass writes to an engine directly."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, TypeVar

from credit_service.ledger.account import (
    GENESIS,
    MAX_CREDITS,
    Account,
    Announcement,
    DeadLetter,
    Dispute,
    GivenBack,
    Grant,
    Parked,
    Reference,
    Transaction,
)
from credit_service.ledger.commands import (
    Command,
    OpenAccount,
    OrderRefunded,
    PaymentRefunded,
    TrialStarted,
    trial_key,
)
from credit_service.storage.engine import Writes
from credit_service.storage.keys import ApiKey
from credit_service.storage.letters import Undeliverable
from credit_service.storage.shops import KeptDelivery
from tests.ledger.telling import MERCHANT, T0

OTHER = "00000000-0000-0000-0000-000000000021"
"""Another merchant; in the same lane as MERCHANT, so that a list of all has one order."""
NUMBER = 2**62 - 1
"""The largest account number."""

LARGEST_MONEY = 10**12 * 10**6 - 1
"""999999999999.999999, in millionths."""


C = TypeVar("C", bound=Command)


def of(merchant_id: str, command: C) -> C:
    """Return the same command for another merchant."""
    key = trial_key(merchant_id) if isinstance(command, OpenAccount | TrialStarted) else command.key
    return replace(command, merchant_id=merchant_id, key=key)


def account(number: int = NUMBER, merchant_id: str = MERCHANT, **more: Any) -> Account:
    """Return a new account."""
    return Account(number, merchant_id, **({"opened_at": T0, "settled_at": T0} | more))


def transaction(sequence: int = 1, number: int = NUMBER, merchant_id: str = MERCHANT, **more: Any) -> Transaction:
    """Return a payment of 5 credits with only the required fields."""
    plain = Transaction(
        account=number,
        merchant_id=merchant_id,
        sequence=sequence,
        operation="INCREASE",
        type="PAYMENT",
        amount=5,
        shortfall=0,
        balance_before=0,
        balance_after=5,
        debt_after=0,
        key=f"key {sequence}",
        content=b"",
        reference=None,
        metadata=None,
        salt=None,
        personal_hash=None,
        total_micros=None,
        currency=None,
        draws=(),
        reverses=None,
        actor="system",
        correlation_id=None,
        occurred_at=T0,
        created_at=T0,
        hash=bytes(32),
    )
    return plain._replace(**more)


def grant(number: int = 1, **more: Any) -> Grant:
    """Return a grant of 5 credits, effective at once, without expiry."""
    plain = Grant(number, 1, "paid", 100, T0, None, 5, 5)
    return plain._replace(**more)


def refund(**more: Any) -> OrderRefunded:
    """Return a refund in money."""
    known: dict[str, Any] = {"merchant_id": MERCHANT, "key": "shopify:refund:1", "refund_id": "1", "order_id": "1"}
    return OrderRefunded(**(known | more))


FULL_REFUND = refund(
    content=bytes(range(16)),
    actor="shopify",
    correlation_id="Ünïcode",
    occurred_at=T0 - 1,
    metadata='{"ä":[1,"\\u0000",null]}',
    salt=b"\xff" * 16,
    opens=True,
    credits=MAX_CREDITS,
    refund_amount_micros=LARGEST_MONEY,
    order_total_micros=LARGEST_MONEY,
    currency="EUR",
)
PAYMENT_REFUND = PaymentRefunded(
    merchant_id=MERCHANT, key="billing:payment_refund:9", refund_id="9", payment_id="9007199254740993", credits=1
)

FULL_ACCOUNT = account(
    balance=-MAX_CREDITS,
    held=0,
    pending=0,
    debt=MAX_CREDITS,
    sequence=2**48 - 1,
    announced=2**53,
    granted=2**48 - 1,
    trial=1,
    episode=2,
    threshold=MAX_CREDITS,
    low_threshold=0,
    when_insufficient="partial",
    overdraft_limit=MAX_CREDITS,
    total_increases=2**62,
    total_decreases=2**62 + MAX_CREDITS,
    carried=((2**48 - 1, -MAX_CREDITS), (1, MAX_CREDITS)),
    next_due_at=T0 + 1,
    last_transaction_at=T0 - 1,
    last_hash=bytes(range(32)),
)
RICH_ACCOUNT = account(
    2, OTHER, balance=MAX_CREDITS, held=1, pending=2, sequence=1, total_increases=MAX_CREDITS, last_hash=GENESIS
)
FULL_TRANSACTION = transaction(
    2**48 - 1,
    operation="DECREASE",
    type="ORDER_PAID",
    amount=2 * MAX_CREDITS,
    shortfall=MAX_CREDITS,
    balance_before=MAX_CREDITS,
    balance_after=-MAX_CREDITS,
    debt_after=MAX_CREDITS,
    key="shopify:order:" + "9" * 241,
    content=bytes(range(16)),
    reference=Reference("order", "9" * 255),
    metadata='{"a":"\\ud83d\\ude00 😀","n":[1,2.50,null,true],"ü":{}}',
    salt=b"\x00" * 16,
    personal_hash=bytes(range(32)),
    total_micros=LARGEST_MONEY,
    currency="EUR",
    draws=((1, -MAX_CREDITS), (2**48 - 1, MAX_CREDITS)),
    reverses=1,
    actor="key:" + "x" * 250,
    correlation_id="c" * 255,
    occurred_at=0,
    created_at=2**53,
    hash=b"\xff" * 32,
)
FULL_GRANT = grant(
    2**48 - 1,
    sequence=2**48 - 1,
    category="promotional",
    priority=2**31,
    effective_at=-T0,
    expires_at=2**53,
    amount=MAX_CREDITS,
    remaining=MAX_CREDITS,
    lapses=3,
)
FULL_ANNOUNCEMENT = Announcement(2**48, "plugin_status_changed", 7, -MAX_CREDITS, T0, {"reason": "exhausted", "n": [1]})
DISPUTES = (Dispute("d", None, None), Dispute("e", MAX_CREDITS, "won"))
FULL_GIVEN_BACK = GivenBack(
    "shopify:order:1", LARGEST_MONEY, MAX_CREDITS - 1, MAX_CREDITS, MAX_CREDITS, 3, ((2, 5), (0, 7)), DISPUTES
)
FULL_PARKED = Parked("shopify:refund:1", "shopify:order:1", T0 + 1, T0, FULL_REFUND)
PARKED_PAYMENT_REFUND = Parked(PAYMENT_REFUND.key, "billing:payment:9007199254740993", T0, T0 - 1, PAYMENT_REFUND)
FULL_UNDELIVERABLE = Undeliverable(
    "evt.merchant.created.x", bytes(range(256)), "validation_failed", "Ünïcode: /data/a: no.", T0
)
KEPT_ORDER = KeptDelivery("b.myshopify.com", "orders/paid", '{"id": 9007199254740993}', "link", T0)
FULL_KEY = ApiKey("id", "a name, ä", "admin", bytes(range(32)), T0, T0 + 1, T0 + 2, T0 + 3)


def writes(
    *accounts: Account,
    transactions: Iterable[Transaction] = (),
    grants: Iterable[Grant] = (),
    announcements: Iterable[Announcement] = (),
    given_back: Iterable[GivenBack] = (),
    parked: Iterable[Parked] = (),
    unparked: Iterable[str] = (),
    dead_letters: Iterable[DeadLetter] = (),
) -> Writes:
    """Return writes of these accounts. Other rows belong to the first account, or to `NUMBER`."""
    number = accounts[0].number if accounts else NUMBER
    made = Writes()
    made.accounts = {account.number: account for account in accounts}
    made.transactions = list(transactions)
    made.grants = {(number, grant.number): grant for grant in grants}
    made.announcements = [(number, announcement) for announcement in announcements]
    made.given_back = {(number, given.key): given for given in given_back}
    made.parked = {(number, entry.key): entry for entry in parked}
    made.unparked = [(number, key) for key in unparked]
    made.dead_letters = [(number, letter) for letter in dead_letters]
    return made
