"""L15 Proof: correct books verify, and books with any later change do not."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given

from credit_service.ledger.account import Account, Grant, Transaction
from credit_service.ledger.policy import Policy
from credit_service.ledger.proof import Discrepancy, chain, verify
from tests.laws.stories import Step, grant_stories, play, policies, stories
from tests.ledger.book import Book
from tests.ledger.telling import add, days, opening, order, payment, refund, use


def a_long_story() -> Book:
    """A book with most types of transactions; every field has a value in one of them."""
    book = Book(Policy(trial_credits=20))
    book.tell(
        opening(actor="key:1"),
        replace(order("1", 8, total="19.90", currency="EUR"), metadata='{"email":"a@b.c"}', salt=b"0123456789abcdef"),
        replace(use(3), metadata="{}", salt=b"fedcba9876543210", correlation_id="c-1"),
        payment("1", 10, expires_at=days(9)),
        order("2", 40),
        add(4, effective_at=days(2)),
    )
    book.wait(days=10).tell(refund("1", "1", money="5", currency="EUR"), refund("2", "2", credits=20))
    book.tell(add(6, expires_at=days(11), priority=1))
    book.wait(days=5).tell(use(2))
    return book


def faults(
    book: Book,
    *,
    account: Account | None = None,
    grants: Iterable[Grant] | None = None,
    transactions: Iterable[Transaction] | None = None,
) -> list[Discrepancy]:
    """The discrepancies of a book with another account, other grants or other transactions."""
    assert book.account is not None
    return list(
        verify(
            account or book.account,
            book.grants.values() if grants is None else grants,
            book.transactions if transactions is None else transactions,
        )
    )


@given(policies, stories | grant_stories)
def test_L15_correct_books_verify(policy: Policy, story: list[Step]) -> None:
    book = Book(policy)
    for step in story:
        play(book, [step])
        if book.account is not None:
            assert book.faults() == []


def other(value: Any) -> Any:
    """Another value of the same type."""
    match value:
        case int():
            return value + 1
        case str():
            return value + "x"
        case bytes():
            return bytes([value[0] ^ 1]) + value[1:] if value else b"x"
        case UUID():
            return UUID(int=value.int ^ 1)
        case dict():
            return {**value, "USAGE": other(value["USAGE"])}
        case tuple():
            return (*value[:-1], other(value[-1])) if value else ((1, 1),)
        case _:
            raise AssertionError(value)


def changed(honest: Transaction, field: str, value: Any) -> Transaction:
    """A transaction with another value in one field."""
    changes: dict[str, Any] = {field: value}
    return honest._replace(**changes)


OF_THE_KIND = {
    "reference": ("order", "9"),
    "metadata": "{}",
    "salt": b"0123456789abcdef",
    "personal_hash": bytes(32),
    "total_micros": 0,
    "currency": "EUR",
    "reverses": 1,
    "correlation_id": "c-2",
}


@pytest.mark.parametrize("field", Transaction._fields)
def test_L15_a_changed_field_is_found_at_its_transaction(field: str) -> None:
    book = a_long_story()
    assert faults(book) == []
    for index, honest in enumerate(book.transactions):
        if field == "salt" and honest.metadata is None:
            continue  # without personal data the salt covers nothing
        value = getattr(honest, field)
        forged = changed(honest, field, OF_THE_KIND[field] if value is None else other(value))
        assert forged != honest
        transactions = [*book.transactions[:index], forged, *book.transactions[index + 1 :]]
        assert forged.sequence in {fault.sequence for fault in faults(book, transactions=transactions)}


@pytest.mark.parametrize("field", sorted({"currency", "total_micros", "correlation_id", "reference", "personal_hash"}))
def test_L15_a_removed_field_is_found(field: str) -> None:
    book = a_long_story()
    found = 0
    for index, honest in enumerate(book.transactions):
        if getattr(honest, field) is not None:
            forged = changed(honest, field, None)
            transactions = [*book.transactions[:index], forged, *book.transactions[index + 1 :]]
            assert forged.sequence in {fault.sequence for fault in faults(book, transactions=transactions)}
            found += 1
    assert found > 0


def test_L15_missing_duplicate_and_swapped_transactions_are_found() -> None:
    book = a_long_story()
    done = book.transactions
    for index in range(len(done)):
        assert faults(book, transactions=[*done[:index], *done[index + 1 :]]) != []
        assert faults(book, transactions=[*done[: index + 1], *done[index:]]) != []
    for index in range(len(done) - 1):
        swapped = [*done[:index], done[index + 1], done[index], *done[index + 2 :]]
        assert faults(book, transactions=swapped) != []


def test_L15_a_truncated_history_is_found() -> None:
    book = a_long_story()
    assert Discrepancy(None, "the account's hash is not what its transactions and grants say") in faults(
        book, transactions=book.transactions[:-1]
    )
    assert faults(book, transactions=[]) != []


@pytest.mark.parametrize(
    "field",
    ["balance", "pending", "debt", "sequence", "total_increases", "total_decreases", "by_type", "carried", "last_hash"],
)
def test_L15_an_account_that_contradicts_its_transactions_is_found(field: str) -> None:
    book = a_long_story()
    assert book.account is not None
    changes: dict[str, Any] = {field: other(getattr(book.account, field))}
    found = faults(book, account=book.account._replace(**changes))
    assert {fault.sequence for fault in found} == {None}
    name = {"last_hash": "hash", "carried": "debt"}.get(field, field)
    assert Discrepancy(None, f"the account's {name} is not what its transactions and grants say") in found


def test_L15_a_grant_that_contradicts_the_draws_is_found() -> None:
    book = a_long_story()
    for number, grant in book.grants.items():
        forged = {**book.grants, number: grant._replace(remaining=grant.remaining + 1)}
        assert Discrepancy(None, "the grants are not what the transactions drew") in faults(
            book, grants=forged.values()
        )
        forged = {**book.grants, number: grant._replace(gone=grant.gone + 1)}
        assert faults(book, grants=forged.values()) == [
            Discrepancy(None, "the grants did not lose what expired or was voided")
        ]
    one_more = next(iter(book.grants.values()))._replace(number=99, remaining=5)
    assert faults(book, grants=[*book.grants.values(), one_more]) != []
    assert faults(book, grants=[]) != []


def test_L15_the_chain_verifies_after_an_erasure() -> None:
    book = a_long_story()
    before = book.transactions
    book.erase()
    assert book.transactions != before
    assert book.faults() == []


def test_L15_erased_data_cannot_be_guessed() -> None:
    kept = []
    for email in ("a@b.c", "x@y.z"):
        book = Book()
        book.tell(opening(), use(3, key="k", metadata=f'{{"email":"{email}"}}', salt=email.encode() * 4))
        book.erase()
        kept.append(book.transactions[-1])
    same = {name for name in Transaction._fields if getattr(kept[0], name) == getattr(kept[1], name)}
    assert set(Transaction._fields) - same == {"personal_hash", "hash"}  # both depend on the deleted salt


def test_L15_new_data_for_an_erased_transaction_is_found() -> None:
    book = a_long_story()
    book.erase()
    erased = next(index for index, one in enumerate(book.transactions) if one.personal_hash is not None)
    for forgery in ({"metadata": "{}"}, {"salt": b"s"}, {"metadata": "{}", "salt": b"s"}):
        forged = list(book.transactions)
        forged[erased] = forged[erased]._replace(**forgery)
        assert faults(book, transactions=forged) == [Discrepancy(erased + 1, "the metadata does not match its hash")]


def test_L15_metadata_without_a_salt_verifies() -> None:
    book = Book()
    book.tell(opening(), use(3, metadata='{"n":1}'))
    assert book.transactions[-1].personal_hash is not None
    assert book.faults() == []


def test_L15_a_recomputed_chain_fails_the_sums() -> None:
    """A recomputed chain hides a change from a reader without an earlier hash, but the sums still show it."""
    book = a_long_story()
    forged: list[Transaction] = []
    previous = bytes(32)
    for done in book.transactions:
        more = done._replace(amount=done.amount + 5) if done.type == "PAYMENT" else done
        previous = chain(previous, more)
        forged.append(more._replace(hash=previous))
    assert book.account is not None
    found = faults(book, account=book.account._replace(last_hash=previous), transactions=forged)
    assert Discrepancy(4, "balance_after is not balance_before and the amount") in found
