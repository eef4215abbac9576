"""One merchant's books in memory. A book calls `decide` and keeps its outcomes, as a store does, without a database.

The clock is a number that tests move (`wait`). Tests may replace the settings between two postings (`policy`).
"""

from copy import copy
from dataclasses import replace
from typing import Self

from credit_service.ledger.account import DAY, Account, Announcement, DeadLetter, GivenBack, Grant, Parked, Transaction
from credit_service.ledger.commands import Command, Reverse
from credit_service.ledger.decide import Outcome, State, Waiting, decide, needs
from credit_service.ledger.draft import Posted
from credit_service.ledger.policy import Policy
from credit_service.ledger.proof import Discrepancy, verify
from credit_service.ledger.refusals import Refused
from credit_service.ledger.settle import Standing, standing_at
from tests.ledger.telling import BOOK_ACCOUNT, T0


class Book:
    """See the module."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.policy = policy or Policy()
        self.now = T0
        self.account: Account | None = None
        self.open_grants: tuple[Grant, ...] = ()
        self.grants: dict[int, Grant] = {}
        self.transactions: tuple[Transaction, ...] = ()
        self.announcements: tuple[Announcement, ...] = ()
        self.given: dict[str, GivenBack] = {}
        self.parked: dict[str, Parked] = {}
        self.dead_letters: tuple[DeadLetter, ...] = ()

    def wait(self, days: float = 0, micros: int = 0) -> Self:
        """Let time pass."""
        self.now += round(days * DAY) + micros
        return self

    def state(self, command: Command) -> State:
        """The state that `decide` needs for a command: exactly what `needs` lists."""
        need = needs(command)
        by_key = {transaction.key: transaction for transaction in self.transactions}
        source = by_key.get(need.source) if need.source else None
        given = self.given.get(need.source) if need.source else None
        taken = given.taken if given else ()
        touched = {number for number, _ in (*source.draws, *taken) if number} if source else set()
        trial = self.account.trial if self.account else None
        time = max(self.now, self.account.settled_at) if self.account else self.now
        return State(
            account=self.account,
            grants=self.open_grants,
            number=BOOK_ACCOUNT,
            first=by_key.get(need.key),
            trial=self.transactions[trial - 1] if need.trial and trial else None,
            parked=self.parked.get(need.key),
            source=source,
            given=given,
            closed={number: self.grants[number] for number in touched if not self.grants[number].remaining},
            waiting=tuple(parked for parked in self.parked.values() if parked.waits_for == need.key)
            if need.awaited
            else (),
            overdue=tuple(parked for parked in self.parked.values() if parked.until <= time) if need.overdue else (),
        )

    def ask(self, command: Command) -> Outcome:
        """Decide a command; write nothing. A reversal is told the key of its transaction, as a door does."""
        if isinstance(command, Reverse) and command.sequence <= len(self.transactions):
            command = replace(command, target=self.transactions[command.sequence - 1].key)
        return decide(self.state(command), command, self.policy, self.now)

    def do(self, command: Command) -> Outcome:
        """Decide a command and write its outcome."""
        outcome = self.ask(command)
        posted = outcome.posted if isinstance(outcome, Waiting) else outcome
        if isinstance(posted, Posted):
            self._write(posted)
        return outcome

    def erase(self) -> None:
        """Erase all personal data, as storage does."""
        self.transactions = tuple(one._replace(metadata=None, salt=None) for one in self.transactions)

    def tell(self, *commands: Command) -> Posted:
        """Do commands that must all be posted; return the posting of the last one."""
        outcomes = [self.do(command) for command in commands]
        last = outcomes[-1]
        assert all(isinstance(outcome, Posted) for outcome in outcomes), outcomes
        assert isinstance(last, Posted)
        return last

    def refused(self, command: Command) -> Refused:
        """Do a command that must be refused; return the refusal."""
        outcome = self.do(command)
        assert isinstance(outcome, Refused), outcome
        return outcome

    def copy(self) -> "Book":
        """A copy of the books. Everything in them is immutable except the dicts."""
        twin = copy(self)
        twin.grants, twin.given, twin.parked = dict(self.grants), dict(self.given), dict(self.parked)
        return twin

    def standing(self) -> Standing:
        """The account as a read would show it now."""
        assert self.account is not None
        return standing_at(self.account, self.open_grants, self.policy, self.now)

    def remaining(self) -> dict[int, int]:
        """The remaining credits of each open grant."""
        return {grant.number: grant.remaining for grant in self.open_grants}

    def written(self) -> tuple[object, ...]:
        """Everything in the books, for comparisons."""
        return (
            self.account,
            self.open_grants,
            self.grants,
            self.transactions,
            self.announcements,
            self.given,
            self.parked,
            self.dead_letters,
        )

    def faults(self) -> list[Discrepancy]:
        """The discrepancies that verification finds."""
        assert self.account is not None
        return list(verify(self.account, self.grants.values(), self.transactions))

    def _write(self, posted: Posted) -> None:
        assert posted.opened == (self.account is None)
        self.account = posted.account
        self.grants.update(posted.changed_grants)
        self.open_grants = posted.grants
        # A store writes the changed grants and reads the open ones, so both must agree.
        still_open = {number: grant for number, grant in self.grants.items() if grant.remaining}
        assert {grant.number: grant for grant in posted.grants} == still_open
        self.transactions += posted.transactions
        self.announcements += posted.announcements
        self.given.update((given.key, given) for given in posted.given_back)
        for key in posted.unparked:
            del self.parked[key]
        if posted.parked is not None:
            self.parked[posted.parked.key] = posted.parked
        self.dead_letters += posted.dead_letters
