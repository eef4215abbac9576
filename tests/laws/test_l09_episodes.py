"""L9 Episodes: an episode announces low, exhausted and restored once; each change of plugin status is announced."""

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit_service.ledger.account import NO_EPISODE
from credit_service.ledger.announcements import (
    BALANCE_EXHAUSTED,
    BALANCE_RESTORED,
    LOW_BALANCE_REACHED,
    PLUGIN_STATUS_CHANGED,
)
from credit_service.ledger.policy import Policy
from tests.laws.stories import Step, grant_stories, play, policies, stories
from tests.ledger.book import Book
from tests.ledger.telling import add, days, opening, order, payment, refund, sweep, terms, use

LEVELS = {LOW_BALANCE_REACHED, BALANCE_EXHAUSTED, BALANCE_RESTORED, PLUGIN_STATUS_CHANGED}


def levels(book: Book, since: int = 0) -> list[str]:
    """The announcements of the level of credits."""
    return [told.type for told in book.announcements[since:] if told.type in LEVELS]


@given(policies, stories | grant_stories)
def test_L9_an_episode_announces_each_level_once(policy: Policy, story: list[Step]) -> None:
    book = play(Book(policy), story)
    in_episode, exhausted, enabled, is_open = False, False, False, True
    for told in book.announcements:
        match told.type:
            case "low_balance_reached":
                assert not in_episode
                in_episode, exhausted = True, False
            case "balance_exhausted":
                assert in_episode
                assert not exhausted
                assert told.available <= 0
                exhausted = True
            case "balance_restored":
                assert in_episode
                assert told.available > 0
                in_episode = False
            case "account.frozen" | "account.closed" | "account.thawed":
                is_open = told.type == "account.thawed"
            case "plugin_status_changed":
                assert told.detail is not None
                assert (told.available > 0 and is_open) != enabled
                enabled = told.available > 0 and is_open
                assert told.detail == {
                    "previous_status": "disabled" if enabled else "enabled",
                    "current_status": "enabled" if enabled else "disabled",
                    "reason": "available" if enabled else "exhausted" if is_open else "frozen",
                }
    if book.account is not None:
        assert in_episode == (book.account.episode != NO_EPISODE)
        assert enabled == (book.account.available > 0 and is_open)


@given(st.integers(0, 30), st.lists(st.integers(-25, 25), max_size=20))
def test_L9_episodes_depend_on_the_levels_alone(threshold: int, changes: list[int]) -> None:
    """A second implementation of the rule, over a list of levels."""
    book = Book(Policy(trial_credits=0))
    book.tell(opening())
    book.do(terms(low_threshold=threshold))
    book.announcements = ()
    expected: list[str] = []
    level, warned = 0, {"low_balance_reached", "balance_exhausted"} if book.account and book.account.episode else None
    assert warned == ({"low_balance_reached", "balance_exhausted"} if threshold > 0 else None)
    for number, change in enumerate(changes):
        book.tell(refund(str(number), credits=change) if change > 0 else order(str(number), -change))
        before, level = level, level + change
        if level > threshold:
            expected += ["balance_restored"] if warned is not None else []
            warned = None
        elif warned is not None or level < before:
            fresh = {"low_balance_reached"} | ({"balance_exhausted"} if level <= 0 else set())
            expected += sorted(fresh - (warned or set()), reverse=True)
            warned = fresh | (warned or set())
        if (before > 0) != (level > 0):
            expected += ["plugin_status_changed"]
    assert levels(book) == expected


def test_L9_a_fall_to_zero_announces_low_and_exhausted() -> None:
    book = Book(Policy(trial_credits=100))
    book.tell(opening(), use(100))
    assert levels(book, since=3) == [LOW_BALANCE_REACHED, BALANCE_EXHAUSTED, PLUGIN_STATUS_CHANGED]


def test_L9_the_threshold_itself_is_low() -> None:
    book = Book(Policy(trial_credits=100, low_balance_percent=Decimal(20)))
    book.tell(opening(), use(79))
    assert levels(book, since=3) == []
    book.tell(use(1))
    assert levels(book, since=3) == [LOW_BALANCE_REACHED]
    book.tell(add(1))
    assert levels(book, since=3) == [LOW_BALANCE_REACHED, BALANCE_RESTORED]


def test_L9_a_rise_below_the_threshold_begins_no_episode() -> None:
    book = Book(Policy(trial_credits=100))
    book.tell(payment("1", 5))  # opens the account, without a trial
    assert book.standing().status == "LOW"
    assert levels(book) == [PLUGIN_STATUS_CHANGED]
    # The account is low already, so the next decrease begins the episode.
    book.tell(use(1))
    assert levels(book) == [PLUGIN_STATUS_CHANGED, LOW_BALANCE_REACHED]


def test_L9_a_second_fall_to_zero_is_not_announced() -> None:
    book = Book(Policy(trial_credits=100))
    book.tell(opening(), use(100), add(5), use(5))
    assert levels(book, since=3).count(BALANCE_EXHAUSTED) == 1
    assert levels(book, since=3).count(PLUGIN_STATUS_CHANGED) == 3


def test_L9_opening_an_account_announces_no_threshold() -> None:
    book = Book(Policy(trial_credits=0))
    told = book.tell(opening())
    assert [announcement.type for announcement in told.announcements] == ["account.created"]
    unpaid = Book(Policy(trial_credits=0, order_fixed=Decimal(0)))
    assert levels(_told(unpaid)) == []


def _told(book: Book) -> Book:
    book.tell(order("1"))
    return book


@pytest.mark.parametrize(
    ("moved", "told"),
    [
        (terms(low_threshold=29), []),
        (terms(low_threshold=30), [LOW_BALANCE_REACHED]),
        (terms(low_threshold=500), [LOW_BALANCE_REACHED]),
    ],
)
def test_L9_a_moved_threshold_counts_as_a_change(moved: object, told: list[str]) -> None:
    book = Book(Policy(trial_credits=30))
    book.tell(opening())
    book.tell(moved)  # type: ignore[arg-type]
    assert levels(book, since=3) == told
    book.tell(terms())  # back to the default, 6
    assert levels(book, since=3) == [*told, *([BALANCE_RESTORED] if told else [])]


def test_L9_a_moved_default_threshold_counts_at_the_next_posting() -> None:
    book = Book(Policy(trial_credits=30))
    book.tell(opening())
    book.policy = replace(book.policy, low_balance_percent=Decimal(100))
    assert book.standing().status == "LOW"
    told = book.tell(sweep())
    assert [announcement.type for announcement in told.announcements] == [LOW_BALANCE_REACHED]
    assert told.announcements[0].detail == {"low_threshold": 30}
    assert told.account.threshold == 30


def test_L9_an_own_threshold_ignores_the_settings() -> None:
    book = Book(Policy(trial_credits=30))
    book.tell(opening(), terms(low_threshold=6))
    book.policy = replace(book.policy, low_balance_percent=Decimal(100))
    assert book.standing().threshold == 6
    assert levels(book, since=3) == []


def test_L9_time_alone_can_begin_and_end_an_episode() -> None:
    book = Book(Policy(trial_credits=0))
    book.tell(opening(), add(10, effective_at=days(1), expires_at=days(2)))
    told = book.wait(days=1).tell(sweep())
    assert [(said.type, said.sequence) for said in told.announcements] == [(PLUGIN_STATUS_CHANGED, None)]
    told = book.wait(days=1).tell(sweep())
    assert [(said.type, said.sequence) for said in told.announcements] == [
        ("expired", 2),
        (LOW_BALANCE_REACHED, 2),
        (BALANCE_EXHAUSTED, 2),
        (PLUGIN_STATUS_CHANGED, 2),
    ]


def test_L9_a_trial_below_the_threshold_begins_no_episode() -> None:
    book = Book(Policy(trial_credits=5, low_balance_percent=Decimal(100)))
    book.tell(opening())
    assert book.standing().status == "LOW"
    assert levels(book) == [PLUGIN_STATUS_CHANGED]
