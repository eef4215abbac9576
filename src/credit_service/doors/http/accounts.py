"""Accounts, their balance and their grants."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel

from credit_service.doors.http.problems import Problem, of_refusal
from credit_service.doors.http.routes import (
    CallOf,
    Cursor,
    Limit,
    Links,
    MerchantId,
    Meta,
    Pagination,
    Parts,
    PartsOf,
    ProblemShape,
    answer,
    cursor_bytes,
    cursor_position,
    cursor_text,
    page,
    page_limit,
    respond,
    router,
)
from credit_service.ledger.account import MAX_CREDITS, Status
from credit_service.ledger.commands import OpenAccount, trial_key
from credit_service.ledger.draft import Posted
from credit_service.ledger.refusals import Refused
from credit_service.ledger.settle import Standing, standing_at
from credit_service.messages import shapes
from credit_service.messages.fields import Body, Uuid, format_time, uuid
from credit_service.storage.base import AccountQuery, Held

ACCOUNTS = "/credits/accounts"
ONE = ACCOUNTS + "/{merchant_id}"


class OpenBody(Body):
    """Whose account to open."""

    merchant_id: Uuid


class AccountShape(BaseModel):
    """One merchant's credits, with the terms in force."""

    id: str
    merchant_id: str
    balance: int
    held: int
    pending: int
    available: int
    status: Status
    low_threshold: int
    when_insufficient: Literal["overdraft", "partial", "reject"]
    overdraft_limit: int | None
    sequence: int
    last_transaction_id: str | None
    last_transaction_at: str | None
    created_at: str
    updated_at: str


class OneAccount(BaseModel):
    """An account."""

    data: AccountShape
    meta: Meta


class AccountPage(BaseModel):
    """A page of accounts, by merchant_id."""

    data: list[AccountShape]
    pagination: Pagination
    links: Links
    meta: Meta


class BalanceShape(BaseModel):
    """How much there is: available = balance - held - pending."""

    merchant_id: str
    balance: int
    held: int
    pending: int
    available: int
    as_of: str


class OneBalance(BaseModel):
    """A balance."""

    data: BalanceShape
    meta: Meta


class GrantShape(BaseModel):
    """What an INCREASE left to be spent."""

    id: str
    transaction_id: str
    category: Literal["paid", "promotional"]
    priority: int
    amount: int
    remaining: int
    effective_at: str
    expires_at: str | None


class GrantPage(BaseModel):
    """A page of open grants, in burn-down order."""

    data: list[GrantShape]
    pagination: Pagination
    links: Links
    meta: Meta


read, write = router("read"), router("write")
_tags: list[Any] = ["accounts"]
_missing: dict[int | str, dict[str, Any]] = {404: {"model": ProblemShape}}


async def standing(parts: Parts, merchant_id: str, now: int) -> tuple[Held, Standing]:
    """A merchant's account as stored and as it stands. Raises Problem where there is none."""
    held = (await parts.store.held([uuid(merchant_id)], now)).get(uuid(merchant_id))
    if held is None:
        raise Problem("account_not_found", "This merchant has no account.")
    return held, standing_at(held.account, held.grants, parts.policy, now)


def _shape(parts: Parts, held: Held, now: int) -> dict[str, Any]:
    standing = standing_at(held.account, held.grants, parts.policy, now)
    return shapes.account(standing, parts.policy, held.account.settled_at)


@write.post(
    ACCOUNTS,
    operation_id="open_account",
    status_code=201,
    response_model=OneAccount,
    tags=_tags,
    responses={200: {"model": OneAccount, "description": "It was open already"}},
)
async def open_account(body: OpenBody, call: CallOf, parts: PartsOf) -> Response:
    """Open a merchant's account and grant the trial; again is the same account, with the trial if it had none."""
    merchant_id = uuid(body.merchant_id)
    command = OpenAccount(
        merchant_id=merchant_id,
        key=trial_key(merchant_id),
        actor=call.actor,
        correlation_id=call.correlation_id,
    )
    outcome = await parts.posting.submit(command)
    if isinstance(outcome, Refused):
        raise of_refusal(outcome)
    now = await parts.store.now()
    held, _ = await standing(parts, body.merchant_id, now)
    opened = isinstance(outcome, Posted) and outcome.opened
    return respond(answer(call, now, _shape(parts, held, now), 201 if opened else 200))


@read.get(ACCOUNTS, operation_id="list_accounts", response_model=AccountPage, tags=_tags)
async def list_accounts(
    call: CallOf,
    parts: PartsOf,
    status: Status | None = None,
    min_balance: Annotated[int | None, Query(ge=-MAX_CREDITS, le=MAX_CREDITS)] = None,
    max_balance: Annotated[int | None, Query(ge=-MAX_CREDITS, le=MAX_CREDITS)] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """List accounts by merchant_id."""
    limit = page_limit(limit, parts.settings)
    now = await parts.store.now()
    bound = {"list": "accounts", "status": status, "min": min_balance, "max": max_balance}
    after = None if cursor is None else uuid(cursor_bytes(cursor, **bound).hex())
    query = AccountQuery(now, parts.policy.default_threshold, status, min_balance, max_balance)
    found: list[dict[str, Any]] = []
    while len(found) <= limit:
        some = await parts.store.accounts(query, after, limit + 1)
        found += [shape for shape in (_shape(parts, held, now) for held in some) if _matches(shape, query)]
        if len(some) <= limit:
            break
        after = some[-1].account.merchant_id
    more = len(found) > limit
    return page(
        call,
        now,
        found[:limit],
        limit=limit,
        next_cursor=cursor_text(uuid(found[limit - 1]["merchant_id"]).bytes, **bound) if more else None,
        has_previous=cursor is not None,
    )


def _matches(shape: dict[str, Any], query: AccountQuery) -> bool:
    """The store also lists accounts whose time has come; what became of them is known only now."""
    return (
        query.status in (None, shape["status"])
        and (query.min_balance is None or shape["balance"] >= query.min_balance)
        and (query.max_balance is None or shape["balance"] <= query.max_balance)
    )


@read.get(ONE, operation_id="get_account", response_model=OneAccount, tags=_tags, responses=_missing)
async def get_account(merchant_id: MerchantId, call: CallOf, parts: PartsOf) -> Response:
    """Read an account."""
    now = await parts.store.now()
    held, _ = await standing(parts, merchant_id, now)
    return respond(answer(call, now, _shape(parts, held, now)))


@read.get(ONE + "/balance", operation_id="get_balance", response_model=OneBalance, tags=_tags, responses=_missing)
async def get_balance(merchant_id: MerchantId, call: CallOf, parts: PartsOf) -> Response:
    """Read how much there is."""
    now = await parts.store.now()
    account = (await standing(parts, merchant_id, now))[1].account
    shape = {
        "merchant_id": str(account.merchant_id),
        "balance": account.balance,
        "held": account.held,
        "pending": account.pending,
        "available": account.available,
        "as_of": format_time(now),
    }
    return respond(answer(call, now, shape))


@read.get(ONE + "/grants", operation_id="list_grants", response_model=GrantPage, tags=_tags, responses=_missing)
async def list_grants(
    merchant_id: MerchantId, call: CallOf, parts: PartsOf, limit: Limit = 50, cursor: Cursor = None
) -> Response:
    """List the open grants, in the order in which they will be spent."""
    limit = page_limit(limit, parts.settings)
    now = await parts.store.now()
    held, _ = await standing(parts, merchant_id, now)
    bound = {"list": "grants", "merchant": merchant_id.lower()}
    start = 0 if cursor is None else cursor_position(cursor, **bound)
    stored = tuple(await parts.store.grants(held.account.number))
    grants = standing_at(held.account, stored, parts.policy, now).grants
    more = len(grants) > start + limit
    return page(
        call,
        now,
        [shapes.grant(held.account, grant) for grant in grants[start : start + limit]],
        limit=limit,
        next_cursor=cursor_text(start + limit, **bound) if more else None,
        has_previous=start > 0,
    )


ROUTERS: tuple[APIRouter, ...] = (read, write)
