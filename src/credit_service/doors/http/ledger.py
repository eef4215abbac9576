"""The ledger as endpoints read it: accounts as they stand at an instant, and their transactions."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple

from credit_service.doors.http.problems import Problem
from credit_service.ledger.account import Account
from credit_service.ledger.commands import Settle
from credit_service.ledger.policy import Policy
from credit_service.ledger.settle import Standing, standing_at
from credit_service.messages.fields import merchant_text
from credit_service.posting import DeadlineExceeded, Overloaded, Posting
from credit_service.storage.accounts import Accounts, LoadedAccount
from credit_service.storage.engine import StorageError
from credit_service.storage.transactions import Transactions


class Ledger(NamedTuple):
    """See the module. `now` is the database's clock, in microseconds since 1970."""

    now: Callable[[], Awaitable[int]]
    accounts: Accounts
    transactions: Transactions
    policy: Policy

    async def load(self, merchant_id: str, at: int) -> LoadedAccount:
        """A merchant's account, with its grants if something is due by `at`. Raises Problem if there is none."""
        merchant = merchant_text(merchant_id)
        loaded = (await self.accounts.load([merchant], at)).get(merchant)
        if loaded is None:
            raise no_account()
        return loaded

    async def settled(self, posting: Posting, merchant_id: str, now: int) -> Account:
        """A merchant's account once all that is due by now is posted, if that is possible. Raises as `load`."""
        account = (await self.load(merchant_id, now)).account
        if await settle_due(posting, account.merchant_id, account.next_due_at, now):
            account = (await self.load(merchant_id, now)).account
        return account

    def standing(self, loaded: LoadedAccount, at: int) -> Standing:
        """An account as it stands at an instant (L7)."""
        return standing_at(loaded.account, loaded.grants, self.policy, at)


async def settle_due(posting: Posting, merchant_id: str, due_at: int | None, now: int) -> bool:
    """Post what is due in an account by now; whether that was necessary and possible.

    A read must not fail because nothing can be written: then it shows what was posted by now.
    """
    if due_at is None or due_at > now:
        return False
    with suppress(StorageError, Overloaded, DeadlineExceeded):
        await posting.submit(Settle(merchant_id=merchant_id, key=""))
        return True
    return False


def no_account() -> Problem:
    """The problem of a merchant without an account."""
    return Problem("account_not_found", "This merchant has no account.")
