"""The canonical form against its published test vectors, and the verification of broken books."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from credit_service.ledger import addresses
from credit_service.ledger.account import Reference, Transaction
from credit_service.ledger.policy import Policy
from credit_service.ledger.proof import Discrepancy, canonical, chain, personal_hash, verify
from tests.ledger.book import Book
from tests.ledger.telling import add, opening, order, use

ROOT = Path(__file__).parents[2]
VECTORS: list[dict[str, Any]] = json.loads((ROOT / "tests/vectors/proof.json").read_text())
vectors = pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])


def canonical_by_the_page(said: dict[str, Any]) -> bytes:
    """The canonical form as docs/proof.md describes it, without the code of the ledger."""
    reference = said["reference"] or {"type": None, "id": None}
    draws = ",".join(f"{draw['grant_id']}:{draw['amount']}" for draw in said["draws"])
    lines = ["credit-service/2", said["id"], said["merchant_id"], said["sequence"]]
    lines += [said[name] for name in ("operation_type", "transaction_type", "amount", "shortfall")]
    lines += [said[name] for name in ("balance_before", "balance_after", "debt_after", "idempotency_key", "content")]
    lines += [reference["type"], reference["id"], said["personal_hash"], said["total_micros"], said["currency"]]
    lines += [draws, said["reverses"], said["actor"], said["correlation_id"], said["occurred_at"], said["created_at"]]
    return "".join(f"{'' if line is None else line}\n" for line in lines).encode()


@vectors
def test_published_vectors_follow_from_the_published_form(vector: dict[str, Any]) -> None:
    said = vector["transaction"]
    written = canonical_by_the_page(said)
    assert written == vector["canonical"].encode()
    assert len(written.splitlines()) == 24
    assert sha256(bytes.fromhex(vector["previous_hash"]) + written).hexdigest() == vector["hash"]
    if said["metadata"] is not None:
        salted = bytes.fromhex(said["salt"]) + b'{"metadata":' + said["metadata"].encode() + b"}"
        assert sha256(salted).hexdigest() == said["personal_hash"]


@vectors
def test_the_ledger_reproduces_each_vector(vector: dict[str, Any]) -> None:
    transaction = read(vector["transaction"], vector["hash"])
    assert canonical(transaction) == vector["canonical"].encode()
    assert chain(bytes.fromhex(vector["previous_hash"]), transaction) == transaction.hash
    if transaction.metadata is not None:
        assert personal_hash(transaction.metadata, transaction.salt) == transaction.personal_hash


def read(said: dict[str, Any], hash_: str) -> Transaction:
    """A transaction of the vectors as the ledger's value."""

    def bytes_of(name: str) -> bytes | None:
        return None if said[name] is None else bytes.fromhex(said[name])

    def address(identifier: str) -> addresses.Address:
        found = addresses.parse(UUID(identifier))
        assert found is not None
        return found

    reference = said["reference"]
    return Transaction(
        account=address(said["id"]).account,
        merchant_id=said["merchant_id"],
        sequence=said["sequence"],
        operation=said["operation_type"],
        type=said["transaction_type"],
        amount=said["amount"],
        shortfall=said["shortfall"],
        balance_before=said["balance_before"],
        balance_after=said["balance_after"],
        debt_after=said["debt_after"],
        key=said["idempotency_key"],
        content=bytes.fromhex(said["content"]),
        reference=None if reference is None else Reference(reference["type"], reference["id"]),
        metadata=said["metadata"],
        salt=bytes_of("salt"),
        personal_hash=bytes_of("personal_hash"),
        total_micros=said["total_micros"],
        currency=said["currency"],
        draws=tuple((address(draw["grant_id"]).number, draw["amount"]) for draw in said["draws"]),
        reverses=said["reverses"],
        actor=said["actor"],
        correlation_id=said["correlation_id"],
        occurred_at=said["occurred_at"],
        created_at=said["created_at"],
        hash=bytes.fromhex(hash_),
    )


def test_the_vectors_form_a_chain_and_use_every_field() -> None:
    assert [vector["previous_hash"] for vector in VECTORS] == [
        "00" * 32,
        *(vector["hash"] for vector in VECTORS[:-1]),
    ]
    used = {name for vector in VECTORS for name, value in vector["transaction"].items() if value not in (None, [], 0)}
    assert set(VECTORS[0]["transaction"]) - used == {"shortfall", "reverses"}


def test_the_page_shows_three_of_the_vectors() -> None:
    page = (ROOT / "docs/proof.md").read_text()
    for vector in VECTORS[:3]:
        assert f"```text\n{vector['canonical']}```\n\nhash `{vector['hash']}`" in page


def test_reversal_and_shortfall_have_lines_in_the_canonical_form() -> None:
    lines = canonical(read(VECTORS[1]["transaction"], "")._replace(reverses=7, shortfall=3)).decode().splitlines()
    assert (lines[7], lines[19]) == ("3", "7")


def test_personal_data_without_a_salt_has_a_hash() -> None:
    assert personal_hash("{}", None) == sha256(b'{"metadata":{}}').digest()
    assert personal_hash(None, b"salt") is None


# ---- verification. Each broken history gets new hashes, so that only its sums are wrong.


def rechained(transactions: list[Transaction]) -> list[Transaction]:
    """The same transactions with recomputed hashes."""
    previous, fitting = bytes(32), []
    for transaction in transactions:
        previous = chain(previous, transaction)
        fitting.append(transaction._replace(hash=previous))
    return fitting


def history() -> Book:
    """Three transactions: 10 in, 4 out, and 9 out, of which 3 are debt."""
    book = Book(Policy(trial_credits=0))
    book.tell(opening(), add(10), use(4), order("1", 9))
    return book


@pytest.mark.parametrize(
    ("index", "change", "fault"),
    [
        (1, {"sequence": 7}, "sequence 2 is missing"),
        (1, {"balance_before": 9}, "balance_before is not the previous balance_after"),
        (0, {"balance_before": 1}, "balance_before is not the previous balance_after"),
        (1, {"balance_after": 7}, "balance_after is not balance_before and the amount"),
        (1, {"amount": 5}, "balance_after is not balance_before and the amount"),
        (1, {"operation": "INCREASE"}, "balance_after is not balance_before and the amount"),
        (1, {"created_at": 5}, "created_at lies before the previous transaction"),
        (1, {"draws": ((1, -5),)}, "balance_after is not the open grants less the debt"),
        (1, {"draws": ((1, -6), (2, 2))}, None),
        (1, {"draws": ((2, -4),)}, "a grant is drawn below zero"),
        (2, {"debt_after": 4}, "balance_after is not the open grants less the debt"),
        (1, {"metadata": "{}", "personal_hash": bytes(32)}, "the metadata does not match its hash"),
        (1, {"metadata": "{}"}, "the metadata does not match its hash"),
        (1, {"salt": b"s", "personal_hash": bytes(32)}, "the metadata does not match its hash"),
    ],
)
def test_verify_names_the_discrepancy_and_its_sequence(index: int, change: dict[str, Any], fault: str | None) -> None:
    book = history()
    forged = list(book.transactions)
    forged[index] = forged[index]._replace(**change)
    forged = rechained(forged)
    assert book.account is not None
    account = book.account._replace(last_hash=forged[-1].hash)
    found = list(verify(account, book.grants.values(), forged))
    at = forged[index].sequence
    if fault is None:
        assert [one for one in found if one.sequence == at] == []
        assert Discrepancy(None, "the grants are not what the transactions drew") in found
    else:
        assert Discrepancy(at, fault) in found
    assert "the hash does not match the transaction and its predecessor" not in {one.sentence for one in found}


def test_a_broken_hash_is_found_at_its_transaction() -> None:
    book = history()
    forged = [book.transactions[0]._replace(actor="somebody else"), *book.transactions[1:]]
    assert book.account is not None
    fault = "the hash does not match the transaction and its predecessor"
    assert list(verify(book.account, book.grants.values(), forged)) == [Discrepancy(1, fault)]


def test_verify_keeps_a_grant_with_one_credit() -> None:
    book = Book(Policy(trial_credits=0))
    book.tell(opening(), add(10), use(9))
    assert book.faults() == []


def test_an_account_without_transactions_verifies() -> None:
    book = Book(Policy(trial_credits=0))
    book.tell(opening())
    assert book.faults() == []
