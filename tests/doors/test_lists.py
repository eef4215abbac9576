"""Lists: filters, cursors and numbered pages."""

import base64
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import pytest

from tests.doors.running import API, Running, new_merchant, posting


def walk(running: Running, path: str, **params: Any) -> list[list[dict[str, Any]]]:
    """Follow the links of a list, check each page, and return all pages."""
    pages: list[list[dict[str, Any]]] = []
    answer = running.get(path, "admin", params=params)
    while True:
        assert answer.status_code == 200, answer.text
        told = answer.json()
        assert list(told) == ["data", "pagination", "links", "meta"]
        assert list(told["links"]) == ["self", "next", "prev"]
        assert told["links"]["self"] == answer.url.raw_path.decode()
        pages.append(told["data"])
        pagination = told["pagination"]
        assert pagination["has_next"] == (told["links"]["next"] is not None)
        assert pagination["has_previous"] == (len(pages) > 1)
        if told["links"]["next"] is None:
            return pages
        assert len(told["data"]) == pagination["limit"]
        if "page" not in pagination:
            assert told["pagination"]["next_cursor"] == query_of(told["links"]["next"])["cursor"]
        answer = running.get(told["links"]["next"].removeprefix(API), "admin")


def query_of(link: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(link).query).items()}


@pytest.fixture(scope="module")
def spender(running: Running) -> str:
    """A merchant with 8 transactions: the trial, and 7 spends of 1 to 7."""
    merchant = running.open()
    for amount in range(1, 8):
        reference = {"type": "job", "id": "even" if amount % 2 == 0 else "odd"}
        assert running.spend(merchant, amount, reference=reference).status_code == 201
    return merchant


@pytest.mark.parametrize("limit", [1, 3, 4, 8, 200])
def test_cursors_lead_through_a_history_newest_first(running: Running, spender: str, limit: int) -> None:
    pages = walk(running, "/credits/transactions", merchant_id=spender, limit=limit)
    assert [entry["sequence"] for page in pages for entry in page] == [8, 7, 6, 5, 4, 3, 2, 1]
    assert len(pages) == -(-8 // limit)


@pytest.mark.parametrize("limit", [1, 3, 4, 8, 200])
def test_numbered_pages_lead_through_a_history(running: Running, spender: str, limit: int) -> None:
    pages = walk(running, "/credits/transactions", merchant_id=spender, limit=limit, page=1)
    assert [entry["sequence"] for page in pages for entry in page] == [8, 7, 6, 5, 4, 3, 2, 1]


def test_numbered_page_links_to_its_neighbours(running: Running, spender: str) -> None:
    path = "/credits/transactions"
    told = running.get(path, params={"merchant_id": spender, "limit": 3, "page": 2}).json()
    assert [entry["sequence"] for entry in told["data"]] == [5, 4, 3]
    cursor = told["pagination"].pop("next_cursor")
    assert told["pagination"] == {"limit": 3, "has_next": True, "has_previous": True, "page": 2, "total": 8}
    assert query_of(told["links"]["next"]) == {"merchant_id": spender, "limit": "3", "page": "3"}
    assert query_of(told["links"]["prev"]) == {"merchant_id": spender, "limit": "3", "page": "1"}
    # From any page one can go on by cursor.
    after = running.get(path, params={"merchant_id": spender, "limit": 3, "cursor": cursor}).json()
    assert [entry["sequence"] for entry in after["data"]] == [2, 1]


def test_filtered_page_counts_its_matches(running: Running, spender: str) -> None:
    params: dict[str, Any] = {"merchant_id": spender, "reference_type": "job", "reference_id": "odd", "limit": 3}
    told = running.get("/credits/transactions", params={**params, "page": 2}).json()
    assert [entry["amount"] for entry in told["data"]] == [1]
    assert told["pagination"] == {
        "limit": 3,
        "next_cursor": None,
        "has_next": False,
        "has_previous": True,
        "page": 2,
        "total": 4,
    }
    pages = walk(running, "/credits/transactions", **params)
    assert [[entry["amount"] for entry in page] for page in pages] == [[7, 5, 3], [1]]


@pytest.mark.parametrize("page", [4, 1000, 10**9])
def test_page_beyond_the_last_is_empty(running: Running, spender: str, page: int) -> None:
    told = running.get("/credits/transactions", params={"merchant_id": spender, "limit": 3, "page": page}).json()
    assert told["data"] == []
    assert told["pagination"]["total"] == 8
    assert not told["pagination"]["has_next"]
    filtered = {"merchant_id": spender, "limit": 3, "page": page, "operation_type": "DECREASE"}
    assert running.get("/credits/transactions", params=filtered).json()["data"] == []


def test_filters_of_transactions_leave_out_the_others(running: Running, spender: str) -> None:
    def amounts(**params: Any) -> list[int]:
        told = running.get("/credits/transactions", params={"merchant_id": spender, **params}).json()
        return [entry["amount"] for entry in told["data"]]

    everything = running.get("/credits/transactions", params={"merchant_id": spender}).json()["data"]
    middle = everything[3]["created_at"]
    assert amounts(operation_type="INCREASE") == amounts(transaction_type="TRIAL") == [100]
    assert amounts(transaction_type="USAGE") == [7, 6, 5, 4, 3, 2, 1]
    assert amounts(transaction_type="PAYMENT") == []
    assert amounts(start_date=middle) == [7, 6, 5, 4]  # inclusive
    assert amounts(end_date=middle) == [3, 2, 1, 100]  # exclusive
    assert amounts(start_date=middle, end_date=middle) == []
    assert amounts(reference_type="job", reference_id="even") == [6, 4, 2]
    assert amounts(reference_type="order") == []
    assert amounts(merchant_id=spender.upper(), limit=1) == [7]


def test_cursors_lead_through_the_transactions_of_all_merchants(running: Running, spender: str) -> None:
    other = running.open()
    first = running.spend(spender, 1, reference={"type": "all", "id": spender}).json()["data"]
    second = running.spend(other, 2, reference={"type": "all", "id": spender}).json()["data"]
    pages = walk(running, "/credits/transactions", reference_type="all", reference_id=spender, limit=1)
    assert pages == [[second], [first]]
    newest = running.get("/credits/transactions", params={"limit": 2}).json()
    assert newest["data"] == [second, first]
    assert newest["pagination"]["has_next"]


def test_page_number_needs_a_merchant(running: Running) -> None:
    answer = running.get("/credits/transactions", params={"page": 1})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/query/page")


def test_page_and_cursor_exclude_each_other(running: Running, spender: str) -> None:
    params: dict[str, Any] = {"merchant_id": spender, "limit": 1}
    cursor = running.get("/credits/transactions", params=params).json()["pagination"]["next_cursor"]
    answer = running.get("/credits/transactions", params={**params, "page": 1, "cursor": cursor})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/query/page")


def test_history_without_an_account_is_not_found(running: Running) -> None:
    answer = running.get("/credits/transactions", params={"merchant_id": new_merchant()})
    assert (answer.status_code, answer.json()["code"]) == (404, "account_not_found")


def test_cursor_of_another_list_is_refused(running: Running, spender: str) -> None:
    running.open()
    cursors = {}
    queries: dict[str, tuple[str, dict[str, Any]]] = {
        "one merchant": ("/credits/transactions", {"merchant_id": spender}),
        "another": ("/credits/transactions", {"merchant_id": running.open()}),
        "all": ("/credits/transactions", {}),
        "one type": ("/credits/transactions", {"merchant_id": spender, "transaction_type": "USAGE"}),
        "one operation": ("/credits/transactions", {"merchant_id": spender, "operation_type": "DECREASE"}),
        "one time": ("/credits/transactions", {"merchant_id": spender, "start_date": "2020-01-01T00:00:00Z"}),
        "another time": ("/credits/transactions", {"merchant_id": spender, "end_date": "2999-01-01T00:00:00Z"}),
        "accounts": ("/credits/accounts", {}),
        "some accounts": ("/credits/accounts", {"status": "ACTIVE"}),
        "other accounts": ("/credits/accounts", {"min_balance": 0}),
        "keys": ("/api-keys", {}),
    }
    for name, (path, params) in queries.items():
        cursors[name] = running.get(path, "admin", params={**params, "limit": 1}).json()["pagination"]["next_cursor"]
    del cursors["another"]  # has one transaction, so no cursor
    assert None not in cursors.values()
    for name, (path, params) in queries.items():
        for other, cursor in cursors.items():
            answer = running.get(path, "admin", params={**params, "limit": 1, "cursor": cursor})
            if other == name:
                assert answer.status_code == 200
            else:
                assert (answer.status_code, answer.json()["code"]) == (422, "cursor_invalid"), (name, other)


def test_changed_cursor_is_refused(running: Running, spender: str) -> None:
    lists: dict[str, dict[str, Any]] = {
        "/credits/transactions": {"merchant_id": spender},
        "/credits/accounts": {},
        "/api-keys": {},
    }
    running.open()
    for path, params in lists.items():
        cursor = running.get(path, "admin", params={**params, "limit": 1}).json()["pagination"]["next_cursor"]
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        bound = raw[:8]
        forged = [
            bound,
            raw[:-1],
            raw + b"\0",
            bound + b"\0" * 120,
            bound + b"\xff" * 7,
            bytes(8) + raw[8:],
            b"",
        ]
        if path != "/credits/accounts":  # there a position is a str, of which each is one
            forged.append(bound + b"\xff" * 8)
        texts = [base64.urlsafe_b64encode(text).decode() for text in forged]
        for text in [*texts, "é", "a", "***", cursor + "!", "\0"]:
            answer = running.get(path, "admin", params={**params, "limit": 1, "cursor": text})
            assert (answer.status_code, answer.json()["code"]) == (422, "cursor_invalid"), (path, text)


@pytest.mark.parametrize("limit", ["0", "-1", "201", "x", "", "1.0", "1_0", "+5", " 5", "٣", "1e1", "true", "9" * 5000])
def test_limit_out_of_range_is_invalid(running: Running, limit: str) -> None:
    for path in ("/credits/transactions", "/credits/accounts", "/api-keys"):
        answer = running.get(path, "admin", params={"limit": limit})
        assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed"), path
        assert [fault["pointer"] for fault in answer.json()["errors"]] == ["/query/limit"]


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("/credits/transactions", {"page": "0"}),
        ("/credits/transactions", {"page": "1.0"}),
        ("/credits/transactions", {"page": str(10**9 + 1)}),
        ("/credits/transactions", {"merchant_id": "-17"}),
        ("/credits/transactions", {"merchant_id": f"{uuid4()!s}\n"}),
        ("/credits/transactions", {"operation_type": "increase"}),
        ("/credits/transactions", {"transaction_type": "GIFT"}),
        ("/credits/transactions", {"start_date": "yesterday"}),
        ("/credits/transactions", {"end_date": "2026-13-01T00:00:00Z"}),
        ("/credits/transactions", {"reference_type": ""}),
        ("/credits/transactions", {"reference_id": "x" * 256}),
        ("/credits/transactions", {"cursor": "x" * 201}),
        ("/credits/transactions", {"dry_run": "true"}),
        ("/credits/accounts", {"status": "active"}),
        ("/credits/accounts", {"min_balance": str(2**53)}),
        ("/credits/accounts", {"max_balance": "1.5"}),
        ("/credits/accounts", {"merchant": "x"}),
    ],
)
def test_invalid_parameter_is_named(running: Running, path: str, params: dict[str, str]) -> None:
    answer = running.get(path, params=params)
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert [fault["pointer"] for fault in answer.json()["errors"]] == [f"/query/{name}" for name in params]


def test_duplicate_parameter_is_refused(running: Running) -> None:
    answer = running.get("/credits/accounts?limit=1&limit=2")
    assert [(fault["pointer"], fault["code"]) for fault in answer.json()["errors"]] == [
        ("/query/limit", "duplicate_key")
    ]


def test_posting_with_an_unknown_parameter_is_refused(running: Running) -> None:
    merchant = running.open()
    headers = {"idempotency-key": "dry"}
    answer = running.post("/credits/transactions?dryrun=true", posting(merchant), headers=headers)
    assert [fault["pointer"] for fault in answer.json()["errors"]] == ["/query/dryrun"]
    for path in ("/credits/transactions/batch?x=1", "/credits/events?x=1", "/credits/accounts?x"):
        assert running.post(path, {}).json()["errors"][0]["pointer"] == "/query/x"
    assert running.sequence(merchant) == 1


def test_strange_text_in_a_filter_finds_nothing(running: Running) -> None:
    for text in ("%00", "%ED%A0%80", "%FF", "%22%27%3B--", "%F0%9F%92%B3"):
        answer = running.get(f"/credits/transactions?reference_id={text}")
        assert (answer.status_code, answer.json()["data"]) == (200, [])


def test_cursors_lead_through_accounts_by_merchant_id(running: Running) -> None:
    mine = {running.open() for _ in range(5)}
    pages = walk(running, "/credits/accounts", limit=4)
    merchants = [entry["merchant_id"] for page in pages for entry in page]
    assert merchants == sorted(merchants)
    assert mine <= set(merchants)
    assert len(merchants) == len(set(merchants))


def test_accounts_are_filtered_by_status_and_balance(running: Running) -> None:
    spent = {"ACTIVE": 79, "LOW": 80, "EXHAUSTED": 100}
    merchants = {status: running.open() for status in spent}
    for status, amount in spent.items():
        assert running.spend(merchants[status], amount).status_code == 201

    def found(**params: Any) -> set[str]:
        return {entry["merchant_id"] for page in walk(running, "/credits/accounts", **params) for entry in page}

    for status, merchant in merchants.items():
        assert found(status=status) & set(merchants.values()) == {merchant}
    assert found(min_balance=21, max_balance=21) & set(merchants.values()) == {merchants["ACTIVE"]}
    assert found(min_balance=20) & set(merchants.values()) == {merchants["ACTIVE"], merchants["LOW"]}
    assert found(max_balance=0) & set(merchants.values()) == {merchants["EXHAUSTED"]}
    assert found(max_balance=0, status="LOW") == set()


def test_cursors_lead_through_grants_in_burn_down_order(running: Running) -> None:
    merchant = running.open()
    for priority in (3, 1, 2):
        body = posting(
            merchant,
            operation_type="INCREASE",
            transaction_type="SUBSCRIPTION",
            amount=priority,
            grant={"priority": priority},
        )
        assert running.transact(body).status_code == 201
    pages = walk(running, f"/credits/accounts/{merchant}/grants", limit=3)
    assert [[grant["priority"] for grant in page] for page in pages] == [[1, 2, 3], [100]]
    grant = pages[0][0]
    assert list(grant) == [
        "id",
        "transaction_id",
        "category",
        "priority",
        "amount",
        "remaining",
        "effective_at",
        "expires_at",
    ]
    assert running.get(f"/credits/transactions/{grant['transaction_id']}").json()["data"]["amount"] == 1


def test_spent_grant_is_not_listed(running: Running) -> None:
    merchant = running.open()
    running.spend(merchant, 100)
    assert running.get(f"/credits/accounts/{merchant}/grants").json()["data"] == []
