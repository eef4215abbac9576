"""L15: erasure reaches every place that keeps personal data of a merchant."""

import asyncio
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from credit_service.erasure import Erased, Erasure, erased_letter
from credit_service.storage.engine import Conflict
from credit_service.storage.erasing import without as without_metadata
from credit_service.storage.letters import Letter, LetterQuery, Letters, Undeliverable, message_hash
from credit_service.storage.shops import KeptDelivery, Shops
from tests.commands import Ran, command
from tests.ledger.telling import MERCHANT, T0, opening, order, refund, use
from tests.storage.contract import tell
from tests.storage.engines import only_on, opened, place, rows
from tests.storage.values import FULL_REFUND, PAYMENT_REFUND

SHOP = "example.myshopify.com"
ORDERS = frozenset({"1", "9007199254740993"})
METADATA = {"metadata": {"email": "ada@example.com"}}


def letter(original: Any, code: str = "currency_mismatch", subject: str = "evt.x") -> Letter:
    text = original if isinstance(original, bytes) else json.dumps(original).encode()
    return Letter(1, code, "r", T0, None, subject, text)


def event(**data: Any) -> dict[str, Any]:
    return {"specversion": "1.0", "type": "evt.x", "data": {"merchant_id": str(MERCHANT), **data}}


def left(one: Letter, orders: frozenset[str] | None = ORDERS, merchant_id: str = MERCHANT) -> Any:
    """Return the erased letter's original as JSON, or None if erasure does not change the letter."""
    found = erased_letter(one, {SHOP}, merchant_id, orders)
    if found is None:
        return None
    assert found._replace(original=one.original, fact=one.fact) == one
    return json.loads(found.original) if found.original else b""


@pytest.mark.parametrize("order_id", ["1", 1, 9007199254740993])
def test_erasure_removes_metadata_of_a_redacted_order(order_id: Any) -> None:
    assert left(letter(event(order_id=order_id, total="5", **METADATA))) == event(order_id=order_id, total="5")


def test_one_erased_order_clears_its_whole_event() -> None:
    items = [{"order_id": 1, **METADATA}, {"order_id": 2, **METADATA}, "nonsense"]
    assert left(letter(event(order_items=items))) == event(order_items=[{"order_id": 1}, {"order_id": 2}, "nonsense"])


def test_erasure_reads_the_older_envelope() -> None:
    older = {"event_type": "evt.x", "payload": {"merchant_id": str(MERCHANT), "order_id": 1}}
    original = {**older, "payload": {**older["payload"], **METADATA}}  # type: ignore[dict-item]
    assert left(letter(original)) == older


@pytest.mark.parametrize(
    "original",
    [
        event(order_id=1),  # without metadata
        event(order_id=2, **METADATA),
        event(payment_id=1, **METADATA),
        {"data": {"order_id": 1, **METADATA}},
        {"data": {"merchant_id": str(UUID(int=5)), "order_id": 1, **METADATA}},
        {"data": 5},
        {"shop": SHOP, "topic": "orders/paid", "body": {"id": 1}},
        {"shop": "other.myshopify.com", "topic": "orders/paid", "raw": "ada@example.com"},
        [],
        b"{",
        b"\xff",
        b"",
    ],
)
def test_erasure_keeps_other_letters_and_impersonal_letters(original: Any) -> None:
    assert left(letter(original)) is None


def test_erasure_without_orders_removes_all_metadata() -> None:
    assert left(letter(event(payment_id=1, **METADATA)), None) == event(payment_id=1)
    assert left(letter(event(payment_id=1)), None) is None
    assert left(letter(event(payment_id=1, **METADATA)), None, str(UUID(int=5))) is None


def test_a_malformed_event_loses_its_whole_text() -> None:
    malformed = event(order_id=1, mail="ada@example.com")
    assert left(letter(malformed, "validation_failed")) == b""
    assert left(letter(event(order_id=2, mail="ada@example.com"), "validation_failed")) is None
    twice = json.dumps(malformed).encode().replace(b'"order_id": 1', b'"order_id": 1, "mail": "x"')
    assert left(letter(twice, "validation_failed")) == b""


@pytest.mark.parametrize("orders", [ORDERS, None])
def test_an_unreadable_delivery_loses_its_body(orders: frozenset[str] | None) -> None:
    original = {"shop": SHOP, "topic": "orders/paid", "raw": "ada@example.com"}
    assert left(letter(original, "validation_failed"), orders) == {"shop": SHOP, "topic": "orders/paid"}


def test_a_dead_refund_loses_its_metadata() -> None:
    whole = Letter(1, "order_unknown", "r", T0, FULL_REFUND)
    assert erased_letter(whole, {SHOP}, MERCHANT, ORDERS) == whole._replace(fact=without_metadata(FULL_REFUND))
    assert erased_letter(whole, {SHOP}, MERCHANT, frozenset({"2"})) is None
    assert erased_letter(whole, {SHOP}, str(UUID(int=5)), None) is None
    assert erased_letter(whole._replace(fact=PAYMENT_REFUND), {SHOP}, MERCHANT, None) is None
    assert erased_letter(whole._replace(fact=without_metadata(FULL_REFUND)), {SHOP}, MERCHANT, None) is None


def test_an_adjustment_keeps_no_reason_and_can_still_be_replayed() -> None:
    original = event(adjustment_id=1, operation_type="DECREASE", credits=5, reason="Ada asked", admin_id="ada")
    gone = event(adjustment_id=1, operation_type="DECREASE", credits=5, reason="erased", admin_id="erased")
    assert left(letter(original, "insufficient_credits"), None) == gone
    assert left(letter(gone, "insufficient_credits"), None) is None


# ---- a whole ledger

PERSONAL = "ada.lovelace@example.com"


async def full_of_personal_data(url: str) -> None:
    """Write Ada's e-mail address into every place of the ledger that can hold it."""
    personal: dict[str, Any] = {"metadata": f'{{"email":"{PERSONAL}"}}', "salt": b"0123456789abcdef"}
    engine = opened(url, clock=lambda: T0)
    try:
        await tell(engine, opening(), replace(order("1", 8), **personal), replace(use(3), **personal))
        await tell(engine, replace(refund("r", "unknown", credits=1), **personal))
        original = json.dumps(event(order_id=1, metadata={"email": PERSONAL})).encode()
        await Letters(engine).put_aside([Undeliverable("evt.x", original, "currency_mismatch", "r", T0)])
        await Shops(engine).link(SHOP, MERCHANT, T0)
        body = f'{{"customer":"{PERSONAL}"}}'
        await Shops(engine).keep(KeptDelivery(SHOP, "customers/data_request", body, None, T0))
    finally:
        await engine.close()


@pytest.fixture
async def url(new_ledger: Callable[[], str]) -> str:
    made = new_ledger()
    await full_of_personal_data(made)
    return made


async def test_erasure_counts_its_finds_and_second_run_finds_nothing(url: str) -> None:
    engine = opened(url, clock=lambda: T0)
    try:
        assert await Erasure(engine).erase(str(UUID(int=5))) == Erased(0, 0, 0, 0, 0)
        assert await Erasure(engine).erase(MERCHANT) == Erased(
            transactions=2, parked=1, dead_letters=1, deliveries=1, reasons=0
        )
        assert await Erasure(engine).erase(MERCHANT) == Erased(0, 0, 0, 0, 0)
    finally:
        await engine.close()


async def test_erasure_removes_the_hash_of_a_dead_letter(url: str) -> None:
    engine = opened(url, clock=lambda: T0)
    try:
        (before,) = await Letters(engine).page(LetterQuery(), None, 9)
        original = Undeliverable("evt.x", before.original or b"", before.code, before.reason, before.at)
        await Erasure(engine).erase(MERCHANT)
        assert rows(url, "SELECT message_hash FROM dead_letters") != [(message_hash(original),)]
    finally:
        await engine.close()


@only_on("sqlite")
async def test_files_do_not_contain_erased_text(url: str) -> None:
    path = place(url)
    assert isinstance(path, Path)

    def kept() -> set[str]:
        return {file.name for file in path.parent.iterdir() if PERSONAL.encode() in file.read_bytes()}

    assert path.name in kept()
    engine = opened(url, clock=lambda: T0)
    try:
        await Erasure(engine).erase(MERCHANT)
        assert kept() == set()
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("SELECT count(*) FROM transactions").fetchone() == (3,)
    finally:
        await engine.close()


async def test_erase_command_erases_and_prints_counts(url: str, tmp_path: Path) -> None:
    def erase(*more: str) -> Ran:
        return command("erase", str(MERCHANT), *more, cwd=tmp_path, DATABASE_URL=url, DATABASE_ALLOW_UNSAFE="true")

    ran = await asyncio.to_thread(erase, "--json")
    found = {"transactions": 2, "parked": 1, "dead_letters": 1, "deliveries": 1, "reasons": 0}
    assert (ran.code, ran.json) == (0, {"merchant_id": str(MERCHANT), **found})
    again = await asyncio.to_thread(erase)
    assert again.code == 0
    assert " ".join(again.out.split()) == "0 transactions 0 parked 0 dead letters 0 deliveries 0 reasons"


@only_on("sqlite")
async def test_reader_that_keeps_erased_text_is_reported(url: str) -> None:
    path = place(url)
    assert isinstance(path, Path)
    engine = opened(url, clock=lambda: T0, busy_seconds=0.01)
    try:
        await tell(engine, use(1))  # the write-ahead log is not empty
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM transactions").fetchone()
            with pytest.raises(Conflict, match="Erase again"):
                await Erasure(engine).erase(MERCHANT)
        assert await Erasure(engine).erase(MERCHANT) == Erased(0, 0, 0, 0, 0)
        assert not any(PERSONAL.encode() in file.read_bytes() for file in path.parent.iterdir())
    finally:
        await engine.close()
