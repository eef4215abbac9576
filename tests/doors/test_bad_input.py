"""Bad input through the whole stack: every fault has its code, none is an internal error, and none posts anything."""

import json
import re
from typing import Any

import pytest

from credit_service.doors.http.app import ENDPOINTS
from credit_service.doors.http.endpoints import Endpoint
from credit_service.doors.http.problems import CODES
from tests.doors.running import API, Running, cloud_event, new_merchant, posting

# Raw JSON in place of the amount, and the expected faults.
AMOUNTS = {
    "NaN": ("", "not_json"),
    "Infinity": ("", "not_json"),
    "-Infinity": ("", "not_json"),
    "1e999": ("/amount", "out_of_range"),
    "-1e999": ("/amount", "out_of_range"),
    "1e99999999999999999999": ("/amount", "out_of_range"),
    "1e-99999999999999999999": ("/amount", "out_of_range"),
    "1.0": ("/amount", "wrong_type"),
    "1e2": ("/amount", "wrong_type"),
    "1e-400": ("/amount", "wrong_type"),
    '"1"': ("/amount", "wrong_type"),
    '""': ("/amount", "wrong_type"),
    "true": ("/amount", "wrong_type"),
    "false": ("/amount", "wrong_type"),
    "null": ("/amount", "wrong_type"),
    "[]": ("/amount", "wrong_type"),
    "[1]": ("/amount", "wrong_type"),
    "{}": ("/amount", "wrong_type"),
    "0": ("/amount", "out_of_range"),
    "-0": ("/amount", "out_of_range"),
    "-1": ("/amount", "out_of_range"),
    str(2**53): ("/amount", "out_of_range"),
    str(2**63): ("/amount", "out_of_range"),
    str(2**64): ("/amount", "out_of_range"),
    str(-(2**64)): ("/amount", "out_of_range"),
    "9" * 400: ("/amount", "out_of_range"),
    "9" * 5000: ("/amount", "out_of_range"),
    "-" + "9" * 5000: ("/amount", "out_of_range"),
    "1." + "0" * 5000: ("/amount", "wrong_type"),
    "01": ("", "not_json"),
    "+1": ("", "not_json"),
    ".5": ("", "not_json"),
    "0x10": ("", "not_json"),
    "1_000": ("", "not_json"),
    "\uff11": ("", "not_json"),
}


def refused(running: Running, merchant: str, body: bytes, **more: Any) -> list[tuple[str, str]]:
    """Send an invalid posting, check that nothing was posted, and return the faults."""
    answer = running.transact(body, **more)
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed"), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert running.sequence(merchant) == 1
    return [(fault["pointer"], fault["code"]) for fault in answer.json()["errors"]]


@pytest.mark.parametrize("amount", AMOUNTS, ids=lambda amount: amount[:12])
def test_amount_must_be_a_whole_number_in_range(running: Running, amount: str) -> None:
    merchant = running.open()
    one = json.dumps(posting(merchant, amount="HERE")).replace('"HERE"', amount)
    assert refused(running, merchant, one.encode()) == [AMOUNTS[amount]]
    many = '{"items": [{"idempotency_key": "k", ' + one[1:] + "]}"
    answer = running.post("/credits/transactions/batch", many.encode())
    assert answer.status_code == 422
    pointer, code = AMOUNTS[amount]
    assert [(fault["pointer"], fault["code"]) for fault in answer.json()["errors"]] == [
        (pointer and f"/items/0{pointer}", code)
    ]
    assert running.sequence(merchant) == 1


MERCHANT = "6f1c2a54-8d0e-4c0b-9c55-0c7a8c1f2b11"


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"merchant_id": "-17"}, ("/merchant_id", "malformed")),
        ({"merchant_id": 17}, ("/merchant_id", "wrong_type")),
        ({"merchant_id": f"{{{MERCHANT}}}"}, ("/merchant_id", "malformed")),
        ({"merchant_id": f"urn/{MERCHANT}"}, ("/merchant_id", "malformed")),
        ({"merchant_id": "x" * 65}, ("/merchant_id", "malformed")),
        ({"merchant_id": f"{MERCHANT}\n"}, ("/merchant_id", "malformed")),
        ({"merchant_id": f" {MERCHANT}"}, ("/merchant_id", "malformed")),
        ({"operation_type": "decrease"}, ("/operation_type", "not_allowed")),
        ({"operation_type": True}, ("/operation_type", "not_allowed")),
        ({"transaction_type": "EXPIRY"}, ("/transaction_type", "not_allowed")),
        ({"reference": []}, ("/reference", "wrong_type")),
        ({"reference": {"type": "a"}}, ("/reference/id", "required")),
        ({"reference": {"type": "a", "id": 1}}, ("/reference/id", "wrong_type")),
        ({"reference": {"type": "", "id": "1"}}, ("/reference/type", "too_short")),
        ({"reference": {"type": "a", "id": "x" * 256}}, ("/reference/id", "too_long")),
        ({"reference": {"type": "a", "id": "é"}}, ("/reference/id", "malformed")),
        ({"reference": {"type": "a", "id": "1\n"}}, ("/reference/id", "malformed")),
        ({"reference": {"type": "a", "id": "1", "x": 1}}, ("/reference/x", "unknown_field")),
        ({"metadata": []}, ("/metadata", "wrong_type")),
        ({"metadata": "text"}, ("/metadata", "wrong_type")),
        ({"grant": 1.0}, ("/grant", "wrong_type")),
        ({"reference": 1.0}, ("/reference", "wrong_type")),
        ({"metadata": 1.0}, ("/metadata", "wrong_type")),
        ({"merchant_id": 1.0}, ("/merchant_id", "wrong_type")),
        ({"grant": {"priority": 1.0}}, ("/grant/priority", "wrong_type")),
        ({"grant": {"priority": True}}, ("/grant/priority", "wrong_type")),
        ({"grant": {"priority": 1.5}}, ("/grant/priority", "wrong_type")),
        ({"unknown": 1}, ("/unknown", "unknown_field")),
        ({"Amount": 1}, ("/Amount", "unknown_field")),
        ({"": 1}, ("/", "unknown_field")),
        ({"a/b~c": 1}, ("/a~1b~0c", "unknown_field")),
        ({"int": 1}, ("/int", "unknown_field")),
        ({"idempotency_key": "k"}, ("/idempotency_key", "unknown_field")),
    ],
)
def test_invalid_field_is_named(running: Running, changed: dict[str, Any], fault: tuple[str, str]) -> None:
    merchant = running.open()
    body = json.dumps(posting(merchant) | changed).encode()
    assert refused(running, merchant, body) == [fault]


@pytest.mark.parametrize("endpoint", [one for one in ENDPOINTS if one.takes_body], ids=lambda one: one.name)
@pytest.mark.parametrize("body", [b"1.0", b"1", b"[]", b'"{}"', b"null", b"true"])
def test_body_must_be_an_object(running: Running, endpoint: Endpoint, body: bytes) -> None:
    path = re.sub("{[^}]+}", MERCHANT, endpoint.path.removeprefix(API)).replace(
        f"shops/{MERCHANT}", "shops/a.myshopify.com"
    )
    headers = {"content-type": "application/json", "idempotency-key": "k"}
    answer = running.call(endpoint.method, path, "admin", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert [(fault["pointer"], fault["code"]) for fault in answer.json()["errors"]] == [("", "wrong_type")]


def test_all_faults_are_listed(running: Running) -> None:
    merchant = running.open()
    body = b'{"amount": 1e999, "operation_type": "X", "x": "\\u0000", "x": 1, "reference": {"type": 1}}'
    assert sorted(refused(running, merchant, body)) == [
        ("/amount", "out_of_range"),
        ("/merchant_id", "required"),
        ("/operation_type", "not_allowed"),
        ("/reference/id", "required"),
        ("/reference/type", "wrong_type"),
        ("/transaction_type", "required"),
        ("/x", "duplicate_key"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('"amount": 1', '"amount": 1, "amount": 1', ("/amount", "duplicate_key")),
        ('"amount": 1', '"amount": 1, "amount": 100', ("/amount", "duplicate_key")),
        ('"amount": 1', '"amount": 1, "\\u0061mount": 100', ("/amount", "duplicate_key")),
        ('"type": "job"', '"type": "job", "type": "job"', ("/reference/type", "duplicate_key")),
        ('"n": 1', '"n": 1, "n": 2', ("/metadata/n", "duplicate_key")),
        ('"n": 1', '"n": {"a": "b"}, "n": []', ("/metadata/n", "duplicate_key")),
        ('"n": 1', '"n": "\\u0000"', ("/metadata/n", "malformed")),
        ('"n": 1', '"\\u0000": 1', ("/metadata", "malformed")),
        ('"n": 1', '"n": "\\ud800"', ("/metadata/n", "malformed")),
        ('"n": 1', '"n": "\\udc00\\ud800"', ("/metadata/n", "malformed")),
        ('"n": 1', '"\\udfff": 1', ("/metadata", "malformed")),
        ('"n": 1', '"\\udfff": "\\u0000"', ("/metadata", "malformed")),
        ('"n": 1', '"n": 1e999', ("/metadata/n", "out_of_range")),
        ('"n": 1', '"n": ' + "9" * 5000, ("/metadata/n", "out_of_range")),
        ('"id": "1"', '"id": "\\u0000"', ("/reference/id", "malformed")),
        ('"id": "1"', '"id": "\\ud83d"', ("/reference/id", "malformed")),
        ('"n": 1', '"n": NaN', ("", "not_json")),
        ('"n": 1', '"n": 1,', ("", "not_json")),
        ('"n": 1', '"n": 1 /* */', ("", "not_json")),
        ('"n": 1', '"n": "\t"', ("", "not_json")),
        ('"n": 1', '"n": "\\x"', ("", "not_json")),
        ('"n": 1', "'n': 1", ("", "not_json")),
        ('"n": 1', '"n": ' + "[" * 31 + "]" * 31, ("", "too_deep")),
        ('"n": 1', '"n": ' + "[" * 1000 + "]" * 1000, ("", "too_deep")),
        ('"n": 1', '"n": ' + '{"a":' * 1000 + "1" + "}" * 1000, ("", "too_deep")),
        ('"n": 1', '"n": ' + "[" * 30_000 + "]" * 30_000, ("", "too_deep")),
        ('"n": 1', '"n": ' + "[" * 30_000, ("", "too_deep")),
    ],
    ids=lambda value: str(value)[:24],
)
def test_ambiguous_json_is_refused(running: Running, old: str, new: str, fault: tuple[str, str]) -> None:
    merchant = running.open()
    plain = json.dumps(posting(merchant, reference={"type": "job", "id": "1"}, metadata={"n": 1}))
    assert old in plain
    assert fault in refused(running, merchant, plain.replace(old, new).encode())
    assert running.transact(plain.encode()).status_code == 201


def test_json_may_be_nested_32_levels(running: Running) -> None:
    merchant = running.open()
    deepest: Any = 1
    for _ in range(30):
        deepest = [deepest]
    assert running.transact(posting(merchant, metadata={"n": deepest})).status_code == 201


@pytest.mark.parametrize("atomic", ["", '"atomic": false, ', '"atomic": true, '])
def test_duplicate_key_in_a_batch_item_is_refused(running: Running, atomic: str) -> None:
    merchant = running.open()
    one = json.dumps({**posting(merchant), "idempotency_key": "k"})
    twice = one.replace('"amount": 1', '"amount": 1, "amount": 100')
    for items in (f"[{twice}]", f"[{one}, {twice}]"):
        answer = running.post("/credits/transactions/batch", f'{{{atomic}"items": {items}}}'.encode())
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["code"] == "duplicate_key"
    assert running.sequence(merchant) == 1


def test_duplicate_key_in_an_event_is_refused(running: Running) -> None:
    merchant = running.open()
    event = json.dumps(
        cloud_event("evt.shopify.webhook.order_paid", {"merchant_id": merchant, "order_id": 1, "credits": 1})
    )
    for old, new in (
        ('"credits": 1', '"credits": 1, "credits": 100'),
        ('"order_id": 1', '"order_id": 1, "order_id": 2'),
        ('"specversion": "1.0"', '"specversion": "1.0", "specversion": "1.0"'),
        ('"data": ', '"data": 1, "data": '),
        ('"data": ', '"data": {}, "data": '),
    ):
        answer = running.tell(json.loads(event))  # without the duplicate key it is valid
        assert answer.status_code == 200
        body = event.replace(old, new)
        assert body != event
        headers = {"content-type": "application/cloudevents+json"}
        answer = running.post("/credits/events", body.encode(), headers=headers)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["code"] == "duplicate_key"
    assert running.sequence(merchant) == 2


BODIES: dict[str, bytes] = {
    "nothing": b"",
    "white space": b" \r\n\t",
    "an open object": b"{",
    "text": b"merchant_id=1&amount=2",
    "two values": b"{} {}",
    "null": b"null",
    "a number": b"1",
    "a huge number": b"9" * 60_000,
    "a string": b'"text"',
    "an array": b"[]",
    "an array of arrays": b"[[]]",
    "an array of numbers": b"[1, 2]",
    "an empty object": b"{}",
    "one unknown key": b'{"a": 1}',
    "an empty key": b'{"": {"": []}}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "bad UTF-8": b'{"a": "\xff"}',
    "overlong UTF-8": b'{"a": "\xc0\x80"}',
    "a surrogate in UTF-8": b'{"a": "\xed\xa0\x80"}',
    "NUL": b'{"a": "\0"}',
    "only NUL": b"\0" * 100,
    "a key with a lone surrogate": b'{"\\ud800": {"\\udfff": "\\ud800"}}',
    "a key with NUL": b'{"\\u0000": 1}',
    "NaN": b'{"a": NaN}',
    "1e999": b'{"a": 1e999}',
    "an exponent beyond any": b'{"a": 1e999999999999999999999}',
    "duplicates": b'{"a": 1, "a": 2, "a": 3}',
    "many duplicates": b'{"a":0,' + b",".join(b'"%d":0,"%d":1' % (i, i) for i in range(2000)) + b"}",
    "depth 1,000": b"[" * 1000 + b"]" * 1000,
    "depth 1,000 of objects": b'{"a":' * 1000 + b"1" + b"}" * 1000,
    "depth 60,000 without an end": b"[" * 60_000,
    "quotes without an end": b'[["' + b'\\"' * 30_000,
    "backslashes without an end": b'[["' + b"\\" * 60_000,
    "many unknown keys": b"{" + b",".join(b'"k%d":%d' % (i, i) for i in range(4000)) + b"}",
    "every wrong type": b'{"merchant_id":[],"merchant_ids":{},"amount":"x","items":1,"atomic":2,"name":3,"scope":{}}',
}
ROUTES = {
    "/credits/accounts": "application/json",
    "/credits/transactions": "application/json",
    "/credits/transactions/batch": "application/json",
    "/credits/events": "application/cloudevents+json",
    "/credits/events ": "application/cloudevents-batch+json",
    "/credits/plugin-status/batch": "application/json",
    "/api-keys": "application/json",
}


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_no_body_causes_an_internal_error(running: Running, path: str, body: bytes) -> None:
    headers = {"content-type": ROUTES[path], "idempotency-key": "k"}
    answer = running.post(path.strip(), body, "admin", headers=headers)
    if path.endswith(" ") and body in (b"[[]]", b"[1, 2]"):  # a batch of events has one result for each
        assert {result["outcome"] for result in answer.json()["data"]["results"]} == {"refused"}
        return
    told = answer.json()
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert list(told) == ["type", "title", "status", "detail", "code", "request_id", "errors"]
    assert told["code"] == "validation_failed"
    assert told["type"] == "/docs/errors#validation_failed"
    assert (told["title"], told["status"]) == (CODES["validation_failed"].title, 422)
    assert told["request_id"] == answer.headers["x-request-id"]
    assert told["errors"]
    assert all(list(fault) == ["pointer", "code", "message"] for fault in told["errors"])
    assert all(fault["pointer"] == "" or fault["pointer"][0] == "/" for fault in told["errors"])


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "media_type",
    [
        None,
        "",
        "text/plain",
        "text/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/xml",
        "application/jsonp",
        "application/problem+json",
        "application/json, text/plain",
        "\xe9",
    ],
)
def test_other_media_types_are_refused(running: Running, path: str, media_type: str | None) -> None:
    headers = [(b"authorization", f"Bearer {running.keys['admin']}".encode())]
    if media_type is not None:
        headers.append((b"content-type", media_type.encode("latin-1")))
    answer = running.client.post(f"/api/v1{path.strip()}", content=b"{}", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("path", [path for path in ROUTES if "events" not in path])
@pytest.mark.parametrize("media_type", ["application/cloudevents+json", "application/cloudevents-batch+json"])
def test_media_type_of_events_is_refused_elsewhere(running: Running, path: str, media_type: str) -> None:
    merchant = running.open()
    headers = {"content-type": media_type, "idempotency-key": "k"}
    answer = running.post(path, posting(merchant), "admin", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    assert running.sequence(merchant) == 1


@pytest.mark.parametrize("media_type", ["application/json; charset=utf-8", "Application/JSON", "application/json ;x"])
def test_media_type_may_have_parameters_and_capitals(running: Running, media_type: str) -> None:
    merchant = running.open()
    headers = {"content-type": media_type, "idempotency-key": "k"}
    assert running.post("/credits/transactions", posting(merchant), headers=headers).status_code == 201


@pytest.mark.parametrize("path", ["/", "/api", "/api/v1", "/api/v1/", "/api/v1/credits", "/api/v2/health", "/redoc"])
def test_unknown_route_is_not_found(running: Running, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        answer = running.client.request(method, path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert path in answer.json()["detail"]


@pytest.mark.parametrize("path", ["%00", "%ff", "%E2%80%AE", "%0d%0aX:1", "..%2f..", "%2e%2e/x", "a%3Fb", "%"])
def test_strange_path_is_not_found(running: Running, path: str) -> None:
    for prefix in ("", "api/v1/credits/", "api/v1/credits/accounts/x/y/"):
        with running.connection() as connection:
            connection.send(f"GET /{prefix}{path} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
            status, headers, body = connection.answer()
        assert (status, json.loads(body)["code"]) == (404, "not_found")
        assert "x" not in headers


@pytest.mark.parametrize("host", ["[", "a b", "[::1", "é", "", "a:b:c", "a:99999999"])
def test_malformed_host_is_refused_on_every_route(running: Running, host: str) -> None:
    for path in ("/nothing", "/api/v1/health", "/api/v1/credits/accounts"):
        with running.connection() as connection:
            connection.send(f"GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
            assert connection.problem() == "bad_request"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/api/v1/credits/accounts", "GET, POST"),
        ("DELETE", "/api/v1/credits/transactions", "GET, POST"),
        ("PUT", "/api/v1/credits/events", "GET, POST"),
        ("POST", f"/api/v1/credits/accounts/{MERCHANT}", "GET, PATCH"),
        ("POST", f"/api/v1/credits/plugin-status/{MERCHANT}", "GET"),
        ("PATCH", "/api/v1/api-keys/x", "DELETE"),
        ("OPTIONS", "/api/v1/api-keys", "GET, POST"),
        ("TRACE", "/livez", "GET"),
        ("POST", "/openapi.json", "GET"),
        ("POST", "/docs/errors", "GET"),
    ],
)
def test_wrong_method_is_refused_with_the_allowed_ones(running: Running, method: str, path: str, allowed: str) -> None:
    answer = running.client.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == allowed


def test_merchant_can_post_after_bad_input(running: Running) -> None:
    merchant = new_merchant()
    running.open(merchant)
    for body in BODIES.values():
        running.transact(body)
    assert running.spend(merchant).status_code == 201
