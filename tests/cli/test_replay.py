"""`credit-service replay`, into the store."""

import gzip
import json
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

import pytest

from tests.cli.events import (
    MERCHANT,
    OTHER,
    event,
    lines,
    links,
    order,
    paid,
    payment,
    refund,
    refunded,
    stream,
)
from tests.cli.ledgers import balances, postings, rows
from tests.commands import Ran, command
from tests.served import reaped, start

pytestmark = pytest.mark.usefixtures("on_each_engine")
BOM = b"\xef\xbb\xbf"
CUSTOMER = str(uuid5(NAMESPACE_URL, "customer:17850"))


def _replay(folder: Path, content: bytes, *arguments: str, **settings: str) -> Ran:
    file = folder / "facts"
    file.write_bytes(content)
    return command("replay", file, "--json", *arguments, cwd=folder, **settings)


def _counts(**outcomes: int) -> dict[str, int]:
    return {"read": 0, "posted": 0, "replayed": 0, "parked": 0, "refused": 0, "skipped": 0} | outcomes


def _database(folder: Path) -> Path:
    return folder / "credit-service.db"


# ---- an order stream


def test_order_costs_its_price_and_opens_the_account_without_trial(tmp_path: Path) -> None:
    ran = _replay(tmp_path, stream(order("536365")))
    assert (ran.code, ran.err) == (0, "")
    assert ran.json == _counts(read=1, posted=1) | {"by_code": {}}
    assert postings(_database(tmp_path)) == [("shopify:order:536365", "ORDER_PAID", -1)]
    assert balances(_database(tmp_path)) == {CUSTOMER: -1}


def test_row_gives_total_currency_reference_and_time(tmp_path: Path) -> None:
    content = stream(order("536365", total="139.12"))
    _replay(tmp_path, content, "--currency", "GBP", ORDER_CREDIT_PERCENTAGE="10000")
    columns = "amount, total_micros, currency, reference_type, reference_id, occurred_at, actor"
    assert rows(_database(tmp_path), f"SELECT {columns} FROM transactions") == [
        (13_912, 139_120_000, "GBP", "order", "536365", 1_291_191_960_000_000, "replay")
    ]


@pytest.mark.parametrize(
    ("option", "cells", "currencies"),
    [
        ((), ("", ""), [None, None]),
        ((), ("EUR", ""), ["EUR", None]),
        (("--currency", "SEK"), ("EUR", ""), ["EUR", "SEK"]),
    ],
)
def test_currency_comes_from_the_row_then_the_option(
    option: tuple[str, ...], cells: tuple[str, ...], currencies: list[str | None], tmp_path: Path
) -> None:
    header = "invoice,customer_id,timestamp,total,kind,currency"
    orders = [f"{number},17850,2010-12-01T08:26:00Z,10.00,paid,{cell}" for number, cell in enumerate(cells)]
    assert _replay(tmp_path, stream(*orders, header=header), *option).code == 0
    assert [currency for (currency,) in rows(_database(tmp_path), "SELECT currency FROM transactions")] == currencies


def test_refund_is_in_the_currency_of_its_order(tmp_path: Path) -> None:
    (tmp_path / "refund_links.csv").write_bytes(links(("C1", "1", "10.00")))
    content = stream(order("1"), refund("C1"))
    assert _replay(tmp_path, content, "--currency", "SEK").json["posted"] == 2
    assert rows(_database(tmp_path), "SELECT currency FROM transactions") == [("SEK",), ("SEK",)]


def test_unlinked_refund_gives_back_the_price_of_its_total(tmp_path: Path) -> None:
    ran = _replay(tmp_path, stream(refund("C1", total="2.50")), ORDER_CREDIT_PERCENTAGE="1000")
    assert (ran.code, ran.json["posted"]) == (0, 1)
    assert postings(_database(tmp_path)) == [("shopify:refund:C1", "ORDER_REFUNDED", 25)]


def test_unlinked_refund_worth_nothing_is_skipped(tmp_path: Path) -> None:
    content = stream(order("1", total="0.00"), refund("C1", total="0.00"))
    ran = _replay(tmp_path, content, ORDER_CREDIT_FIXED_AMOUNT="0", ORDER_CREDIT_PERCENTAGE="100")
    assert (ran.code, ran.json) == (0, _counts(read=2, posted=1, skipped=1) | {"by_code": {}})


@pytest.mark.parametrize("name", ["refund_links.csv", "online_retail_refund_links.csv.gz", "given.csv"])
def test_linked_refunds_give_back_their_share_of_the_order(name: str, tmp_path: Path) -> None:
    told = links(("C1", "1", "10.00"), ("C2", "1", "10.00"))
    (tmp_path / name).write_bytes(gzip.compress(told) if name.endswith(".gz") else told)
    given = ("--links", name) if name == "given.csv" else ()
    content = stream(order("1"), refund("C1", total="3.33"), refund("C2", total="3.33"))
    ran = _replay(tmp_path, content, *given, ORDER_CREDIT_PERCENTAGE="50")
    assert ran.code == 0
    assert ran.err == f"credit-service: {tmp_path / name if not given else name} says which orders were refunded.\n"
    assert [(key, amount) for key, _, amount in postings(_database(tmp_path))] == [
        ("shopify:order:1", -5),
        ("shopify:refund:C1", 1),  # floor(5 × 3.33 / 10)
        ("shopify:refund:C2", 2),  # floor(5 × 6.66 / 10), less what C1 gave
    ]


def test_refund_before_its_order_is_parked_then_applied(tmp_path: Path) -> None:
    (tmp_path / "refund_links.csv").write_bytes(links(("C1", "1", "10.00")))
    ran = _replay(tmp_path, stream(refund("C1"), order("1")))
    assert (ran.code, ran.json) == (0, _counts(read=2, posted=1, parked=1) | {"by_code": {}})
    assert balances(_database(tmp_path)) == {CUSTOMER: 0}
    assert rows(_database(tmp_path), "SELECT * FROM parked") == []


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("1,17850,UK,2010-12-01T08:26:00Z,10.00,3", "The row has 6 fields, the header 7."),
        ("1,17850,UK,2010-12-01T08:26:00Z,10.00,3,paid,more", "The row has 8 fields, the header 7."),
        ("1,17850,UK,2010-12-01T08:26:00Z,10.00,3,lost", "kind is 'lost', neither paid nor refund."),
        ("1,,UK,2010-12-01T08:26:00Z,10.00,3,paid", "customer_id is missing."),
        (",17850,UK,2010-12-01T08:26:00Z,10.00,3,paid", "invoice is missing."),
        ("1,17850,UK,2010-12-01 08:26,10.00,3,paid", "/time: "),
        ("1,17850,UK,2010-12-01T08:26:00Z,ten,3,paid", "/data/total: "),
        ("1,17850,UK,2010-12-01T08:26:00Z,-1.00,3,paid", "/data/total: "),
        ("1,17850,UK,2010-12-01T08:26:00Z,NaN,3,refund", "total: Money is a decimal number of at most 6 decimals."),
        ('1,"17850,UK,2010-12-01T08:26:00Z,10.00,3,paid', "The row is not CSV: unexpected end of data."),
        ("é,17850,UK,2010-12-01T08:26:00Z,10.00,3,paid", "/data/order_id: "),
    ],
)
def test_unusable_row_is_named_and_others_are_posted(row: str, said: str, tmp_path: Path) -> None:
    ran = _replay(tmp_path, stream(order("536365"), row, order("536366")))
    assert (ran.code, ran.json) == (1, _counts(read=3, posted=2, refused=1) | {"by_code": {"validation_failed": 1}})
    assert ran.err.startswith(f"credit-service: line 3: validation_failed: {said}")
    assert ran.err.count("\n") == 1


def test_row_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    ran = _replay(tmp_path, stream(order("1")) + b"2,178\xff50,UK,2010-12-01T08:26:00Z,10.00,3,paid\n" + b"\n")
    assert (ran.code, ran.json["posted"], ran.json["refused"]) == (1, 1, 1)
    assert ran.err == "credit-service: line 3: validation_failed: The row is not UTF-8: byte 5 is not valid.\n"


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    content = stream(
        "paid,10.00,2010-12-01T08:26:00Z,17850,1,x", header="kind,total,timestamp,customer_id,invoice,note"
    )
    # A spreadsheet begins a file with a byte order mark, and ends its lines with CR LF.
    ran = _replay(tmp_path, BOM + content.replace(b"\n", b"\r\n"))
    assert (ran.code, ran.json["posted"]) == (0, 1)
    (tmp_path / "refund_links.csv").write_bytes(BOM + links(("C1", "1", "10.00")).replace(b"\n", b"\r\n"))
    assert _replay(tmp_path, stream(refund("C1", customer="17850"))).json["posted"] == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"invoice,total\n1,2\n", "customer_id, timestamp, kind not found."),
        (b"[]\n", "not found."),
        (b"\xff\xfe\x00\n", "The row is not UTF-8"),
        (b'{"a": 1}\n', "--links is of no use"),
        (b"invoice,customer_id,timestamp,total,total,kind\n", "facts has two columns named total."),
        (b"invoice,customer_id, note,timestamp,note ,total,kind\n", "facts has two columns named note."),
        (b"invoice,invoice,customer_id,timestamp,total,kind\n", "facts has two columns named invoice."),
        (b"invoice,customer_id,timestamp,total,kind,currency,currency\n", "facts has two columns named currency."),
    ],
)
def test_other_kind_of_file_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    ran = _replay(tmp_path, content, *(("--links", "facts") if b"{" in content else ()))
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert said in ran.err
    assert balances(_database(tmp_path)) == {}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "wrong.csv cannot be read: No such file or directory."),
        (b"refund,order\n", "refund_invoice, order_invoice, order_total not found."),
        (links() + b"C1,1\n", "wrong.csv, line 2: The row has 2 fields, the header 5."),
        (b"", "not found."),
        (b"order_invoice," + links(), "wrong.csv has two columns named order_invoice."),
        (links(("C1", "1", "5"), ("C2", "1", "5"), ("C1", "2", "5")), "the refund C1 has another order before."),
    ],
)
def test_unusable_links_are_refused(content: bytes | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "wrong.csv").write_bytes(content)
    ran = _replay(tmp_path, stream(order("1")), "--links", "wrong.csv")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert ran.err.endswith(f"{said}\n")


@pytest.mark.parametrize(
    ("content", "currency", "said"),
    [
        (stream(order("1")), "gbp", "--currency: a currency has three capital letters, like GBP."),
        (lines(paid(1)), "GBP", "facts holds events, so --currency is of no use."),
    ],
)
def test_currency_that_is_of_no_use_is_refused(content: bytes, currency: str, said: str, tmp_path: Path) -> None:
    ran = _replay(tmp_path, content, "--currency", currency)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert ran.err.endswith(f"{said}\n")


# ---- events as JSON lines


@pytest.mark.parametrize("packed", [bytes, gzip.compress])
def test_byte_order_marks_and_crlf_are_removed(packed: Callable[[bytes], bytes], tmp_path: Path) -> None:
    part = BOM + lines(paid(1)).replace(b"\n", b"\r\n")
    ran = _replay(tmp_path, packed(part + BOM + lines(paid(2)) + BOM))
    assert (ran.code, ran.err, ran.json) == (0, "", _counts(read=2, posted=2) | {"by_code": {}})


def test_limits_of_the_settings_hold_for_a_file(tmp_path: Path) -> None:
    ran = _replay(tmp_path, lines(paid("x" * 60), paid(1)), KEY_MAX_LENGTH="64")
    assert (ran.code, ran.json["by_code"]) == (1, {"validation_failed": 1})
    assert "The ids make a key longer than 64 characters." in ran.err


def test_replayed_adjustment_needs_a_visible_reason(tmp_path: Path) -> None:
    data = {"merchant_id": str(MERCHANT), "adjustment_id": 1, "credits": 5, "reason": "\u200b", "admin_id": "ada"}
    ran = _replay(tmp_path, lines(event("cmd.credits.manual_adjustment", data | {"operation_type": "INCREASE"})))
    assert (ran.code, ran.json["by_code"]) == (1, {"validation_failed": 1})
    assert "/data/reason: Must have a visible character." in ran.err


def test_events_are_posted_as_through_any_door(tmp_path: Path) -> None:
    content = lines(
        event("evt.merchant.created", {"merchant_id": str(MERCHANT)}),
        payment("p1", 500),
        paid(2**60, total=149.9, currency="EUR"),
        refunded("r1", order_id=2**60, refund_amount=149.9, currency="EUR"),
        paid(7, OTHER),
        event(
            "cmd.credits.manual_adjustment",
            {
                "merchant_id": str(MERCHANT),
                "adjustment_id": 1,
                "operation_type": "DECREASE",
                "credits": 5,
                "reason": "test",
                "admin_id": "ada",
            },
        ),
    )
    ran = _replay(tmp_path, content)
    assert (ran.code, ran.err, ran.json) == (0, "", _counts(read=6, posted=6) | {"by_code": {}})
    assert balances(_database(tmp_path)) == {MERCHANT: 100 + 500 - 1 + 1 - 5, OTHER: -1}


def test_event_of_several_orders_counts_each_once(tmp_path: Path) -> None:
    items = [{"order_id": 1, "total": "1"}, {"order_id": 2}, {"order_id": 3, "total": "3"}]
    content = lines(
        event("evt.shopify.webhook.order_paid", {"merchant_id": str(MERCHANT), "order_items": items}), paid(4)
    )
    ran = _replay(tmp_path, content)
    assert (ran.code, ran.json) == (1, _counts(read=2, posted=3, refused=1) | {"by_code": {"validation_failed": 1}})
    assert ran.err.startswith("credit-service: line 1: validation_failed: /data/order_items/1/total: ")
    assert balances(_database(tmp_path)) == {MERCHANT: -3}


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("{", "validation_failed"),
        ("{}", "validation_failed"),
        ("[]", "validation_failed"),
        ("17", "validation_failed"),
        (paid(2, total="1e3"), "validation_failed"),
        (paid(2, total=float("nan")), "validation_failed"),
        (paid(2)[:-1] + ', "id": "twice"}', "validation_failed"),
        (
            event("evt.shopify.webhook.order_paid", {"merchant_id": "17 850", "order_id": 1, "total": 1}),
            "validation_failed",
        ),
        (event("evt.nobody.knows", {"merchant_id": str(MERCHANT)}), "event_type_unknown"),
        (refunded("r1"), "validation_failed"),
        ("[" * 100_000, "validation_failed"),
        ("\0", "validation_failed"),
    ],
    ids=range(12),
)
def test_unusable_line_is_named_and_others_are_posted(line: str, code: str, tmp_path: Path) -> None:
    ran = _replay(tmp_path, lines(paid(1), line, "", paid(3)))
    assert (ran.code, ran.json) == (1, _counts(read=3, posted=2, refused=1) | {"by_code": {code: 1}})
    assert ran.err.startswith(f"credit-service: line 2: {code}: ")
    assert ran.err.count("\n") == 1


def test_refusals_are_counted_by_code(tmp_path: Path) -> None:
    spend = {"merchant_id": str(MERCHANT), "adjustment_id": 1, "credits": 5, "reason": "test", "admin_id": "ada"}
    content = lines(paid(1), event("cmd.credits.manual_adjustment", spend | {"operation_type": "DECREASE"}))
    ran = _replay(tmp_path, content)
    assert (ran.code, ran.json["by_code"]) == (1, {"insufficient_credits": 1})
    assert ran.err == ("credit-service: line 2: insufficient_credits: Not enough credits are available.\n")


def test_accounts_are_not_opened_if_the_settings_forbid_it(tmp_path: Path) -> None:
    ran = _replay(tmp_path, lines(paid(1)), ACCOUNTS_AUTO_CREATE="false")
    assert (ran.code, ran.json["by_code"]) == (1, {"account_not_found": 1})


# ---- any file


@pytest.mark.parametrize("content", [lines(*map(paid, range(2_500))), stream(*map(order, map(str, range(2_500))))])
def test_many_lines_are_posted_in_order_gzipped_or_not(content: bytes, tmp_path: Path) -> None:
    first = _replay(tmp_path, gzip.compress(content))
    assert (first.code, first.json) == (0, _counts(read=2_500, posted=2_500) | {"by_code": {}})
    assert [key for key, _, _ in postings(_database(tmp_path))] == [f"shopify:order:{i}" for i in range(2_500)]
    again = _replay(tmp_path, content)
    assert (again.code, again.json) == (0, _counts(read=2_500, replayed=2_500) | {"by_code": {}})


def test_empty_file_posts_nothing(tmp_path: Path) -> None:
    assert _replay(tmp_path, b"").json == _counts() | {"by_code": {}}


def test_truncated_gzip_file_is_posted_up_to_its_end(tmp_path: Path) -> None:
    content = gzip.compress(lines(*map(paid, range(1_500))))
    ran = _replay(tmp_path, content[: len(content) * 9 // 10])
    assert (ran.code, ran.out) == (1, "")
    broken_off = re.match(r"credit-service: \S+/facts cannot be read after line ([0-9]+): .*\n$", ran.err)
    assert broken_off is not None
    assert ran.err.endswith("the same command goes on from here.\n")
    assert 1_000 < int(broken_off[1]) < 1_500
    assert balances(_database(tmp_path)) == {MERCHANT: -int(broken_off[1])}


def test_summary_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "facts.jsonl").write_bytes(lines(paid(1), paid(1), "{}", "{"))
    ran = command("replay", "facts.jsonl", cwd=tmp_path)
    assert ran.code == 1
    assert ran.out == "4 read, 1 posted, 1 replayed, 0 parked, 2 refused, 0 skipped; validation_failed: 2\n"


def test_same_command_goes_on_after_ctrl_c(tmp_path: Path) -> None:
    count = 15_000
    (tmp_path / "facts").write_bytes(stream(*map(order, map(str, range(count)))))
    replaying = start("replay", "facts", "--json", cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with reaped(replaying):
        _wait_for_postings(_database(tmp_path), 1_000)
        replaying.send_signal(signal.SIGINT)
        out, err = replaying.communicate(timeout=60)
    assert (replaying.returncode, out) == (130, "")
    assert err.startswith("credit-service: stopped (")
    assert err.count("\n") == 1
    posted = len(postings(_database(tmp_path)))
    assert 0 < posted < count
    again = command("replay", "facts", "--json", cwd=tmp_path)
    assert (again.code, again.json) == (
        0,
        _counts(read=count, posted=count - posted, replayed=posted) | {"by_code": {}},
    )
    assert balances(_database(tmp_path)) == {CUSTOMER: -count}


def _wait_for_postings(database: Path, count: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            if rows(database, "SELECT count(*) FROM transactions")[0][0] >= count:
                return
        except sqlite3.OperationalError:  # it is not there yet
            pass
        time.sleep(0.02)
    pytest.fail("nothing was posted")


def test_json_line_and_row_of_an_order_are_one_fact(tmp_path: Path) -> None:
    _replay(tmp_path, stream(order("1")))
    told = json.loads(paid("1", CUSTOMER))
    assert _replay(tmp_path, lines(json.dumps(told))).json == _counts(read=1, replayed=1) | {"by_code": {}}
