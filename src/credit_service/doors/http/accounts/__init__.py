"""The endpoints of accounts, one file for each."""

from credit_service.doors.http.accounts.balance import get_balance
from credit_service.doors.http.accounts.change import change_terms
from credit_service.doors.http.accounts.erase import erase_merchant
from credit_service.doors.http.accounts.fail_policy import drop_fail_policy, get_fail_policy, set_fail_policy
from credit_service.doors.http.accounts.get import get_account
from credit_service.doors.http.accounts.grants import list_grants
from credit_service.doors.http.accounts.list import list_accounts
from credit_service.doors.http.accounts.open import open_account
from credit_service.doors.http.accounts.stats import get_stats

ENDPOINTS = (
    open_account,
    list_accounts,
    get_account,
    change_terms,
    get_balance,
    get_stats,
    list_grants,
    get_fail_policy,
    set_fail_policy,
    drop_fail_policy,
    erase_merchant,
)
