"""The promised metrics, their names and their values."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from prometheus_client.parser import text_string_to_metric_families

from credit_service.storage.accounts import Accounts
from credit_service.storage.engine import StorageUnavailable
from tests.doors.running import Running, cloud_event, posting

Start = Callable[..., Running]
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

PROMISED = {
    "credits_transactions_total": {"type", "operation"},
    "credits_balance_updated_total": set(),
    "credits_transaction_processing_seconds_count": set(),
    "credits_posting_batch_size_count": set(),
    "credits_posting_queue_depth": set(),
    "credits_refused_total": {"code"},
    "credits_events_conflicting_total": set(),
    "credits_plugin_status_checks_total": {"status", "source"},
    "credits_plugin_status": {"status"},
    "credits_merchants_zero_balance": set(),
    "credits_merchants_low_balance": set(),
    "credits_events_consumed_total": {"subject", "outcome"},
    "credits_dead_letters_total": set(),
    "credits_parked_events": set(),
    "credits_ledger_drift_accounts": set(),
    "credits_storage_up": set(),
    "credits_background_tasks_failing": set(),
    "credits_clock_moved": set(),
    "credits_webhook_deliveries_total": {"outcome"},
    "credits_webhook_redeliveries_total": set(),
    "credits_webhook_pending": set(),
    "credits_webhook_endpoints_disabled": set(),
    "credits_http_request_duration_seconds_count": {"method", "route", "status"},
}
"""By name, with the labels of each."""


def scraped(running: Running) -> Samples:
    """Every sample, by name and labels."""
    answer = running.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    """One sample."""
    return samples[name, frozenset(labels.items())]


def test_prometheus_gets_every_metric(start: Start) -> None:
    running = start(trial_credits=100)
    merchant, poor = running.open(), running.open()
    running.spend(merchant, 85)  # to below the threshold
    running.spend(poor, 100)
    assert running.spend(poor, 1).status_code == 402
    assert running.transact(posting(str(uuid4()))).status_code == 404
    assert running.spend(merchant, 1, key="twice").status_code == 201
    assert running.spend(merchant, 1, key="twice").status_code == 200
    refund = {"merchant_id": merchant, "refund_id": 1, "order_id": 1, "refund_amount": "5", "currency": "GBP"}
    running.tell(cloud_event("evt.shopify.webhook.order_refunded", refund))
    payment = {"merchant_id": merchant, "payment_id": 1, "credits": 5}
    for credits in (5, 5, 6):
        running.tell(cloud_event("evt.billing.payment_succeeded", payment | {"credits": credits}))
    for _ in range(3):
        running.get(f"/credits/plugin-status/{poor}", None)
    running.get("/credits/accounts")
    running.get("/nothing")

    samples = scraped(running)
    assert {name: labels for name, labels in PROMISED.items() if name not in {name for name, _ in samples}} == {}
    for name, labels in samples:
        if name in PROMISED:
            assert {label for label, _ in labels} == PROMISED[name], name

    def told(name: str, **labels: str) -> float:
        return value(samples, name, **labels)

    assert told("credits_transactions_total", type="TRIAL", operation="INCREASE") == 2
    assert told("credits_transactions_total", type="USAGE", operation="DECREASE") == 3
    assert told("credits_transactions_total", type="PAYMENT", operation="INCREASE") == 1
    assert told("credits_balance_updated_total") == 6
    assert told("credits_transaction_processing_seconds_count") == 12
    assert told("credits_posting_batch_size_sum") == 12
    assert told("credits_posting_queue_depth") == 0
    assert told("credits_refused_total", code="insufficient_credits") == 1
    assert told("credits_refused_total", code="account_not_found") == 1
    assert told("credits_events_conflicting_total") == 1
    subject = "evt.billing.payment_succeeded"
    assert told("credits_events_consumed_total", subject=subject, outcome="posted") == 1
    assert told("credits_events_consumed_total", subject=subject, outcome="replayed") == 2
    assert told("credits_parked_events") == 1
    assert told("credits_dead_letters_total") == 0
    assert told("credits_plugin_status_checks_total", status="disabled", source="storage") == 1
    assert told("credits_plugin_status_checks_total", status="disabled", source="near") == 2
    assert told("credits_plugin_status", status="enabled") == 1
    assert told("credits_plugin_status", status="disabled") == 1
    assert told("credits_merchants_zero_balance") == 1
    assert told("credits_merchants_low_balance") == 1
    assert told("credits_ledger_drift_accounts") == 0
    assert told("credits_storage_up") == 1
    http = "credits_http_request_duration_seconds_count"
    assert told(http, method="POST", route="/api/v1/credits/transactions", status="201") == 3
    assert told(http, method="POST", route="/api/v1/credits/accounts", status="201") == 2
    assert told(http, method="GET", route="/api/v1/credits/accounts", status="200") == 1
    assert told(http, method="GET", route="none", status="404") == 1


def test_balances_of_merchants_are_metrics_only_by_setting(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("credit_service.doors.http.health.metrics._AT_ONCE", 2)
    running = start(metrics_balance_per_merchant=True)
    merchants = [running.open() for _ in range(5)]
    for number, merchant in enumerate(merchants):
        running.spend(merchant, number + 1)
    samples = scraped(running)
    for number, merchant in enumerate(merchants):
        assert value(samples, "credits_balance_total", merchant_id=merchant) == 99 - number
    assert sum(name == "credits_balance_total" for name, _ in samples) == 5


def test_metrics_answer_while_the_database_is_away(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    running = start(metrics_balance_per_merchant=True)
    running.open()

    async def away(*_: Any) -> Any:
        raise StorageUnavailable("gone")

    with monkeypatch.context() as patch:
        patch.setattr(Accounts, "parked_count", away)
        samples = scraped(running)
    assert value(samples, "credits_balance_updated_total") == 1
    assert value(samples, "credits_storage_up") == 0
    assert "credits_balance_total" not in {name for name, _ in samples}
    assert value(scraped(running), "credits_storage_up") == 1


def test_balance_of_a_merchant_is_no_metric_by_default(running: Running) -> None:
    running.open()
    assert "credits_balance_total" not in {name for name, _ in scraped(running)}
