"""When a webhook is sent again, and when an endpoint that fails is spared. Time is given."""

from typing import Any

import pytest

from credit_service.outlets.retries import FAILURES, PAUSES_SECONDS, PROBE_SECONDS, Breaker, after
from credit_service.outlets.webhook_client import Answered
from credit_service.storage.webhooks import WebhookDelivery

SECOND = 1_000_000
NOW = 1_800_000_000 * SECOND
HOUR = 3600
FINE = Answered(204)
BROKEN = Answered(500, "It answered 500.")


def delivery(**more: Any) -> WebhookDelivery:
    return WebhookDelivery("one", 1, "consumed", 7, 4, NOW, NOW)._replace(**more)


def test_what_arrives_is_delivered() -> None:
    before = delivery(attempts=2, status=500, error="It answered 500.")
    ended = before._replace(state="delivered", attempts=3, status=204, error=None, next_at=None, ended_at=NOW)
    assert after(before, FINE, NOW, 0) == ended


def test_what_fails_is_sent_again_ever_later_for_days_and_then_given_up() -> None:
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
def test_pauses_differ_by_a_fifth_so_that_not_all_come_back_together(attempts: int) -> None:
    pause = PAUSES_SECONDS[attempts]
    for luck, factor in ((-1, 0.8), (0.5, 1.1), (1, 1.2)):
        again = after(delivery(attempts=attempts), BROKEN, NOW, luck)
        assert again.next_at == NOW + round(pause * factor * SECOND)


@pytest.mark.parametrize(("asked", "waited"), [(1, 5), (5, 5), (90, 90), (10**9, 24 * HOUR)])
def test_who_asks_us_to_wait_is_left_alone_so_long_but_not_for_ever(asked: int, waited: int) -> None:
    again = after(delivery(), Answered(503, "It answered 503.", asked), NOW, 0)
    assert again.next_at == NOW + waited * SECOND


def test_a_test_is_sent_once() -> None:
    ended = after(delivery(account=None, event=None), BROKEN, NOW, 0)
    assert (ended.state, ended.attempts, ended.ended_at) == ("failed", 1, NOW)


def test_after_failures_in_a_row_only_one_at_a_time_is_tried_until_one_arrives() -> None:
    breaker, now = Breaker(), NOW
    for _ in range(FAILURES - 1):
        breaker.note(BROKEN, now)
        assert breaker.room(now, 10) == 10
    for pause in (*PROBE_SECONDS, PROBE_SECONDS[-1], PROBE_SECONDS[-1]):
        breaker.note(BROKEN, now)
        assert breaker.room(now + pause * SECOND - 1, 10) == 0
        now += pause * SECOND
        assert breaker.room(now, 10) == 1
    breaker.note(FINE, now)
    assert breaker.room(now, 10) == 10
    breaker.note(BROKEN, now)
    assert breaker.room(now, 10) == 10, "it is forgiven"


def test_what_was_under_way_as_it_came_to_this_makes_nothing_worse() -> None:
    breaker = Breaker()
    for _ in range(FAILURES + 9):
        breaker.note(BROKEN, NOW)
    assert breaker.room(NOW + PROBE_SECONDS[0] * SECOND, 10) == 1


def test_one_that_arrives_in_between_begins_the_count_anew() -> None:
    breaker = Breaker()
    for answered in [BROKEN, BROKEN, BROKEN, BROKEN, FINE] * 3:
        breaker.note(answered, NOW)
    assert breaker.room(NOW, 10) == 10


@pytest.mark.parametrize(("status", "waits"), [(429, True), (503, True), (500, False), (404, False)])
def test_one_that_has_too_much_is_sent_nothing_until_it_wants_more(status: int, waits: bool) -> None:
    breaker = Breaker()
    breaker.note(Answered(status, "…", 60), NOW)
    assert breaker.room(NOW + 60 * SECOND - 1, 10) == (0 if waits else 10)
    assert breaker.room(NOW + 60 * SECOND, 10) == 10
