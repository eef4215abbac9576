"""Gathers what a posting needs from the rows that an engine finds for it.

An engine locks, answers `questions` (or finds the same rows by a statement of its own), and hands the rows over. How
they become the records on which `decide` works is the same for all engines.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Final

from sqlalchemy import Table

from credit_service.ledger.account import Account, Draw, Grant, Transaction
from credit_service.ledger.decide import Needs
from credit_service.ledger.draft import burn_down_order
from credit_service.storage import rows, tables
from credit_service.storage.engine import Loaded, Record
from credit_service.storage.questions import Find, Row
from credit_service.storage.recent import CommitState, RecentAccount

_NONE: Final[Mapping[str, RecentAccount]] = {}


class Loading:
    """What is loaded for one batch. Hand over the accounts first and what was drawn last; the others in any order.

    Of `recent` accounts only the transactions of their keys are loaded; `unseen` are those keys, which an engine may
    look up in another way.
    """

    def __init__(self, needs: Sequence[Needs], recent: Mapping[str, RecentAccount] = _NONE) -> None:
        self._needs = needs
        self.accounts: dict[str, Account] = {}
        self._by_number: dict[int, Record] = {}
        self.records: dict[str, Record] = {}
        self.commits: dict[int, CommitState] = {}  # by account number: the posting that wrote its row, if known
        self.unseen: list[tuple[int, str]] = []  # of recent accounts: account number and key
        if recent:
            self._take_recent(recent)
        self.merchants = list(dict.fromkeys([need.merchant_id for need in self._needs]))

    def _take_recent(self, recent: Mapping[str, RecentAccount]) -> None:
        rest: list[Needs] = []
        for need in self._needs:
            if (known := recent.get(need.merchant_id)) is None:
                rest.append(need)
            else:
                self.unseen.append((known.account.number, need.key))
        self._needs = rest
        for commit, account, grants in recent.values():
            self.accounts[account.merchant_id] = account
            self.commits[account.number] = commit
            record = Record(account, account.number)
            self.records[account.merchant_id] = self._by_number[account.number] = record
            record.grants = grants

    def questions(self, draw_number: Callable[[], int]) -> Generator[Find, Iterable[Row], None]:
        """All questions, one after the other; receives the rows of each."""
        merchants = [(place,) for place in self.merchants]
        self.found_accounts((yield Find(tables.accounts, ("merchant_id",), merchants)), draw_number)
        if not self.accounts:
            return
        numbers = {one: self.accounts[one].number for one in self.merchants if one in self.accounts}

        def of_key(table: Table, some: set[tuple[str, str]], more: Sequence[tuple[int, str]] = ()) -> Find:
            places = [(numbers[merchant], key) for merchant, key in some if merchant in numbers]
            return Find(table, ("account", "key"), [*places, *more])

        every = [(number,) for number in numbers.values()]
        self.found_grants((yield Find(tables.grants, ("account",), every, tables.OPEN)))
        self.found_parked((yield Find(tables.parked, ("account",), every)))
        self.found_firsts((yield of_key(tables.transactions, self.keys(), self.unseen)))
        if sources := self.sources():
            self.found_given_back((yield of_key(tables.given_back, sources)))
            self.found_drawn((yield self.drawn()))
        if granted := [account for m in self.trials() if (account := self.accounts.get(m)) is not None]:
            trials = [(account.number, account.trial) for account in granted if account.trial]
            self.found_trials((yield Find(tables.transactions, ("account", "sequence"), trials)))

    def found_accounts(self, found: Iterable[Row], draw_number: Callable[[], int]) -> None:
        """Take the rows of accounts of `merchants`; a merchant without one gets a number for a new one."""
        accounts = self.accounts
        for row in found:
            accounts[row[1]] = rows.account(row)
        for merchant in self.merchants:
            if (account := accounts.get(merchant)) is None:
                self.records[merchant] = Record(None, draw_number())
            else:
                self.records[merchant] = self._by_number[account.number] = Record(account, account.number)

    def keys(self) -> set[tuple[str, str]]:
        """The keys under which a transaction may be recorded, with their merchants."""
        return {(need.merchant_id, key) for need in self._needs for key in (need.key, need.source) if key}

    def sources(self) -> set[tuple[str, str]]:
        """The keys of the orders and payments that are refunded, with their merchants."""
        return {(need.merchant_id, need.source) for need in self._needs if need.source}

    def trials(self) -> set[str]:
        """The merchants whose trial is needed: it may have been granted under any key."""
        return {need.merchant_id for need in self._needs if need.trial}

    def found_grants(self, found: Iterable[Row]) -> None:
        """Take the rows of open grants."""
        for number, grants in open_grants(found).items():
            self._by_number[number].grants = grants

    def found_parked(self, found: Iterable[Row]) -> None:
        """Take the rows of parked refunds."""
        for row in found:
            parked = rows.parked(row)
            self._by_number[row[0]].parked[parked.key] = parked

    def found_firsts(self, found: Iterable[Row]) -> None:
        """Take the rows of transactions that are recorded under `keys`."""
        for row in found:
            first = self._transaction(row)
            self._by_number[row[0]].firsts[first.key] = first

    def found_trials(self, found: Iterable[Row]) -> None:
        """Take the rows of the trial transactions of `trials`."""
        for row in found:
            self._by_number[row[0]].trial = self._transaction(row)

    def found_given_back(self, found: Iterable[Row]) -> None:
        """Take the rows of `given_back` of `sources`."""
        for row in found:
            back = rows.given_back(row)
            self._by_number[row[0]].given_back[back.key] = back

    def drawn(self) -> Find:
        """The question for the grants on which the sources drew, or from which they were taken back."""
        places = {
            (source.account, number)
            for need in self._needs
            if need.source and (source := self.records[need.merchant_id].firsts.get(need.source)) is not None
            for number, _ in (*source.draws, *self._taken(need))
        }
        return Find(tables.grants, ("account", "number"), places)

    def _taken(self, need: Needs) -> Sequence[Draw]:
        given = self.records[need.merchant_id].given_back.get(need.source or "")
        return () if given is None else given.taken

    def found_drawn(self, found: Iterable[Row]) -> None:
        """Take the rows of the grants of `drawn`."""
        for row in found:
            grant = rows.grant(row)
            self._by_number[row[0]].known_grants[grant.number] = grant

    def _transaction(self, row: Row) -> Transaction:
        account = self._by_number[row[0]].account
        assert account is not None, "a transaction has an account"
        return rows.transaction(account.merchant_id, row)

    @property
    def granted(self) -> dict[int, int]:
        """The accounts that existed before, with the number of their last grant."""
        return {account.number: account.granted for account in self.accounts.values()}

    def loaded(self, now: int) -> Loaded:
        """All that was loaded, to be decided on at this time."""
        return Loaded(now, self.records)


def open_grants(found: Iterable[Row]) -> dict[int, tuple[Grant, ...]]:
    """Open grants by account, in burn-down order."""
    grants: dict[int, list[Grant]] = {}
    for row in found:
        grants.setdefault(row[0], []).append(rows.grant(row))
    return {number: tuple(sorted(some, key=burn_down_order)) for number, some in grants.items()}
