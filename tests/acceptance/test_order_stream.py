"""Replay the orders and refunds of a real web shop, and compare every balance with plain arithmetic."""

import fcntl
import hashlib
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from credit_service.storage.migrations import migrate_postgres
from tests.acceptance.order_stream import (
    EXAMPLES,
    FIXED,
    LINKS,
    ORDERS,
    PENNIES,
    Price,
    expected_balances,
    links,
    merchant,
    needs_data,
    open_text,
    rows,
)
from tests.cli import ledgers
from tests.commands import Ran, command
from tests.served import Served, served
from tests.servers.postgres import Databases
from tests.storage.engines import Ledgers, only_on, place
from tests.storage.files import new_file

EXAMPLE = EXAMPLES / "orders.csv"
EXAMPLE_LINKS = EXAMPLES / "refund_links.csv"


def _replay(database: Path, file: Path, price: Price, *arguments: str | Path) -> Ran:
    asked = ("replay", file, "--json", "--currency", "GBP", *arguments)
    url = ledgers.url_of(database)
    if url.startswith("sqlite:") and not Path(url.removeprefix("sqlite:///")).exists():
        new_file(database)
    return command(*asked, cwd=database.parent, DATABASE_URL=url, **price.settings)


def _verify(database: Path) -> Ran:
    return command("verify", "--json", cwd=database.parent, DATABASE_URL=ledgers.url_of(database))


@pytest.fixture(scope="module")
def ledgers_of_engine(request: pytest.FixtureRequest, engine_name: str) -> Ledgers:
    """Return the fixture `ledgers`. In this file that name is a module."""
    found = request.getfixturevalue("ledgers")
    assert isinstance(found, Ledgers)
    return found


def _report(read: int, **outcomes: int) -> dict[str, Any]:
    nothing = {"posted": 0, "replayed": 0, "parked": 0, "refused": 0, "skipped": 0}
    return {"read": read} | nothing | outcomes | {"by_code": {}}


def _skipped(price: Price) -> int:
    """Return the number of unlinked refunds worth 0 credits."""
    return sum(row.kind == "refund" and row.invoice not in links() and not price.of(row.total) for row in rows())


def _content(database: Path) -> dict[str, list[tuple[Any, ...]]]:
    tables = ("accounts", "transactions", "grants", "given_back", "parked", "events", "dead_letters")
    return {table: ledgers.rows(database, f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables}


# ---- the data


@needs_data
def test_data_match_their_readme() -> None:
    stream = rows()
    paid = [row for row in stream if row.kind == "paid"]
    refunds = [row for row in stream if row.kind == "refund"]
    assert (len(stream), len(paid), len(refunds)) == (17_750, 14_714, 3_036)
    assert sum(Decimal(row.total) for row in paid) == Decimal("7051281.19")
    assert sum(Decimal(row.total) for row in refunds) == Decimal("394504.95")
    assert (sum(int(row.items) for row in paid), sum(int(row.items) for row in refunds)) == (4_109_339, 178_559)
    assert (len({row.customer_id for row in stream}), len({row.country for row in stream})) == (3_949, 37)
    assert (stream[0].timestamp, stream[-1].timestamp) == ("2010-12-01T08:26:00Z", "2011-10-26T12:24:00Z")
    assert Counter(row.customer_id for row in stream).most_common(3) == [("14911", 195), ("12748", 164), ("17841", 139)]
    unpacked = hashlib.sha256(open_text(ORDERS).encode()).hexdigest()
    assert unpacked == "4f576428c7022908a53f73791ca97266c5c84e8676711000645641e6aa13dd44"


@needs_data
def test_links_match_their_readme() -> None:
    totals = {row.invoice: Decimal(row.total) for row in rows()}
    assert len(links()) == 2_195
    assert sum(Decimal(link.refund_total) for link in links().values()) == Decimal("216574.78")
    assert all(totals[link.refund_invoice] == Decimal(link.refund_total) for link in links().values())
    assert all(totals[link.order_invoice] == Decimal(link.order_total) for link in links().values())
    refunds_of = Counter(link.order_invoice for link in links().values())
    assert sum(count > 1 for count in refunds_of.values()) == 178


# ---- into the store


whole_stream = pytest.mark.parametrize(
    ("price", "engine_name"),
    [
        pytest.param(
            FIXED, "sqlite", id="one credit an order-sqlite"
        ),  # one engine is enough, because the ledger computes the price
        pytest.param(PENNIES, "sqlite", id="one credit a penny-sqlite"),
        pytest.param(PENNIES, "postgres", id="one credit a penny-postgres"),
    ],
    indirect=True,
)


@pytest.fixture(scope="module")
def price(request: pytest.FixtureRequest) -> Price:
    """Return the price of an order."""
    assert isinstance(request.param, Price)
    return request.param


def _replay_all(database: Path, price: Price) -> None:
    ran = _replay(database, ORDERS, price)
    skipped = _skipped(price)
    assert (ran.code, ran.json) == (0, _report(17_750, posted=17_750 - skipped, skipped=skipped)), ran.err


Ledger = Callable[[Path], AbstractContextManager[Path]]


@pytest.fixture(scope="module")
def replayed_in(price: Price, engine_name: str, request: pytest.FixtureRequest) -> Ledger:
    """Return a function that copies a ledger with the whole stream into a folder. The replay runs once."""
    folders = request.getfixturevalue("tmp_path_factory")
    if engine_name == "postgres":
        databases: Databases = request.getfixturevalue("postgres")

        def build(url: str) -> None:
            migrate_postgres(url)
            _replay_all(ledgers.placed(folders.mktemp("building"), url), price)

        @contextmanager
        def server(folder: Path) -> Iterator[Path]:
            with databases.database(databases.template(f"replayed_{price.percent}", build)) as url:
                yield ledgers.placed(folder, url)

        return server

    @contextmanager
    def file(folder: Path) -> Iterator[Path]:
        shared = folders.getbasetemp()
        if "PYTEST_XDIST_WORKER" in os.environ:  # all workers share the ledger
            shared = shared.parent
        shared /= f"replayed-{price.percent}"
        shared.mkdir(exist_ok=True)
        with (shared / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (shared / "done").exists():
                _replay_all(shared / "ledger.db", price)
                (shared / "done").touch()
        yield Path(shutil.copy(shared / "ledger.db", folder))

    return file


@pytest.fixture(scope="module")
def replayed(replayed_in: Ledger, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield a ledger with the whole stream. Tests must not change it."""
    with replayed_in(tmp_path_factory.mktemp("replayed")) as database:
        yield database


@pytest.fixture
def copy(replayed_in: Ledger, tmp_path: Path) -> Iterator[Path]:
    """Yield a ledger with the whole stream that the test may change."""
    with replayed_in(tmp_path) as database:
        yield database


@needs_data
@whole_stream
def test_every_balance_is_refunds_minus_orders(replayed: Path, price: Price) -> None:
    found = ledgers.balances(replayed)
    assert len(found) == 3_949
    assert found == expected_balances(rows(), links(), price)


@needs_data
@whole_stream
def test_each_invoice_is_one_transaction(replayed: Path) -> None:
    kinds = {"paid": "order", "refund": "refund"}
    invoices = {(merchant(row.customer_id), f"shopify:{kinds[row.kind]}:{row.invoice}") for row in rows()}
    statement = "SELECT merchant_id, key FROM transactions JOIN accounts ON accounts.number = transactions.account"
    found = ledgers.rows(replayed, statement)
    assert len(found) == len(invoices) == 17_750
    assert set(found) == invoices


@needs_data
@whole_stream
def test_transaction_sequences_have_no_gap(replayed: Path) -> None:
    found = ledgers.rows(
        replayed, "SELECT account, count(*), min(sequence), max(sequence) FROM transactions GROUP BY 1"
    )
    assert all((first, last) == (1, count) for _, count, first, last in found)
    assert len(found) == 3_949


@needs_data
@whole_stream
def test_second_replay_changes_nothing(copy: Path, price: Price) -> None:
    before = _content(copy)
    ran = _replay(copy, ORDERS, price)
    skipped = _skipped(price)
    assert (ran.code, ran.json) == (0, _report(17_750, replayed=17_750 - skipped, skipped=skipped))
    assert _content(copy) == before


@needs_data
@whole_stream
def test_verify_finds_no_fault(copy: Path) -> None:
    ran = _verify(copy)
    assert ran.code == 0
    assert ran.json == {"accounts": 3_949, "transactions": 17_750, "faults": []}


@needs_data
@whole_stream
@pytest.mark.parametrize("seed", [11])
def test_shuffled_replay_gives_same_balances_and_parks_nothing(
    seed: int, price: Price, new_ledger: Callable[[], str], tmp_path: Path
) -> None:
    header, *lines = open_text(ORDERS).splitlines()
    random.Random(seed).shuffle(lines)
    (tmp_path / "shuffled.csv").write_text("\n".join([header, *lines]))
    database = ledgers.placed(tmp_path, new_ledger())
    ran = _replay(database, tmp_path / "shuffled.csv", price, "--links", LINKS)
    report = ran.json
    assert (ran.code, report["read"], report["refused"]) == (0, 17_750, 0)
    assert report["parked"] > 500, "some refunds must come before their orders"
    assert report["posted"] + report["parked"] + report["skipped"] == 17_750
    assert ledgers.balances(database) == expected_balances(rows(), links(), price)
    assert ledgers.rows(database, "SELECT * FROM parked") == ledgers.rows(database, "SELECT * FROM dead_letters") == []
    assert _verify(database).json == {"accounts": 3_949, "transactions": 17_750 - report["skipped"], "faults": []}


# ---- over HTTP


@pytest.fixture(scope="module")
def service(ledgers_of_engine: Ledgers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Path]]:
    """Run a service with a price of one credit per penny, and yield it with its ledger."""
    folder = tmp_path_factory.mktemp("http")
    with ledgers_of_engine.new(folder) as url:
        settings = {"DATABASE_ALLOW_UNSAFE": "true", **PENNIES.settings}
        with served(place(url), folder=folder, settings=settings) as service:
            yield service, ledgers.placed(folder, url)


def _balances(service: Served) -> dict[str, int]:
    """Return the balance of every merchant from the list of accounts."""
    found: dict[str, int] = {}
    with service.client() as client:
        path = "/credits/accounts?limit=200"
        while path:
            page = client.get(path).raise_for_status().json()
            found |= {account["merchant_id"]: account["balance"] for account in page["data"]}
            path = (page["links"]["next"] or "").removeprefix("/api/v1")
    return found


@needs_data
def test_replay_over_http_gives_same_balances_and_repeat_changes_nothing(
    service: tuple[Served, Path],
) -> None:
    running, database = service
    arguments = ("--url", running.url, "--key", running.key)
    first = _replay(database, ORDERS, PENNIES, *arguments)
    assert (first.code, first.json) == (0, _report(17_750, posted=17_750))
    balances = _balances(running)
    assert balances == expected_balances(rows(), links(), PENNIES)
    again = _replay(database, ORDERS, PENNIES, *arguments)
    assert (again.code, again.json) == (0, _report(17_750, replayed=17_750))
    assert _balances(running) == balances
    running.stop()
    assert _verify(database).json == {"accounts": 3_949, "transactions": 17_750, "faults": []}


# ---- the excerpt, and tampered ledgers


@pytest.fixture(scope="module")
def excerpt(ledgers_of_engine: Ledgers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield a ledger with the replayed excerpt of examples/."""
    folder = tmp_path_factory.mktemp("excerpt")
    with ledgers_of_engine.new(folder) as url:
        database = ledgers.placed(folder, url)
        ran = _replay(database, EXAMPLE, PENNIES)
        assert (ran.code, ran.json) == (0, _report(448, posted=448))
        assert ran.err == f"credit-service: {EXAMPLE_LINKS} says which orders were refunded.\n"
        yield database


def test_excerpt_gives_expected_balances(excerpt: Path) -> None:
    assert len(rows(EXAMPLE)) <= 500
    assert ledgers.balances(excerpt) == expected_balances(rows(EXAMPLE), links(EXAMPLE_LINKS), PENNIES)
    assert _verify(excerpt).json == {"accounts": 14, "transactions": 448, "faults": []}


@needs_data
def test_excerpt_is_part_of_the_stream() -> None:
    assert set(rows(EXAMPLE)) <= set(rows())
    assert set(links(EXAMPLE_LINKS).items()) <= set(links().items())


TAMPERED = [
    "account",
    "sequence",
    "operation",
    "type",
    "amount",
    "shortfall",
    "balance_before",
    "balance_after",
    "debt_after",
    "key",
    "content",
    "reference_type",
    "reference_id",
    "total_micros",
    "currency",
    "draws",
    "actor",
    "occurred_at",
    "created_at",
    "hash",
]


@only_on("sqlite")  # one engine is enough, because the ledger verifies the rows
@pytest.mark.parametrize("position", [7, 40, 139], ids=lambda position: f"transaction {position}")
@pytest.mark.parametrize("column", TAMPERED)
def test_verify_names_a_transaction_with_one_changed_byte(
    column: str, position: int, excerpt: Path, tmp_path: Path
) -> None:
    database = tmp_path / "ledger.db"
    shutil.copy(excerpt, database)
    customer = merchant("17841")
    where = "account = (SELECT number FROM accounts WHERE merchant_id = ?) AND sequence = ?"
    [(value,)] = ledgers.rows(database, f"SELECT {column} FROM transactions WHERE {where}", customer, position)
    statement = f"UPDATE transactions SET {column} = ? WHERE {where}"
    ledgers.change(database, statement, _one_byte_off(value), customer, position)
    ran = _verify(database)
    assert ran.code == 1
    places = {(fault["merchant_id"], fault["sequence"]) for fault in ran.json["faults"]}
    # If the transaction has lost its account or sequence, verify reports the gap at the next transaction.
    moved = column in ("account", "sequence")
    following = {position + 1, None} if moved else {position}
    assert {(str(customer), sequence) for sequence in following} & places


def _one_byte_off(value: Any) -> Any:
    match value:
        case int():
            return value ^ 1 << 8
        case bytes():
            return value[:5] + bytes([value[5] ^ 1]) + value[6:]
        case str():
            return value[:-1] + chr(ord(value[-1]) ^ 1)
    raise AssertionError(f"nothing to change in {value!r}")


@needs_data
@whole_stream
def test_verify_finds_one_changed_amount_in_the_whole_stream(copy: Path) -> None:
    customer = merchant("14911")
    where = "account = (SELECT number FROM accounts WHERE merchant_id = ?) AND sequence = 100"
    ledgers.change(copy, f"UPDATE transactions SET amount = amount + 1 WHERE {where}", customer)
    ran = _verify(copy)
    assert ran.code == 1
    assert {(fault["merchant_id"], fault["sequence"]) for fault in ran.json["faults"]} >= {(str(customer), 100)}
    assert {fault["merchant_id"] for fault in ran.json["faults"]} == {str(customer)}
