"""Read one transaction."""

from credit_service.doors.http.answers import answer, one
from credit_service.doors.http.call import Answer, Call
from credit_service.doors.http.endpoints import endpoint
from credit_service.doors.http.ledger import Ledger
from credit_service.doors.http.problems import Problem
from credit_service.doors.http.transactions.shared import TRANSACTIONS, TransactionShape
from credit_service.ledger.addresses import parse
from credit_service.messages import shapes
from credit_service.messages.fields import Uuid, uuid


@endpoint(
    "GET",
    TRANSACTIONS + "/{transaction_id}",
    scope="read",
    tag="transactions",
    answers=one(TransactionShape),
    problems=("transaction_not_found",),
)
async def get_transaction(transaction_id: Uuid, call: Call, ledger: Ledger) -> Answer:
    """Read one transaction."""
    address = parse(uuid(transaction_id))
    found = None if address is None else await ledger.transactions.get(address)
    if found is None:
        raise Problem("transaction_not_found", "There is no transaction of this id.")
    return answer(call, await ledger.now(), shapes.transaction(found))
