"""Read one transaction."""

from credit_service.doors.http import api
from credit_service.doors.http.transactions.shared import TRANSACTIONS, TransactionShape
from credit_service.ledger.account import Transaction
from credit_service.ledger.addresses import parse
from credit_service.messages import shapes
from credit_service.messages.fields import Uuid, uuid


@api.endpoint(
    "GET",
    TRANSACTIONS + "/{transaction_id}",
    scope="read",
    tag="transactions",
    answers=api.one(TransactionShape),
    problems=("transaction_not_found",),
)
async def get_transaction(transaction_id: Uuid, call: api.Call, ledger: api.Ledger) -> api.Answer:
    """Read one transaction."""
    found = await found_transaction(transaction_id, ledger)
    return api.answer(call, await ledger.now(), shapes.transaction(found))


async def found_transaction(transaction_id: str, ledger: api.Ledger) -> Transaction:
    """The transaction of this id. Raises Problem if there is none."""
    address = parse(uuid(transaction_id))
    found = None if address is None else await ledger.transactions.get(address)
    if found is None:
        raise api.Problem("transaction_not_found", "There is no transaction of this id.")
    return found
