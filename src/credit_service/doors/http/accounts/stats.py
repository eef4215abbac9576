"""Read the sums of an account's postings."""

from typing import Annotated

from pydantic import BaseModel, Field

from credit_service.doors.http import api
from credit_service.doors.http.accounts.shared import ACCOUNT, MISSING, MerchantId
from credit_service.messages.fields import format_time, parse_time
from credit_service.posting import Posting


class TypeTotalShape(BaseModel):
    """The sums of one transaction type."""

    transaction_count: int
    total_increases: int
    total_decreases: int


class StatsShape(BaseModel):
    """Sums of credits, and the number of transactions: opening_balance + increases - decreases = closing_balance."""

    merchant_id: api.MerchantText
    opening_balance: Annotated[int, Field(examples=[0])]
    closing_balance: Annotated[int, Field(examples=[75])]
    total_increases: Annotated[int, Field(examples=[100])]
    total_decreases: Annotated[int, Field(examples=[25])]
    transaction_count: Annotated[int, Field(examples=[2])]
    last_transaction_at: api.Instant | None
    by_type: Annotated[
        dict[str, TypeTotalShape],
        Field(
            examples=[
                {
                    "TRIAL": {"transaction_count": 1, "total_increases": 100, "total_decreases": 0},
                    "USAGE": {"transaction_count": 1, "total_increases": 0, "total_decreases": 25},
                }
            ]
        ),
    ]


@api.endpoint("GET", ACCOUNT + "/stats", scope="read", tag="accounts", answers=api.one(StatsShape), problems=MISSING)
async def get_stats(
    merchant_id: MerchantId,
    call: api.Call,
    ledger: api.Ledger,
    posting: Posting,
    start_date: api.Since = None,
    end_date: api.Until = None,
) -> api.Answer:
    """Read the sums of credits by direction and transaction type, of the whole history or of a period.

    An expiry is dated by its instant, every other transaction by its posting. What is dated at the start of a period
    belongs to it, what is dated at its end to the next one.
    """
    now = await ledger.now()
    account = await ledger.settled(posting, merchant_id, now)
    opening, by_type, last_at = 0, account.by_type, account.last_transaction_at
    if start_date is not None or end_date is not None:
        start_at = None if start_date is None else parse_time(start_date)
        end_at = None if end_date is None else parse_time(end_date)
        opening, totals = await ledger.transactions.totals(account.number, start_at, end_at)
        by_type = {type_: (total.transactions, total.added, total.taken) for type_, total in totals.items()}
        last_at = max((total.last_at for total in totals.values()), default=None)
    increases = sum([added for _, added, _ in by_type.values()])
    decreases = sum([taken for _, _, taken in by_type.values()])
    shape = {
        "merchant_id": str(account.merchant_id),
        "opening_balance": opening,
        "closing_balance": opening + increases - decreases,
        "total_increases": increases,
        "total_decreases": decreases,
        "transaction_count": sum([count for count, _, _ in by_type.values()]),
        "last_transaction_at": None if last_at is None else format_time(last_at),
        "by_type": {
            type_: {"transaction_count": count, "total_increases": added, "total_decreases": taken}
            for type_, (count, added, taken) in sorted(by_type.items())
        },
    }
    return api.answer(call, now, shape)
