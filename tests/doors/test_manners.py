"""HEAD, CORS, rate limits, metrics, documentation pages, and the older event envelope."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from credit_service.doors.http.problems import Problem
from credit_service.doors.http.rate_limits import RateLimit
from tests.doors.running import Running, new_merchant

Start = Callable[..., Running]


def test_head_has_the_headers_of_get(running: Running) -> None:
    merchant = running.open()
    for path in (f"/credits/accounts/{merchant}", f"/credits/plugin-status/{merchant}", "/health"):
        got, headed = running.get(path), running.call("HEAD", path, "read")
        assert (headed.status_code, headed.content) == (200, b"")
        assert headed.headers["content-type"] == got.headers["content-type"]
    assert running.call("HEAD", f"/credits/accounts/{new_merchant()}", "read").status_code == 404


def test_pages_of_other_origins_may_call_only_by_setting(running: Running, start: Start) -> None:
    asked = {"origin": "https://shop.example", "access-control-request-method": "GET"}
    path = f"/api/v1/credits/plugin-status/{new_merchant()}"
    assert "access-control-allow-origin" not in running.client.options(path, headers=asked).headers
    allowing = start(cors_origins="https://shop.example, https://other.example")
    preflight = allowing.client.options(path, headers=asked)
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, "https://shop.example")
    answer = allowing.client.get(path, headers={"origin": "https://shop.example"})
    assert answer.headers["access-control-allow-origin"] == "https://shop.example"
    assert "X-Request-ID" in answer.headers["access-control-expose-headers"]
    stranger = allowing.client.get(path, headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in stranger.headers


# ---- rate limits


def test_caller_has_a_burst_and_then_a_rate() -> None:
    now = 0.0
    limit = RateLimit("key", 10, 3, clock=lambda: now)
    assert [round(limit.count("a"), 3) for _ in range(3)] == [0.1, 0.2, 0.3]
    with pytest.raises(Problem) as refused:
        limit.count("a")
    assert (refused.value.code, refused.value.headers["Retry-After"]) == ("rate_limited", "1")
    limit.count("b")
    now = 0.1
    limit.count("a")
    with pytest.raises(Problem):
        limit.count("a")
    now = 10
    assert limit.headers(limit.count("a")) == [
        (b"ratelimit-policy", b'"key";q=3;w=1'),
        (b"ratelimit", b'"key";r=2;t=1'),
    ]


def test_only_the_last_callers_are_remembered() -> None:
    limit = RateLimit("key", 1, 1, size=2, clock=lambda: 0.0)
    for name in "abcab":
        limit.count(name)
    with pytest.raises(Problem):
        limit.count("b")


def test_request_that_is_given_back_does_not_count() -> None:
    limit = RateLimit("key", 1, 1, clock=lambda: 0.0)
    for _ in range(3):
        limit.count("a")
        limit.give_back("a")
    limit.give_back("b")


def test_requests_of_a_key_are_limited(start: Start) -> None:
    running = start(rate_limit_enabled=True, rate_limit_key_per_second=0.001, rate_limit_key_burst=2)
    merchant = running.open()  # with the key of scope write
    assert running.spend(merchant).headers["ratelimit"] == '"key";r=0;t=2000'
    refused = running.spend(merchant)
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert int(refused.headers["retry-after"]) > 900
    assert refused.headers["ratelimit-policy"] == '"key";q=2;w=2000'
    assert running.get(f"/credits/accounts/{merchant}").json()["data"]["sequence"] == 2


def test_requests_without_a_key_are_limited_by_address(start: Start) -> None:
    running = start(rate_limit_enabled=True, rate_limit_address_per_second=0.001, rate_limit_address_burst=3)
    merchant = running.open()  # the key is new to the process, but the address gets its request back
    path = f"/credits/plugin-status/{merchant}"
    assert [running.get(path, None).status_code for _ in range(4)] == [200, 200, 200, 429]
    for other in ("/api/v1/health", "/metrics", "/readyz", "/openapi.json", "/docs", "/nothing"):
        assert running.client.get(other).status_code == 429, other
    assert running.client.get("/livez").status_code == 200
    for wrong in ("x", "Bearer cs_aaaaaaaaaaaa_" + "x" * 43, f"Bearer {running.keys['write'][:-1]}x"):
        for other in ("/api/v1/credits/accounts", "/api/v1/health/detailed", path, "/metrics"):
            answer = running.client.get(other, headers={"authorization": wrong})
            assert answer.status_code == 429, (wrong, other)
    assert running.spend(merchant).status_code == 201  # a cached key does not pay from its address


def test_rate_limits_can_be_turned_off(start: Start) -> None:
    running = start(rate_limit_enabled=False, rate_limit_key_burst=1, rate_limit_key_per_second=0.001)
    merchant = running.open()
    answer = running.spend(merchant)
    assert answer.status_code == 201
    assert "ratelimit" not in answer.headers


# ---- metrics


def _metric(running: Running, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", running.client.get("/metrics").text, flags=re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_metrics_count_postings_events_and_answers(start: Start) -> None:
    running = start()
    merchant = running.open()
    running.spend(merchant, 30)
    running.spend(merchant, 1000)
    event: dict[str, Any] = {
        "specversion": "1.0",
        "id": "1",
        "source": "s",
        "type": "evt.billing.payment_succeeded",
        "data": {"merchant_id": merchant, "payment_id": 1, "credits": 5},
    }
    for credits in (5, 5, 6):
        event["data"]["credits"] = credits
        running.tell(event)
    running.get(f"/credits/plugin-status/{merchant}", None)
    running.get(f"/credits/plugin-status/{merchant}", None)
    for name, value in {
        'credits_transactions_total{operation="DECREASE",type="USAGE"}': 1,
        'credits_transactions_total{operation="INCREASE",type="PAYMENT"}': 1,
        "credits_balance_updated_total": 3,
        'credits_refused_total{code="insufficient_credits"}': 1,
        "credits_events_conflicting_total": 1,
        'credits_events_consumed_total{outcome="posted",subject="evt.billing.payment_succeeded"}': 1,
        'credits_events_consumed_total{outcome="replayed",subject="evt.billing.payment_succeeded"}': 2,
        'credits_plugin_status_checks_total{source="storage",status="enabled"}': 1,
        'credits_plugin_status_checks_total{source="near",status="enabled"}': 1,
        'credits_plugin_status{status="enabled"}': 1,
        "credits_merchants_zero_balance": 0,
        "credits_merchants_low_balance": 0,
        "credits_posting_queue_depth": 0,
        "credits_transaction_processing_seconds_count": 6,
        "credits_posting_batch_size_sum": 6,
    }.items():
        assert _metric(running, name) == value, name
    route = 'method="POST",route="/api/v1/credits/transactions",status="402"'
    assert _metric(running, f"credits_http_request_duration_seconds_count{{{route}}}") == 1
    route = 'method="GET",route="/api/v1/credits/plugin-status/{merchant_id}",status="200"'
    assert _metric(running, f"credits_http_request_duration_seconds_count{{{route}}}") == 2


def test_metrics_can_be_turned_off(start: Start) -> None:
    assert start(metrics_enabled=False).client.get("/metrics").status_code == 404


# ---- documentation pages, and the older envelope


def test_docs_page_needs_no_other_host(running: Running) -> None:
    page = running.client.get("/docs")
    assert page.status_code == 200
    linked = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert linked
    for link in linked:
        assert link.startswith("/")
        assert running.client.get(link).status_code == 200


def test_older_envelope_is_accepted(running: Running) -> None:
    merchant = running.open()
    older = {
        "event_type": "evt.billing.payment_succeeded",
        "event_id": "old-1",
        "payload": {"merchant_id": merchant, "payment_id": "P", "credits": 7},
        "correlation_id": "from-the-platform",
        "version": 1,
    }
    result = running.post("/credits/events", older).json()["data"]["results"][0]
    assert (result["event_id"], result["outcome"]) == ("old-1", "posted")
    assert result["transactions"][0]["correlation_id"] == "from-the-platform"
    refused = running.post("/credits/events", older | {"event_type": "evt.nonsense"})
    assert (refused.status_code, refused.json()["code"]) == (422, "event_type_unknown")
    malformed = running.post("/credits/events", older | {"payload": {"merchant_id": merchant}})
    assert [error["pointer"] for error in malformed.json()["errors"]] == ["/data/payment_id"]


def test_problems_with_status_503_carry_retry_after() -> None:
    assert Problem("overloaded", "…").headers["Retry-After"] == "1"


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/openapi.json"])
def test_machine_routes_need_no_key(running: Running, path: str) -> None:
    assert running.client.get(path).status_code == 200
