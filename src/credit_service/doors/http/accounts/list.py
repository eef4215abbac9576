"""List accounts."""

from typing import Annotated, Any

from pydantic import Field

from credit_service.doors.http import api
from credit_service.doors.http.accounts.shared import ACCOUNTS, AccountShape, account_shape
from credit_service.ledger.account import MAX_CREDITS, AccountState, Status
from credit_service.storage.accounts import AccountQuery

Balance = Annotated[int, Field(ge=-MAX_CREDITS, le=MAX_CREDITS), api.WHOLE]
_PARTS, _BYTES = 10, 7
"""The numbers in the place of a merchant, and the bytes of its id in each of them."""


@api.endpoint(
    "GET", ACCOUNTS, scope="read", tag="accounts", answers=api.page_of(AccountShape), problems=("cursor_invalid",)
)
async def list_accounts(
    call: api.Call,
    ledger: api.Ledger,
    status: Status | None = None,
    state: AccountState | None = None,
    min_balance: Balance | None = None,
    max_balance: Balance | None = None,
    limit: api.Limit = None,
    cursor: api.Cursor = None,
) -> api.Answer:
    """List accounts by merchant_id."""
    pager = api.Pager(call, limit, list="accounts", status=status, state=state, min=min_balance, max=max_balance)
    place = pager.place(cursor, _PARTS)
    after = None if place is None else _merchant(place)
    now = await ledger.now()
    query = AccountQuery(now, ledger.policy.default_threshold, status, min_balance, max_balance, state)
    found: list[dict[str, Any]] = []
    while len(found) <= pager.limit:
        some = await ledger.accounts.page(query, after, pager.limit + 1)
        found += [shape for shape in (account_shape(ledger, one, now) for one in some) if _matches(shape, query)]
        if len(some) <= pager.limit:
            break
        after = some[-1].account.merchant_id
    return pager.page(now, found, lambda shape: shape, _place, has_previous=cursor is not None)


def _matches(shape: dict[str, Any], query: AccountQuery) -> bool:
    """Whether an account matches as it stands now: the store also lists every account that is due."""
    return (
        query.status in (None, shape["status"])
        and (query.min_balance is None or shape["balance"] >= query.min_balance)
        and (query.max_balance is None or shape["balance"] <= query.max_balance)
    )


def _place(shape: dict[str, Any]) -> api.Place:
    merchant = shape["merchant_id"].encode().ljust(_PARTS * _BYTES, b"\0")
    return tuple([int.from_bytes(merchant[start : start + _BYTES], "big") for start in range(0, len(merchant), _BYTES)])


def _merchant(place: api.Place) -> str:
    return b"".join([part.to_bytes(8, "big")[-_BYTES:] for part in place]).rstrip(b"\0").decode("latin-1")
