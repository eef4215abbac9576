"""The accounts that this process wrote last, so that the next posting need not load them.

On PostgreSQL they are a good guess, since another process may have posted meanwhile: a posting that is decided on them
is written only if each account's row still has the version that is known, which the database judges in the statement
that writes. On SQLite they are certain: no other process posts, and a change by another program is noticed. Either way
the truth is in the database (docs/decisions/0026).

Accounts are noted as soon as they are decided, before the commit, so that the next batch can be decided meanwhile
(docs/decisions/0029); `CommitState` says what became of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from credit_service.ledger.account import Account, Grant
from credit_service.ledger.decide import Needs
from credit_service.storage.engine import Record

_GRANTS: Final = 50
"""An account with more open grants is not kept: the memory of a process is limited."""


class CommitState:
    """What became of a posting: `version` is the version of the rows it wrote, None until it is committed.

    `lost`: the commit failed or its answer was lost, so nothing may rest on it.
    """

    __slots__ = ("lost", "version")

    def __init__(self, version: int | None = None) -> None:
        self.version = version
        self.lost = False

    def may_be_used(self, *, pending: bool) -> bool:
        """Whether it is committed; with `pending`, also if it may still be."""
        return self.version is not None or (pending and not self.lost)


STORED: Final = CommitState(0)
"""The state of what the database itself told."""


class RecentAccount(NamedTuple):
    """An account without parked refunds, its open grants, and the state of the posting that wrote it."""

    commit: CommitState
    account: Account
    grants: tuple[Grant, ...]


class RecentAccounts:
    """The accounts that were written last, at most `size` (2 to 3 kB each)."""

    def __init__(self, size: int = 10_000) -> None:
        self._size = size
        self._accounts: dict[str, RecentAccount] = {}  # by merchant

    def find(self, needs: Sequence[Needs], *, pending: bool = False) -> dict[str, RecentAccount]:
        """The recent accounts of these merchants, without merchants for whom more must be loaded.

        Transactions are never kept: whether a key was used, only the database can say. `pending`: also accounts whose
        commit is under way.
        """
        found: dict[str, RecentAccount] = {}
        more: list[str] = []
        for need in needs:
            merchant = need.merchant_id
            if need.source is not None or need.trial or need.overdue:
                more.append(merchant)
            elif merchant not in found:
                recent = self._accounts.get(merchant)
                if recent is not None and recent.commit.may_be_used(pending=pending):
                    found[merchant] = recent
        for merchant in more:
            found.pop(merchant, None)
        return found

    def note(self, records: Iterable[tuple[str, Record]], written: Mapping[int, Account], commit: CommitState) -> None:
        """Keep the accounts that a posting writes, which are given by number."""
        accounts = self._accounts
        for merchant_id, record in records:
            account = written.get(record.number)
            if account is None:
                continue
            accounts.pop(merchant_id, None)  # so that the one written last stands last
            if account is record.account and not record.parked and len(record.grants) <= _GRANTS:
                accounts[merchant_id] = RecentAccount(commit, account, record.grants)
        while len(accounts) > self._size:
            del accounts[next(iter(accounts))]

    def clear(self) -> None:
        """Forget all: another program may have written, or it may be another database."""
        self._accounts.clear()
