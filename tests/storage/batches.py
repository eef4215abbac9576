"""Random batches of commands for several merchants, and naive books that decide them one at a time.

Ids and keys come from small ranges, so that replays, reused keys, refunds before their order and second refunds of one
order are common.
"""

from dataclasses import replace
from operator import attrgetter
from typing import Any, NamedTuple, cast
from uuid import UUID

from hypothesis import strategies as st

from credit_service.ledger.account import DAY, MAX_CREDITS
from credit_service.ledger.commands import Command, Post
from credit_service.ledger.decide import Outcome, State
from credit_service.ledger.policy import Policy
from credit_service.ledger.refusals import Refused
from credit_service.posting import RefusedAt
from tests.ledger import telling
from tests.ledger.book import Book
from tests.ledger.telling import T0
from tests.storage.values import of

MERCHANTS = [str(UUID(int=index)) for index in (3, 1, 2)]


class Batch(NamedTuple):
    """Commands that arrive together, `wait` microseconds after the previous batch."""

    wait: int
    commands: list[Command]
    atomic: bool


_ids = st.sampled_from("1234")
# Extreme values are rare, because after one of them most commands are refused.
_credits = st.integers(0, 40).map(lambda number: MAX_CREDITS if number == 29 else number)
_posted = _credits.map(lambda number: max(1, number))
_money = st.none() | st.sampled_from(["0", "0.01", "9.99", "10", "20"])
_instants = st.none() | st.integers(-5, 40).map(lambda day: T0 + day * DAY)
_envelope = st.fixed_dictionaries(
    {},
    optional={
        "metadata": st.sampled_from(['{"a":1}', "{}"]),
        "salt": st.just(bytes(16)),
        "occurred_at": st.just(T0 - 1),
        "correlation_id": st.just("c"),
    },
)


@st.composite
def _posts(draw: st.DrawFn) -> Post:
    key = f"key {draw(st.integers(1, 12))}"
    more: dict[str, Any] = draw(_envelope)
    if draw(st.booleans()):
        return telling.use(draw(_posted), key, **more)
    terms: dict[str, Any] = {"priority": draw(st.sampled_from([1, 100]))}
    terms |= {"effective_at": draw(_instants), "expires_at": draw(_instants)}
    command = telling.add(draw(_posted), key, draw(st.sampled_from(["MANUAL", "SUBSCRIPTION", "TRIAL"])), **terms)
    return replace(command, **more)


_facts: st.SearchStrategy[Command] = st.one_of(
    st.builds(telling.opening),
    st.builds(telling.trial, _credits, _ids),
    st.builds(telling.payment, _ids, _credits, _instants),
    st.builds(telling.payment_refund, _ids, _ids, _credits),
    st.builds(telling.disputed, _ids, _ids, st.none() | _credits),
    st.builds(telling.closed, _ids, _ids, st.sampled_from(["won", "lost"])),
    st.builds(telling.renewal, _ids, _ids, _credits, _instants),
    st.builds(telling.order, _ids, st.none() | _credits, total=_money, currency=st.sampled_from([None, "EUR", "USD"])),
    st.builds(telling.refund, _ids, st.just(None), credits=_credits),
    st.builds(telling.refund, _ids, _ids, credits=st.integers(0, 9)),
    st.builds(telling.refund, _ids, _ids, money=_money, order_total=_money, currency=st.sampled_from([None, "EUR"])),
    st.builds(telling.terms, st.none() | st.integers(0, 20), st.sampled_from([None, "partial", "reject"])),
    st.builds(telling.sweep),
)
_one: st.SearchStrategy[Command] = st.builds(of, st.sampled_from(MERCHANTS), _facts | _posts())
_wait = st.just(0) | st.integers(0, 12 * DAY)
_best_effort = st.builds(Batch, _wait, st.lists(_one, min_size=2, max_size=12), st.just(False))
# Most merchants have an account, so that refusals have other causes too. The last merchant may have none.
_beginning = Batch(0, [of(merchant_id, telling.payment("0", 60)) for merchant_id in MERCHANTS[:2]], atomic=False)


@st.composite
def _whole(draw: st.DrawFn) -> Batch:
    merchant_id = draw(st.sampled_from(MERCHANTS))
    posts = draw(st.lists(_posts(), min_size=1, max_size=4))
    return Batch(draw(_wait), [of(merchant_id, post) for post in posts], atomic=True)


batches: st.SearchStrategy[list[Batch]] = st.lists(
    st.integers(0, 5).flatmap(lambda one_in_six: _best_effort if one_in_six else _whole()), min_size=1, max_size=6
).map(lambda some: [_beginning, *some])
policies: st.SearchStrategy[Policy] = st.builds(
    Policy,
    trial_credits=st.sampled_from([0, 10]),
    when_insufficient=st.sampled_from(["overdraft", "partial", "reject"]),
    auto_create=st.just(True),
)


class _OneBook(Book):
    """The book of one merchant, with the account number of the engine."""

    number = 0

    def state(self, command: Command) -> State:
        state = super().state(command)
        by_arrival = attrgetter("arrived_at", "key")  # refunds of one instant in the order of their keys
        return state._replace(
            number=self.number,
            waiting=tuple(sorted(state.waiting, key=by_arrival)),
            overdue=tuple(sorted(state.overdue, key=by_arrival)),
        )


class Shelf:
    """The books of all merchants, for comparison with an engine."""

    def __init__(self, policy: Policy) -> None:
        self.books = {merchant_id: _OneBook(policy) for merchant_id in MERCHANTS}

    def answer(self, batch: Batch, now: int, numbers: dict[str, int]) -> list[Outcome] | RefusedAt:
        """Return the expected outcomes of a batch. `numbers` has the account numbers that exist after it."""
        for merchant_id, book in self.books.items():
            book.now = now
            book.number = numbers.get(merchant_id, 0)
        before = dict(self.books)
        if batch.atomic:
            self.books = {merchant_id: cast("_OneBook", book.copy()) for merchant_id, book in self.books.items()}
        outcomes: list[Outcome] = []
        for position, command in enumerate(batch.commands):
            outcome = self.books[command.merchant_id].do(command)
            if batch.atomic and isinstance(outcome, Refused):
                self.books = before
                return RefusedAt(position, outcome)
            outcomes.append(outcome)
        return outcomes
