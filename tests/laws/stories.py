"""Random stories: commands and facts of every kind for one account, while time passes and settings change.

Ids, keys and amounts come from small pools, and instants from a grid of days, so that they coincide: repeats, refunds
of known and unknown orders, grants that begin or expire at the instant of a posting or of another grant.
"""

from decimal import Decimal
from typing import Any, NamedTuple

from hypothesis import strategies as st

from credit_service.ledger.account import DAY
from credit_service.ledger.commands import UNCHANGED, Command, GrantTerms, trial_key
from credit_service.ledger.policy import Policy
from credit_service.ledger.types import INCREASE
from tests.ledger import telling
from tests.ledger.book import Book
from tests.ledger.telling import days


class Step(NamedTuple):
    """Time passes, then comes a command; a Policy in its place means that an operator changes the settings."""

    wait: int
    tell: Command | Policy


amounts = st.integers(1, 30)
worths = st.integers(0, 30)
ids = st.sampled_from("123")
refund_ids = st.sampled_from("12345678")
money = st.sampled_from(["0", "0.000001", "2.5", "3.333333", "5", "10", "25"])
currencies = st.sampled_from([None, None, "EUR", "EUR", "USD"])
instants = st.one_of(st.integers(-2, 12), st.integers(-2, 45)).map(days)
expiries = st.none() | st.none() | instants
waits = st.sampled_from([0, 0, 0, 0, 0, 1, DAY, DAY, DAY, DAY, 2 * DAY, 7 * DAY, 30 * DAY, -DAY])
keys = st.sampled_from(
    [f"k{n}" for n in range(60)]
    + ["shopify:order:1", "shopify:refund:1", "billing:payment:1", trial_key(telling.MERCHANT)]
)

policies = st.builds(
    Policy,
    trial_credits=st.sampled_from([0, 5, 5, 20, 20, 100]),
    order_fixed=st.sampled_from([Decimal(0), Decimal(1), Decimal("2.5")]),
    order_percent=st.sampled_from([Decimal(0), Decimal(50), Decimal("33.3")]),
    order_minimum=st.sampled_from([Decimal(0), Decimal(2)]),
    low_balance_percent=st.sampled_from([Decimal(0), Decimal(20), Decimal("33.3"), Decimal(150)]),
    when_insufficient=st.sampled_from(["overdraft"] * 4 + ["partial", "reject"]),
    refund_grace_days=st.sampled_from([1, 7, 30]),
    refund_wait_days=st.sampled_from([1, 7]),
    auto_create=st.sampled_from([True] * 7 + [False]),
    clawback=st.sampled_from(["debt", "debt", "clamp", "freeze"]),
)

grant_terms = st.builds(
    GrantTerms,
    category=st.sampled_from([None, "paid", "promotional"]),
    priority=st.sampled_from([100, 100, 1, 200]),
    effective_at=st.one_of(st.none(), instants, instants),
    expires_at=expiries,
)


def _posts(operation: Any, types: list[Any], **more: Any) -> st.SearchStrategy[Command]:
    return st.builds(telling.post, st.just(operation), st.sampled_from(types), amounts, keys, **more)


increases = _posts(INCREASE, ["TRIAL", "SUBSCRIPTION", "MANUAL", "ORDER_REFUNDED"], terms=grant_terms)
notes = st.none() | st.just('{"note":"x"}')
decreases = _posts("DECREASE", ["USAGE", "MANUAL"], metadata=notes, salt=st.just(b"s" * 16))

openings = st.builds(telling.opening)
trials = st.builds(telling.trial, worths)
payments = st.builds(telling.payment, ids, worths, expiries)
renewals = st.builds(telling.renewal, st.sampled_from("AB"), st.sampled_from(["2026-01", "2026-02"]), worths, expiries)
begins = st.integers(-3, 3).map(lambda tens: days(10 * tens))
switches = begins.flatmap(
    lambda begin: st.builds(
        telling.renewal,
        st.sampled_from("CDEF"),
        st.just(str(begin)),
        worths,
        expiries,
        window=st.just((begin, begin + 30 * DAY)),
    )
)
paid_ids = ids | ids | st.sampled_from(["A:2026-01", "B:2026-02"])
payment_refunds = st.builds(telling.payment_refund, refund_ids, paid_ids, worths)
dispute_ids = st.sampled_from(["d1", "d2"])
disputes = st.builds(telling.disputed, dispute_ids, paid_ids, st.none() | worths)
closings = st.builds(telling.closed, dispute_ids, paid_ids, st.sampled_from(["won", "lost"]), st.none() | worths)
orders = st.builds(telling.order, ids, st.none() | st.integers(0, 60), total=st.none() | money, currency=currencies)
money_refunds = st.builds(
    telling.refund, refund_ids, ids, money=money, order_total=st.none() | money, currency=currencies
)
credit_refunds = st.builds(telling.refund, refund_ids, st.none() | ids | ids, credits=worths)
facts = st.one_of(
    openings,
    trials,
    payments,
    renewals,
    switches,
    orders,
    orders,
    orders,
    money_refunds,
    credit_refunds,
    payment_refunds,
    disputes,
    closings,
)
changes_of_terms = st.builds(
    telling.terms,
    st.sampled_from([UNCHANGED, None, 0, 5, 20]),
    st.sampled_from([UNCHANGED, None, "overdraft", "partial", "reject"]),
    st.sampled_from([UNCHANGED, None, 0, 10]),
)
states = st.builds(telling.state, st.sampled_from(["frozen", "open", "open", "closed"]), st.booleans())
reversals = st.builds(telling.reversal, st.integers(1, 9), st.none() | amounts, keys)
voids = st.builds(telling.void, st.integers(1, 6), st.none() | amounts, keys)
commands = st.one_of(
    *[facts] * 4,
    orders,
    increases,
    increases,
    decreases,
    voids,
    reversals,
    states,
    changes_of_terms,
    st.builds(telling.sweep),
)

steps = st.builds(Step, waits, st.one_of(*[commands] * 12, policies))
# Long stories have many effects; a failure shrinks to a short story.
stories = st.lists(steps, min_size=1, max_size=8) | st.lists(steps, min_size=15, max_size=35)

# Stories of grants and debts only: credits begin and expire while the account has a debt.
scheduled = st.builds(
    telling.add,
    amounts,
    priority=st.sampled_from([100, 100, 1]),
    category=st.sampled_from(["paid", "promotional"]),
    effective_at=st.none() | instants,
    expires_at=expiries,
)
# Many ids, so that nearly every order and refund is new.
many_ids = st.integers(4, 1_000_000).map(str)
spends = st.builds(telling.order, many_ids, st.integers(0, 60))
returns = st.builds(telling.refund, many_ids, ids, credits=worths)
grant_steps = st.builds(
    Step,
    st.sampled_from([0, 0, DAY, DAY, 3 * DAY]),
    st.one_of(scheduled, scheduled, spends, orders, returns, voids, st.builds(telling.sweep)),
)
opened = st.builds(Step, st.just(0), st.just(telling.trial(3)))
grant_stories = st.builds(lambda first, rest: [first, *rest], opened, st.lists(grant_steps, min_size=1, max_size=15))


THAWED = [Step(0, telling.order("reopens", 0)), Step(0, telling.state("open"))]
"""Opens the account again, whether a story froze or closed it."""


def play(book: Book, story: list[Step]) -> Book:
    """Play a story on a book."""
    for step in story:
        book.wait(micros=step.wait)
        if isinstance(step.tell, Policy):
            book.policy = step.tell
        else:
            book.do(step.tell)
    return book
