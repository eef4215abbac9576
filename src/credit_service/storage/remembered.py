"""What this process itself wrote last of accounts, so that the next posting need not read it again.

On PostgreSQL it is no more than a good guess, since another process may have posted meanwhile: whoever decides on it
writes on the condition that each account's row still is the version that was remembered, which the database judges in
the very statement that writes. On SQLite it is known, since nobody else may write; who does all the same is noticed.
Either way the truth stays in the database. Why that is safe is said in docs/decisions/0026.

What is decided is remembered before it is committed, so that what follows can be decided meanwhile (0029): a `Commit`
says what became of it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple
from uuid import UUID

from credit_service.ledger.account import Account, Grant
from credit_service.ledger.decide import Needs
from credit_service.storage.engine import Record

_GRANTS: Final = 50
"""So many open grants are remembered, and no account that has more: the memory of a process has an end."""


class Commit:
    """What became of one posting: `version` is that of the rows it wrote, once they are committed.

    `lost`: that is not known, and never will be; nothing may rest on it.
    """

    __slots__ = ("lost", "version")

    def __init__(self, version: int | None = None) -> None:
        self.version = version
        self.lost = False

    def is_to_be_believed(self, *, pending: bool) -> bool:
        """Whether it is committed, or, with `pending`, may still be."""
        return self.version is not None or (pending and not self.lost)


class Recalled(NamedTuple):
    """An account that has nothing parked, with its open grants, and the posting that wrote it."""

    commit: Commit
    account: Account
    grants: tuple[Grant, ...]


class Remembered:
    """The accounts that were written last, `size` at most (2 to 3 kB each)."""

    def __init__(self, size: int = 10_000) -> None:
        self._size = size
        self._accounts: dict[int, Recalled] = {}  # by `UUID.int`, which is looked up in a third of the time

    def recall(self, needs: Sequence[Needs], *, pending: bool = False) -> dict[int, Recalled]:
        """By `UUID.int` those of the merchants whose accounts are remembered, and of whom nothing else is needed.

        Nobody remembers transactions: whether a key was used is for the database to say. `pending`: also what is not
        committed yet.
        """
        found: dict[int, Recalled] = {}
        more: list[int] = []
        for need in needs:
            merchant = need.merchant_id.int
            if need.source is not None or need.trial or need.overdue:
                more.append(merchant)
            elif merchant not in found:
                recalled = self._accounts.get(merchant)
                if recalled is not None and recalled.commit.is_to_be_believed(pending=pending):
                    found[merchant] = recalled
        for merchant in more:
            found.pop(merchant, None)
        return found

    def keep(self, records: Iterable[tuple[UUID, Record]], written: Mapping[int, Account], commit: Commit) -> None:
        """Remember what this posting writes: its accounts, by number."""
        accounts = self._accounts
        for merchant_id, record in records:
            account = written.get(record.number)
            if account is None:
                continue
            accounts.pop(merchant_id.int, None)  # the one that was written last stands last
            if account is record.account and not record.parked and len(record.grants) <= _GRANTS:
                accounts[merchant_id.int] = Recalled(commit, account, record.grants)
        while len(accounts) > self._size:
            del accounts[next(iter(accounts))]

    def clear(self) -> None:
        """Remember nothing: somebody else may have written, or it may be another database."""
        self._accounts.clear()
