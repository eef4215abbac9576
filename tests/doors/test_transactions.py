"""Posting and reading one transaction."""

from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.doors.running import Running, cloud_event, new_merchant, posting

TRANSACTION = [
    "id",
    "merchant_id",
    "account_id",
    "sequence",
    "operation_type",
    "transaction_type",
    "amount",
    "shortfall",
    "balance_before",
    "balance_after",
    "debt_after",
    "idempotency_key",
    "reference",
    "metadata",
    "draws",
    "reverses",
    "actor",
    "correlation_id",
    "occurred_at",
    "created_at",
    "hash",
]


def test_posting_answers_201_with_transaction_and_meta(running: Running) -> None:
    merchant = running.open()
    grant = running.get(f"/credits/accounts/{merchant}/grants").json()["data"][0]
    metadata = {"b": [1, 2.5, "é"], "a": {"nested": None}}
    body = posting(merchant, amount=7, reference={"type": "job", "id": "17"}, metadata=metadata)
    ids = {"x-request-id": "request-1", "x-correlation-id": "walk-1"}
    answer = running.transact(body, "first", headers=ids)
    assert answer.status_code == 201
    assert list(answer.json()) == ["data", "meta"]
    told, meta = answer.json()["data"], answer.json()["meta"]
    assert list(told) == TRANSACTION
    account = running.get(f"/credits/accounts/{merchant}").json()["data"]
    expected = {
        "merchant_id": merchant,
        "account_id": account["id"],
        "sequence": 2,
        "operation_type": "DECREASE",
        "transaction_type": "USAGE",
        "amount": 7,
        "shortfall": 0,
        "balance_before": 100,
        "balance_after": 93,
        "debt_after": 0,
        "idempotency_key": "first",
        "reference": {"type": "job", "id": "17"},
        "metadata": metadata,
        "draws": [{"grant_id": grant["id"], "amount": -7}],
        "reverses": None,
        "actor": f"key:{running.keys['write'][3:15]}",
        "correlation_id": "walk-1",
    }
    assert {name: told[name] for name in expected} == expected
    assert UUID(told["id"]).version == 8
    assert told["occurred_at"] == told["created_at"] == account["last_transaction_at"]
    assert len(bytes.fromhex(told["hash"])) == 32
    assert list(meta) == ["request_id", "correlation_id", "timestamp"]
    assert (meta["request_id"], meta["correlation_id"]) == ("request-1", "walk-1")
    assert meta["timestamp"] >= told["created_at"]
    assert {name: answer.headers[name] for name in ids} == ids
    assert "idempotency-replayed" not in answer.headers


def test_missing_ids_are_made(running: Running) -> None:
    answer = running.spend(running.open())
    meta = answer.json()["meta"]
    assert len(bytes.fromhex(meta["request_id"])) == 16
    assert meta["correlation_id"] == meta["request_id"] == answer.headers["x-request-id"]
    assert answer.json()["data"]["correlation_id"] == meta["correlation_id"]


@pytest.mark.parametrize("sent", ["", "a b", "x" * 129, "ä", "tab\there"])
def test_malformed_request_id_is_replaced(running: Running, sent: str) -> None:
    answer = running.get("/health", None, headers={"x-request-id": sent.encode(), "x-correlation-id": sent.encode()})
    assert answer.status_code == 200
    assert len(bytes.fromhex(answer.headers["x-request-id"])) == 16
    assert answer.headers["x-correlation-id"] == answer.headers["x-request-id"]


def test_repeat_answers_200_with_the_same_data(running: Running) -> None:
    merchant = running.open()
    first = running.spend(merchant, 3, "again")
    second = running.transact(posting(merchant, amount=3), "again", headers={"x-correlation-id": "another"})
    assert (first.status_code, second.status_code) == (201, 200)
    assert second.headers["idempotency-replayed"] == "true"
    assert second.json()["data"] == first.json()["data"]
    assert second.json()["meta"]["correlation_id"] == "another"
    assert running.balance(merchant) == 97


def test_quoted_and_bare_key_are_the_same(running: Running) -> None:
    merchant = running.open()
    assert running.spend(merchant, 3, "same key").status_code == 201
    quoted = running.spend(merchant, 3, '"same key"')
    assert quoted.status_code == 200
    assert quoted.json()["data"]["idempotency_key"] == "same key"
    assert running.balance(merchant) == 97


@pytest.mark.parametrize(
    "changed",
    [
        {"amount": 4},
        {"operation_type": "INCREASE", "transaction_type": "SUBSCRIPTION"},
        {"transaction_type": "MANUAL", "reason": "by hand"},
        {"reference": {"type": "job", "id": "1"}},
        {"metadata": {}},
        {"metadata": {"a": 2}},
    ],
)
def test_same_key_with_other_content_is_refused(running: Running, changed: dict[str, Any]) -> None:
    merchant = running.open()
    assert running.spend(merchant, 3, "mine", metadata={"a": 1}).status_code == 201
    answer = running.transact(
        posting(merchant, **{"amount": 3, "metadata": {"a": 1}, **changed}), "mine", scope="admin"
    )
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
    assert running.balance(merchant) == 97


def test_content_is_compared_as_json_values(running: Running) -> None:
    merchant = running.open()
    rest = f'"merchant_id":"{merchant}","operation_type":"DECREASE","transaction_type":"USAGE","amount":1'
    spellings = [
        "{" + rest + ',"metadata":{"a":"\\u00e9","n":100,"z":[0.5]}}',
        '{"metadata": {"z": [5e-1], "n": 1E2, "a": "é"}, ' + rest + "}",
        "{" + rest.replace(merchant, merchant.upper()) + ',"metadata":{"n":100.0,"z":[0.50],"a":"é"}}',
    ]
    answers = [running.transact(text.encode(), "spelt") for text in spellings]
    assert [answer.status_code for answer in answers] == [201, 200, 200]
    assert answers[2].json()["data"] == answers[0].json()["data"]


def test_refused_command_leaves_its_key_free(running: Running) -> None:
    merchant = running.open()
    refused = running.spend(merchant, 1000, "free")
    assert refused.status_code == 402
    assert running.spend(merchant, 10, "free").status_code == 201


def test_insufficient_credits_names_available_and_required(running: Running) -> None:
    merchant = running.open()
    answer = running.spend(merchant, 101)
    assert answer.status_code == 402
    told = answer.json()
    assert (told["code"], told["available"], told["required"]) == ("insufficient_credits", 100, 101)
    assert running.sequence(merchant) == 1


@pytest.mark.parametrize(
    ("operation", "type_"),
    [
        ("INCREASE", "SUBSCRIPTION"),
        ("INCREASE", "ORDER_REFUNDED"),
        ("DECREASE", "USAGE"),
    ],
)
def test_type_is_posted_in_its_direction(running: Running, operation: str, type_: str) -> None:
    merchant = running.open()
    answer = running.transact(posting(merchant, operation_type=operation, transaction_type=type_, amount=5))
    assert answer.status_code == 201
    assert answer.json()["data"]["operation_type"] == operation
    assert running.balance(merchant) == 100 + (5 if operation == "INCREASE" else -5)


@pytest.mark.parametrize(
    ("operation", "type_"),
    [
        ("DECREASE", "TRIAL"),
        ("DECREASE", "SUBSCRIPTION"),
        ("DECREASE", "PAYMENT"),
        ("DECREASE", "ORDER_REFUNDED"),
        ("INCREASE", "USAGE"),
        ("INCREASE", "ORDER_PAID"),
    ],
)
def test_type_of_the_other_direction_is_refused(running: Running, operation: str, type_: str) -> None:
    merchant = running.open()
    reference = {"type": "order", "id": "1"}
    body = posting(merchant, operation_type=operation, transaction_type=type_, reference=reference)
    answer = running.transact(body, "shopify:order:1")
    assert answer.status_code == 422
    assert {"pointer": "/transaction_type", "code": "not_allowed"}.items() <= answer.json()["errors"][0].items()
    assert running.sequence(merchant) == 1


def test_order_is_posted_into_debt_under_its_natural_key(running: Running) -> None:
    merchant = running.open()
    body = posting(merchant, transaction_type="ORDER_PAID", amount=130, reference={"type": "order", "id": "A-1"})
    answer = running.transact(body, "shopify:order:A-1")
    assert answer.status_code == 201
    assert answer.json()["data"]["debt_after"] == 30
    other = running.transact({**body, "amount": 1}, "shopify:order:A-1")  # a fact's content is its key and effect
    assert (other.status_code, other.json()["data"]) == (200, answer.json()["data"])


def test_order_worth_nothing_is_posted(running: Running) -> None:
    merchant = running.open()
    body = posting(merchant, transaction_type="ORDER_PAID", amount=0, reference={"type": "order", "id": "free"})
    assert running.transact(body, "shopify:order:free").json()["data"]["amount"] == 0


ORDER = {"transaction_type": "ORDER_PAID", "reference": {"type": "order", "id": "1"}}
PAYMENT = {
    "operation_type": "INCREASE",
    "transaction_type": "PAYMENT",
    "amount": 500,
    "reference": {"type": "payment", "id": "pi_1"},
}


@pytest.mark.parametrize(
    ("fact", "key"),
    [
        (ORDER, "order-1"),
        (ORDER, "shopify:order:2"),
        (ORDER, '"shopify:order:2"'),
        (ORDER, "shopify:refund:1"),
        (PAYMENT, "checkout-77"),
        (PAYMENT, "billing:payment:pi_2"),
    ],
)
def test_fact_under_another_key_is_refused(running: Running, fact: dict[str, Any], key: str) -> None:
    merchant = running.open()
    answer = running.transact(posting(merchant, **fact), key)
    assert (answer.status_code, answer.json()["code"]) == (400, "idempotency_key_invalid")
    assert running.sequence(merchant) == 1


@pytest.mark.parametrize("fact", [ORDER, PAYMENT])
@pytest.mark.parametrize("reference", [None, {"type": "invoice", "id": "1"}])
def test_fact_without_its_reference_is_refused(running: Running, fact: dict[str, Any], reference: Any) -> None:
    merchant = running.open()
    body = posting(merchant, **{**fact, "reference": reference})
    answer = running.post("/credits/transactions", body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/reference"
    assert running.sequence(merchant) == 1


@pytest.mark.parametrize(
    ("fact", "key"),
    [
        (ORDER, "shopify:order:1"),
        ({**ORDER, "reference": {"type": "order", "id": "gid://shopify/Order/1"}}, "shopify:order:1"),
        ({**ORDER, "reference": {"type": "order", "id": " 1"}}, "shopify:order:1"),
        (PAYMENT, "billing:payment:pi_1"),
    ],
)
def test_fact_without_a_key_has_its_natural_key(running: Running, fact: dict[str, Any], key: str) -> None:
    merchant = running.open()
    answer = running.post("/credits/transactions", posting(merchant, **fact))
    told = answer.json()["data"]
    assert (answer.status_code, told["idempotency_key"]) == (201, key)
    assert told["reference"]["id"] == key.rpartition(":")[2]
    assert running.transact(posting(merchant, **fact), f'"{key}"').json()["data"] == told
    batch = {"items": [posting(merchant, **fact)]}
    (result,) = running.post("/credits/transactions/batch", batch).json()["data"]["results"]
    assert (result["outcome"], result["transaction"]) == ("replayed", told)


@pytest.mark.parametrize("first", ["post", "event"])
def test_payment_told_by_post_and_by_event_counts_once(running: Running, first: str) -> None:
    merchant = running.open()
    said = {"merchant_id": merchant, "payment_id": "pi_1", "credits": 500}
    ways = {
        "post": lambda: running.transact(posting(merchant, **PAYMENT), "billing:payment:pi_1"),
        "event": lambda: running.tell(cloud_event("evt.billing.payment_succeeded", said)),
    }
    for way in (first, "post", "event"):
        assert ways[way]().status_code in (200, 201)
    assert running.balance(merchant) == 600
    refund = {"merchant_id": merchant, "payment_id": "pi_1", "refund_id": "re_1", "credits": 500}
    running.tell(cloud_event("evt.billing.payment_refunded", refund))
    assert running.balance(merchant) == 100


def test_payment_by_post_has_the_terms_of_its_grant(running: Running) -> None:
    merchant = running.open()
    terms = {"category": "promotional", "priority": 7, "expires_at": "2999-01-01T00:00:00.000000Z"}
    answer = running.post("/credits/transactions", posting(merchant, **PAYMENT, grant=terms))
    assert answer.status_code == 201
    grant = running.get(f"/credits/accounts/{merchant}/grants").json()["data"][0]
    assert {name: grant[name] for name in terms} == terms


def test_payment_whose_credits_have_expired_is_posted_and_lapses(running: Running) -> None:
    merchant = running.open()
    past = {"expires_at": "2020-01-01T00:00:00Z"}
    answer = running.post("/credits/transactions", posting(merchant, **PAYMENT, grant=past))
    assert answer.status_code == 201
    assert (running.sequence(merchant), running.balance(merchant)) == (3, 100)


def test_reserved_key_is_refused(running: Running) -> None:
    merchant = running.open()
    answer = running.spend(merchant, 1, "expiry:1:1")
    assert (answer.status_code, answer.json()["code"]) == (400, "idempotency_key_invalid")


def test_posting_without_a_key_is_refused(running: Running) -> None:
    merchant = running.open()
    answer = running.post("/credits/transactions", posting(merchant))
    assert (answer.status_code, answer.json()["code"]) == (400, "idempotency_key_missing")
    assert running.sequence(merchant) == 1


@pytest.mark.parametrize(
    "key", [b"", b'""', b'"', b'"open', b'"a"b"', b'"a\\"b"', b"x" * 256, b'"%s"' % (b"x" * 256), b"\xe9", b"\xa0k"]
)
def test_malformed_key_is_refused(running: Running, key: bytes) -> None:
    merchant = running.open()
    answer = running.post("/credits/transactions", posting(merchant), headers={"idempotency-key": key})
    assert (answer.status_code, answer.json()["code"]) == (400, "idempotency_key_invalid")
    assert running.sequence(merchant) == 1


def test_duplicate_key_header_is_refused(running: Running) -> None:
    merchant = running.open()
    body = str(posting(merchant)).replace("'", '"').encode()
    with running.connection() as connection:
        connection.send(
            b"POST /api/v1/credits/transactions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
            b"authorization: Bearer %s\r\nidempotency-key: k\r\nidempotency-key: k\r\ncontent-length: %d\r\n\r\n%s"
            % (running.keys["write"].encode(), len(body), body)
        )
        status, _, told = connection.answer()
    assert status == 400
    assert b"idempotency_key_invalid" in told


@pytest.mark.parametrize("key", ["x" * 255, "with spaces: and ~!", 'quote"inside'])
def test_key_may_have_255_printable_characters(running: Running, key: str) -> None:
    merchant = running.open()
    assert running.spend(merchant, 1, key).json()["data"]["idempotency_key"] == key


def test_posting_without_an_account_is_not_found(running: Running) -> None:
    answer = running.spend(new_merchant())
    assert (answer.status_code, answer.json()["code"]) == (404, "account_not_found")


def test_second_trial_is_refused(running: Running) -> None:
    merchant = running.open()
    answer = running.transact(posting(merchant, operation_type="INCREASE", transaction_type="TRIAL"))
    assert (answer.status_code, answer.json()["code"]) == (409, "trial_already_granted")


def test_posting_beyond_the_range_is_refused(running: Running) -> None:
    merchant = running.open()
    body = posting(merchant, operation_type="INCREASE", transaction_type="SUBSCRIPTION", amount=2**53 - 1)
    answer = running.transact(body)
    assert (answer.status_code, answer.json()["code"]) == (422, "amount_out_of_range")
    assert running.transact({**body, "amount": 2**53 - 1 - 100}).status_code == 201
    assert running.balance(merchant) == 2**53 - 1


def test_grant_has_the_terms_of_its_posting(running: Running) -> None:
    merchant = running.open()
    terms = {
        "category": "promotional",
        "priority": 5,
        "effective_at": "2020-01-01T02:00:00.5+02:00",
        "expires_at": "2999-12-31T23:59:59Z",
    }
    body = posting(merchant, operation_type="INCREASE", transaction_type="SUBSCRIPTION", amount=9, grant=terms)
    assert running.transact(body).status_code == 201
    first = running.get(f"/credits/accounts/{merchant}/grants").json()["data"][0]
    assert first["amount"] == first["remaining"] == 9
    assert (first["category"], first["priority"]) == ("promotional", 5)
    assert first["effective_at"] == "2020-01-01T00:00:00.500000Z"
    assert first["expires_at"] == "2999-12-31T23:59:59.000000Z"


@pytest.mark.parametrize(
    ("grant", "pointer"),
    [
        ({"expires_at": "2020-01-01T00:00:00Z"}, "/grant/expires_at"),
        ({"effective_at": "2030-01-01T00:00:00Z", "expires_at": "2030-01-01T00:00:00Z"}, "/grant/expires_at"),
        ({"effective_at": "0001-01-01T00:00:00+00:01"}, "/grant/effective_at"),
        ({"expires_at": "9999-12-31T23:59:59-00:01"}, "/grant/expires_at"),
        ({"expires_at": "2030-02-30T00:00:00Z"}, "/grant/expires_at"),
        ({"expires_at": "2030-01-01"}, "/grant/expires_at"),
        ({"expires_at": "2030-01-01T00:00:00"}, "/grant/expires_at"),
        ({"priority": -1}, "/grant/priority"),
        ({"category": "gift"}, "/grant/category"),
    ],
)
def test_terms_that_cannot_be_are_refused(running: Running, grant: dict[str, Any], pointer: str) -> None:
    merchant = running.open()
    answer = running.transact(
        posting(merchant, operation_type="INCREASE", transaction_type="SUBSCRIPTION", amount=9, grant=grant)
    )
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert [fault["pointer"] for fault in answer.json()["errors"]] == [pointer]
    assert running.sequence(merchant) == 1


def test_decrease_takes_no_grant(running: Running) -> None:
    answer = running.transact(posting(running.open(), grant={}))
    assert [fault["pointer"] for fault in answer.json()["errors"]] == ["/grant"]


def test_all_faults_between_fields_are_listed(running: Running) -> None:
    body = posting(running.open(), operation_type="DECREASE", transaction_type="TRIAL", amount=0, grant={})
    pointers = [fault["pointer"] for fault in running.transact(body).json()["errors"]]
    assert pointers == ["/transaction_type", "/amount", "/grant"]


def test_metadata_may_have_8_KiB_as_canonical_json(running: Running) -> None:
    merchant = running.open()
    most = 8 * 1024 - len('{"a":""}')
    assert running.transact(posting(merchant, metadata={"a": "x" * most})).status_code == 201
    answer = running.transact(posting(merchant, metadata={"a": "x" * (most + 1)}))
    assert [(fault["pointer"], fault["code"]) for fault in answer.json()["errors"]] == [("/metadata", "too_long")]
    too_long = running.transact(posting(merchant, metadata={"a": "é" * (most // 2 + 1)}))
    assert too_long.status_code == 422
    assert running.sequence(merchant) == 2


def test_transaction_is_read_as_it_was_answered(running: Running) -> None:
    posted = running.spend(running.open(), metadata={"big": 12345678901234567890}).json()["data"]
    answer = running.get(f"/credits/transactions/{posted['id']}")
    assert answer.status_code == 200
    assert answer.json()["data"] == posted
    assert running.get(f"/credits/transactions/{posted['id'].upper()}").json()["data"] == posted


def test_unknown_transaction_is_not_found(running: Running) -> None:
    merchant = running.open()
    account = running.get(f"/credits/accounts/{merchant}").json()["data"]["id"]
    posted = running.spend(merchant).json()["data"]
    for identifier in (str(uuid4()), account, posted["draws"][0]["grant_id"], f"{posted['id'][:-1]}9"):
        answer = running.get(f"/credits/transactions/{identifier}")
        assert (answer.status_code, answer.json()["code"]) == (404, "transaction_not_found")


def test_malformed_transaction_id_is_invalid(running: Running) -> None:
    answer = running.get("/credits/transactions/17")
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert answer.json()["errors"][0]["pointer"] == "/path/transaction_id"
