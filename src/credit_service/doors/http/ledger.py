"""The ledger as endpoints read it: accounts as they stand at an instant, and their transactions."""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from credit_service.doors.http.problems import Problem
from credit_service.ledger.account import Account
from credit_service.ledger.commands import Settle
from credit_service.ledger.policy import Policy
from credit_service.ledger.settle import Standing, standing_at
from credit_service.messages.fields import merchant_text
from credit_service.posting import Posting
from credit_service.storage.accounts import Accounts, LoadedAccount
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
        """A merchant's account once all that is due by now is posted. Raises as `load` and `submit`."""
        account = (await self.load(merchant_id, now)).account
        if account.next_due_at is not None and account.next_due_at <= now:
            await posting.submit(Settle(merchant_id=account.merchant_id, key=""))
            account = (await self.load(merchant_id, now)).account
        return account

    def standing(self, loaded: LoadedAccount, at: int) -> Standing:
        """An account as it stands at an instant (L7)."""
        return standing_at(loaded.account, loaded.grants, self.policy, at)


def no_account() -> Problem:
    """The problem of a merchant without an account."""
    return Problem("account_not_found", "This merchant has no account.")
