"""The endpoints that post and read transactions, one file for each. `posting` turns a body into a command."""

from credit_service.doors.http.transactions.adjust import adjust_credits
from credit_service.doors.http.transactions.batch import post_transactions
from credit_service.doors.http.transactions.check import check_credits
from credit_service.doors.http.transactions.get import get_transaction
from credit_service.doors.http.transactions.list import list_transactions
from credit_service.doors.http.transactions.post import post_transaction
from credit_service.doors.http.transactions.prices import get_prices

ENDPOINTS = (
    get_transaction,
    list_transactions,
    post_transaction,
    post_transactions,
    adjust_credits,
    check_credits,
    get_prices,
)
