"""The endpoints of accounts, one file for each."""

from credit_service.doors.http.accounts import (
    balance,
    change,
    erase,
    fail_policy,
    get,
    grants,
    list,
    open,
    state,
    stats,
    void,
)
from credit_service.doors.http.endpoints import declared_in

ENDPOINTS = declared_in(open, list, get, change, balance, stats, grants, void, state, fail_policy, erase)
