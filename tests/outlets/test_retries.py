"""When a webhook is sent again, and when a failing endpoint is left alone."""

from typing import Any

import pytest

from credit_service.breaker import Breaker
from credit_service.outlets.retries import FAILURES, PAUSES_SECONDS, PROBE_SECONDS, after, note, room
from credit_service.outlets.webhook_client import Answered
from credit_service.storage.webhooks import WebhookDelivery

SECOND = 1_000_000
NOW = 1_800_000_000 * SECOND
HOUR = 3600
FINE = Answered(204)
BROKEN = Answered(500, "It answered 500.")


def delivery(**more: Any) -> WebhookDelivery:
    return WebhookDelivery("one", 1, "consumed", 7, 4, NOW, NOW)._replace(**more)


def test_successful_delivery_ends() -> None:
    before = delivery(attempts=2, status=500, error="It answered 500.")
    ended = before._replace(state="delivered", attempts=3, status=204, error=None, next_at=None, ended_at=NOW)
    assert after(before, FINE, NOW, 0) == ended


def test_failed_delivery_is_retried_for_three_days() -> None:
    one, now, waited = delivery(), NOW, []
    while one.state == "pending":
        one = after(one, BROKEN, now, 0)
        if one.next_at is not None:
            waited.append((one.next_at - now) // SECOND)
            now = one.next_at
    assert waited == [5, 30, 120, 600, HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR, 24 * HOUR, 24 * HOUR]
    assert (one.state, one.attempts, one.status, one.error) == ("failed", 11, 500, "It answered 500.")
    assert (one.next_at, one.ended_at) == (None, now)
    assert 2.9 < (now - NOW) / SECOND / HOUR / 24 < 3


@pytest.mark.parametrize("attempts", range(len(PAUSES_SECONDS)))
def test_pauses_have_a_jitter_of_a_fifth(attempts: int) -> None:
    pause = PAUSES_SECONDS[attempts]
    for luck, factor in ((-1, 0.8), (0.5, 1.1), (1, 1.2)):
        again = after(delivery(attempts=attempts), BROKEN, NOW, luck)
        assert again.next_at == NOW + round(pause * factor * SECOND)


@pytest.mark.parametrize(("asked", "waited"), [(1, 5), (5, 5), (90, 90), (10**9, 24 * HOUR)])
def test_retry_after_is_respected_up_to_a_limit(asked: int, waited: int) -> None:
    again = after(delivery(), Answered(503, "It answered 503.", asked), NOW, 0)
    assert again.next_at == NOW + waited * SECOND


def test_test_delivery_is_sent_once() -> None:
    ended = after(delivery(account=None, event=None), BROKEN, NOW, 0)
    assert (ended.state, ended.attempts, ended.ended_at) == ("failed", 1, NOW)


def test_failing_endpoint_gets_one_delivery_at_a_time() -> None:
    breaker, now = Breaker(FAILURES, PROBE_SECONDS), NOW
    for _ in range(FAILURES - 1):
        note(breaker, BROKEN, now)
        assert room(breaker, now, 10) == 10
    for pause in (*PROBE_SECONDS, PROBE_SECONDS[-1], PROBE_SECONDS[-1]):
        note(breaker, BROKEN, now)
        assert room(breaker, now + pause * SECOND - 1, 10) == 0
        now += pause * SECOND
        assert room(breaker, now, 10) == 1
    note(breaker, FINE, now)
    assert room(breaker, now, 10) == 10
    note(breaker, BROKEN, now)
    assert room(breaker, now, 10) == 10


def test_deliveries_under_way_do_not_lengthen_the_pause() -> None:
    breaker = Breaker(FAILURES, PROBE_SECONDS)
    for _ in range(FAILURES + 9):
        note(breaker, BROKEN, NOW)
    assert room(breaker, NOW + PROBE_SECONDS[0] * SECOND, 10) == 1


def test_success_resets_the_count_of_failures() -> None:
    breaker = Breaker(FAILURES, PROBE_SECONDS)
    for answered in [BROKEN, BROKEN, BROKEN, BROKEN, FINE] * 3:
        note(breaker, answered, NOW)
    assert room(breaker, NOW, 10) == 10


@pytest.mark.parametrize(("status", "waits"), [(429, True), (503, True), (500, False), (404, False)])
def test_overloaded_endpoint_gets_nothing_until_retry_after(status: int, waits: bool) -> None:
    breaker = Breaker(FAILURES, PROBE_SECONDS)
    note(breaker, Answered(status, "…", 60), NOW)
    assert room(breaker, NOW + 60 * SECOND - 1, 10) == (0 if waits else 10)
    assert room(breaker, NOW + 60 * SECOND, 10) == 10
