"""`decide`: refusals in order of precedence, opening an account, parked refunds, replays."""

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal

import pytest

from credit_service.ledger.account import MAX_CREDITS, Reference
from credit_service.ledger.commands import UNCHANGED, ChangeTerms, Command
from credit_service.ledger.decide import Needs, Replayed, Waiting, needs
from credit_service.ledger.draft import Posted
from credit_service.ledger.policy import Policy
from credit_service.ledger.refusals import Refusal, Refused
from credit_service.ledger.types import Operation, TransactionType
from tests.ledger.book import Book
from tests.ledger.telling import (
    MERCHANT,
    add,
    closed,
    days,
    disputed,
    opening,
    order,
    payment,
    payment_refund,
    post,
    refund,
    renewal,
    sweep,
    terms,
    trial,
    use,
)

NO_TRIAL = Policy(trial_credits=0)
Telling = Callable[[Book], object]


def no_account(book: Book) -> None:
    """The merchant has no account."""


def opened(book: Book) -> None:
    """The merchant has an account."""
    book.tell(opening())


def the_key_is_used(book: Book) -> None:
    """Another command used the key of these rows."""
    book.tell(opening(), use(1, key="k") if book.policy.trial_credits else replace(add(1), key="k"))


def has_a_trial(book: Book) -> None:
    """The account has its trial, and as many credits as possible."""
    book.tell(opening(), trial(1), payment("1", MAX_CREDITS - 1))


def is_full(book: Book) -> None:
    """The account has as many credits as possible."""
    book.tell(opening(), payment("1", MAX_CREDITS))


def test_an_increase_is_refused_in_order_of_precedence() -> None:
    """One command with every fault; each row removes the first fault."""
    all_wrong = {"key": "k", "type_": "TRIAL", "effective_at": days(5), "expires_at": days(-1)}
    rows: list[tuple[Telling, dict[str, object], Refusal | None]] = [
        (no_account, all_wrong, Refusal.ACCOUNT_NOT_FOUND),
        (the_key_is_used, all_wrong, Refusal.KEY_REUSED),
        (has_a_trial, all_wrong, Refusal.TRIAL_ALREADY_GRANTED),
        (is_full, all_wrong, Refusal.GRANT_ALREADY_EXPIRED),
        (is_full, all_wrong | {"expires_at": days(0)}, Refusal.GRANT_ALREADY_EXPIRED),
        (is_full, all_wrong | {"expires_at": days(5)}, Refusal.GRANT_NEVER_EFFECTIVE),
        (is_full, all_wrong | {"expires_at": days(5) + 1}, Refusal.OUT_OF_RANGE),
        (opened, all_wrong | {"expires_at": days(5) + 1}, None),
    ]
    for telling, wrong, refusal in rows:
        book = Book(NO_TRIAL)
        telling(book)
        assert _refusal(book, add(2, **wrong)) == refusal  # type: ignore[arg-type]


def test_a_spend_is_refused_in_order_of_precedence() -> None:
    rows: list[tuple[Telling, int, Refusal | None]] = [
        (no_account, 101, Refusal.ACCOUNT_NOT_FOUND),
        (the_key_is_used, 101, Refusal.KEY_REUSED),
        (opened, 101, Refusal.INSUFFICIENT_CREDITS),
        (opened, 100, None),
    ]
    for telling, amount, refusal in rows:
        book = Book()
        telling(book)
        assert _refusal(book, use(amount, key="k")) == refusal


def test_a_refund_is_refused_in_order_of_precedence() -> None:
    command = refund("1", "1", money=5, currency="USD")
    shopped = [payment("1", 5), order("1", 5, currency="EUR")]

    def other_use_of_its_key(book: Book) -> None:
        book.tell(opening(), *shopped, replace(add(1), key=command.key))

    def other_currency(book: Book) -> None:
        book.tell(opening(), *shopped, payment("2", MAX_CREDITS))

    def no_total(book: Book) -> None:
        book.tell(opening(), payment("1", 5), order("1", 5), payment("2", MAX_CREDITS))

    def no_room(book: Book) -> None:
        book.tell(opening(), payment("1", 5), order("1", 5, total=5), payment("2", MAX_CREDITS))

    def fine(book: Book) -> None:
        book.tell(opening(), payment("1", 5), order("1", 5, total=5))

    rows: list[tuple[Telling, Refusal | None]] = [
        (no_account, Refusal.ACCOUNT_NOT_FOUND),
        (other_use_of_its_key, Refusal.KEY_REUSED),
        (other_currency, Refusal.CURRENCY_MISMATCH),
        (no_total, Refusal.ORDER_HAS_NO_TOTAL),
        (no_room, Refusal.OUT_OF_RANGE),
        (fine, None),
    ]
    for telling, refusal in rows:
        book = Book(Policy(trial_credits=0, auto_create=False))
        telling(book)
        assert _refusal(book, command) == refusal


def test_a_payment_command_out_of_range_is_refused() -> None:
    book = Book(NO_TRIAL)
    is_full(book)
    assert _refusal(book, add(1, type_="PAYMENT")) == Refusal.OUT_OF_RANGE


def _refusal(book: Book, command: Command) -> Refusal | None:
    before = book.written()
    outcome = book.do(command)
    if isinstance(outcome, Refused):
        assert book.written() == before
        return outcome.refusal
    assert isinstance(outcome, Posted)
    return None


def test_refusals_are_listed_in_order_of_precedence() -> None:
    assert [refusal.code for refusal in Refusal] == [
        "account_not_found",
        "idempotency_key_reused",
        "transaction_not_found",
        "grant_not_found",
        "order_unknown",
        "payment_unknown",
        "account_closed",
        "account_frozen",
        "account_not_empty",
        "not_reversible",
        "already_reversed",
        "trial_already_granted",
        "currency_mismatch",
        "validation_failed",  # the order has no total
        "validation_failed",  # the grant has already expired
        "validation_failed",  # the grant would never be effective
        "insufficient_credits",
        "amount_out_of_range",
    ]


def test_a_refusal_has_details_for_programs() -> None:
    book = Book()
    book.tell(opening(), order("1", 7, total=7, currency="EUR"))
    short = book.refused(use(94))
    assert (short.refusal.code, short.detail, short.pointer) == (
        "insufficient_credits",
        {"available": 93, "required": 94},
        None,
    )
    assert book.refused(add(1, expires_at=days(0))).pointer == "/grant/expires_at"
    assert book.refused(add(1, effective_at=days(2), expires_at=days(1))).pointer == "/grant/expires_at"
    assert book.refused(refund("1", "1", money=1, currency="USD")).detail == {"order": "EUR", "refund": "USD"}
    book.tell(order("2", 7))
    assert book.refused(refund("1", "2", money=1)).pointer == "/order_total"
    assert all(refusal.sentence.endswith(".") for refusal in Refusal)


# ---- opening an account


@pytest.mark.parametrize(
    "fact",
    [
        trial(5),
        payment("1", 5),
        renewal("A", "1", 5),
        order("1", 5),
        refund("1", credits=5),
        refund("1", "1", credits=5),
        payment_refund("1", "1", 5),
    ],
    ids=lambda fact: type(fact).__name__,
)
def test_a_fact_opens_an_account_if_the_settings_allow_it(fact: Command) -> None:
    book, strict = Book(), Book(Policy(auto_create=False))
    outcome = book.do(fact)
    posted = outcome.posted if isinstance(outcome, Waiting) else outcome
    assert isinstance(posted, Posted)
    assert posted.opened
    assert posted.announcements[0].type == "account.created"
    assert posted.account.opened_at == days(0)
    assert strict.refused(fact).refusal == Refusal.ACCOUNT_NOT_FOUND
    assert strict.tell(opening()).opened


@pytest.mark.parametrize("command", [use(1), add(1), terms(low_threshold=1), sweep()], ids=lambda c: type(c).__name__)
def test_a_command_without_opens_does_not_open_an_account(command: Command) -> None:
    book = Book()
    assert book.refused(command).refusal == Refusal.ACCOUNT_NOT_FOUND


def test_a_command_with_opens_may_open_an_account() -> None:
    book = Book()
    assert book.tell(replace(add(5), opens=True)).opened
    assert Book(Policy(auto_create=False)).refused(replace(add(5), opens=True)).refusal == Refusal.ACCOUNT_NOT_FOUND


def test_a_refused_command_opens_no_account() -> None:
    book = Book()
    assert book.refused(replace(use(5), opens=True)).refusal == Refusal.INSUFFICIENT_CREDITS
    assert book.account is None


def test_a_new_account_has_the_default_threshold() -> None:
    account = Book(Policy(trial_credits=50, low_balance_percent=Decimal(10))).tell(opening()).account
    assert (account.merchant_id, account.threshold, account.low_threshold) == (MERCHANT, 5, None)


# ---- parked refunds


def test_a_parked_refund_settles_the_account_and_posts_nothing() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), add(5, expires_at=days(1)))
    outcome = book.wait(days=1).do(refund("1", "1", money=5))
    assert isinstance(outcome, Waiting)
    assert outcome.posted is not None
    assert [done.type for done in outcome.posted.transactions] == ["EXPIRY"]
    assert outcome.posted.transaction is None
    assert outcome.parked == ("shopify:refund:1", "shopify:order:1", days(8), days(1), refund("1", "1", money=5))


def test_a_parked_refund_waits_for_its_own_order_only() -> None:
    book = Book()
    book.tell(opening())
    book.do(refund("1", "1", money=5))
    book.tell(order("2", 5, total=5), payment("1", 5), use(1))
    assert list(book.parked) == ["shopify:refund:1"]


# ---- commands without a change


def test_setting_the_same_terms_changes_nothing() -> None:
    book = Book()
    book.tell(opening(), terms(low_threshold=5, when_insufficient="reject", overdraft_limit=9))
    assert book.do(terms(low_threshold=5, when_insufficient="reject", overdraft_limit=9)) == Replayed(None)
    account = book.tell(terms(low_threshold=5)).account
    assert (account.low_threshold, account.when_insufficient, account.overdraft_limit) == (5, None, None)


def test_unchanged_terms_keep_their_values() -> None:
    book = Book()
    book.tell(opening(), terms(low_threshold=5, when_insufficient="reject", overdraft_limit=9))
    for changed, now in [
        (terms(6, UNCHANGED, UNCHANGED), (6, "reject", 9)),
        (terms(UNCHANGED, None, UNCHANGED), (6, None, 9)),
        (terms(UNCHANGED, UNCHANGED, 0), (6, None, 0)),
    ]:
        account = book.tell(changed).account
        assert (account.low_threshold, account.when_insufficient, account.overdraft_limit) == now


def test_an_empty_change_of_terms_changes_nothing() -> None:
    book = Book()
    book.tell(opening(), terms(low_threshold=5, when_insufficient="reject", overdraft_limit=9))
    assert book.do(ChangeTerms(merchant_id=MERCHANT, key="k")) == Replayed(None)


def test_setting_the_default_threshold_explicitly_announces_nothing() -> None:
    book = Book()
    book.tell(opening())
    told = book.tell(terms(low_threshold=20))
    assert (told.account.low_threshold, told.announcements) == (20, ())


def test_opening_an_open_account_settles_it() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), add(5, expires_at=days(1)))
    told = book.wait(days=2).tell(opening())
    assert (told.transaction, [done.type for done in told.transactions]) == (None, ["EXPIRY"])


# ---- fields of an account and its grants


def test_a_grant_has_the_sequence_of_its_transaction() -> None:
    book = Book()
    book.tell(opening(), add(5), use(1), add(6))
    assert {number: grant.sequence for number, grant in book.grants.items()} == {1: 1, 2: 2, 3: 4}


def test_an_account_keeps_the_time_of_its_last_transaction() -> None:
    book = Book(NO_TRIAL)
    assert book.tell(opening()).account.last_transaction_at is None
    assert book.wait(days=1).tell(add(5)).account.last_transaction_at == days(1)
    assert book.wait(days=1).tell(terms(low_threshold=1)).account.last_transaction_at == days(1)


# ---- needs


@pytest.mark.parametrize(
    ("command", "source", "awaited", "trial_too", "overdue"),
    [
        (use(1, key="k"), None, False, False, False),
        (add(1, key="k"), None, False, False, False),
        (add(1, "k", "PAYMENT"), None, True, False, False),
        (terms(), None, False, False, False),
        (sweep(), None, False, False, True),
        (opening(), None, False, True, False),
        (trial(1), None, False, True, False),
        (payment("1", 1), None, True, False, False),
        (renewal("A", "1", 1), None, True, False, False),
        (order("1", 1), None, True, False, False),
        (refund("1", credits=1), None, False, False, False),
        (refund("1", "7", money=1), "shopify:order:7", False, False, False),
        (payment_refund("1", "7", 1), "billing:payment:7", False, False, False),
        (payment_refund("1", "A:7", 1), "billing:subscription:A:7", False, False, False),
        (disputed("1", "7"), "billing:payment:7", False, False, False),
        (closed("1", "7", "won"), "billing:payment:7", False, False, False),
    ],
)
def test_needs_lists_what_each_command_requires(
    command: Command, source: str | None, awaited: bool, trial_too: bool, overdue: bool
) -> None:
    assert needs(command) == Needs(MERCHANT, command.key, source, awaited, trial_too, overdue)


# ---- fields of a transaction


@pytest.mark.parametrize(("operation", "type_"), [("INCREASE", "SUBSCRIPTION"), ("DECREASE", "USAGE")])
def test_a_transaction_keeps_the_fields_of_its_command(operation: Operation, type_: TransactionType) -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), add(5))
    command = post(
        operation,
        type_,
        2,
        key="k",
        reference=Reference("job", "7"),
        metadata='{"a":1}',
        salt=b"0" * 16,
        actor="key:9",
        correlation_id="c",
        occurred_at=days(-3),
    )
    done = book.wait(days=1).tell(command).transaction
    assert done is not None
    assert (done.key, done.content, done.reference) == ("k", command.content, ("job", "7"))
    assert (done.metadata, done.salt, done.actor, done.correlation_id) == ('{"a":1}', b"0" * 16, "key:9", "c")
    assert (done.occurred_at, done.created_at, done.reverses) == (days(-3), days(1), None)
    assert (done.operation, done.type, done.merchant_id) == (operation, type_, MERCHANT)


def test_each_type_has_its_operation() -> None:
    book = Book()
    book.tell(opening(), payment("1", 9), renewal("A", "1", 5), add(9, expires_at=days(1)))
    book.tell(order("1", 4), refund("1", "1", credits=4), payment_refund("1", "1", 9), use(1))
    book.wait(days=1).tell(sweep())
    assert [(done.type, done.operation) for done in book.transactions] == [
        ("TRIAL", "INCREASE"),
        ("PAYMENT", "INCREASE"),
        ("SUBSCRIPTION", "INCREASE"),
        ("MANUAL", "INCREASE"),
        ("ORDER_PAID", "DECREASE"),
        ("ORDER_REFUNDED", "INCREASE"),
        ("PAYMENT_REFUNDED", "DECREASE"),
        ("USAGE", "DECREASE"),
        ("EXPIRY", "DECREASE"),
    ]


@pytest.mark.parametrize(
    ("fact", "reference"),
    [
        (trial(5, "T9"), ("trial", "T9")),
        (payment("P9", 5), ("payment", "P9")),
        (renewal("S9", "2026-01", 5), ("subscription", "S9")),
        (order("O9", 5), ("order", "O9")),
        (refund("R9", credits=5), ("refund", "R9")),
        (opening(), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_fact_has_a_reference_to_its_object(fact: Command, reference: tuple[str, str] | None) -> None:
    done = Book().tell(fact).transaction
    assert done is not None
    assert (done.reference, done.key, done.actor) == (reference, fact.key, "system")
