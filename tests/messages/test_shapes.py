"""The JSON shapes of the ledger's values."""

import json
from typing import Any

from credit_service.ledger import addresses
from credit_service.ledger.account import Account, Grant, Reference, Transaction
from credit_service.ledger.policy import Policy
from credit_service.ledger.settle import Standing
from credit_service.messages import shapes

MERCHANT = "6f1c2a54-8d0e-4c0b-9c55-0c7a8c1f2b11"
NUMBER = 0x1234_5678_9ABC_DEF0
SECOND = 1_000_000


def transaction(**changed: Any) -> Transaction:
    return Transaction(
        account=NUMBER,
        merchant_id=MERCHANT,
        sequence=3,
        operation="DECREASE",
        type="USAGE",
        amount=7,
        shortfall=1,
        balance_before=10,
        balance_after=3,
        debt_after=0,
        key="k",
        content=bytes(16),
        reference=None,
        metadata=None,
        salt=None,
        personal_hash=None,
        total_micros=None,
        currency=None,
        draws=(),
        reverses=None,
        actor="key:a",
        correlation_id=None,
        occurred_at=SECOND,
        created_at=2 * SECOND + 5,
        hash=bytes(31) + b"\xff",
    )._replace(**changed)


def test_a_transaction_shows_all_fields_with_nulls() -> None:
    account = addresses.text(NUMBER, addresses.ACCOUNT, 0)
    assert json.loads(shapes.encode(shapes.transaction(transaction()))) == {
        "id": addresses.text(NUMBER, addresses.TRANSACTION, 3),
        "merchant_id": str(MERCHANT),
        "account_id": account,
        "sequence": 3,
        "operation_type": "DECREASE",
        "transaction_type": "USAGE",
        "amount": 7,
        "shortfall": 1,
        "balance_before": 10,
        "balance_after": 3,
        "debt_after": 0,
        "idempotency_key": "k",
        "reference": None,
        "metadata": None,
        "draws": [],
        "reverses": None,
        "actor": "key:a",
        "correlation_id": None,
        "occurred_at": "1970-01-01T00:00:01.000000Z",
        "created_at": "1970-01-01T00:00:02.000005Z",
        "hash": "00" * 31 + "ff",
    }


def test_a_transaction_shows_its_grants_and_reversal_as_ids() -> None:
    told = transaction(reference=Reference("order", "A-1"), metadata='{"é":[1]}', draws=((2, -4), (1, -3)), reverses=1)
    shape = json.loads(shapes.encode(shapes.transaction(told)))
    assert shape["reference"] == {"type": "order", "id": "A-1"}
    assert shape["metadata"] == {"é": [1]}
    assert shape["draws"] == [
        {"grant_id": addresses.text(NUMBER, addresses.GRANT, 2), "amount": -4},
        {"grant_id": addresses.text(NUMBER, addresses.GRANT, 1), "amount": -3},
    ]
    assert shape["reverses"] == addresses.text(NUMBER, addresses.TRANSACTION, 1)


def test_an_account_shows_the_terms_in_force() -> None:
    account = Account(NUMBER, MERCHANT, opened_at=SECOND, settled_at=2 * SECOND, balance=30, held=4, pending=5)
    plain = shapes.account(Standing(account, (), "ACTIVE", 20), Policy(), 3 * SECOND)
    assert (plain["balance"], plain["held"], plain["pending"], plain["available"]) == (30, 4, 5, 21)
    assert (plain["low_threshold"], plain["when_insufficient"], plain["overdraft_limit"]) == (20, "overdraft", None)
    assert (plain["sequence"], plain["last_transaction_id"], plain["last_transaction_at"]) == (0, None, None)
    assert (plain["created_at"], plain["updated_at"]) == ("1970-01-01T00:00:01.000000Z", "1970-01-01T00:00:03.000000Z")
    own = account._replace(
        sequence=2, last_transaction_at=SECOND, when_insufficient="reject", overdraft_limit=9, low_threshold=1
    )
    told = shapes.account(Standing(own, (), "LOW", 1), Policy(when_insufficient="partial"), SECOND)
    assert (told["status"], told["low_threshold"], told["when_insufficient"]) == ("LOW", 1, "reject")
    assert told["overdraft_limit"] == 9
    assert told["last_transaction_id"] == addresses.text(NUMBER, addresses.TRANSACTION, 2)
    assert told["last_transaction_at"] == "1970-01-01T00:00:01.000000Z"
    default = shapes.account(Standing(account, (), "LOW", 1), Policy(when_insufficient="partial"), SECOND)
    assert default["when_insufficient"] == "partial"


def test_a_grant_shows_its_remaining_credits() -> None:
    account = Account(NUMBER, MERCHANT, opened_at=0, settled_at=0)
    grant = Grant(2, 3, "paid", 100, SECOND, None, 10, 4)
    assert shapes.grant(account, grant) == {
        "id": addresses.text(NUMBER, addresses.GRANT, 2),
        "transaction_id": addresses.text(NUMBER, addresses.TRANSACTION, 3),
        "category": "paid",
        "priority": 100,
        "amount": 10,
        "remaining": 4,
        "effective_at": "1970-01-01T00:00:01.000000Z",
        "expires_at": None,
    }
    assert shapes.grant(account, grant._replace(expires_at=SECOND))["expires_at"] == "1970-01-01T00:00:01.000000Z"
