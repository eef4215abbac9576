"""`credit-service verify`."""

from pathlib import Path

import pytest

from credit_service.storage.tables import metadata
from tests.cli.events import MERCHANT, OTHER, event, lines, paid, payment, refunded
from tests.cli.ledgers import change, rows
from tests.commands import Ran, command
from tests.storage.engines import only_on

pytestmark = pytest.mark.usefixtures("on_each_engine")


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A small ledger of two accounts, with debt, refunds and metadata."""
    (tmp_path / "facts").write_bytes(
        lines(
            payment("p1", 5),
            *(paid(i, total="10.00", currency="EUR", metadata={"n": i}) for i in range(1, 8)),
            refunded("r1", order_id=1, refund_amount="10.00", currency="EUR"),
            event("evt.merchant.created", {"merchant_id": str(OTHER)}),
            paid(100, OTHER),
        )
    )
    assert command("replay", "facts", cwd=tmp_path).code == 0
    return tmp_path / "credit-service.db"


def _verify(database: Path, *arguments: str) -> Ran:
    return command("verify", *arguments, cwd=database.parent)


def test_sound_books_are_done(database: Path) -> None:
    assert _verify(database) == Ran(0, "2 accounts, 11 transactions: no fault\n", "")
    assert _verify(database, "--json").json == {"accounts": 2, "transactions": 11, "faults": []}


def test_an_empty_ledger_is_sound(tmp_path: Path) -> None:
    command("migrate", cwd=tmp_path)
    assert command("verify", "--json", cwd=tmp_path).json == {"accounts": 0, "transactions": 0, "faults": []}


def test_a_fault_names_its_merchant_and_sequence_and_ends_with_1(database: Path) -> None:
    change(database, "UPDATE transactions SET currency = 'GBP' WHERE key = 'shopify:order:3'")
    fault = "the hash does not match the transaction and its predecessor"
    ran = _verify(database, "--json")
    assert ran.code == 1
    assert ran.json == {
        "accounts": 2,
        "transactions": 11,
        "faults": [{"merchant_id": str(MERCHANT), "sequence": 4, "fault": fault}],
    }
    readable = _verify(database)
    assert readable == Ran(
        1, f"merchant {MERCHANT}, transaction 4: {fault}\n2 accounts, 11 transactions: 1 faults\n", ""
    )


@only_on("sqlite")  # PostgreSQL takes no such text
@pytest.mark.parametrize("column", ["type", "key", "reference_id", "currency", "draws", "actor", "metadata"])
def test_text_that_is_no_text_any_more_is_a_fault_like_any_other(column: str, database: Path) -> None:
    damaged = f"CAST(substr(CAST({column} AS BLOB), 1, 2) || x'FF' || substr(CAST({column} AS BLOB), 4) AS TEXT)"
    change(database, f"UPDATE transactions SET {column} = {damaged} WHERE key = 'shopify:order:3'")
    ran = _verify(database, "--json")
    assert ran.code == 1
    assert (str(MERCHANT), 4) in [(fault["merchant_id"], fault["sequence"]) for fault in ran.json["faults"]]


def test_metadata_changed_by_hand_is_found(database: Path) -> None:
    change(database, "UPDATE transactions SET metadata = '{\"n\":4}' WHERE key = 'shopify:order:3'")
    ran = _verify(database, "--json")
    assert ran.code == 1
    assert [(fault["sequence"], fault["fault"]) for fault in ran.json["faults"]] == [
        (4, "the metadata does not match its hash")
    ]


def test_erased_metadata_are_no_fault(database: Path) -> None:
    change(database, "UPDATE transactions SET metadata = NULL, salt = NULL WHERE key = 'shopify:order:3'")
    assert _verify(database).code == 0


def test_a_fault_of_the_account_itself_has_no_sequence(database: Path) -> None:
    change(database, "UPDATE accounts SET total_increases = total_increases + 1 WHERE merchant_id = ?", OTHER)
    ran = _verify(database, "--json")
    assert ran.code == 1
    assert [(fault["merchant_id"], fault["sequence"]) for fault in ran.json["faults"]] == [(str(OTHER), None)]
    assert f"merchant {OTHER}, account: " in _verify(database).out


def test_a_grant_that_was_topped_up_by_hand_is_found(database: Path) -> None:
    change(
        database,
        "UPDATE grants SET remaining = remaining + 1, amount = amount + 1 "
        "WHERE account = (SELECT number FROM accounts WHERE merchant_id = ?)",
        OTHER,
    )
    ran = _verify(database, "--json")
    assert ran.code == 1
    assert {fault["merchant_id"] for fault in ran.json["faults"]} == {str(OTHER)}


def test_a_transaction_that_is_gone_is_found(database: Path) -> None:
    change(database, "DELETE FROM transactions WHERE key = 'shopify:order:3'")
    ran = _verify(database, "--json")
    assert (ran.code, ran.json["transactions"]) == (1, 10)
    assert (str(MERCHANT), "sequence 4 is missing") in [
        (fault["merchant_id"], fault["fault"]) for fault in ran.json["faults"]
    ]


def test_a_transaction_of_no_account_is_found(database: Path) -> None:
    change(database, "UPDATE transactions SET account = 17 WHERE key = 'shopify:order:100'")
    ran = _verify(database, "--json")
    assert ran.code == 1
    assert {"merchant_id": None, "sequence": 2, "fault": "it belongs to no account (number 17)"} in ran.json["faults"]
    assert str(OTHER) in {fault["merchant_id"] for fault in ran.json["faults"]}
    assert "merchant unknown, transaction 2: it belongs to no account (number 17)\n" in _verify(database).out


def test_one_merchant_can_be_verified_alone(database: Path) -> None:
    change(database, "UPDATE transactions SET amount = amount + 1 WHERE key = 'shopify:order:3'")
    assert _verify(database, "--merchant", str(OTHER), "--json").json == {
        "accounts": 1,
        "transactions": 2,
        "faults": [],
    }
    assert _verify(database, "--merchant", str(MERCHANT)).code == 1
    assert _verify(database, "--merchant", str(OTHER), "--merchant", str(MERCHANT)).code == 1


def test_a_merchant_without_an_account_is_asked_wrong(database: Path) -> None:
    unknown = "11111111-2222-4333-8444-555555555555"
    ran = _verify(database, "--merchant", unknown)
    assert ran == Ran(2, "", f"credit-service: --merchant {unknown}: this merchant has no account.\n")


def test_nothing_is_changed_by_it(database: Path) -> None:
    tables = ("alembic_version", *metadata.tables)
    before = {table: rows(database, f"SELECT * FROM {table}") for table in tables}
    _verify(database)
    assert {table: rows(database, f"SELECT * FROM {table}") for table in tables} == before


@only_on("sqlite")
def test_pages_that_were_overwritten_are_found(database: Path) -> None:
    content = bytearray(database.read_bytes())
    for page in range(2, len(content) // 4096):
        content[page * 4096 : page * 4096 + 8] = b"\xff" * 8
    database.write_bytes(content)
    ran = _verify(database)
    assert ran.code in (1, 2)
    assert ran.err.startswith("credit-service: ")
    assert ran.err.count("\n") == 1
