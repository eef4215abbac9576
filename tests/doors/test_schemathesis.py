"""Schemathesis generates valid and invalid requests from the OpenAPI document, and checks the answers against it."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pytest
import schemathesis
from schemathesis.checks import CheckContext
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import AcceptedNegativeData, Failure
from schemathesis.core.transport import Response
from schemathesis.engine import from_schema
from schemathesis.engine.events import FatalError, NonFatalError, ScenarioFinished
from schemathesis.engine.recorder import CheckNode
from schemathesis.generation.case import Case
from schemathesis.hooks import HookContext
from schemathesis.schemas import BaseSchema

from credit_service.messages.envelope import BATCH_MEDIA_TYPE
from tests.doors.running import cloud_event, posting
from tests.doors.running import delivery as signed
from tests.served import Served, served
from tests.storage.engines import Ledgers, place

EVENTS = "/api/v1/credits/events"
DELIVERIES = "/api/v1/webhooks/shopify"
SECRET, SHOP = "hush", "example.myshopify.com"
RICH, POOR = "6f1c2a54-8d0e-4c0b-9c55-0c7a8c1f2b11", "6f1c2a54-8d0e-4c0b-9c55-0c7a8c1f2b12"

NOBODY = "http://127.0.0.1:1"
"""The target of webhooks, which has no listener."""

REFUSED_FOR_ITS_STATE = {
    "account_closed",
    "already_reversed",
    "not_reversible",
    "account_frozen",
    "account_not_empty",
    "account_not_found",
    "amount_out_of_range",
    "cursor_invalid",
    "endpoint_not_found",
    "grant_not_found",
    "idempotency_key_invalid",  # an order's key is made of its id
    "idempotency_key_missing",  # a check that consumes needs one, and no other
    "idempotency_key_reused",
    "insufficient_credits",
    "key_not_found",
    "shop_not_found",
    "transaction_not_found",
    "trial_already_granted",
}
"""Codes of refusals that depend on the state of the ledger, so a valid request may get them."""


@pytest.fixture(scope="module")
def schema(ledgers: Ledgers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BaseSchema]:
    """The document of a service that has a merchant with credits and a merchant with a debt."""
    folder = tmp_path_factory.mktemp("schemathesis")
    with ExitStack() as stack:
        url = stack.enter_context(ledgers.new(folder))
        settings = {
            "DATABASE_ALLOW_UNSAFE": "true",
            "RATE_LIMIT_ENABLED": "false",
            "SHOPIFY_WEBHOOK_SECRET": SECRET,
            "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
        }
        service = stack.enter_context(served(place(url), folder=folder, settings=settings))
        client = stack.enter_context(service.client())
        assert client.post("/credits/accounts", json={"merchant_id": RICH}).status_code == 201
        grown = posting(RICH, operation_type="INCREASE", transaction_type="SUBSCRIPTION", amount=10**12)
        posted = client.post("/credits/transactions", json=grown, headers={"Idempotency-Key": "grown"}).json()
        event = cloud_event("evt.shopify.webhook.order_paid", {"merchant_id": POOR, "order_id": 1, "credits": 7})
        headers = {"Content-Type": "application/cloudevents+json"}
        assert client.post("/credits/events", content=json.dumps(event), headers=headers).status_code == 200
        document = client.get(f"{service.url}/openapi.json").json()
        made = client.post("/api-keys", json={"name": "to be revoked", "scope": "read"}).json()
        assert client.put(f"/credits/shops/{SHOP}", json={"merchant_id": RICH}).status_code == 200
        hooked = client.post("/credits/webhook-endpoints", json={"url": NOBODY}).json()["data"]["id"]
        delivery = client.post(f"/credits/webhook-endpoints/{hooked}/test").json()["data"]["id"]
        known = {
            "merchants": [RICH, POOR],
            "shops": [SHOP],
            "transactions": [posted["data"]["id"]],
            "keys": [made["data"]["id"]],
            "endpoints": [hooked],
            "deliveries": [delivery],
        }
        config = _config(service, known)
        yield schemathesis.openapi.from_dict(_strict(document), config=SchemathesisConfig.from_dict(config))


def _strict(document: dict[str, Any]) -> dict[str, Any]:
    """The document, stricter: without default responses, and without undocumented fields in answers."""
    for methods in document["paths"].values():
        for operation in methods.values():
            del operation["responses"]["default"]
    for name, shape in document["components"]["schemas"].items():
        if "properties" in shape and name not in ("ProblemShape", "CloudEvent", "OlderEvent"):  # these may be extended
            shape["additionalProperties"] = False
    return document


def _config(service: Served, known: dict[str, list[str]]) -> dict[str, Any]:
    """Settings that generate the same requests each time, mostly about things that exist."""
    places = dict.fromkeys(
        ("path.merchant_id", "query.merchant_id", "body.merchant_id", "body.items[*].merchant_id"), "merchants"
    ) | {
        "path.transaction_id": "transactions",
        "path.key_id": "keys",
        "path.shop_domain": "shops",
        "path.endpoint_id": "endpoints",
        "path.delivery_id": "deliveries",
    }
    return {
        "seed": 1,
        "base-url": service.url,
        "headers": {"Authorization": f"Bearer {service.key}"},
        "generation": {
            "deterministic": True,
            "max-examples": 15,
            "database": "none",
            "no-shrink": True,
            "allow-x00": False,  # no text may hold it, for which JSON Schema has no word; see test_bad_input.py
        },
        # What one answer holds must not decide what is asked next: ids and times are new in each run, and an API key
        # found in a list may be the one that asks, and be revoked. So there are no sequences of requests, either.
        "phases": {
            "examples": {"extra-data-sources": {"responses": False}},
            "coverage": {"extra-data-sources": {"responses": False}},
            "fuzzing": {"extra-data-sources": {"responses": False}, "error-feedback": {"enabled": False}},
            "stateful": {"enabled": False},
        },
        "dictionaries": {name: {"values": values} for name, values in known.items()},
        "parameters": {place: {"dictionary": name, "probability": 0.7} for place, name in places.items()},
        "operations": [
            # A batch is POSTed to what is also the path of a transaction, or a merchant, whose id would be "batch".
            {
                "include-path-regex": "/batch$",
                "checks": {"allow_header_conformance": {"enabled": False}, "unsupported_method": {"enabled": False}},
            },
        ],
        # The check below decides by the code of a refusal, because a status is not enough.
        "checks": {"positive_data_acceptance": {"enabled": False}},
    }


@schemathesis.hook
def before_call(context: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:
    """Replace the host of every URL by our own, so that no webhook leaves this machine.

    Sign valid deliveries of Shopify: JSON Schema cannot describe a signature.
    """
    if isinstance(case.body, dict) and isinstance(url := case.body.get("url"), str):
        case.body["url"] = re.sub("^https?://[^/?#]*", NOBODY, url)
    if case.operation.path == DELIVERIES and case.meta is not None and case.meta.generation.mode.is_positive:
        body = json.dumps(case.body, allow_nan=False).encode()
        case.headers["X-Shopify-Hmac-Sha256"] = signed(None, body, SECRET)["x-shopify-hmac-sha256"]


@schemathesis.check
def valid_requests_are_understood(context: CheckContext, response: Response, case: Case[Any]) -> None:
    """A request that is valid by the document is refused for the state of the ledger or for how its fields fit only."""
    if response.status_code < 400 or case.meta is None or not case.meta.generation.mode.is_positive:
        return
    problem = response.json()
    faults = [fault for fault in problem["errors"] if not _goes_beyond_the_document(fault, case)]
    assert problem["code"] in REFUSED_FOR_ITS_STATE or (problem["code"] == "validation_failed" and not faults), problem


def _goes_beyond_the_document(fault: Mapping[str, Any], case: Case[Any]) -> bool:
    """Whether JSON Schema cannot describe a fault.

    It cannot for a field that does not fit another one, and for the data of an event. And it takes 1.0 for an integer.
    """
    of_an_event = case.operation.path == EVENTS and fault["pointer"].startswith("/data")
    return of_an_event or fault["code"] == "not_allowed" or (fault["code"] == "wrong_type" and _has_float(case.body))


def _has_float(value: Any) -> bool:
    match value:
        case dict():
            return any(_has_float(entry) for entry in value.values())
        case list():
            return any(_has_float(entry) for entry in value)
    return isinstance(value, float)


@schemathesis.hook
def filter_failure(context: HookContext, failure: Failure, case: Case[Any], response: Response) -> bool:
    """A malformed event of a batch is refused in its result, so 200 does not mean that it was accepted."""
    if isinstance(failure, AcceptedNegativeData) and case.media_type == BATCH_MEDIA_TYPE:
        return all(result["outcome"] != "refused" for result in response.json()["data"]["results"])
    return True


@pytest.mark.slow
def test_every_answer_is_as_the_document_says(schema: BaseSchema) -> None:
    asked: set[str] = set()
    faults: list[str] = []
    # The engine of the command line, because the plugin for pytest does not work with pytest 9.
    for event in from_schema(schema).execute():
        match event:
            case ScenarioFinished():
                asked.update(node.value.operation.label for node in event.recorder.cases.values())
                faults += [one for nodes in event.recorder.checks.values() for node in nodes for one in _failures(node)]
            case NonFatalError() | FatalError():
                faults.append(str(event))
    paths = schema.raw_schema["paths"].items()
    assert asked == {f"{method.upper()} {path}" for path, methods in paths for method in methods}
    assert not faults, "\n\n".join(faults)


def _failures(node: CheckNode) -> Iterator[str]:
    """The failure of a check, and a code sample that repeats it."""
    if node.failure_info is not None:
        yield f"{node.failure_info.failure.title}: {node.failure_info.failure.message}\n{node.failure_info.code_sample}"
