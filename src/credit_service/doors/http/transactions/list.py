"""List transactions of a merchant, or of all."""

from typing import Annotated, Any

from fastapi import Query
from pydantic import Field

from credit_service.doors.http import api
from credit_service.doors.http.transactions.shared import TRANSACTIONS, TransactionShape
from credit_service.ledger.types import Operation, TransactionType
from credit_service.messages import patterns, shapes
from credit_service.messages.faults import Fault
from credit_service.messages.fields import MAX_KEY, merchant_text, parse_time
from credit_service.posting import Posting
from credit_service.storage.transactions import TransactionQuery

PageNumber = Annotated[int, Field(ge=1, le=10**9), api.WHOLE]


@api.endpoint(
    "GET",
    TRANSACTIONS,
    scope="read",
    tag="transactions",
    answers=api.page_of(TransactionShape),
    problems=("account_not_found", "cursor_invalid"),
)
async def list_transactions(
    call: api.Call,
    ledger: api.Ledger,
    posting: Posting,
    merchant_id: Annotated[str | None, Query(pattern=patterns.MERCHANT)] = None,
    operation_type: Operation | None = None,
    transaction_type: TransactionType | None = None,
    start_date: api.Since = None,
    end_date: api.Until = None,
    reference_type: Annotated[str | None, Query(min_length=1, max_length=MAX_KEY)] = None,
    reference_id: Annotated[str | None, Query(min_length=1, max_length=MAX_KEY)] = None,
    limit: api.Limit = None,
    page: Annotated[PageNumber | None, Query(description="With merchant_id.")] = None,
    cursor: api.Cursor = None,
) -> api.Answer:
    """List transactions, newest first. With merchant_id by page or cursor, without it by cursor."""
    _check_way(merchant_id, page, cursor)
    filters: dict[str, Any] = {
        "operation": operation_type,
        "type": transaction_type,
        "start_at": None if start_date is None else parse_time(start_date),
        "end_at": None if end_date is None else parse_time(end_date),
        "reference_type": reference_type,
        "reference_id": reference_id,
    }
    merchant = None if merchant_id is None else merchant_text(merchant_id)
    pager = api.Pager(call, limit, list="transactions", merchant=merchant, **filters)
    transactions = ledger.transactions
    before = pager.place(cursor, 1 if merchant_id else transactions.lanes)
    now = await ledger.now()
    query = TransactionQuery(merchant_id=merchant, **filters)
    total, offset = None, 0
    if merchant_id is not None and page is not None:
        account, skipped = await ledger.settled(posting, merchant_id, now), (page - 1) * pager.limit
        if all(one is None for one in filters.values()):
            # Sequences have no gaps, so the start of a page is arithmetic, and the last page costs what the first does.
            total, before = account.sequence, (account.sequence + 1 - skipped,)
        else:
            total, offset = await transactions.count(query._replace(account=account.number)), skipped
    found = await transactions.page(query, before, pager.limit + 1, offset)
    # What time did is listed as soon as it counts, so that the list agrees with balance and stats (L7).
    first = found[0] if found and page is None and cursor is None else None
    if first is not None and await api.settle_due(posting, first.transaction.merchant_id, first.due_at, now):
        found = await transactions.page(query, before, pager.limit + 1, offset)
    if merchant_id is not None and not found:
        await ledger.load(merchant_id, now)  # raises Problem if there is no account
    return pager.page(
        now,
        found,
        lambda entry: shapes.transaction(entry.transaction),
        lambda entry: entry.position,
        has_previous=cursor is not None or (page or 1) > 1,
        number=page,
        total=total,
    )


def _check_way(merchant_id: str | None, page: int | None, cursor: str | None) -> None:
    """Raise Problem unless there is one way through the list."""
    if page is not None and cursor is not None:
        raise api.of_faults([Fault("/query/page", "not_allowed", "Give page or cursor, not both.")])
    if page is not None and merchant_id is None:
        raise api.of_faults([Fault("/query/page", "not_allowed", "Without merchant_id, go on by cursor.")])
