"""The OpenAPI document is valid, complete, and equal to the committed one."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema_rs
import pytest
from fastapi.openapi.models import OpenAPI

from credit_service.doors.http.problems import CODES
from scripts.openapi import COMMITTED, text
from tests.doors.running import API, Running, delivery

MERCHANT = "6f1c2a54-8d0e-4c0b-9c55-0c7a8c1f2b11"
SHOP = "example.myshopify.com"
OPEN = f"{API}/credits/accounts"
METHODS = {"get", "post", "put", "patch", "delete"}


@pytest.fixture(scope="module")
def document(running: Running) -> dict[str, Any]:
    answer = running.client.get("/openapi.json")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def responses(document: dict[str, Any], operation: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for status, response in operation["responses"].items():
        yield status, resolved(document, response)


def examples(document: dict[str, Any], content: dict[str, Any]) -> list[Any]:
    named = [resolved(document, example)["value"] for example in content.get("examples", {}).values()]
    return [content["example"], *named] if "example" in content else named


def resolved(document: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in part:
        return part
    _, _, kind, name = part["$ref"].split("/")
    found: dict[str, Any] = document["components"][kind][name]
    return found


def test_served_document_is_the_committed_one(document: dict[str, Any]) -> None:
    committed = COMMITTED.read_text(encoding="utf-8")
    assert json.loads(committed) == document, "accept the change with: uv run python -m scripts.openapi"
    assert committed == text()


def test_document_is_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    OpenAPI.model_validate(document)


def test_references_resolve_and_components_are_used(document: dict[str, Any]) -> None:
    references = set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(document)))
    kinds = ("schemas", "responses", "examples", "headers")
    assert references == {f"#/components/{kind}/{name}" for kind in kinds for name in document["components"][kind]}


def test_operation_has_an_id_a_tag_and_a_sentence(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch("[a-z]+(_[a-z]+)*", identifier) for identifier in ids)
    for _, method, operation in operations(document):
        assert method in METHODS
        assert operation["tags"]
        assert operation["description"].endswith(".")


def test_path_parameters_are_declared(document: dict[str, Any]) -> None:
    for path, _, operation in operations(document):
        declared = {one["name"] for one in operation.get("parameters", []) if one["in"] == "path"}
        assert declared == set(re.findall(r"\{(\w+)\}", path))


def test_errors_are_problems_with_an_example_of_each_code(document: dict[str, Any]) -> None:
    for path, _, operation in operations(document):
        assert "default" in operation["responses"]
        for status, response in responses(document, operation):
            content = response.get("content", {})
            if status >= "400":  # "default" too
                assert list(content) == ["application/problem+json"]
                assert content["application/problem+json"]["schema"] == {"$ref": "#/components/schemas/ProblemShape"}
                codes = list(content["application/problem+json"]["examples"])
                assert codes
                assert {str(CODES[code].status) for code in codes} == {status} or status == "default"
            elif status != "304":
                followed = ["text/event-stream"] if operation["operationId"] == "list_events" else []
                assert list(content) == ["text/plain" if path == "/metrics" else "application/json", *followed]
    assert document["components"]["schemas"]["ProblemShape"]["properties"]["code"]["enum"] == list(CODES)


def test_examples_fit_their_schemas(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        bodies = operation.get("requestBody", {}).get("content", {})
        answered = [response.get("content", {}) for _, response in responses(document, operation)]
        for media_type, content in [found for contents in (bodies, *answered) for found in contents.items()]:
            schema = {**content["schema"], "components": document["components"]}
            validator = jsonschema_rs.validator_for(schema, validate_formats=True)
            found = examples(document, content)
            assert found, (method, path, media_type)
            for example in found:
                assert [str(error) for error in validator.iter_errors(example)] == [], (method, path, example)


def test_example_requests_succeed(document: dict[str, Any], start: Callable[..., Running]) -> None:
    service = start(shopify_webhook_secret="hush", webhook_allowed_networks="127.0.0.0/8")
    nobody = "http://127.0.0.1:1"  # where what is posted here is sent to
    endpoint = service.post("/credits/webhook-endpoints", {"url": nobody}, "admin").json()["data"]["id"]
    service.open(MERCHANT)
    (trial,) = service.call("GET", f"/credits/accounts/{MERCHANT}/grants").json()["data"]
    named = {
        "{merchant_id}": MERCHANT,
        "{grant_id}": trial["id"],
        "{transaction_id}": trial["transaction_id"],
        "{shop_domain}": SHOP,
        "{endpoint_id}": endpoint,
    }
    asked = [
        (
            method,
            re.sub(r"\{\w+\}", lambda found: named[found[0]], path),
            media_type,
            json.dumps(example).replace("https://example.com", nobody),
        )
        for path, method, operation in operations(document)
        for media_type, content in operation.get("requestBody", {}).get("content", {}).items()
        for example in examples(document, content)
    ]
    # A shop is linked first. The trial is voided and the account frozen last, because other examples spend it.
    last = ["void", "reverse", "freeze", "thaw", "close"]

    def place(path: str) -> int:
        end = path.rpartition("/")[2]
        return -1 if path in (OPEN, f"{API}/credits/shops/{SHOP}") else last.index(end) + 1 if end in last else 0

    asked.sort(key=lambda one: place(one[1]))
    for count, (method, path, media_type, example) in enumerate(asked):
        body = example.encode()
        headers = {"content-type": media_type, "idempotency-key": f"example-{count}"}
        if '"PAYMENT"' in example:  # its key is made from its reference
            del headers["idempotency-key"]
        headers |= delivery("orders/paid", body, "hush", SHOP)
        more = {"content": body, "headers": headers}
        answer = service.call(method.upper(), path.removeprefix(API), "admin", **more)
        assert answer.status_code in (200, 201, 202), (method, path, example, answer.text)
        outcomes = re.findall('"outcome":"([a-z]+)"', answer.text)
        assert set(outcomes) <= {"posted", "replayed"}, (path, example, answer.text)


def test_document_names_the_scope_of_each_operation(document: dict[str, Any], running: Running) -> None:
    scheme = document["components"]["securitySchemes"]["apiKey"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    for path, method, operation in operations(document):
        more: dict[str, Any] = {"json": {}} if method == "post" else {}
        url = re.sub(r"\{\w+\}", "6f1c2a54-8d0e-4c0b-9c55-0c7a8c1f2b11", path)
        status = running.client.request(method, url, **more).status_code
        assert (status == 401) == (operation["security"] != []), path
        if operation["security"]:
            assert operation["security"][0]["apiKey"][0] in ("read", "write", "admin")
            assert {"401", "403", "503"} <= set(operation["responses"])


@pytest.mark.parametrize(
    ("path", "types"),
    [
        ("/api/v1/credits/transactions", ["application/json"]),
        ("/api/v1/credits/transactions/batch", ["application/json"]),
        (
            "/api/v1/credits/events",
            ["application/cloudevents+json", "application/cloudevents-batch+json", "application/json"],
        ),
    ],
)
def test_postings_and_events_have_their_bodies(document: dict[str, Any], path: str, types: list[str]) -> None:
    operation = document["paths"][path]["post"]
    assert list(operation["requestBody"]["content"]) == types
    assert operation["requestBody"]["required"]


def test_idempotency_key_is_declared(document: dict[str, Any]) -> None:
    parameters = document["paths"]["/api/v1/credits/transactions"]["post"]["parameters"]
    (declared,) = [one for one in parameters if one["name"] == "Idempotency-Key"]
    assert (declared["in"], declared["required"]) == ("header", False)


def test_bodies_refuse_unknown_fields(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    bodies = [name for name in schemas if name.endswith("Body")]
    assert bodies
    assert all(schemas[name]["additionalProperties"] is False for name in bodies)


def test_docs_page_is_served(running: Running) -> None:
    answer = running.client.get("/docs")
    assert answer.status_code == 200
    assert "/openapi.json" in answer.text
