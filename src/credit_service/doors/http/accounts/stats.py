"""Read the sums of an account's postings."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, Field

from credit_service.doors.http import api
from credit_service.doors.http.accounts.shared import ACCOUNT, MISSING, MerchantId
from credit_service.ledger.account import Account, TypeTotal
from credit_service.messages.fields import format_time, parse_time
from credit_service.storage.transactions import TransactionQuery


class TypeTotalShape(BaseModel):
    """The sums of one transaction type."""

    transaction_count: int
    total_increases: int
    total_decreases: int


class StatsShape(BaseModel):
    """Sums of credits, and the number of transactions."""

    merchant_id: api.MerchantText
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
    start_date: api.Since = None,
    end_date: api.Until = None,
) -> api.Answer:
    """Read the sums of credits by direction and transaction type, of the whole history or of a period."""
    now = await ledger.now()
    loaded = await ledger.load(merchant_id, now)
    standing = ledger.standing(loaded, now).account
    if start_date is None and end_date is None:
        by_type, last_at = standing.by_type, standing.last_transaction_at
    else:
        by_type, last_at = await _period(ledger, loaded.account, standing, now, start_date, end_date)
    shape = {
        "merchant_id": str(loaded.account.merchant_id),
        "total_increases": sum(added for _, added, _ in by_type.values()),
        "total_decreases": sum(taken for _, _, taken in by_type.values()),
        "transaction_count": sum(count for count, _, _ in by_type.values()),
        "last_transaction_at": None if last_at is None else format_time(last_at),
        "by_type": {
            type_: {"transaction_count": count, "total_increases": added, "total_decreases": taken}
            for type_, (count, added, taken) in sorted(by_type.items())
        },
    }
    return api.answer(call, now, shape)


async def _period(
    ledger: api.Ledger, stored: Account, standing: Account, now: int, start_date: str | None, end_date: str | None
) -> tuple[Mapping[str, TypeTotal], int | None]:
    """The sums of a period. Expiries that no posting has settled yet count as if one settled them now (L7)."""
    start_at = None if start_date is None else parse_time(start_date)
    end_at = None if end_date is None else parse_time(end_date)
    found = await ledger.transactions.totals(TransactionQuery(account=stored.number, start_at=start_at, end_at=end_at))
    by_type = {type_: (total.transactions, total.added, total.taken) for type_, total in found.items()}
    last_at = max((total.last_at for total in found.values()), default=None)
    is_now_inside = (start_at is None or start_at <= now) and (end_at is None or now < end_at)
    if standing.sequence > stored.sequence and is_now_inside:
        for type_, total in standing.by_type.items():
            before = stored.by_type.get(type_, (0, 0, 0))
            inside = by_type.get(type_, (0, 0, 0))
            if total != before:
                by_type[type_] = _sum(inside, total, before)
        last_at = now
    return by_type, last_at


def _sum(inside: TypeTotal, total: TypeTotal, before: TypeTotal) -> TypeTotal:
    return (inside[0] + total[0] - before[0], inside[1] + total[1] - before[1], inside[2] + total[2] - before[2])
