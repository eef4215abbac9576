"""Rows of the tables and values of the ledger, each made from the other, the same for every engine."""

from collections.abc import Iterable
from typing import Any, Final
from uuid import UUID

import msgspec

from credit_service.ledger.account import (
    Account,
    Announcement,
    DeadLetter,
    Draw,
    GivenBack,
    Grant,
    Parked,
    Reference,
    Transaction,
    TypeTotal,
)
from credit_service.ledger.commands import REFUNDS
from credit_service.storage.questions import Row

BY_TYPE: Final = Account._fields.index("by_type")


draws: Final = msgspec.json.Decoder(tuple[Draw, ...]).decode
_by_type: Final = msgspec.json.Decoder(dict[str, TypeTotal]).decode
_encoder: Final = msgspec.json.Encoder()


def _text(value: Any) -> str:
    return _encoder.encode(value).decode()


def account_row(account: Account) -> Row:
    """A row of `accounts`."""
    return (
        account.number,
        account.merchant_id.bytes,
        *account[2:BY_TYPE],
        _text(account.by_type),
        _text(account.carried) if account.carried else "[]",  # nearly always empty, and encoded at each posting
        *account[BY_TYPE + 2 :],
    )


def account(row: Row, merchant_id: UUID | None = None) -> Account:
    """An account from its row. `merchant_id` saves decoding the id if the caller has it."""
    merchant_id = merchant_id or UUID(bytes=row[1])
    by_type, carried = _by_type(row[BY_TYPE]), draws(row[BY_TYPE + 1])
    return Account._make((row[0], merchant_id, *row[2:BY_TYPE], by_type, carried, *row[BY_TYPE + 2 :]))


def transaction_row(transaction: Transaction) -> Row:
    """A row of `transactions`."""
    reference_type, reference_id = transaction.reference or (None, None)
    return (
        transaction.account,
        *transaction[2:12],
        reference_type,
        reference_id,
        *transaction[13:18],
        _text(transaction.draws),
        *transaction[19:],
    )


def transaction(merchant_id: UUID, row: Row) -> Transaction:
    """A transaction from its row and its account's merchant."""
    reference = None if row[11] is None else Reference(row[11], row[12])
    return Transaction._make((row[0], merchant_id, *row[1:11], reference, *row[13:18], draws(row[18]), *row[19:]))


def is_open(grant: Grant) -> int:
    """Whether a grant has credits left, as a number."""
    return 1 if grant.remaining else 0


def grant_row(account_number: int, grant: Grant) -> Row:
    """A row of `grants`."""
    return (account_number, *grant, is_open(grant))


def grant(row: Row) -> Grant:
    """A grant from its row."""
    return Grant(*row[1:-1])


def event_rows(announcements: Iterable[tuple[int, Announcement]], places: Iterable[tuple[int, int]]) -> list[Row]:
    """Rows of the outbox (`events`): the announcements at their places, each a lane and an id."""
    return [
        (*place, account, *told[:-1], None if told.detail is None else _text(told.detail))
        for place, (account, told) in zip(places, announcements, strict=True)
    ]


def given_back_row(account_number: int, given: GivenBack) -> Row:
    """A row of `given_back`."""
    return (account_number, *given)


def given_back(row: Row) -> GivenBack:
    """The refunds of one order or payment so far, from their row."""
    return GivenBack(*row[1:])


def parked_row(account_number: int, parked: Parked) -> Row:
    """A row of `parked`."""
    return (account_number, *parked[:4], *_fact_columns(parked.fact))


def parked(row: Row) -> Parked:
    """A parked refund from its row."""
    return Parked._make((*row[1:5], fact(*row[5:])))


def dead_letter_row(account_number: int, letter: DeadLetter) -> Row:
    """A row of `dead_letters`, without its id."""
    return (account_number, letter.code, letter.reason, letter.at, *_fact_columns(letter.fact))


def _fact_columns(fact: Any) -> Row:
    return (fact.type.lower(), fact_text(fact))


def fact_text(fact: Any) -> str:
    """A fact as JSON text, for a parked refund or a dead letter."""
    return _text(fact)


def fact(kind: str, text: str) -> Any:
    """A fact from its kind and its text."""
    return msgspec.json.decode(text, type=REFUNDS[kind])
