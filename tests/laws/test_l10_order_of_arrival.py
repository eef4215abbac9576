"""L10 Order of arrival: the final account does not depend on the order in which facts arrive."""

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from credit_service.ledger.commands import Fact
from credit_service.ledger.decide import Waiting
from credit_service.ledger.draft import Posted
from credit_service.ledger.policy import Policy
from credit_service.ledger.refusals import Refused
from tests.laws.stories import currencies, ids, money, refund_ids, worths
from tests.ledger.book import Book
from tests.ledger.telling import opening, order, payment, payment_refund, refund, renewal, trial

overdraft = st.builds(
    Policy,
    trial_credits=st.just(20),
    order_fixed=st.sampled_from([Decimal(0), Decimal(3)]),
    order_percent=st.sampled_from([Decimal(0), Decimal("33.3")]),
    when_insufficient=st.just("overdraft"),
)

# If an order has no total, the total of its refund counts. So all refunds have the same total.
said_totals = st.sampled_from([None, "12.5"])

one_fact = st.one_of(
    st.just(opening()),
    st.builds(payment, ids, worths),
    st.builds(renewal, st.sampled_from("AB"), st.sampled_from("12"), worths),
    *[st.builds(order, ids, st.none() | worths, total=st.none() | money, currency=currencies)] * 2,
    st.builds(refund, refund_ids, ids, money=money, order_total=said_totals, currency=currencies),
    st.builds(refund, refund_ids, st.none() | ids, credits=worths),
    st.builds(payment_refund, refund_ids, ids, worths),
)


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[list[Fact], list[Fact]]:
    """A set of facts in two orders; the second order has some of them twice, with the same content."""
    facts = list({fact.key: fact for fact in draw(st.lists(one_fact, min_size=2, max_size=14))}.values())
    if draw(st.booleans()):  # only one kind of trial, because the first one counts
        facts = [trial(7) if fact.key == opening().key else fact for fact in facts]
    twice = [*facts, *draw(st.lists(st.sampled_from(facts), max_size=4))]
    return draw(st.permutations(facts)), draw(st.permutations(twice))


def heard(policy: Policy, facts: list[Fact]) -> tuple[object, ...]:
    """The account after these facts arrived within a day."""
    book = Book(policy)
    letters = set()
    for fact in facts:
        outcome = book.wait(micros=60_000_000).do(fact)
        if isinstance(outcome, Refused):
            letters.add((outcome.refusal.code, fact.key))
        assert not isinstance(outcome, Refused) or outcome.refusal.code in ("currency_mismatch", "validation_failed")
    account = book.account
    if account is None:
        return ()
    letters |= {(letter.code, letter.fact.key) for letter in book.dead_letters}
    return (
        account.balance,
        account.available,
        account.debt,
        sorted(book.parked),
        letters,
        sorted(done.key for done in book.transactions),
    )


@given(overdraft, arrivals())
def test_L10_any_order_of_arrival_gives_the_same_balance(
    policy: Policy, arrivals: tuple[list[Fact], list[Fact]]
) -> None:
    one, other = arrivals
    assert heard(policy, one) == heard(policy, other)


def test_L10_facts_may_arrive_in_reverse_order() -> None:
    bought = [payment("1", 5), payment_refund("1", "1", 5)]
    facts = [opening(), order("1", 15, total=10), refund("1", "1", money=4), *bought]
    forwards, backwards = Book(Policy(trial_credits=20)), Book(Policy(trial_credits=20))
    for fact in facts:
        assert isinstance(forwards.do(fact), Posted)
    for fact in reversed(facts):
        backwards.do(fact)
    assert backwards.parked == {}
    assert forwards.account is not None
    assert backwards.account is not None
    assert forwards.account.balance == backwards.account.balance == 20 - 15 + 6


def test_L10_a_repeated_parked_refund_counts_once() -> None:
    book = Book(Policy(trial_credits=20))
    book.tell(opening())
    for _ in range(3):
        assert isinstance(book.do(refund("1", "1", money=4)), Waiting)
    book.tell(order("1", 10, total=10))
    book.do(refund("1", "1", money=4))
    assert book.account is not None
    assert book.account.balance == 20 - 10 + 4
